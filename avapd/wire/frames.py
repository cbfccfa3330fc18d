"""Frames (RFC 9113 sections 4 and 6): the constants, how each kind must look, and how to build one.

A frame is nine octets of head and a payload:

    +-----------------------------------------------+
    |                 Length (24)                   |
    +---------------+---------------+---------------+
    |   Type (8)    |   Flags (8)   |
    +-+-------------+---------------+-------------------------------+
    |R|                 Stream Identifier (31)                      |
    +=+=============================================================+

`HEAD` reads it in one call as three numbers: length << 8 | type, flags, R and stream identifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Final

from avapd.wire.errors import ConnectionFault, ErrorCode

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = Struct(">IBI")
HEAD_BYTES: Final = 9
MAX_ID: Final = 0x7FFF_FFFF
MAX_WINDOW: Final = 0x7FFF_FFFF
# What both ends may send until told otherwise (section 6.5.2). We never tell otherwise, and never send more.
MAX_FRAME: Final = 16_384
WINDOW: Final = 65_535
TABLE: Final = 4_096

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

_U32: Final = Struct(">I")
_ENTRY: Final = Struct(">HI")
_GOAWAY: Final = Struct(">II")

# type → (name, on a stream True · on stream 0 False · both None, least length, greatest length)
_RULES: Final[Mapping[int, tuple[str, bool | None, int, int]]] = {
    DATA: ("DATA", True, 0, MAX_FRAME),  # 6.1
    HEADERS: ("HEADERS", True, 0, MAX_FRAME),  # 6.2
    PRIORITY: ("PRIORITY", True, 5, 5),  # 6.3
    RST_STREAM: ("RST_STREAM", True, 4, 4),  # 6.4
    SETTINGS: ("SETTINGS", False, 0, MAX_FRAME),  # 6.5
    PING: ("PING", False, 8, 8),  # 6.7
    GOAWAY: ("GOAWAY", False, 8, MAX_FRAME),  # 6.8
    WINDOW_UPDATE: ("WINDOW_UPDATE", None, 4, 4),  # 6.9
    CONTINUATION: ("CONTINUATION", True, 0, MAX_FRAME),  # 6.10
}


def check_size(length: int) -> None:
    """Refuse a frame that is larger than we allow, by its head alone, before anything of it is kept (section 4.2)."""
    if length > MAX_FRAME:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame larger than SETTINGS_MAX_FRAME_SIZE")


def check(kind: int, length: int, stream: int) -> None:
    """Raise ConnectionFault unless a frame of this type may have this length and be on this stream."""
    rule = _RULES.get(kind)
    if rule is None:
        if kind == PUSH_PROMISE:  # 8.4: a client cannot push
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        return  # 4.1: unknown types are ignored
    name, on_stream, least, greatest = rule
    if on_stream is not None and on_stream != bool(stream):
        where = "stream 0" if on_stream else "a stream"
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{name} on {where}")
    if not least <= length <= greatest:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{name} of a wrong length")


def unpadded(payload: bytes, flags: int) -> bytes:
    """The payload of DATA or HEADERS without its padding (sections 6.1 and 6.2)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]


def number(payload: bytes) -> int:
    """The first 31 bits of a payload: a window increment or a stream identifier."""
    return int(_U32.unpack_from(payload)[0]) & MAX_ID


def entries(payload: bytes) -> list[tuple[int, int]]:
    """The (identifier, value) pairs of a SETTINGS payload, in order."""
    return list(_ENTRY.iter_unpack(payload))


def head(length: int, kind: int, flags: int) -> bytes:
    """The first five octets of a frame's head; the stream identifier follows."""
    return bytes((length >> 16, length >> 8 & 255, length & 255, kind, flags))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame; nothing is checked."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_ENTRY.pack(*entry) for entry in values.items()))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING with eight octets, or the answer to one."""
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY: `last` is the highest stream that was or will be processed."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last, code) + debug)


def rst_stream(stream: int, code: int) -> bytes:
    """An RST_STREAM."""
    return frame(RST_STREAM, 0, stream, _U32.pack(code))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _U32.pack(increment))
