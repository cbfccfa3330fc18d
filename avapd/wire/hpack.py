"""HPACK for a server (RFC 7541): requests in every form a client may choose, answers in the plainest.

The first version: complete, not yet fast. The interface stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from avapd.wire import huffman
from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.hpack_tables import STATIC, Field

_OVERHEAD: Final = 32
_DYNAMIC: Final = len(STATIC) + 1
SIZE_UPDATE_ZERO: Final = b"\x20"

Inserts = tuple[Field, ...]


class Block:
    """A decoded header block. Its fields are not validated."""

    __slots__ = ("fields", "inserts", "portable")

    def __init__(self, fields: tuple[Field, ...], inserts: Inserts, portable: bool) -> None:
        self.fields = fields
        self.inserts = inserts
        self.portable = portable

    @property
    def size(self) -> int:
        """The size of the list (RFC 9113 section 6.5.2), in bytes. Computed each time."""
        return sum(len(name) + len(value) + _OVERHEAD for name, value in self.fields)


def _malformed(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, reason)


class Decoder:
    """The decoder of one connection: it holds the dynamic table that the client builds.

    After an error it must not be used again: the table is no longer the client's.
    """

    __slots__ = ("_limit", "_max_fields", "_max_list", "_max_size", "_table", "_used", "version")

    def __init__(self, max_size: int = 4096, max_list: int = 65536, max_fields: int = 512) -> None:
        self._max_size = self._limit = max_size
        self._max_list = max_list
        self._max_fields = max_fields
        self._table: list[Field] = [(b"", b""), *STATIC]
        self._used = 0
        self.version = 0

    def decode(self, block: bytes) -> Block:
        """The fields of a block. Raises ConnectionFault: COMPRESSION_ERROR; ENHANCE_YOUR_CALM for too long a list."""
        at = self._size_updates(block)
        portable = at == 0
        fields: list[Field] = []
        inserts: list[Field] = []
        size = 0
        while at < len(block):
            byte = block[at]
            index = 0
            if byte >= 0x80:
                index, at = _integer(block, at, 0x7F)
                field = self._entry(index)
            elif byte & 0x60 == 0x20:
                raise _malformed("a table size update inside a block")
            else:
                index, at = _integer(block, at, 0x3F if byte >= 0x40 else 0x0F)
                name, at = (self._entry(index)[0], at) if index else _string(block, at)
                value, at = _string(block, at)
                field = name, value
                if byte >= 0x40:
                    self._insert(field)
                    inserts.append(field)
            portable &= index < _DYNAMIC
            fields.append(field)
            size += len(field[0]) + len(field[1]) + _OVERHEAD
            if size > self._max_list or len(fields) > self._max_fields:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too long")
        return Block(tuple(fields), tuple(inserts), portable)

    def replay(self, inserts: Inserts) -> None:
        """Insert what a block inserted, without decoding it again."""
        for field in inserts:
            self._insert(field)

    def _entry(self, index: int) -> Field:
        if 0 < index < len(self._table):
            return self._table[index]
        raise _malformed("an index of no entry")

    def _insert(self, field: Field) -> None:
        self.version += 1
        self._table.insert(_DYNAMIC, field)
        self._used += len(field[0]) + len(field[1]) + _OVERHEAD
        self._evict()

    def _evict(self) -> None:
        while self._used > self._limit:
            name, value = self._table.pop()
            self._used -= len(name) + len(value) + _OVERHEAD

    def _size_updates(self, block: bytes) -> int:
        at = updates = 0
        while at < len(block) and block[at] & 0xE0 == 0x20:
            limit, at = _integer(block, at, 0x1F)
            updates += 1
            if limit > self._max_size or updates > 2:
                raise _malformed("a table size update too large, or one too many")
            self._limit = limit
            self.version += 1
            self._evict()
        return at


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer (RFC 7541 section 5.1) and where it ends."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in (0, 7, 14, 21, 28):
        if at == len(block):
            break
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            if number > 1 << 28:
                break
            return number, at
    raise _malformed("an integer that is cut off or too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string (RFC 7541 section 5.2) and where it ends."""
    if at == len(block):
        raise _malformed("a literal that is cut off")
    coded = block[at] >= 0x80
    length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise _malformed("a string that is cut off")
    data = block[at:end]
    if coded:
        try:
            data = huffman.decode(data)
        except ValueError as error:
            raise _malformed(f"Huffman: {error}") from None
    return data, end


def _length(number: int, mask: int, first: int) -> bytes:
    """An integer (RFC 7541 section 5.1) with the bits `first` above its prefix."""
    if number < mask:
        return bytes((first | number,))
    octets = bytearray((first | mask,))
    number -= mask
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


_INDEXED: Final = {field: bytes((0x80 | index,)) for index, field in enumerate(STATIC, 1) if field[1]}
_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}


def encode(fields: Iterable[Field]) -> bytes:
    """A block that needs no state and leaves none: static indexes, and literals without indexing and Huffman code."""
    parts = []
    for field in fields:
        indexed = _INDEXED.get(field)
        if indexed is not None:
            parts.append(indexed)
            continue
        name, value = field
        index = _NAMES.get(name)
        parts.append(_length(index, 0x0F, 0) if index else b"\0" + _length(len(name), 0x7F, 0) + name)
        parts += (_length(len(value), 0x7F, 0), value)
    return b"".join(parts)
