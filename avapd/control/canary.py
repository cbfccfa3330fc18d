"""The canary: the one worker that serves a new generation alone for a while, and what is held against it.

It fails when it ends, when its event loop hangs, or when it answers INTERNAL more often than its peers do meanwhile;
a client that provokes such answers provokes them everywhere, a bad catalog only here (reliability.md R4 to R6).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Final

from avapd.control.worker import Worker
from avapd.errors import SnapshotError

_LOOK_SECONDS: Final = 0.1
# Its heartbeat comes every 0.1 s; what it waits for a CPU does not count.
_HANGS_SECONDS: Final = 1.0
# So few failed calls tell nothing; nor does a share of so little, or of no more than so many times the peers'.
_FEW: Final = 10
_LITTLE: Final = 0.01
_TIMES: Final = 2.0


class RollOutError(SnapshotError):
    """A roll-out that ended with one worker. `content` tells whether the snapshot itself is to blame.

    It is not when the host refused memory, somebody killed the worker, or the operator gave an order meanwhile.
    """

    def __init__(self, worker: Worker, reason: str, *, content: bool) -> None:
        super().__init__(f"worker {worker.slot}: {reason}")
        self.content = content


class Canary:
    """A worker under watch; `peers` serve what was served before."""

    def __init__(self, worker: Worker, peers: Iterable[Worker]) -> None:
        self.worker = worker
        self._peers = list(peers)
        self._begin = {one: one.answered() for one in (worker, *self._peers)}
        self._fault: RollOutError | None = None
        self._told = asyncio.Event()

    def died(self) -> None:
        """It has ended."""
        self._fail("the worker died serving it", content=not self.worker.felled)

    def withdraw(self) -> None:
        """The operator wants something else."""
        self._fail("withdrawn by an order", content=False)

    def _fail(self, reason: str, *, content: bool) -> None:
        if self._fault is None:
            self._fault = RollOutError(self.worker, reason, content=content)
        self._told.set()

    async def watch(self, seconds: float) -> None:
        """Return when it has done well for so long. Raises RollOutError as soon as it has not."""
        now = time.monotonic()
        deadline = now + seconds
        while (left := deadline - now) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), min(left, _LOOK_SECONDS))
            before, now = now, time.monotonic()
            if now - before < _HANGS_SECONDS:  # else we were stopped ourselves, and it perhaps with us
                self._look(now)
            if self._fault is not None:
                raise self._fault

    def _look(self, now: float) -> None:
        silent = self.worker.silent_for(now)
        if silent > _HANGS_SECONDS and silent - self.worker.starved_for() > _HANGS_SECONDS:
            self._fail("the worker hangs with it", content=True)
        calls, failed = self._since(self.worker)
        if failed < _FEW or failed < _LITTLE * calls:
            return
        theirs = [self._since(peer) for peer in self._peers]
        their_share = sum(failed for _, failed in theirs) / max(1, sum(calls for calls, _ in theirs))
        if failed / calls > _TIMES * their_share:
            self._fail(f"{failed} of {calls} calls failed with it", content=True)

    def _since(self, worker: Worker) -> tuple[int, int]:
        """Calls since the begin, and how many of them failed."""
        now, begin = worker.answered(), self._begin[worker]
        return now[0] - begin[0], now[1] - begin[1]
