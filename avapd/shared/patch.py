"""The patch: what has changed since an arena, in a small arena of its own, and the view of both together.

One definition out of 100,000 changes, and every worker serves it some milliseconds later: nothing that is unchanged is
written, hashed or verified again. A patch is always made against one full arena, its *base*, and holds all that differs
from it; the next patch replaces it.

Layout, all integers little-endian:

    0      header, 192 bytes                        `PATCH_HEADER`
    192    index: `slots` entries of 16 bytes       offset u64 | length u32 | tag u32     as there; length 0: gone
    …      splices: `splices` of 24 bytes           source u64 | start u64 | end u64      source 0: base, 1: patch
    …      records                                  new and changed definitions, framed and sorted as in a snapshot
    …      tail                                     total_count and version_hash of the whole
    …      keys of the gone                         each points there from the index

    header  magic 8s | format u32 | header size u32 | generation u64 | arena size u64 | base generation u64
            definitions u64 | slots u64 | splices u64 | records offset u64 | records size u64 | answer size u64
            version_hash 32s | checksum of the base 32s | checksum 32s | zeros

Theory of operation
- A look-up asks the index of the patch first: a record, *gone*, or nothing, and then the base is asked.
- The splices are the answer of SyncCatalog: slices of base and patch, in the order of the names, then the tail.
- `checksum` is the SHA-256 of the whole patch, taken with its own field zeroed. It names the checksum of the base,
  which was verified when it was mapped; so every byte is covered still. `version_hash` is the master's word, under that
  checksum: to compute it anew would mean to hash the whole catalog for every change, in every worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from avapd.errors import SnapshotError
from avapd.shared import memory
from avapd.shared.snapshot import (
    ENTRY,
    HEADER_SIZE,
    View,
    find,
    hash_of,
    key_at,
    messages_in,
    octets,
    put,
    slots_for,
    tail_of,
    varint,
)

MAGIC: Final = b"AVAPPTCH"
FORMAT: Final = 1
PATCH_HEADER: Final = struct.Struct("<8s II QQ QQQQ QQQ 32s 32s 32s")
SPLICE: Final = struct.Struct("<QQQ")
_BASE, _PATCH = 0, 1
_CHECKSUM_AT: Final = PATCH_HEADER.size - 32


class PatchHeader(NamedTuple):
    """The fields of the header, in their order."""

    magic: bytes
    format: int
    header_size: int
    generation: int
    arena_size: int
    base_generation: int
    definitions: int
    slots: int
    splices: int
    records_offset: int
    records_size: int
    answer_size: int
    version_hash: bytes
    base_checksum: bytes
    checksum: bytes


class Edit(NamedTuple):
    """One difference from the base: `message` (None for a definition that is gone) stands for its records' start:end.

    `start` equals `end`, the place in the order of names, for a definition that the base does not have.
    """

    key: bytes
    message: bytes | None
    start: int
    end: int


class Splice(NamedTuple):
    """A slice of an arena, by absolute offsets."""

    source: int
    start: int
    end: int


def splices_of(base: View, edits: Sequence[Edit], records_offset: int) -> list[Splice]:
    """The pieces of the records after these edits, which are in the order of the names."""
    made: list[Splice] = []
    at, place = base.header.records_offset, records_offset
    end = at + base.header.records_size
    for edit in edits:
        if edit.start > at:
            made.append(Splice(_BASE, at, edit.start))
        if edit.message is not None:
            size = 1 + len(varint(len(edit.message))) + len(edit.message)
            if made and made[-1].source == _PATCH:
                made[-1] = made[-1]._replace(end=place + size)
            else:
                made.append(Splice(_PATCH, place, place + size))
            place += size
        at = edit.end
    if at < end:
        made.append(Splice(_BASE, at, end))
    return made


def pack_patch(fd: int, generation: int, base: View, edits: Sequence[Edit], digest: tuple[int, Any]) -> PatchHeader:
    """Write the patch that makes `edits`, in the order of the names, of its base; seal it.

    `digest` is an offset in the base before all edits, and the SHA-256 state of the records up to there. The descriptor
    is still the caller's to close. Raises OSError when there is no memory for it.
    """
    slots = slots_for(len(edits))
    index = bytearray(slots * ENTRY.size)
    messages = [edit.message for edit in edits if edit.message is not None]
    records = b"".join(part for message in messages for part in (b"\x0a", varint(len(message)), message))
    count = sum((edit.message is not None) - (edit.end > edit.start) for edit in edits) + len(base)
    # Twice, since the number of splices decides where the records begin, and that is part of them.
    splices = splices_of(base, edits, 0)
    records_offset = HEADER_SIZE + len(index) + SPLICE.size * len(splices)
    splices = splices_of(base, edits, records_offset)
    version_hash = _version_hash(base, records, records_offset, splices, digest)
    tail = tail_of(count, version_hash)
    at, gone_at = records_offset, records_offset + len(records) + len(tail)
    gone = b"".join(edit.key for edit in edits if edit.message is None)
    for edit in edits:
        if edit.message is None:
            put(index, hash_of(edit.key), gone_at, 0)
            gone_at += len(edit.key)
            continue
        frame = 1 + len(varint(len(edit.message)))
        put(index, hash_of(edit.key), at + frame, len(edit.message))
        at += frame + len(edit.message)
    header = PatchHeader(
        MAGIC, FORMAT, HEADER_SIZE, generation, gone_at, base.generation, count, slots, len(splices), records_offset,
        len(records), sum(one.end - one.start for one in splices) + len(tail), version_hash, base.header.checksum,
        bytes(32),
    )  # fmt: skip
    body = b"".join((index, *(SPLICE.pack(*splice) for splice in splices), records, tail, gone))
    header = header._replace(checksum=_checksum(header, body))
    memory.write_at(fd, PATCH_HEADER.pack(*header).ljust(HEADER_SIZE, b"\0") + body, 0)
    memory.seal(fd)
    return header


def _version_hash(
    base: View, records: bytes, records_offset: int, splices: Sequence[Splice], digest: tuple[int, Any]
) -> bytes:
    """The SHA-256 of all records after the edits, going on from a state before the first of them."""
    known, state = digest
    with memoryview(base.arena) as arena, memoryview(records) as own:
        for source, start, end in splices:
            if source == _PATCH:
                state.update(own[start - records_offset : end - records_offset])
            elif end > known:
                state.update(arena[max(start, known) : end])
    made: bytes = state.digest()
    return made


def _checksum(header: PatchHeader, body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(PATCH_HEADER.pack(*header._replace(checksum=bytes(32))).ljust(HEADER_SIZE, b"\0"))
    digest.update(body)
    return digest.digest()


class PatchedView:
    """A catalog that is a base with a patch on it. Reads as a `View` does; safe only after `verify`."""

    __slots__ = ("_mask", "_splices", "arena", "base", "header")

    def __init__(self, base: View, arena: mmap.mmap) -> None:
        """Read the header. Raises SnapshotError when it is no patch on this base, or its offsets leave the arena."""
        if len(arena) < HEADER_SIZE:
            raise SnapshotError(f"{len(arena)} bytes are too short for a patch")
        header = PatchHeader(*PATCH_HEADER.unpack_from(arena, 0))
        if header.magic != MAGIC:
            raise SnapshotError("wrong magic: not a patch")
        if header.format != FORMAT:
            raise SnapshotError(f"patch format {header.format}, this version reads {FORMAT}")
        if (header.base_generation, header.base_checksum) != (base.generation, base.header.checksum):
            raise SnapshotError(f"a patch on generation {header.base_generation}, not on this {base.generation}")
        slots = header.slots
        sound = (
            header.header_size == HEADER_SIZE
            and header.arena_size == len(arena)
            and 8 <= slots <= len(arena)
            and slots & (slots - 1) == 0
            and header.records_offset == HEADER_SIZE + slots * ENTRY.size + header.splices * SPLICE.size
            and header.records_offset + header.records_size <= len(arena)
        )
        if not sound or any(arena[PATCH_HEADER.size : HEADER_SIZE]):
            raise SnapshotError("header: sizes and offsets do not fit together")
        self.base = base
        self.header = header
        self.arena = arena
        self._mask = slots - 1
        start = HEADER_SIZE + slots * ENTRY.size
        raw = arena[start : start + header.splices * SPLICE.size]
        self._splices = [Splice(*fields) for fields in SPLICE.iter_unpack(raw)]

    @classmethod
    def open(cls, base: View, fd: int, size: int) -> PatchedView:
        """Map a sealed patch and verify it. Raises SnapshotError or OSError; keeps no descriptor."""
        arena = memory.map_sealed(fd, size)
        try:
            view = cls(base, arena)
            view.verify()
        except SnapshotError:
            arena.close()
            raise
        return view

    def verify(self) -> None:
        """Check every byte against the checksum, splices and entries against the bounds. Raises SnapshotError."""
        with memoryview(self.arena) as whole, whole[HEADER_SIZE:] as body:
            if _checksum(self.header, body) != self.header.checksum:
                raise SnapshotError("checksum of the patch does not match")
        self._verify_splices()
        self._verify_index()

    def _verify_splices(self) -> None:
        """Each arena's slices rise, lie in its records, and together make the announced answer."""
        header, base = self.header, self.base.header
        starts = {_BASE: base.records_offset, _PATCH: header.records_offset}
        ends = {_BASE: base.records_offset + base.records_size, _PATCH: header.records_offset + header.records_size}
        total = len(tail_of(header.definitions, header.version_hash))
        for source, start, end in self._splices:
            if source not in starts or not starts[source] <= start <= end <= ends[source]:
                raise SnapshotError("a splice points outside the definitions")
            starts[source] = end
            total += end - start
        if starts[_PATCH] != ends[_PATCH] or total != header.answer_size:
            raise SnapshotError("the splices do not make up the answer")

    def _verify_index(self) -> None:
        """Every entry is a record of ours or the key of one that is gone, and the count comes out."""
        header = self.header
        records_end = header.records_offset + header.records_size
        count = len(self.base)
        for slot in range(header.slots):
            offset, length, _ = ENTRY.unpack_from(self.arena, HEADER_SIZE + slot * ENTRY.size)
            if not offset:
                continue
            low, high = (header.records_offset, records_end) if length else (records_end, len(self.arena))
            if not low <= offset < high or offset + length > high:
                raise SnapshotError("an index entry points outside the definitions")
            key = self._key_at(offset)
            count += bool(length) - (self.base.get(key) is not None)
        if count != header.definitions:
            raise SnapshotError(f"there are {count} definitions, the header says {header.definitions}")

    def _key_at(self, offset: int) -> bytes:
        try:
            return key_at(self.arena, offset)
        except IndexError:
            raise SnapshotError("an index entry points at no definition") from None

    @property
    def generation(self) -> int:
        """The generation the master gave this patch."""
        return self.header.generation

    @property
    def version_hash(self) -> str:
        """The SHA-256 of the content, in hex."""
        return self.header.version_hash.hex()

    def __len__(self) -> int:
        return self.header.definitions

    def get(self, key: bytes) -> bytes | memoryview | None:
        """The serialized CommandResponse of a `key_of` name, or None. Large ones are not copied."""
        if len(key) < 3:
            return None
        number = hash_of(key)
        found = find(self.arena, self._mask, number, key)
        if found is None:
            return self.base.get_hashed(key, number)
        offset, length = found
        return octets(self.arena, offset, length) if length else None

    @property
    def answer_size(self) -> int:
        """The size of `answer` in bytes."""
        return self.header.answer_size

    def answer(self) -> tuple[memoryview, ...]:
        """The serialized CatalogResponse in pieces, not copied."""
        arenas = (memoryview(self.base.arena), memoryview(self.arena))
        end = self.header.records_offset + self.header.records_size
        tail = len(tail_of(self.header.definitions, self.header.version_hash))
        pieces = (arenas[source][start:stop] for source, start, stop in self._splices)
        return (*pieces, arenas[_PATCH][end : end + tail])

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """All definitions as (key, serialized CommandResponse), in the order of their names."""
        arenas = (self.base.arena, self.arena)
        for source, start, end in self._splices:
            yield from messages_in(arenas[source], start, end)

    def changed(self) -> Iterator[tuple[bytes, bytes | memoryview | None]]:
        """What the patch itself holds, in no order: key and message, None for one that is gone."""
        for slot in range(self.header.slots):
            offset, length, _ = ENTRY.unpack_from(self.arena, HEADER_SIZE + slot * ENTRY.size)
            if offset:
                yield self._key_at(offset), octets(self.arena, offset, length) if length else None

    def close(self) -> None:
        """Unmap the patch, not its base; if an answer is still being sent, when that is done."""
        with contextlib.suppress(BufferError):
            self.arena.close()


Content = View | PatchedView
