"""What a worker makes sure of before it serves a snapshot: it is whole, it is the one that was announced, it answers.

map ─► verify every byte ─► generation, a few look-ups ─► with `thorough`: every new definition, through a service
in a thread, behind the calls                             in the loop, a hundred at a time
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from avapd.data.service import NOT_FOUND, Service
from avapd.errors import SnapshotError
from avapd.shared.channel import Load, LoadPatch
from avapd.shared.patch import Content, PatchedView
from avapd.shared.snapshot import View
from avapd.wire.grpc import OK, RESOURCE_EXHAUSTED

# Definitions looked up in a new snapshot before it is served.
_LOOK_UPS: Final = 16
_TRIED_AT_ONCE: Final = 100
_NICENESS: Final = 5
_Result = TypeVar("_Result")


class Verifier:
    """Verifies in a thread that goes behind the event loop on their one CPU."""

    def __init__(self, max_answer_bytes: int) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._thread = ThreadPoolExecutor(1, "verifier", initializer=os.nice, initargs=(_NICENESS,))

    async def aside(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do something in that thread: SHA-256 lets go of the interpreter, so calls are answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def verified(self, load: Load | LoadPatch, descriptors: list[int], current: Content | None) -> Content:
        """What a load brings, when it may take the place of `current`. Raises SnapshotError and OSError."""
        view = await self.aside(_open, load, descriptors, current)
        _check(view, load, current)
        if load.thorough:
            await _try_all(view, self._max_answer_bytes)
        return view


def base_of(view: Content) -> View:
    """The whole snapshot that this is, or is a patch of."""
    return view.base if isinstance(view, PatchedView) else view


def _open(load: Load | LoadPatch, descriptors: list[int], current: Content | None) -> Content:
    """Map and verify; the base of a patch only if it is not the one that is served. Raises SnapshotError."""
    if isinstance(load, Load):
        return View.open(descriptors[0], load.size)
    base = base_of(current) if current is not None else None
    if base is None or base.generation != load.base:
        base = View.open(descriptors[0], load.base_size)
    return PatchedView.open(base, descriptors[1], load.size)


def _check(view: Content, load: Load | LoadPatch, current: Content | None) -> None:
    """Raise SnapshotError unless the arena is the announced one, newer than ours, and answers look-ups."""
    if view.generation != load.generation:
        raise SnapshotError(f"the arena is of generation {view.generation}, {load.generation} was announced")
    if current is not None and view.generation <= current.generation:
        raise SnapshotError(f"generation {view.generation} is not newer than {current.generation}")
    if isinstance(view, PatchedView):
        for key, definition in view.changed():
            if view.get(key) != definition:
                raise SnapshotError("a change is not found through the index")
    for key, definition in itertools.islice(view.messages(), _LOOK_UPS):
        if view.get(key) != definition:
            raise SnapshotError("a definition is not found through the index")


async def _try_all(view: Content, max_answer_bytes: int) -> None:
    """Raise SnapshotError unless everything that is new of it is answered as it should be; calls go on meanwhile.

    What the base of a patch holds was tried when it was new.
    """
    trial = Service(max_answer_bytes)
    trial.swap(view)
    for place, (key, definition) in enumerate(view.changed() if isinstance(view, PatchedView) else view.messages()):
        try:
            answer = trial.get_command(key)
        except Exception as error:  # whatever it is that a definition does to us, a call would meet it
            raise SnapshotError(f"a definition cannot be answered: {type(error).__name__}") from error
        right = NOT_FOUND if definition is None else OK
        if answer.code != RESOURCE_EXHAUSTED and (answer.code, answer.payload) != (right, definition or b""):
            raise SnapshotError(f"a definition is answered with {answer.code}, {answer.message}")
        if place % _TRIED_AT_ONCE == 0:
            await asyncio.sleep(0)
    answer = trial.sync_catalog(b"")
    pieces = answer.payload if isinstance(answer.payload, tuple) else (answer.payload,)
    if answer.code != RESOURCE_EXHAUSTED and sum(map(len, pieces)) != view.answer_size:
        raise SnapshotError(f"the whole catalog is answered with {answer.code}, {answer.message}")
    trial.methods.clear()  # they refer back to it: left to the collector, a few KiB a generation pile up for hours
