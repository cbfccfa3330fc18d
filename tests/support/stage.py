"""A publisher on a stage of its own, with workers that only record what they are sent."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from avapd.control.catalog import Definition
from avapd.control.encode import message
from avapd.control.packer import Packer, Snapshot
from avapd.control.publisher import Publisher
from avapd.control.worker import Worker
from avapd.log import Log
from avapd.shared.channel import Ack, Load, Message, Missing, Reject
from support.lines import Lines

# What a worker does with a Load.
ACK, REJECT, DIE, NOTHING = "ack", "reject", "die", "nothing"


class Recorder:
    """A worker as the publisher sees it, which records what it is sent."""

    def __init__(
        self, slot: int, stage: Stage, answer: str = ACK, *, serving: bool = True, booted: bool = True
    ) -> None:
        self.slot = slot
        self.serving = serving
        self.booted = booted
        self.started_at = time.monotonic()
        self.felled = False
        self.calls = (0, 0)
        self.starved = 0.0
        self.generation = 0
        self.sent = 0
        self.wants = 0
        self.quiet = 0.0
        self.loads: list[int] = []
        self.signals: list[signal.Signals] = []
        self.missing: dict[str, str] = {}
        self.answer = answer
        self._stage = stage

    def silent_for(self, _now: float) -> float:
        return self.quiet

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    def starved_for(self) -> float:
        return self.starved

    def answered(self) -> tuple[int, int]:
        return self.calls

    def send(self, message: Message, *descriptors: int) -> bool:
        if isinstance(message, Missing):
            self.missing = message.reasons
            return True
        assert isinstance(message, Load)
        assert os.fstat(descriptors[0]).st_size == message.size
        self.loads.append(message.generation)
        self._stage.history.append((self.slot, message.generation))
        asyncio.get_running_loop().call_soon(self.act, message.generation)
        return True

    def act(self, generation: int) -> None:
        """Answer as this worker does."""
        publisher, me = self._stage.publisher, cast("Worker", self)
        if self.answer == ACK:
            publisher.acked(me, Ack(generation=generation, seconds=0.0))
        elif self.answer == REJECT:
            publisher.rejected(me, Reject(generation=generation, reason="bad"))
        elif self.answer == DIE:
            publisher.leave(me)


class Stage:
    """A publisher with recorders."""

    def __init__(self, soak_seconds: float = 0.0) -> None:
        self.lines = Lines()
        self.publisher = Publisher(Log("master", sink=self.lines), soak_seconds)
        self.history: list[tuple[int, int]] = []
        self._made: list[Snapshot] = []
        self._joined = 0

    def worker(self, answer: str = ACK, **options: bool) -> Recorder:
        """A new worker that joins."""
        made = Recorder(self._joined, self, answer, **options)
        self._joined += 1
        self.publisher.join(cast("Worker", made))
        return made

    def slots(self) -> list[int]:
        return [worker.slot for worker in self.publisher._workers]

    async def publish(self, generation: int) -> Snapshot:
        """Publish a snapshot of this generation."""
        made = snapshot({"a": f"code {generation}"}, generation)
        self._made.append(made)
        await self.publisher.publish(made)
        return made

    def close(self) -> None:
        """Let go of what is still open."""
        for made in self._made:
            if is_open(made):
                made.close()


def snapshot(table: dict[str, str], generation: int = 1) -> Snapshot:
    """A sealed snapshot of these names and sources."""
    definitions = [Definition(name, "function", "[]", code.encode(), "") for name, code in sorted(table.items())]
    return Packer(generation - 1).pack(len(definitions), map(message, definitions))


def files() -> int:
    """How many descriptors this process has open, those not counted that other tests left to the collector."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def is_open(snap: Snapshot) -> bool:
    """Whether the descriptor is still this snapshot's."""
    try:
        return snap.view.arena.size() == snap.size == os.fstat(snap.base.fd).st_size
    except (ValueError, OSError):
        return False


def play(test: Callable[[Stage], Awaitable[None]], soak_seconds: float = 0.0) -> None:
    """Run a test on a stage of its own."""

    async def run() -> None:
        stage = Stage(soak_seconds)
        try:
            async with asyncio.timeout(20):
                await test(stage)
        finally:
            stage.close()

    asyncio.run(run())
