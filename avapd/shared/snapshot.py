"""The snapshot: one immutable arena that holds a whole catalog as it goes on the wire.

Layout, all integers little-endian:

    0      header, 192 bytes                        `HEADER`
    192    index: `slots` entries of 16 bytes       offset u64 | length u32 | tag u32      (offset 0: empty)
    …      the serialized CatalogResponse           for each definition, sorted by the UTF-8 bytes of its name:
                                                        0x0A  varint(length)  CommandResponse
                                                    then total_count (0x10 …) and version_hash (0x1A 0x40 …)

    header  magic 8s | format u32 | header size u32 | generation u64 | arena size u64 | count u64 | slots u64
            records offset u64 | records size u64 | answer size u64 | version_hash 32s | checksum 32s | zeros

Theory of operation
- The records *are* the answer of SyncCatalog: that answer is one slice of the arena, encoded once per generation, and
  the answer of GetCommand is a slice of that slice. Each byte of a definition exists once, however many workers map it.
- The index needs no building: open addressing with linear probing, at most half full, over a stable hash (BLAKE2b,
  64 bits: the names come from a table that others write, so a hash that is easy to collide would let them make
  every look-up slow). The low bits choose the slot, the high 32 bits are the `tag` that spares most comparisons.
- The *key* of a definition is the serialized CommandRequest for its name (0x0A, varint(length), name). The same bytes
  open its CommandResponse, where the name is field 1 too. So a canonical request is looked up without being parsed, and
  one comparison with the first bytes of the record proves the match.
- Each byte is covered by one SHA-256: the records by `version_hash` (which the contract wants anyway), the header,
  the index and the tail by `checksum`, taken with its own field zeroed. The header names `version_hash`, so the
  checksum vouches for all.

A view trusts nothing before `verify`: a descriptor from the master passes the same checks as a file from anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from avapd.errors import SnapshotError
from avapd.shared import memory

MAGIC: Final = b"AVAPSNAP"
FORMAT: Final = 1
HEADER: Final = struct.Struct("<8s II QQ QQ QQQ 32s 32s")
HEADER_SIZE: Final = 192
CHECKSUM_AT: Final = HEADER.size - 32
ENTRY: Final = struct.Struct("<QII")
_CHUNK: Final = 1 << 20
_COPIED: Final = 16 << 10  # bytes


class Header(NamedTuple):
    """The fields of the header, in their order."""

    magic: bytes
    format: int
    header_size: int
    generation: int
    arena_size: int
    definitions: int
    slots: int
    records_offset: int
    records_size: int
    answer_size: int
    version_hash: bytes
    checksum: bytes


def varint(number: int) -> bytes:
    """A protobuf varint (https://protobuf.dev/programming-guides/encoding/#varints)."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def key_of(name: str) -> bytes:
    """The key of a name: its CommandRequest in canonical encoding. The empty name has none: no row can hold it."""
    raw = name.encode()
    return b"\x0a" + varint(len(raw)) + raw


def key_in(message: bytes) -> bytes:
    """The key of a CommandResponse: its first field. Raises IndexError when it has none."""
    return key_at(message, 0)


def key_at(arena: bytes | mmap.mmap, offset: int) -> bytes:
    """The key of the CommandResponse, or the key itself, that begins at an offset. Raises IndexError."""
    length = shift = 0
    at = offset + 1
    while True:
        byte = arena[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return arena[offset : at + length]


def hash_of(key: bytes) -> int:
    """The number that places a key in an index; see the head of this file."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def slots_for(count: int) -> int:
    """The size of an index for so many entries: a power of two, at most half full."""
    return 1 << max(3, (2 * count - 1).bit_length())


def put(index: bytearray, number: int, offset: int, length: int) -> None:
    """Enter what stands at `offset` into an index under construction."""
    mask = len(index) // ENTRY.size - 1
    slot = number & mask
    while any(index[slot * ENTRY.size : slot * ENTRY.size + 8]):
        slot = (slot + 1) & mask
    ENTRY.pack_into(index, slot * ENTRY.size, offset, length, number >> 32)


def find(arena: mmap.mmap, mask: int, number: int, key: bytes) -> tuple[int, int] | None:
    """Offset and length of what begins with this key, by the index behind the header of an arena."""
    tag = number >> 32
    slot = number & mask
    while True:
        offset, length, found = ENTRY.unpack_from(arena, HEADER_SIZE + slot * 16)
        if not offset:
            return None
        if found == tag and arena[offset : offset + len(key)] == key:
            return offset, length
        slot = (slot + 1) & mask


def octets(arena: mmap.mmap, offset: int, length: int) -> bytes | memoryview:
    """A record out of an arena. Large ones are not copied: a copy is dearer than a pointer, and many may wait."""
    if length > _COPIED:
        return memoryview(arena)[offset : offset + length]
    return arena[offset : offset + length]


class Landmarks:
    """What `pack` remembers for later patches: where each record begins, and SHA-256 states on the way.

    `digests` are pairs of an offset in the arena and the state after all records before it.
    """

    def __init__(self) -> None:
        self.starts = array("Q")
        self.digests: list[tuple[int, Any]] = []

    def digest_before(self, offset: int) -> tuple[int, Any]:
        """The last state at or before this offset, as a copy to go on with."""
        place = bisect_left(self.digests, offset + 1, key=lambda pair: pair[0]) - 1
        at, digest = self.digests[place]
        return at, digest.copy()


def pack(fd: int, generation: int, most: int, messages: Iterable[bytes], landmarks: Landmarks | None = None) -> Header:
    """Write the arena for serialized CommandResponses, sorted by name without repeats, into `fd`, and seal it.

    The index has room for `most` of them.

    Messages are taken one by one, so nothing but the arena itself ever holds the whole catalog. The descriptor
    is still the caller's to close. Fills `landmarks`. Raises SnapshotError when there are more, and OSError when there
    is no memory for the arena.
    """
    slots = slots_for(most)
    offset = HEADER_SIZE + slots * ENTRY.size
    landmarks = landmarks or Landmarks()
    index, size, digest = _write_records(fd, islice(messages, slots), slots, offset, landmarks)
    count = len(landmarks.starts)
    if count > most:
        raise SnapshotError(f"there are more than the {most} definitions that were announced")
    tail = tail_of(count, digest)
    memory.write_at(fd, tail, offset + size)
    memory.write_at(fd, index, HEADER_SIZE)
    answer = size + len(tail)
    header = Header(
        MAGIC, FORMAT, HEADER_SIZE, generation, offset + answer, count, slots,
        offset, size, answer, digest, bytes(32),
    )  # fmt: skip
    header = header._replace(checksum=_checksum(header, index, tail))
    memory.write_at(fd, HEADER.pack(*header), 0)
    memory.seal(fd)
    return header


def _write_records(
    fd: int, messages: Iterable[bytes], slots: int, start: int, landmarks: Landmarks
) -> tuple[bytearray, int, bytes]:
    """Write the records and fill the index; the index, the records' size and their SHA-256."""
    mask, used = slots - 1, bytearray(slots)
    index = bytearray(slots * ENTRY.size)
    digest = hashlib.sha256()
    landmarks.digests.append((start, digest.copy()))
    chunk = bytearray()
    at = start
    for message in messages:
        frame = b"\x0a" + varint(len(message))
        chunk += frame
        chunk += message
        landmarks.starts.append(at)
        number = hash_of(key_in(message))
        slot = number & mask  # as `put`, with a map of what is used: this loop is the whole time of a first load
        while used[slot]:
            slot = (slot + 1) & mask
        used[slot] = 1
        ENTRY.pack_into(index, slot * ENTRY.size, at + len(frame), len(message), number >> 32)
        at += len(frame) + len(message)
        if len(chunk) >= _CHUNK:
            digest.update(chunk)
            landmarks.digests.append((at, digest.copy()))
            memory.write_at(fd, chunk, at - len(chunk))
            chunk.clear()
    digest.update(chunk)
    memory.write_at(fd, chunk, at - len(chunk))
    return index, at - start, digest.digest()


def messages_in(arena: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """The records between two offsets, as (key, serialized CommandResponse). Raises SnapshotError."""
    while at < end:
        length = shift = 0
        at += 1
        while True:
            byte = arena[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        message = arena[at : at + length]
        at += length
        try:
            key = key_in(message)
        except IndexError:
            key = b""
        if at > end or not key:
            raise SnapshotError("the definitions are not a row of messages")
        yield key, message


def tail_of(count: int, version_hash: bytes) -> bytes:
    """The last two fields of CatalogResponse; proto3 leaves a zero count out."""
    total_count = b"\x10" + varint(count) if count else b""
    return total_count + b"\x1a\x40" + version_hash.hex().encode()


def _checksum(header: Header, index: bytes | bytearray | memoryview, tail: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(HEADER.pack(*header._replace(checksum=bytes(32))))
    digest.update(index)
    digest.update(tail)
    return digest.digest()


class View:
    """A catalog in a mapped arena. Cheap to open, safe to read only after `verify`."""

    __slots__ = ("_mask", "arena", "header")

    def __init__(self, arena: mmap.mmap) -> None:
        """Read the header. Raises SnapshotError when it is not one of ours or its offsets leave the arena."""
        if len(arena) < HEADER_SIZE:
            raise SnapshotError(f"{len(arena)} bytes are too short for a snapshot")
        header = Header(*HEADER.unpack_from(arena, 0))
        if header.magic != MAGIC:
            raise SnapshotError("wrong magic: not a snapshot")
        if header.format != FORMAT:
            raise SnapshotError(f"snapshot format {header.format}, this version reads {FORMAT}")
        slots = header.slots
        sound = (
            header.header_size == HEADER_SIZE
            and header.arena_size == len(arena)
            and 8 <= slots <= 1 << 40
            and slots & (slots - 1) == 0
            and 2 * header.definitions <= slots
            and header.records_offset == HEADER_SIZE + slots * ENTRY.size
            and header.records_size <= header.answer_size
            and header.records_offset + header.answer_size == len(arena)
        )
        if not sound:
            raise SnapshotError("header: sizes and offsets do not fit together")
        if any(arena[HEADER.size : HEADER_SIZE]):
            raise SnapshotError("header: the padding is not zero")
        self.header = header
        self.arena = arena
        self._mask = slots - 1

    @classmethod
    def open(cls, fd: int, size: int) -> View:
        """Map a sealed arena and verify it. Raises SnapshotError or OSError; keeps no descriptor."""
        arena = memory.map_sealed(fd, size)
        try:
            view = cls(arena)
            view.verify()
        except SnapshotError:
            arena.close()
            raise
        return view

    def verify(self) -> None:
        """Check every byte against the two digests, and every index entry against the records' bounds.

        Raises SnapshotError. Costs one pass of SHA-256 (1.4 GB/s where the CPU has the instructions).
        """
        header = self.header
        with memoryview(self.arena) as whole:
            records_end = header.records_offset + header.records_size
            with (
                whole[HEADER_SIZE : header.records_offset] as index,
                whole[header.records_offset : records_end] as records,
                whole[records_end:] as tail,
            ):
                if _checksum(header, index, tail) != header.checksum:
                    raise SnapshotError("checksum of header and index does not match")
                if hashlib.sha256(records).digest() != header.version_hash:
                    raise SnapshotError("checksum of the definitions does not match")
        self._verify_index()

    def _verify_index(self) -> None:
        # Slices and comprehensions keep this pass short: 0.2 s for 1,000,000 definitions.
        header = self.header
        words = array("Q")
        words.frombytes(self.arena[HEADER_SIZE : header.records_offset])
        if sys.byteorder == "big":
            words.byteswap()
        starts = [start for start in words[::2] if start]
        ends = [start + (rest & 0xFFFF_FFFF) for start, rest in zip(words[::2], words[1::2], strict=True) if start]
        if len(starts) != header.definitions or len(set(starts)) != header.definitions:
            raise SnapshotError(f"the index holds {len(set(starts))} definitions, the header says {header.definitions}")
        if starts and (min(starts) < header.records_offset or max(ends) > header.records_offset + header.records_size):
            raise SnapshotError("an index entry points outside the definitions")

    @property
    def generation(self) -> int:
        """The generation the master gave this snapshot."""
        return self.header.generation

    @property
    def version_hash(self) -> str:
        """The SHA-256 of the content, in hex."""
        return self.header.version_hash.hex()

    def __len__(self) -> int:
        return self.header.definitions

    def get(self, key: bytes) -> bytes | memoryview | None:
        """The serialized CommandResponse of a `key_of` name, or None. Large ones are not copied."""
        if len(key) < 3:  # no name is empty, and an empty key would equal the begin of any record
            return None
        return self.get_hashed(key, hash_of(key))

    def get_hashed(self, key: bytes, number: int) -> bytes | memoryview | None:
        """The same, with the number of the key."""
        found = find(self.arena, self._mask, number, key)
        return None if found is None else octets(self.arena, *found)

    def place_of(self, key: bytes) -> tuple[int, int] | None:
        """Where the record of a key begins and ends in the arena, its frame included."""
        found = find(self.arena, self._mask, hash_of(key), key)
        if found is None:
            return None
        offset, length = found
        return offset - 1 - len(varint(length)), offset + length

    @property
    def answer_size(self) -> int:
        """The size of `answer` in bytes."""
        return self.header.answer_size

    def answer(self) -> tuple[memoryview, ...]:
        """The serialized CatalogResponse in pieces, not copied: it may have gigabytes, and many may ask for it."""
        start = self.header.records_offset
        return (memoryview(self.arena)[start : start + self.header.answer_size],)

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """All definitions as (key, serialized CommandResponse), in the order of their names."""
        start = self.header.records_offset
        return messages_in(self.arena, start, start + self.header.records_size)

    def close(self) -> None:
        """Unmap the arena; if an answer is still being sent, when that is done."""
        with contextlib.suppress(BufferError):
            self.arena.close()
