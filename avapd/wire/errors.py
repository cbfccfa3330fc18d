"""What goes wrong on the wire, as exceptions that carry what must be answered (RFC 9113 section 5.4).

One place translates them: a ConnectionFault becomes GOAWAY and the end of the connection, a StreamFault RST_STREAM.
`debug` travels to the peer as GOAWAY's debug data: ASCII, and never anything the peer or a handler has written.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (RFC 9113 section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class WireError(Exception):
    """The peer did what it must not do: `code` says what kind of thing, `debug` says which."""

    def __init__(self, code: ErrorCode, debug: str) -> None:
        super().__init__(f"{code.name}: {debug}")
        self.code = code
        self.debug = debug


# "Fault", not "Error": ConnectionError is a name of Python's own, and of the operating system's making.
class ConnectionFault(WireError):  # noqa: N818
    """The connection cannot go on: GOAWAY(last processed stream, code, debug), then close (RFC 9113 section 5.4.1)."""


class StreamFault(WireError):  # noqa: N818
    """One stream cannot go on: RST_STREAM(code); the connection stays (RFC 9113 section 5.4.2)."""
