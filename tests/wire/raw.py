"""What a client sends, byte by byte: any frame, right or wrong, and the request of a good call."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from wire.application import ECHO

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20
# Error codes (RFC 9113 section 7).
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(6, 12)
# Settings (section 6.5.2).
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6
MAX_WINDOW = (1 << 31) - 1

Field = tuple[bytes, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame (RFC 9113 section 4.1), right or wrong."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def headers(stream: int, block: bytes, *, end: bool = False, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags | (END_STREAM if end else 0), stream, block)


def continuation(stream: int, block: bytes, *, flags: int = END_HEADERS) -> bytes:
    return frame(CONTINUATION, flags, stream, block)


def data(stream: int, payload: bytes, *, end: bool = False, padding: int | None = None) -> bytes:
    """DATA, with `padding` bytes of padding (and their length byte) when that is not None."""
    flags = END_STREAM if end else 0
    if padding is None:
        return frame(DATA, flags, stream, payload)
    return frame(DATA, flags | PADDED, stream, bytes([padding]) + payload + bytes(padding))


def settings(values: Mapping[int, int] | Iterable[tuple[int, int]] = (), *, ack: bool = False) -> bytes:
    pairs = values.items() if isinstance(values, Mapping) else values
    return frame(SETTINGS, ACK if ack else 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last: int = 0, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def priority(stream: int, depends_on: int = 0, weight: int = 15) -> bytes:
    return frame(PRIORITY, 0, stream, struct.pack(">IB", depends_on, weight))


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message: its compressed flag, its length (or a lie about it), itself."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def fields(path: bytes = ECHO, metadata: Iterable[Field] = ()) -> list[Field]:
    """The header list of a good gRPC request."""
    return [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *metadata,
    ]  # fmt: skip


def literals(of: Iterable[Field]) -> bytes:
    """A header block of literals without indexing (RFC 7541 section 6.2.2): it touches no table."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in of)


def _string(text: bytes) -> bytes:
    """A string literal without Huffman coding, its length as an integer with a prefix of 7 bits."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    length, rest = bytearray([127]), len(text) - 127
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes(length) + bytes([rest]) + text


def request(
    stream: int, message: bytes = b"", path: bytes = ECHO, metadata: Iterable[Field] = (), *, end: bool = True
) -> bytes:
    """The frames of a good call with one message."""
    return headers(stream, literals(fields(path, metadata))) + data(stream, framed(message), end=end)
