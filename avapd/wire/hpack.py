"""HPACK for a server (RFC 7541): requests in every form a client may choose, answers in the plainest.

What makes it fast, in the order of what it saves:

* The dynamic table and the static one are one list: an index is a place in it, and an index beyond the table is one
  beyond the list. A new entry goes behind the static ones; with 4096 bytes there are 128 entries at most, and moving
  them costs less than arithmetic on each look-up.
* A literal that names nothing in the dynamic table means the same wherever it stands, on every connection. `Memo` keeps
  those seen twice, under their bytes. Their fields are the same objects each time: tuples of them compare quickly.
* `Decoder.decode` knows the three forms that nearly all traffic is made of. The others, and whatever is odd about these
  three, go to `_representation`: plain, complete, and the twin that the tests hold `decode` against.
* A block that is answered from a memo inserts what it inserts all the same. `replay` only notes that; the table is
  brought up to date when it is next looked at, without what would have been evicted again meanwhile.

What an attacker gets: the memo is bounded (4 MB at worst), and new values do not push out those in use. Since all
connections share it, a literal that somebody sent before decodes a little faster, which tells who guesses a
credential that the whole of it is right, no more than the answer does. A decoded list is references, and strings
that together have at most 8/5 of the block's bytes: 64 KiB of block hold 105 KB, whatever they claim to expand to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar, cast

from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.hpack_tables import STATIC
from avapd.wire.hpack_tables import Field as Field  # noqa: PLC0414  # for those who import this module
from avapd.wire.huffman import decode as _huffman

SIZE_UPDATE_ZERO: Final = b"\x20"
_OVERHEAD: Final = 32  # what an entry counts besides its strings (RFC 7541 section 4.1), in bytes
_DYNAMIC: Final = len(STATIC) + 1
_LARGEST_INTEGER: Final = 1 << 28
_NOTED_ENTRIES: Final = 256  # of replays, until they are inserted

# By first byte (RFC 7541 section 6): how many bytes say which name a literal has. 1 or 2 are an index; 0: the name
# itself follows; -1: this is no literal, or one whose name can only be that of a dynamic entry.
_NAME_BYTES: Final = tuple(
    -1 if 0x20 <= byte < 0x40 or byte >= 0x7E else 0 if byte in {0x00, 0x10, 0x40} else 2 if byte in {0x0F, 0x1F} else 1
    for byte in range(256)
)
_NEWEST_NAME: Final = 0x40 | _DYNAMIC  # a literal with indexing that has the name of the newest entry

Inserts = tuple[Field, ...]  # what a block put into the dynamic table, oldest first
_Value = TypeVar("_Value")


class Memo(Generic[_Value]):
    """What bytes mean, for bytes that come again and again; bounded, and hard to poison.

    They are kept when seen for the second time while not many others were new. They live in two generations: a full
    young one becomes the old one, and what is still used of the old one returns to the young.
    """

    __slots__ = ("_entries", "_old", "_room", "_seen", "_size", "young")

    def __init__(self, entries: int = 4096, size: int = 1 << 20) -> None:
        """Of both generations together: `entries`, and `size`, the bytes of their keys."""
        self._entries = entries // 2
        self._size = self._room = size // 2
        self.young: dict[bytes, _Value] = {}
        self._old: dict[bytes, _Value] = {}
        self._seen: set[int] = set()

    def recall(self, key: bytes) -> _Value | None:
        """What the bytes mean, if that is known. Asking `young` before is quicker."""
        value = self.young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self._keep(key, value)
        return value

    def admit(self, key: bytes, value: _Value) -> None:
        """Keep what the bytes mean, unless they are seen for the first time."""
        mark = hash(key)
        if mark in self._seen:
            self._keep(key, value)
            return
        if len(self._seen) >= self._entries:
            self._seen.clear()
        self._seen.add(mark)

    def _keep(self, key: bytes, value: _Value) -> None:
        if len(self.young) >= self._entries or self._room < len(key):
            self._old = self.young
            self.young = {}
            self._room = self._size
        self.young[key] = value
        self._room -= len(key)


_LITERALS: Final[Memo[Field]] = Memo()
_NAMES: Final[Memo[bytes]] = Memo(512, 1 << 15)  # of literals that are new


class Block:
    """A decoded header block. Its fields are not validated.

    `portable`: it names nothing in the dynamic table and does not change the table's size, so that equal bytes mean
    equal fields, and insert equal entries, on every connection at any time. `at_most` is never less than `size`.
    """

    __slots__ = ("at_most", "fields", "inserts", "portable")

    def __init__(self, fields: tuple[Field, ...], inserts: Inserts, portable: bool, at_most: int) -> None:
        self.fields = fields
        self.inserts = inserts
        self.portable = portable
        self.at_most = at_most

    @property
    def size(self) -> int:
        """The size of the list in bytes (RFC 9113 section 6.5.2). Computed each time: ask `at_most` before."""
        return sum(map(_entry_size, self.fields))


class _Cursor(Protocol):
    """An iterator over bytes that can tell and change where it stands: a quarter faster than an index of our own."""

    def __iter__(self) -> Iterator[int]: ...
    def __next__(self) -> int: ...
    def __length_hint__(self) -> int: ...
    def __setstate__(self, at: int, /) -> None: ...


class Decoder:
    """The decoder of one connection: it holds the dynamic table that the client builds.

    `version` changes whenever the table does. After an error the decoder must not be used again: its table is not the
    client's any more.
    """

    __slots__ = (
        *("_limit", "_max_fields", "_max_list", "_max_size", "_noted", "_portable", "_replays", "_table", "_used"),
        *("_widest", "version"),
    )

    def __init__(self, max_size: int = 4096, max_list: int = 65536, max_fields: int = 512) -> None:
        """`max_size`: of the dynamic table. `max_list` (bytes) and `max_fields`: hard limits of a decoded list."""
        self.version = 0
        self._max_size = self._limit = max_size
        self._max_list = max_list
        self._max_fields = max_fields
        self._table: list[Field] = [(b"", b""), *STATIC]
        self._used = 0  # bytes of the dynamic entries
        self._widest = max(map(_entry_size, STATIC))  # of all entries there have been
        self._replays: list[Inserts] = []
        self._noted = 0  # entries in them
        self._portable = True  # the block in work, up to now

    def decode(self, block: bytes) -> Block:  # noqa: C901  # calls cost more than the branches
        """The fields of a block. Raises ConnectionFault: COMPRESSION_ERROR; ENHANCE_YOUR_CALM for too long a list."""
        if self._replays:
            self._settle()
        table, known = self._table, _LITERALS.young
        fields: list[Field] = []
        inserts: list[Field] = []
        self._portable = True
        end = len(block)
        cursor = cast("_Cursor", iter(block))
        # A step is a field, or all the size updates.
        steps = cursor if end <= self._max_fields else islice(cursor, self._max_fields + 2)
        try:
            for byte in steps:
                if byte >= 0xBE and byte != 0xFF:  # an index in one byte, of an entry
                    fields.append(table[byte - 0x80])
                    self._portable = False
                    continue
                if byte > 0x80 and byte != 0xFF:  # the same, static
                    fields.append(table[byte - 0x80])
                    continue
                at = end - cursor.__length_hint__() - 1
                name_bytes = _NAME_BYTES[byte]
                field = None
                if name_bytes >= 0:
                    value_at = at + name_bytes if name_bytes else at + 2 + (block[at + 1] & 0x7F)
                    literal = block[at : value_at + 1 + (block[value_at] & 0x7F)]
                    field = known.get(literal)
                    stop = at + len(literal)
                elif byte == _NEWEST_NAME:
                    length = block[at + 1]
                    stop = at + 2 + (length & 0x7F)
                    if stop <= end and length & 0x7F != 0x7F:
                        value = block[at + 2 : stop]
                        field = table[_DYNAMIC][0], _huffman(value) if length >= 0x80 else value
                        self._portable = False
                if field is None:
                    stop = self._representation(block, at, fields, inserts)
                else:
                    fields.append(field)
                    if byte >= 0x40:
                        inserts.append(field)
                        self._insert(field)
                cursor.__setstate__(stop)
        except (IndexError, ValueError) as error:
            raise _fault(error) from None
        at_most = len(fields) * self._widest + 2 * end  # each is an entry, or stands in the block
        if at_most > self._max_list or end > self._max_fields:
            self._check(fields)
        return Block(tuple(fields), tuple(inserts), self._portable, at_most)

    def replay(self, inserts: Inserts) -> None:
        """Insert what a block inserted, without decoding it again."""
        if inserts:
            self.version += 1
            self._replays.append(inserts)
            self._noted += len(inserts)
            if self._noted >= _NOTED_ENTRIES:
                self._settle()

    def _settle(self) -> None:
        """Insert what was noted, without what would have been evicted again.

        A table holds as many of its newest entries as have room together, whatever the order in which that came about:
        section 4.4 drops the oldest and no others, and all, the new one included, if that one has no room.
        """
        newest_first: list[Field] = []
        size = 0
        while self._replays and size <= self._limit:
            entries = self._replays.pop()[::-1]
            sizes = [*map(_entry_size, entries)]
            size += sum(sizes)
            self._widest = max(self._widest, *sizes)
            newest_first += entries
        self._replays.clear()
        self._noted = 0
        if size > self._limit:
            del self._table[_DYNAMIC:]
            self._used = 0
        self._table[_DYNAMIC:_DYNAMIC] = newest_first
        self._used += size
        self._evict()

    def _insert(self, field: Field) -> None:
        self.version += 1
        size = len(field[0]) + len(field[1]) + _OVERHEAD
        if size > self._widest:  # noqa: PLR1730  # max() costs three times as much
            self._widest = size
        self._table.insert(_DYNAMIC, field)
        self._used += size
        if self._used > self._limit:
            self._evict()

    def _evict(self) -> None:
        """Drop the oldest entries, and a new one that has no room alone, until all have room (section 4.4)."""
        used, limit, pop = self._used, self._limit, self._table.pop
        while used > limit:
            name, value = pop()
            used -= len(name) + len(value) + _OVERHEAD
        self._used = used

    def _check(self, fields: list[Field]) -> None:
        if len(fields) > self._max_fields or sum(map(_entry_size, fields)) > self._max_list:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")

    def _representation(self, block: bytes, at: int, fields: list[Field], inserts: list[Field]) -> int:
        """Decode any representation (section 6), and say where it ends. Raises IndexError, ValueError."""
        start, byte = at, block[at]
        if 0x20 <= byte < 0x40:
            return self._size_updates(block, at)
        index, at = _integer(block, at, 0x7F if byte >= 0x80 else 0x3F if byte >= 0x40 else 0x0F)
        if index >= _DYNAMIC:
            self._portable = False
        if byte >= 0x80:
            if not index:
                raise ValueError("index 0")
            fields.append(self._table[index])
            return at
        name, at = (self._table[index][0], at) if index else _name(block, at)
        value, at = _string(block, at)
        field = name, value
        if index < _DYNAMIC:
            literal = block[start:at]
            known = _LITERALS.recall(literal)
            if known is None:
                _LITERALS.admit(literal, field)
            else:
                field = known
        fields.append(field)
        if byte >= 0x40:
            inserts.append(field)
            self._insert(field)
        return at

    def _size_updates(self, block: bytes, at: int) -> int:
        """Section 4.2: at the start of a block, and two suffice to say how small the table was and how large it is."""
        if at:
            raise ValueError("a table size update inside a block")
        self._portable = False
        for _ in range(2):
            self._limit, at = _integer(block, at, 0x1F)
            if self._limit > self._max_size:
                raise ValueError("a table size update beyond the maximum")
            self.version += 1
            self._evict()
            if at == len(block) or not 0x20 <= block[at] < 0x40:
                return at
        raise ValueError("a third table size update")


def _fault(error: Exception) -> ConnectionFault:
    # A malformed block runs off the end of itself or of the table: what is regular needs no checks of its own for that.
    reason = "index of no entry, or block cut off" if isinstance(error, IndexError) else str(error)
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"HPACK: {reason}")


def _entry_size(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _OVERHEAD


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer (section 5.1) whose prefix is `mask`, and where it ends."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in (0, 7, 14, 21, 28):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            if number > _LARGEST_INTEGER:
                break
            return number, at
    raise ValueError("an integer beyond the maximum")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string (section 5.2), and where it ends."""
    coded = block[at] >= 0x80
    length, at = _integer(block, at, 0x7F)
    stop = at + length
    if stop > len(block):
        raise ValueError("a string cut off")
    return _huffman(block[at:stop]) if coded else block[at:stop], stop


