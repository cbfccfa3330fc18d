"""Reading a request message without a protobuf library.

The wire format (https://protobuf.dev/programming-guides/encoding/) is a row of fields: a varint tag (number << 3 |
type), then 0 varint · 1 eight bytes · 2 length and bytes · 3 and 4 a group's begin and end · 5 four bytes. What is
accepted and refused is what the protobuf library accepts and refuses: unknown fields are skipped, the last of a
repeated field wins, a string must be UTF-8. The library is the oracle in tests/data/test_request.py.
"""

from __future__ import annotations

from typing import Final

_MAX_DEPTH: Final = 100  # as in the C++ and upb parsers
_MAX_TAG: Final = (1 << 32) - 1


def name_in(request: bytes) -> str:
    """The `name` of a serialized CommandRequest. Raises ValueError when it is not one."""
    name = ""
    at = 0
    while at < len(request):
        tag, at = _tag(request, at)
        if tag >> 3 == 0:
            raise ValueError("bad field number")
        if tag == (1 << 3 | 2):
            start, at = _length(request, at)
            name = request[start:at].decode()  # UnicodeDecodeError is a ValueError
        else:
            at = _skip(request, at, tag, 0)
    return name


def check_empty(request: bytes) -> None:
    """Raise ValueError unless this is a serialized Empty, unknown fields included."""
    at = 0
    while at < len(request):
        tag, at = _tag(request, at)
        at = _skip(request, at, tag, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        if at >= len(data):
            raise ValueError("truncated")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("varint over ten bytes")


def _tag(data: bytes, at: int) -> tuple[int, int]:
    start = at
    tag, at = _varint(data, at)
    if at - start > 5 or tag > _MAX_TAG:
        raise ValueError("bad field number")
    return tag, at


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Start and end of a length-delimited field."""
    start = at
    length, at = _varint(data, at)
    if at - start > 5:
        raise ValueError("length over five bytes")
    if length > len(data) - at:
        raise ValueError("truncated")
    return at, at + length


def _skip(data: bytes, at: int, tag: int, depth: int) -> int:
    """The position after an unknown field."""
    match tag & 7:
        case 0:
            return _varint(data, at)[1]
        case 1:
            end = at + 8
        case 2:
            end = _length(data, at)[1]
        case 5:
            end = at + 4
        case 3:
            return _skip_group(data, at, tag, depth + 1)
        case _:
            raise ValueError("bad wire type")
    if end > len(data):
        raise ValueError("truncated")
    return end


def _skip_group(data: bytes, at: int, begin: int, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    while True:
        tag, at = _tag(data, at)
        if tag & 7 == 4:
            if tag >> 3 != begin >> 3:
                raise ValueError("group ends that did not begin")
            return at
        at = _skip(data, at, tag, depth)
