"""What a publication changed, for the admin port: names for everybody, sources for who may see them.

Unlike `avapd diff` this may be asked by anybody who reaches the port, so the work and the answer are bounded, by
number, by octets of each and of all; what is left out is told. An answer is made once and kept with its generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, NamedTuple

from avapd.control.encode import decoded
from avapd.control.history import History, UnknownGenerationError
from avapd.control.operator import unified
from avapd.control.packer import Changes, name_of
from avapd.control.publisher import Publisher
from avapd.log import printable

NAMES_MOST: Final = 500
COMPARED_MOST: Final = 100
TEXT_MOST: Final = 256 << 10
_DEFINITION_MOST: Final = 64 << 10
_UNPACKED_MOST: Final = 4 << 20
_LINE_MOST: Final = 1000


class _Change(NamedTuple):
    """A definition that was added (`+`), changed (`~`) or removed (`-`); its messages if they are to be compared."""

    name: str
    mark: str
    sides: tuple[bytes | None, bytes | None] | None

    def line(self) -> str:
        return f"{self.mark} {printable(self.name, _LINE_MOST)}\n"


class Publications:
    """Compares a generation that is kept with the one before it."""

    def __init__(self, history: History, publisher: Publisher) -> None:
        self._history = history
        self._publisher = publisher
        self._texts: dict[tuple[int, bool], str] = {}
        self._one_at_a_time = asyncio.Lock()

    async def changes(self, generation: int, *, sources: bool) -> str:
        """The names that a generation added (+), changed (~) and removed (-), and, with `sources`, a unified diff.

        Raises UnknownGenerationError, or TooMuchError when it cannot be told at a bounded price.
        """
        async with self._one_at_a_time:
            kept = {entry.generation for entry in self._history.entries[1:]}
            self._texts = {key: text for key, text in self._texts.items() if key[0] in kept}
            if generation not in kept:
                raise UnknownGenerationError(f"what generation {generation} changed is not kept")
            if (generation, sources) not in self._texts:
                found = await self._found(generation)
                # Comparing lines takes its time: not that of the loop.
                self._texts[generation, sources] = await asyncio.to_thread(_told, found, sources=sources)
            return self._texts[generation, sources]

    async def _found(self, generation: int) -> list[_Change]:
        """In the order of the names."""
        numbers = [entry.generation for entry in self._history.entries]
        previous = numbers[numbers.index(generation) - 1]
        before, after = await asyncio.to_thread(self._undone, previous, generation)
        current = self._publisher.current
        if current is None or self._history.entries[-1].generation != current.view.generation:
            raise UnknownGenerationError("another generation is being published: ask again")
        found: list[_Change] = []
        for key in sorted({*before, *after}, key=name_of):
            old, new = (side[key] if key in side else current.view.get(key) for side in (before, after))
            if old != new:
                small = len(old or b"") + len(new or b"") <= _DEFINITION_MOST and len(found) < COMPARED_MOST
                mark = "+" if old is None else "-" if new is None else "~"
                found.append(_Change(name_of(key).decode(), mark, (_kept(old), _kept(new)) if small else None))
        return found

    def _undone(self, *generations: int) -> list[Changes]:
        return [self._history.back_to(number, _UNPACKED_MOST) for number in generations]


def _kept(message: bytes | memoryview | None) -> bytes | None:
    return None if message is None else bytes(message)


def _told(found: list[_Change], *, sources: bool) -> str:
    names = [change.line() for change in found[:NAMES_MOST]]
    if len(found) > NAMES_MOST:
        names.append(f"… and {len(found) - NAMES_MOST} more\n")
    text = "".join(names) or "nothing: the same content was published again\n"
    if sources:
        for part in _compared(found):
            if len(text) + len(part) > TEXT_MOST:
                return text + "\n… more than is shown here: see `avapd diff`\n"
            text += part
    return text


def _compared(found: list[_Change]) -> Iterator[str]:
    for change in found[:COMPARED_MOST]:
        yield "\n"
        if change.sides is None:
            yield f"{printable(change.name, _LINE_MOST)}: too large to be compared here, see `avapd diff`\n"
            continue
        for line in unified(*(None if side is None else decoded(side) for side in change.sides)):
            yield "\t".join(printable(part, _LINE_MOST) for part in line.rstrip("\r\n").split("\t", 20)) + "\n"
    if len(found) > COMPARED_MOST:
        yield f"\n… and {len(found) - COMPARED_MOST} more definitions\n"