def _name(block: bytes, at: int) -> tuple[bytes, int]:
    """A string that is a name: there are few of them."""
    stop = at + 1 + (block[at] & 0x7F)
    text = block[at:stop]
    known = _NAMES.recall(text)
    if known is not None:
        return known, stop
    name, stop = _string(block, at)
    _NAMES.admit(block[at:stop], name)
    return name, stop


def _prefixed(number: int, mask: int, first: int = 0) -> bytes:
    """An integer (section 5.1) below the bits `first`."""
    if number < mask:
        return bytes((first | number,))
    octets = bytearray((first | mask,))
    number -= mask
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


_INDEXED: Final = {field: _prefixed(index, 0x7F, 0x80) for index, field in enumerate(STATIC, 1)}
# A name that stands there several times has the first of its indexes.
_NAMED: Final = {STATIC[index - 1][0]: _prefixed(index, 0x0F) for index in range(len(STATIC), 0, -1)}


def encode(fields: Iterable[Field]) -> bytes:
    """A block that needs no state and leaves none: static indexes, and literals without indexing or Huffman code."""
    parts = []
    for field in fields:
        name, value = field
        indexed = _INDEXED.get(field)
        if indexed is not None:
            parts.append(indexed)
        else:
            named = _NAMED.get(name)
            parts.append(b"\0" + _prefixed(len(name), 0x7F) + name if named is None else named)
            parts.append(_prefixed(len(value), 0x7F) + value)
    return b"".join(parts)
