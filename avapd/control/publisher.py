"""The publisher: brings a snapshot to every worker.

Rules (architecture.md 3, reliability.md R5, R7, R13)
- One worker gets a new generation first, the canary; the others only after its ack and, where asked for, after it has
  served it alone for a while. A canary that rejects it, dies on it, hangs with it or fails calls stops the roll-out:
  the old generation stays everywhere else. One whose heart beats but who does not ack hangs with it too; one without a
  heartbeat is passed over, and the watchdog sees to it.
- Where there is only one worker, a throw-away one loads a change from the table before it does.
- The master never waits for a worker: each has at most one unacknowledged Load; what comes meanwhile is kept back,
  newest wins.
- Generations only rise. A worker that starts gets the current one.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Final

from avapd.control.canary import Canary, RollOutError
from avapd.control.compressor import Compressor
from avapd.control.packer import Snapshot
from avapd.control.worker import Worker
from avapd.log import Log
from avapd.shared.channel import Ack, Load, LoadPatch, Missing, Reject, Want

# How long a worker may take to ack before it counts as silent: one that runs, and one that is still booting.
_ACK_SECONDS: Final = 0.5
# And how long before it counts as hung, if its heart beats: a machine may be busy.
_HUNG_SECONDS: Final = 3.0
_BOOT_SECONDS: Final = 10.0
# A worker whose heartbeat is older is not waited for: it is stopped or starved, and the watchdog's business.
_SILENT_SECONDS: Final = 0.5
# Verifying takes time in proportion: SHA-256 runs at a few hundred MB/s on the slowest machines.
_ACK_BYTES_PER_SECOND: Final = 100_000_000
_ROLL_OUT_SECONDS: Final = 5.0


class Publisher:
    """Knows the workers and the snapshot they should serve."""

    def __init__(self, log: Log, soak_seconds: float = 0.0) -> None:
        self.current: Snapshot | None = None
        self.canary: Canary | None = None
        self.spare: Callable[[], Worker | None] = lambda: None  # starts a worker that serves nobody
        self._soak_seconds = soak_seconds
        self._log = log
        self._compressor = Compressor(log)
        self._workers: list[Worker] = []
        self._offer: tuple[Worker, asyncio.Future[RollOutError | None]] | None = None
        self._acked = asyncio.Event()
        self._before = ""
        self._changed: list[str] | None = None
        self._missing = Missing(reasons={})

    @property
    def generation(self) -> int:
        """The generation that is being served, 0 for none."""
        return self.current.view.generation if self.current is not None else 0

    # --- workers come and go ----------------------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        """A worker was started: it gets the current snapshot."""
        self._workers.append(worker)
        if self._missing.reasons:
            worker.send(self._missing)
        self._bring_up_to_date(worker)

    def leave(self, worker: Worker) -> None:
        """A worker is gone."""
        if worker in self._workers:
            self._workers.remove(worker)
        self._answer(worker, RollOutError(worker, "the worker died on it", content=not worker.felled))
        if self.canary is not None and self.canary.worker is worker:
            self.canary.died()
            self.canary = None
        self._acked.set()

    def acked(self, worker: Worker, ack: Ack) -> None:
        """A worker serves a generation."""
        worker.generation = ack.generation
        self._answer(worker, None)
        self._acked.set()
        if self._offer is None:
            self._end_refused()
        self._bring_up_to_date(worker)

    def rejected(self, worker: Worker, reject: Reject) -> None:
        """A worker keeps what it had."""
        worker.sent = worker.generation
        self._answer(worker, RollOutError(worker, reject.reason, content=not reject.host))
        self._acked.set()

    def wanted(self, worker: Worker, want: Want) -> None:
        """A worker would send a generation compressed; a canary has to wait until everyone serves its own."""
        worker.wants = want.generation
        if self.current is not None:
            self._compressor.serve(self.current.view, self._workers)

    def _answer(self, worker: Worker, error: RollOutError | None) -> None:
        if self._offer is not None and self._offer[0] is worker and not self._offer[1].done():
            self._offer[1].set_result(error)

    def _end_refused(self) -> None:
        """End workers that took a generation, too late to be asked first, which another then refused."""
        for worker in self._workers:
            if worker.generation > self.generation and (self.canary is None or worker is not self.canary.worker):
                self._log.error("Worker Serves Refused Generation, Killing", worker=worker.slot)
                worker.signal(signal.SIGKILL)

    def bring_up_to_date(self) -> None:
        """Offer the current snapshot again to workers that refused it when all others took it."""
        for worker in self._workers:
            self._bring_up_to_date(worker)

    def _bring_up_to_date(self, worker: Worker) -> None:
        if self.current is not None and worker.sent < self.generation and worker.sent == worker.generation:
            self._send(worker, self.current)

    def _send(self, worker: Worker, snap: Snapshot, *, thorough: bool = False) -> None:
        generation, base = snap.view.generation, snap.base
        worker.sent = generation
        if snap.patch_fd is None:
            load = Load(
                generation=generation, size=snap.size, before=self._before, changed=self._changed, thorough=thorough
            )
            worker.send(load, base.fd)
            return
        message = LoadPatch(
            generation=generation, size=snap.size, base=base.view.generation, base_size=base.size,
            before=self._before, changed=self._changed, thorough=thorough,
        )  # fmt: skip
        worker.send(message, base.fd, snap.patch_fd)

    def tell_missing(self, reasons: dict[str, str]) -> None:
        """Tell every worker, also those to come, why names are not served."""
        if reasons != self._missing.reasons:
            self._missing = Missing(reasons=reasons)
            for worker in self._workers:
                worker.send(self._missing)

    # --- publishing -------------------------------------------------------------------------------------

    async def publish(self, snap: Snapshot, changed: list[str] | None = None, *, soak: bool = False) -> None:
        """Bring a snapshot to every worker: first to one, after its ack (and with `soak` after a while) to the rest.

        With `soak` and one worker alone, a spare one has to take it before. `changed` are the names that differ from
        what is served now, for those who watch; None when they are too many. Returns when all have acked, or after a
        few seconds without the laggards. Takes over `snap`. Raises RollOutError when the roll-out was stopped: everyone
        serves what was served before, save the `canary` if it still lives, for which it must be published again.
        """
        self._before, self._changed = self.current.view.version_hash if self.current else "", changed
        try:
            if soak and len(self._workers) == 1 and self.current is not None:
                await self._try_spare(snap)
            first = await self._try_first(snap)
            if soak and self._soak_seconds and first is not None and self.current is not None:
                await self._soak(first)
        except RollOutError:
            snap.close()
            self._end_refused()
            raise
        self.canary = None
        before, self.current = self.current, snap
        self.bring_up_to_date()
        self._compressor.serve(snap.view, self._workers)
        if before is not None:
            before.close()
        await self._wait_for_acks()

    async def _soak(self, first: Worker) -> None:
        """With nobody to compare it with, or to protect, there is no soak."""
        peers = [worker for worker in self._workers if worker is not first]
        if peers:
            self.canary = Canary(first, peers)
            self._log.info("Canary Serves", worker=first.slot, generation=first.generation, seconds=self._soak_seconds)
            await self.canary.watch(self._soak_seconds)

    def withdraw(self) -> bool:
        """Stop the roll-out under way if only one worker serves it yet; whether there was one."""
        if self.canary is None:
            return False
        self.canary.withdraw()
        return True

    def stop(self) -> None:
        """Work on nothing any more."""
        self._compressor.stop()

    def end_canary(self) -> None:
        """End a canary that could not be brought back: its successor gets what all others serve."""
        self.canary = None
        self._end_refused()

    async def _wait_for_acks(self) -> None:
        deadline = time.monotonic() + _ROLL_OUT_SECONDS
        while late := [worker for worker in self._workers if worker.generation < worker.sent]:
            now = time.monotonic()
            if now > deadline or all(worker.silent_for(now) > _SILENT_SECONDS for worker in late):
                slots = [worker.slot for worker in late]
                self._log.warn("Workers Late", generation=self.generation, workers=slots)
                return
            self._acked.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acked.wait(), _SILENT_SECONDS / 2)

    async def _try_spare(self, snap: Snapshot) -> None:
        """Have a worker load it that serves nobody. Raises RollOutError when it does not come through."""
        spare = self.spare()
        if spare is None:
            return
        try:
            if not await self._offered(spare, snap):
                raise RollOutError(spare, "a spare worker did not start in time", content=False)
        finally:
            spare.signal(signal.SIGKILL)

    async def _try_first(self, snap: Snapshot) -> Worker | None:
        """Wait for one worker's verdict on the snapshot, and return it; None when no worker answers."""
        now = time.monotonic()
        for worker in sorted(
            self._workers,
            key=lambda worker: (not worker.serving, worker.silent_for(now) > _SILENT_SECONDS, worker.slot),
        ):
            if worker.sent != worker.generation or worker not in self._workers:
                continue  # busy with an older one, or gone while another was asked
            if await self._offered(worker, snap):
                return worker
            self._log.warn("Worker Silent", worker=worker.slot, generation=snap.view.generation)
        return None

    async def _offered(self, worker: Worker, snap: Snapshot) -> bool:
        """Send it to one worker; whether it serves it. Raises RollOutError when it refuses, dies or hangs."""
        verdict: asyncio.Future[RollOutError | None] = asyncio.get_running_loop().create_future()
        self._offer = (worker, verdict)
        self._send(worker, snap, thorough=self.current is not None)  # at a start there is nothing to protect
        began = time.monotonic()
        boot_left = 0.0 if worker.booted else max(0.0, _BOOT_SECONDS - (began - worker.started_at))
        patience = boot_left + snap.total / _ACK_BYTES_PER_SECOND
        try:
            await asyncio.wait({verdict}, timeout=patience + _ACK_SECONDS)
            beats = worker.booted and worker.silent_for(time.monotonic()) <= _SILENT_SECONDS
            if not verdict.done() and beats and self.current is not None:
                await asyncio.wait({verdict}, timeout=_HUNG_SECONDS)
                if not verdict.done() and worker.silent_for(time.monotonic()) <= _SILENT_SECONDS:
                    worker.signal(signal.SIGKILL)
                    verdict.set_result(RollOutError(worker, "the worker hangs while it loads it", content=True))
        finally:
            self._offer = None
        if not verdict.done():
            return False
        error = verdict.result()
        if error is not None:
            worker.sent = worker.generation
            raise error
        return True
