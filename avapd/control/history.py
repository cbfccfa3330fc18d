"""The history: the last generations, each with what would undo it, so that any of them can be served again.

An entry does not hold a catalog but the definitions that its publication replaced, compressed. To go back to a
generation, the undos of all later ones are laid over each other, the oldest last. What is kept is bounded by number and
by octets; a publication that replaced too much (a whole large table) ends the history before it.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final

from avapd.control.difference import Difference
from avapd.control.packer import Changes
from avapd.errors import AvapdError
from avapd.log import printable
from avapd.shared.patch import Content

KEPT: Final = 8
_MOST_OCTETS: Final = 128 << 20
_LENGTHS: Final = struct.Struct("<IIB")


class UnknownGenerationError(AvapdError):
    """A generation that is not in the history any more, or never was."""

    hint = "`avapd history` shows what is kept"


class TooMuchError(AvapdError):
    """More was replaced than the asker is ready to look at."""

    hint = "`avapd diff` compares whatever is kept"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A publication. `at` is wall clock; `origin` is `database`, `disk`, `rollback` or `operator`.

    `first` tells that nothing before it can be reached: there was nothing, or something else.
    """

    generation: int
    version_hash: str
    at: float
    count: int
    octets: int
    added: int
    changed: int
    removed: int
    origin: str
    first: bool = False
    undo: bytes = b""

    def facts(self) -> dict[str, Any]:
        """What people are shown of it."""
        fields = dataclasses.asdict(self)
        del fields["undo"]
        return fields


class History:
    """The last publications, oldest first. The undo of the oldest is never needed."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, before: Content | None, view: Content, difference: Difference, *, at: float, origin: str) -> Entry:
        """A generation was published; takes time in proportion to what was replaced.

        As the first of a run it goes on with what an earlier run left, if that is the same catalog.
        """
        first, undo = False, b""
        if before is None:
            first = not (self.entries and self.entries[-1].version_hash == view.version_hash)
        else:
            undo = packed((key, before.get(key)) for key in difference.keys)
            first = len(undo) > _MOST_OCTETS
        entry = Entry(
            generation=view.generation, version_hash=view.version_hash, at=at, count=len(view),
            octets=view.answer_size, **difference.counts(), origin=origin, first=first, undo=b"" if first else undo,
        )  # fmt: skip
        if first:
            self.entries.clear()
        self.entries = [*self.entries, entry][-KEPT:]
        while sum(len(one.undo) for one in self.entries[1:]) > _MOST_OCTETS:
            del self.entries[0]
        return entry

    def renumber(self, generation: int) -> None:
        """What is served was published once more, under another generation."""
        if self.entries:
            self.entries[-1] = dataclasses.replace(self.entries[-1], generation=generation)

    def find(self, generation: int | None = None, version_hash: str | None = None) -> Entry:
        """An entry by its generation, or the latest with this hash. Raises UnknownGenerationError."""
        for entry in reversed(self.entries):
            if entry.generation == generation or (version_hash and entry.version_hash.startswith(version_hash)):
                return entry
        asked = printable(version_hash, 64) if version_hash is not None else generation
        raise UnknownGenerationError(f"generation {asked} is not kept")

    def previous(self) -> Entry:
        """The generation before the one that is served. Raises UnknownGenerationError."""
        if len(self.entries) < 2:
            raise UnknownGenerationError("there is no generation before this one")
        return self.entries[-2]

    def back_to(self, generation: int, most: int = 0) -> Changes:
        """What makes a kept generation of the one that is served. Raises UnknownGenerationError.

        With `most`, TooMuchError when a publication on the way replaced more octets.
        """
        self.find(generation)
        changes: dict[bytes, bytes | None] = {}
        for entry in reversed(self.entries):
            if entry.generation == generation:
                break
            changes |= unpacked(entry.undo, most)
        return changes


def packed(changes: Iterable[tuple[bytes, bytes | memoryview | None]]) -> bytes:
    """Changes as octets: length of key u32, of message u32, whether there is one u8, both; all of it deflated.

    They are taken one by one: a whole catalog may have been replaced.
    """
    deflate = zlib.compressobj(1)
    parts = []
    for key, message in changes:
        octets = b"" if message is None else message
        parts.append(deflate.compress(_LENGTHS.pack(len(key), len(octets), message is not None) + key))
        parts.append(deflate.compress(octets))
    return b"".join((*parts, deflate.flush()))


def unpacked(raw: bytes, most: int = 0) -> dict[bytes, bytes | None]:
    """The changes out of `packed`; of nothing, none. With `most`, raises TooMuchError when they are more octets."""
    inflate = zlib.decompressobj()
    octets, at = inflate.decompress(raw, most), 0
    if raw and not inflate.eof:
        raise TooMuchError("too much was replaced to be compared here")
    changes: dict[bytes, bytes | None] = {}
    while at < len(octets):
        key_size, size, there = _LENGTHS.unpack_from(octets, at)
        at += _LENGTHS.size
        key, message = octets[at : at + key_size], octets[at + key_size : at + key_size + size]
        changes[key] = message if there else None
        at += key_size + size
    return changes
