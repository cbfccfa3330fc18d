"""A raw HTTP/2 client for what grpcio refuses to send: nothing it sends is checked, all that comes back is told."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack

from support.server import KEY

GET = b"/avap.DefinitionEngine/GetCommand"
RIGHT_KEY = ((b"x-avap-auth", KEY.encode()),)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Headers = Iterable[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """What came back on a stream: headers and trailers in one, the data, and how it ended."""

    headers: dict[bytes, bytes]
    data: bytes
    end: str  # "complete", "reset", "goaway", "closed" or "silent"

    @property
    def code(self) -> int:
        """The gRPC status; -1 when there was none."""
        return int(self.headers.get(b"grpc-status", b"-1"))

    @property
    def message(self) -> str:
        """The gRPC message as it travelled, percent-encoded."""
        return self.headers.get(b"grpc-message", b"").decode()


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message: its compressed flag, its length (or a lie about it), itself."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113 section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class _PlainEncoder(hpack.Encoder):
    """Without Huffman coding, which takes minutes for 1 MiB."""

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:  # noqa: ARG002  # the base class has it
        return super().encode(headers, huffman=False)


class Raw:
    """One TCP connection. `seconds` bounds every wait for the server.

    `eager`: calls go out before the server's settings are known, so none of its limits counts yet (RFC 9113 section
    6.5.3).
    """

    def __init__(self, port: int, *, seconds: float = 10.0, eager: bool = False) -> None:
        self._eager = eager
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.encoder = _PlainEncoder()

    def call(
        self,
        path: bytes = GET,
        body: bytes = framed(b""),
        metadata: Headers = RIGHT_KEY,
        *,
        pseudo: Headers | None = None,
    ) -> Reply:
        """One call on a new stream: any path, any bytes as its body, any metadata; `pseudo` replaces the whole head."""
        head = pseudo or (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )  # fmt: skip
        headers: dict[bytes, bytes] = {}
        data = bytearray()
        try:
            if not self._h2.streams:
                self._open()
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [*head, *metadata], end_stream=False)
            self._h2.send_data(stream, body, end_stream=True)
            self.send(self._h2.data_to_send())
            end = self._receive(stream, headers, data)
        except h2.exceptions.ProtocolError:  # the server has said GOAWAY, and h2 takes nothing after it
            end = "goaway"
        return Reply(headers, bytes(data), end)

    def _open(self) -> None:
        self._h2.initiate_connection()
        self.send(self._h2.data_to_send())
        settled = self._eager
        while not settled:
            received = self.socket.recv(65536)
            events = self._h2.receive_data(received)
            settled = not received or any(isinstance(event, h2.events.RemoteSettingsChanged) for event in events)
            self.send(self._h2.data_to_send())  # the acknowledgement

    def _receive(self, stream: int, headers: dict[bytes, bytes], data: bytearray) -> str:
        """Fill in what comes on a stream until it ends; how it ended."""
        while True:
            try:
                received = self.socket.recv(65536)
            except TimeoutError:
                return "silent"
            except ConnectionError:
                received = b""
            if not received:
                return "closed"
            for event in self._h2.receive_data(received):
                if end := self._take(event, stream, headers, data):
                    return end
            self.send(self._h2.data_to_send())

    def _take(self, event: h2.events.Event, stream: int, headers: dict[bytes, bytes], data: bytearray) -> str:
        """Keep what an event brings for a stream; how the stream ended, if it did."""
        if isinstance(event, h2.events.ConnectionTerminated):
            return "goaway"
        if getattr(event, "stream_id", None) != stream:
            return ""
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                headers.update({bytes(name): bytes(value) for name, value in event.headers or ()})
            case h2.events.DataReceived():
                data += event.data or b""
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            case h2.events.StreamEnded():
                return "complete"
            case h2.events.StreamReset():
                return "reset"
        return ""

    def send(self, data: bytes) -> None:
        """Any bytes at all; a server that has hung up is no error."""
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def read_to_end(self, limit: int = 1 << 20) -> bytes:
        """All that comes until the server closes. TimeoutError when it does not."""
        received = b""
        while len(received) < limit:
            try:
                more = self.socket.recv(65536)
            except ConnectionError:
                break
            if not more:
                break
            received += more
        return received

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
