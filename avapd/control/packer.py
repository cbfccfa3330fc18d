"""The packer: makes a snapshot of a whole catalog, or, of a few changes, a patch on the last whole one.

    rows ──► catalog ──► pack(messages)             a new base: everything is encoded, hashed, written
                  └────► patch(changes)             the base stays; only what differs from it is written
                         too many by now? ────────► the base is made anew from what is served and the changes

What a patch costs grows with what has changed since its base was made, so a base that is patched in more than one of
`_SHARE` octets, or in more than `_MOST` definitions, is replaced.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from avapd.shared import memory, patch, snapshot
from avapd.shared.patch import Content, Edit, PatchedView
from avapd.shared.snapshot import Landmarks, View, key_at

Changes = Mapping[bytes, bytes | None]
_SHARE: Final = 16
_MOST: Final = 2_048


class Base:
    """A sealed arena with its descriptor and what is needed to patch it. Whoever lets go of it last closes it."""

    def __init__(self, fd: int, view: View, landmarks: Landmarks) -> None:
        self.fd = fd
        self.size = view.header.arena_size
        self.view = view
        self.landmarks = landmarks
        self._holders = 1

    def hold(self) -> Base:
        """One more snapshot stands on it."""
        self._holders += 1
        return self

    def release(self) -> None:
        """One less does."""
        self._holders -= 1
        if self._holders == 0:
            self.view.close()
            os.close(self.fd)


class Snapshot:
    """A generation as the master holds it: a base, and a patch on it unless it is the base itself.

    `size` counts the octets that are new of it: those every worker has to map and verify.
    """

    def __init__(self, base: Base, patch_fd: int | None = None, view: PatchedView | None = None) -> None:
        self.base = base
        self.patch_fd = patch_fd
        self.view: Content = base.view if view is None else view
        self.size = base.size if view is None else view.header.arena_size

    @property
    def total(self) -> int:
        """Octets of shared memory it takes in all."""
        return self.size + (self.base.size if self.patch_fd is not None else 0)

    def close(self) -> None:
        """Let go of it; workers that map it keep their own hold."""
        if self.patch_fd is not None:
            self.view.close()
            os.close(self.patch_fd)
        self.base.release()


def name_of(key: bytes) -> bytes:
    """The UTF-8 of the name in a key: what definitions are sorted by."""
    at = 1
    while key[at] >= 0x80:
        at += 1
    return key[at + 1 :]


class Packer:
    """Makes snapshots, each of a later generation than the one before. `generation` is the last number given."""

    def __init__(self, generation: int = 0) -> None:
        self.generation = generation

    def pack(self, most: int, messages: Iterable[bytes]) -> Snapshot:
        """A snapshot of at most so many serialized CommandResponses, sorted by name. Raises OSError without memory."""
        landmarks = Landmarks()
        fd = memory.create("avapd-snapshot")
        try:
            header = snapshot.pack(fd, self._next(), most, messages, landmarks)
            return Snapshot(Base(fd, View(memory.map_sealed(fd, header.arena_size)), landmarks))
        except BaseException:
            os.close(fd)
            raise

    def patch(self, current: Snapshot, changes: Changes) -> Snapshot:
        """A snapshot of what `current` holds with these changes; None is for a definition that goes. Raises OSError."""
        base, served = current.base, current.view
        since = {**_since(served), **changes}
        if _too_many(base, len(since), octets_of(since)):
            count = len(served) + sum(_more(served, key, message) for key, message in changes.items())
            return self.pack(count, merged(served, changes))
        edits = [edit for key, message in since.items() if (edit := _edit(base, key, message)) is not None]
        edits.sort(key=lambda edit: name_of(edit.key))
        end = base.view.header.records_offset + base.view.header.records_size
        digest = base.landmarks.digest_before(edits[0].start if edits else end)
        fd = memory.create("avapd-patch")
        try:
            header = patch.pack_patch(fd, self._next(), base.view, edits, digest)
            view = PatchedView(base.view, memory.map_sealed(fd, header.arena_size))
        except BaseException:
            os.close(fd)
            raise
        return Snapshot(base.hold(), fd, view)

    @staticmethod
    def rebuilds(current: Snapshot, count: int, octets: int) -> bool:
        """Whether so many more changes make a base anew; those that repeat an earlier one count twice."""
        since = _since(current.view)
        return _too_many(current.base, len(since) + count, octets_of(since) + octets)

    def _next(self) -> int:
        """No number is ever used twice, also when the snapshot is then refused."""
        self.generation += 1
        return self.generation


def octets_of(changes: Changes) -> int:
    """The size of all new messages."""
    return sum(len(message or b"") for message in changes.values())


def _too_many(base: Base, count: int, octets: int) -> bool:
    return count > _MOST or octets > base.size // _SHARE


def _edit(base: Base, key: bytes, message: bytes | None) -> Edit | None:
    """Where a change belongs in the base; None when the base has it so already."""
    place = base.view.place_of(key)
    if place is None:
        if message is None:
            return None
        start = _before(name_of(key), base)
        return Edit(key, message, start, start)
    if message is not None and base.view.get(key) == message:
        return None
    return Edit(key, message, *place)


def _before(name: bytes, base: Base) -> int:
    """Where the record of a name that the base does not have would begin."""
    arena, starts = base.view.arena, base.landmarks.starts

    def name_at(start: int) -> bytes:
        at = start + 1
        while arena[at] >= 0x80:  # the length of the message
            at += 1
        return name_of(key_at(arena, at + 1))

    place = bisect_left(starts, name, key=name_at)
    header = base.view.header
    return starts[place] if place < len(starts) else header.records_offset + header.records_size


def _since(current: Content) -> dict[bytes, bytes | None]:
    if not isinstance(current, PatchedView):
        return {}
    return {key: None if message is None else bytes(message) for key, message in current.changed()}


def _more(current: Content, key: bytes, message: bytes | None) -> int:
    return (message is not None) - (current.get(key) is not None)


def merged(current: Content, changes: Changes) -> Iterator[bytes]:
    """The messages after the changes, in the order of the names."""
    new = sorted((name_of(key), key) for key, message in changes.items() if message is not None)
    place = 0
    for key, message in current.messages():
        if key in changes:
            continue
        name = name_of(key)
        while place < len(new) and new[place][0] < name:
            yield changes[new[place][1]] or b""
            place += 1
        yield message
    for _, key in new[place:]:
        yield changes[key] or b""
