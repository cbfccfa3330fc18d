"""A client of single frames over a socket: it sends any bytes, calls in batches, and tells how each of them ended."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CODES = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
)  # fmt: skip
Field = tuple[bytes, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame (RFC 9113 section 4.1), right or wrong."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; the names are those of RFC 9113 section 6.5.2 in lower case."""
    names = ("header_table_size", "enable_push", "max_concurrent_streams", "initial_window_size", "max_frame_size")
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names.index(name) + 1, values[name]) for name in values))


class Ending(NamedTuple):
    """How a stream ended: `answer`, `RST_STREAM …`, `GOAWAY …`, `closed` or `silent`; what came on it until then."""

    end: str
    fields: tuple[Field, ...] = ()
    data: bytes = b""

    def field(self, name: bytes) -> bytes:
        """A header or trailer; empty when there is none."""
        return dict(self.fields).get(name, b"")


class Streams:
    """A connection with wide windows. `seconds` is how long nothing may come before the wait for an answer ends."""

    def __init__(self, port: int, *, seconds: float = 3.0, window: int = (1 << 31) - 1) -> None:
        self._seconds = seconds
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._decoder = hpack.Decoder()
        self.closed = False
        self.goaway = ""
        self.send(PREFACE + settings(initial_window_size=window) + frame(SETTINGS, ACK, 0))
        self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 65_536)))

    def send(self, octets: bytes) -> None:
        """Any bytes at all; a server that has hung up is no error."""
        with contextlib.suppress(OSError):
            self.socket.sendall(octets)

    def endings(self, streams: Sequence[int]) -> dict[int, Ending]:
        """How each of these streams ends, waiting for all of them."""
        waiting, done = dict.fromkeys(streams), {}
        headers: dict[int, list[Field]] = {number: [] for number in streams}
        data: dict[int, bytearray] = {number: bytearray() for number in streams}
        while waiting and not self.closed and self._more():
            for kind, flags, number, payload in self.frames():
                if number not in waiting:
                    continue
                end = ""
                if kind == HEADERS:
                    headers[number] += self._decoded(payload)
                elif kind == DATA:
                    data[number] += payload
                elif kind == RST_STREAM:
                    end = f"RST_STREAM {CODES[int.from_bytes(payload, 'big')]}"
                if kind in {HEADERS, DATA} and flags & END_STREAM:
                    end = "answer"
                if end:
                    done[number] = Ending(end, tuple(headers[number]), bytes(data[number]))
                    del waiting[number]
        for number in waiting:
            end = self.goaway if self.closed and self.goaway else "closed" if self.closed else "silent"
            done[number] = Ending(end, tuple(headers[number]), bytes(data[number]))
        return done

    def _more(self) -> bool:
        """Read what is there; False when nothing came in time."""
        try:
            received = self.socket.recv(1 << 18)
        except TimeoutError:
            return False
        except ConnectionError:
            received = b""
        self._buffer += received
        self.closed = not received
        return True

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """The whole frames that have come: type, flags, stream, payload. SETTINGS and GOAWAY are noted."""
        found, at, buffer = [], 0, bytes(self._buffer)
        while at + 9 <= len(buffer):
            end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if end > len(buffer):
                break
            kind, flags, number = struct.unpack_from(">BBI", buffer, at + 3)
            payload = buffer[at + 9 : end]
            if kind == GOAWAY:
                self.goaway = f"GOAWAY {CODES[int.from_bytes(payload[4:8], 'big')]}"
            found.append((kind, flags, number, payload))
            at = end
        del self._buffer[:at]
        return found

    def _decoded(self, block: bytes) -> list[Field]:
        return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]

    def read_to_end(self) -> bytes:
        """All that comes until the server closes. TimeoutError when it does not."""
        received = bytearray(self._buffer)
        self.socket.settimeout(self._seconds)
        with contextlib.suppress(ConnectionError):
            while more := self.socket.recv(1 << 18):
                received += more
        return bytes(received)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
