"""The feed: the catalog, whole or as what has changed, in messages of at most 1 MiB (StreamCatalog, WatchCatalog).

Records lie in the arena as they travel, so a message is slices of it and a few fields behind them:

    CatalogChunk   commands = 1 …                 | unchanged = 2 | total_count = 3 | version_hash = 4
    CatalogEvent   commands = 1 … removed = 2 …   | full = 3 | more = 4
                                                  | total_count = 5 | version_hash = 6 | generation = 7

The master says with each generation which names differ from the one before; the last eight such steps are kept. What
has changed since an older hash is the union of the names on the way, each as it is now: it is encoded once, and every
client that asks from the same hash gets the same octets. A hash that is not known leads to a whole catalog.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from avapd.shared.patch import Content
from avapd.shared.snapshot import key_of, tail_of, varint

STEPS: Final = 8
MESSAGE_BYTES: Final = 1 << 20
_TRUE: Final = b"\x01"

Message = tuple[bytes | memoryview, ...]


class Step(NamedTuple):
    """From one catalog to the next: the names that differ, None when too many do."""

    before: str
    after: str
    names: frozenset[str] | None


class Feed:
    """What a worker serves, as streams. `view` is None until a catalog is loaded."""

    def __init__(self) -> None:
        self.view: Content | None = None
        self._steps: deque[Step] = deque(maxlen=STEPS)
        self._events: dict[str, list[Message] | None] = {}

    def advance(self, view: Content, before: str, names: list[str] | None) -> None:
        """Another catalog is served; `names` differ from the one with the hash `before`."""
        last = self.view.version_hash if self.view is not None else ""
        if last and last != view.version_hash:
            known = frozenset(names) if names is not None and before == last else None
            self._steps.append(Step(last, view.version_hash, known))
        self.view = view
        self._events.clear()

    def chunks(self, view: Content, has: str) -> Iterator[Message]:
        """The answer of StreamCatalog to a client that has the catalog with this hash."""
        if has == view.version_hash:
            yield (_field(2, _TRUE) + _text(4, has),)
            return
        end = _number(3, len(view)) + _text(4, view.version_hash)
        yield from _with_end(_records(view), end)

    def event(self, view: Content, has: str) -> Iterator[Message]:
        """The event that makes this catalog, the current one, of the one with this hash."""
        if has not in self._events:
            self._events[has] = self._changes(view, has)
        known = self._events[has]
        return iter(known) if known is not None else self._whole(view)

    def _changes(self, view: Content, has: str) -> list[Message] | None:
        """An event of what differs; None when that is not known."""
        names: set[str] = set()
        at = view.version_hash
        for step in reversed(self._steps):
            if at == has:
                break
            if step.after != at or step.names is None:
                return None
            names |= step.names
            at = step.before
        if at != has:
            return None
        parts: list[bytes] = []
        for name in sorted(names):
            message = view.get(key_of(name))
            parts.append(_bytes(2, name.encode()) if message is None else _bytes(1, bytes(message)))
        return list(_numbered(_grouped(parts), _end_of(view), first=b""))

    @staticmethod
    def _whole(view: Content) -> Iterator[Message]:
        return _numbered(_records(view), _end_of(view), first=_field(3, _TRUE))


def _end_of(view: Content) -> bytes:
    return _number(5, len(view)) + _text(6, view.version_hash) + _number(7, view.generation)


def _with_end(messages: Iterator[Message], end: bytes) -> Iterator[Message]:
    """The same messages, with more fields in the last; one if there is none."""
    last: Message = ()
    for following in messages:
        if last:
            yield last
        last = following
    yield (*last, end)


def _numbered(messages: Iterator[Message], end: bytes, *, first: bytes) -> Iterator[Message]:
    """The messages of an event: `first` goes into the first, `more` into all but the last, `end` into the last."""
    head, last = first, None
    for following in messages:
        if last is not None:
            yield (*last, head + _field(4, _TRUE))
            head = b""
        last = following
    yield (*(last or ()), head + end)


def _grouped(parts: Iterable[bytes]) -> Iterator[Message]:
    """Fields put together into messages."""
    group: list[bytes] = []
    size = 0
    for part in parts:
        if group and size + len(part) > MESSAGE_BYTES:
            yield (b"".join(group),)
            group, size = [], 0
        group.append(part)
        size += len(part)
    if group:
        yield (b"".join(group),)


def _records(view: Content) -> Iterator[Message]:
    """All records, as slices of the arena, grouped into messages. Holds the memory, whatever becomes of the view."""
    group: list[memoryview] = []
    size = 0
    *pieces, last = view.answer()
    for piece in (*pieces, last[: len(last) - _tail_size(view)]):
        start = at = 0
        while at < len(piece):
            end = _end_of_record(piece, at)
            if size + end - start > MESSAGE_BYTES and (group or at > start):
                if at > start:
                    group.append(piece[start:at])
                yield tuple(group)
                group, size, start = [], 0, at
            at = end
        group.append(piece[start:at])
        size += at - start
    if size:
        yield tuple(group)


def _tail_size(view: Content) -> int:
    return len(tail_of(len(view), bytes.fromhex(view.version_hash)))


def _end_of_record(piece: memoryview, at: int) -> int:
    length = shift = 0
    at += 1
    while True:
        byte = piece[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return at + length


def _field(number: int, value: bytes) -> bytes:
    return bytes((number << 3,)) + value


def _number(number: int, value: int) -> bytes:
    """A varint field; proto3 leaves zero out."""
    return _field(number, varint(value)) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())
