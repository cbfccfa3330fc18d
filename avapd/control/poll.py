"""The poll: looks at the source at every interval. The poll is the truth, notifications only hurry it.

A failed look changes nothing but the times and counters below: the workers go on with what they have (fail open). It
is tried again after 1 s, doubling up to the interval. All waits carry ±10 % jitter, so that instances do not move in
step. However many notifications come, looks that they cause are `_CALM_SECONDS` apart.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

from avapd.control.budget import NoRoomError
from avapd.control.guard import RefusedError
from avapd.control.publisher import Publisher
from avapd.control.refresh import Refresh
from avapd.errors import AvapdError, SnapshotError, SourceError
from avapd.log import Log, Throttle

RESULTS: Final = ("published", "unchanged", "failed", "rejected", "frozen")
_RETRY_FIRST: Final = 1.0
_ERROR_EVERY_SECONDS: Final = 5.0
_CALM_SECONDS: Final = 0.25
_HANGS_INTERVALS: Final = 2
_HANGS_SECONDS: Final = 60.0


class Poll:
    """Runs the looks. What it counts is public: the metrics and the status page read it.

    `first` is how the first look ended: its error or None.
    """

    def __init__(self, refresh: Refresh, publisher: Publisher, log: Log, *, seconds: float) -> None:
        self.results = dict.fromkeys(RESULTS, 0)
        self.duration_sum = 0.0
        self.duration_last = 0.0
        self.last_error = ""
        self.first: asyncio.Future[AvapdError | None] = asyncio.get_running_loop().create_future()
        self._refresh = refresh
        self._publisher = publisher
        self._log = log
        self._seconds = seconds
        self._failures = 0
        self._errors = Throttle(_ERROR_EVERY_SECONDS)
        self._now = asyncio.Event()
        self._calm_until = 0.0
        # Its own deadlines end a look before: of the database, and of the roll-out.
        self._patience = _HANGS_INTERVALS * seconds + _HANGS_SECONDS
        self._looking_since: float | None = None
        self._begun = 0
        self._done = 0
        self._ended = asyncio.Event()

    def hurry(self) -> None:
        """Look now instead of at the next interval."""
        self._now.set()

    async def look_now(self) -> None:
        """Look now; return once a look that began after this call has ended, however it did."""
        wanted = self._begun + 1
        self.hurry()
        while self._done < wanted:
            self._ended.clear()
            await self._ended.wait()

    def notified(self) -> None:
        """Somebody says that the table has changed: look at once, or when it has been calm for a moment."""
        loop = asyncio.get_running_loop()
        wait = self._calm_until - loop.time()
        if wait <= 0:
            self._calm_until = loop.time() + _CALM_SECONDS
            self._now.set()
        elif not self._now.is_set():
            self._calm_until += _CALM_SECONDS
            loop.call_later(wait, self._now.set)

    async def keep_running(self) -> None:
        """Poll for ever, and begin anew when a poll hangs or dies: that is a defect, and must not end updates."""
        while True:
            task, hangs = asyncio.create_task(self.run()), False
            try:
                while not (task.done() or hangs):
                    await asyncio.wait({task}, timeout=min(_RETRY_FIRST, self._seconds))
                    hangs = self.looking_for() > self._patience
            finally:
                task.cancel()
            await asyncio.wait({task}, timeout=_RETRY_FIRST)
            reason = "it hangs" if hangs else f"it died: {_how(task)}"
            self._log.error("Poll Restarted", reason=reason, hint="a defect of avapd; please report it")
            self._refresh.reconcile()
            await asyncio.sleep(min(_RETRY_FIRST, self._seconds))

    def looking_for(self) -> float:
        """Seconds that the look under way has taken so far, or since validation got on with it; 0 for none."""
        if self._looking_since is None:
            return 0.0
        return time.monotonic() - max(self._looking_since, self._refresh.progressed_at)

    async def run(self) -> None:
        """Poll for ever; no error of the source ends it."""
        while True:
            self._now.clear()
            error = await self.once()
            if not self.first.done():
                self.first.set_result(error)
            wait = self._seconds
            if self._failures:
                wait = min(wait, _RETRY_FIRST * 2 ** min(self._failures - 1, 16))
            try:
                async with asyncio.timeout(wait * random.uniform(0.9, 1.1)):  # noqa: S311
                    await self._now.wait()
            except TimeoutError:
                continue

    async def once(self) -> AvapdError | None:
        """One look, and what follows from it; the error, when it failed (logged and counted already)."""
        began = time.monotonic()
        self._begun += 1
        self._looking_since = began
        try:
            result = await self._refresh.look()
        except Exception as error:  # noqa: BLE001  # a bug of ours must not end the service either; it is told and counted
            self._failures += 1
            return self._failed(error)
        finally:
            self.duration_last = time.monotonic() - began
            self.duration_sum += self.duration_last
            self._looking_since = None
            self._done = self._begun
            self._ended.set()
        self.results[result] += 1
        self._failures = 0
        self.last_error = ""
        return None

    def _failed(self, error: Exception) -> AvapdError:
        fault = _named(error)
        if isinstance(fault, SourceError):
            self._refresh.source_up = False
        self.results["rejected" if isinstance(fault, SnapshotError) else "failed"] += 1
        self.last_error = str(fault)
        held = self._errors.passes(time.monotonic())
        if held is not None:
            fields = {"hint": fault.hint} if fault.hint else {}
            if held:
                fields["suppressed"] = str(held)
            known = fault if isinstance(fault, (SourceError, RefusedError, NoRoomError)) else None
            reason = known.reason if known else type(fault).__name__
            serving = self._publisher.generation
            self._log.error("Refresh Failed", reason=reason, error=str(fault), serving_generation=serving, **fields)
        return fault


def _how(task: asyncio.Task[None]) -> str:
    """How a task ended, by name."""
    error = None if task.cancelled() else task.exception()
    return "cancelled" if error is None else type(error).__name__


def _named(error: Exception) -> AvapdError:
    """The error as one of ours."""
    if isinstance(error, AvapdError):
        return error
    if isinstance(error, OSError):
        return SnapshotError(f"the host refused what a snapshot needs: {error.strerror}")
    return AvapdError(f"internal error: {type(error).__name__}")
