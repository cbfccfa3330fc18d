"""The supervisor: keeps one live worker in every slot.

What happens to a worker, and what follows:

    exits or is killed        its slot's socket is lent to a serving worker at once; a new worker starts, at once
                              if the old one had been able to start, else after a back-off (0.5 s to 5 s, ±20 %)
    silent for `silence`      unless it only waits for a CPU: SIGABRT (its stack goes to stderr), then SIGKILL 0.25 s
                              later; then as above
    cannot start, five times  when that is true of every slot and nobody serves: CrashLoopError, exit 70
    is replaced (SIGUSR2)     a new one starts in the slot's other row, on the same socket; once it serves,
                              the old one drains

Nothing here waits for a worker. As PID 1, strangers that were orphaned to us are reaped with our own.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Final, Protocol

from avapd.control.listeners import BACKLOG
from avapd.control.starter import Starter
from avapd.control.worker import Worker
from avapd.errors import ChannelError, CrashLoopError
from avapd.log import Log
from avapd.shared import channel
from avapd.shared.board import Board, State
from avapd.shared.channel import Ack, Adopt, Booted, Certificates, Drain, Keys, Message, Reject, Release, Start, Want

TICK_SECONDS: Final = 0.1
BOOT_SECONDS: Final = 10.0
_ABORT_SECONDS: Final = 0.25
# The master itself was stopped or starved: the workers' heartbeats are judged only after it caught up.
_OWN_PAUSE_SECONDS: Final = 1.0
# A worker that waits for a CPU is only slow; but not for ever.
_STARVED_SECONDS: Final = 30.0
_BACKOFF_FIRST: Final = 0.5
_BACKOFF_MOST: Final = 5.0
_CRASHES_MOST: Final = 5
# Dying so soon after the start is a failed start too, unless somebody killed it.
_EARLY_SECONDS: Final = 5.0


class Audience(Protocol):
    """Who wants to know of workers: the publisher."""

    def join(self, worker: Worker) -> None:
        """A worker was started."""

    def leave(self, worker: Worker) -> None:
        """A worker is gone."""

    def acked(self, worker: Worker, ack: Ack) -> None:
        """A worker serves a generation."""

    def rejected(self, worker: Worker, reject: Reject) -> None:
        """A worker refused a generation."""

    def wanted(self, worker: Worker, want: Want) -> None:
        """A worker would send a generation compressed."""


class Slot:
    """A place for a worker: a listening socket (and one of the health port), a CPU, two rows of the board."""

    def __init__(self, number: int, listener: socket.socket, health: socket.socket | None) -> None:
        self.number = number
        self.listener = listener
        self.health = health
        self.worker: Worker | None = None
        self.adopter: Worker | None = None
        self.restarts = 0
        self.failures = 0
        self.start_at = 0.0


class Supervisor:
    """Starts, watches, replaces and stops the workers of all slots.

    `describe(slot, row, spare)` makes the Start message of a new worker, with all that may have changed since the last.
    `on_report` gets what workers tell that has nothing to do with their lives.
    """

    def __init__(
        self,
        *,
        board: Board,
        listeners: list[socket.socket],
        describe: Callable[[int, int, bool], Start],
        environ: dict[str, str],
        audience: Audience,
        log: Log,
        silence_seconds: float,
        health_listeners: list[socket.socket] | None = None,
    ) -> None:
        both = zip_longest(listeners, health_listeners or ())
        self.slots = [Slot(number, *sockets) for number, sockets in enumerate(both)]
        self._board = board
        self._describe = describe
        self._environ = environ
        self._starter = Starter()
        self._audience = audience
        self.on_report: Callable[[Worker, channel.Refusals | channel.Spans], None] = lambda _worker, _report: None
        self._log = log
        self._silence_seconds = silence_seconds
        self._workers: dict[int, Worker] = {}  # by pid, the replaced and draining ones included
        self._stopping = False
        self._changed = asyncio.Event()
        self._judge_after = 0.0
        self._certificates: tuple[Certificates, int] | None = None

    @property
    def workers(self) -> list[Worker]:
        """All live workers."""
        return list(self._workers.values())

    @property
    def serving(self) -> int:
        """How many slots have a worker that serves."""
        return sum(slot.worker is not None and slot.worker.serving for slot in self.slots)

    async def run(self) -> None:
        """Fill the slots and keep them filled. Raises CrashLoopError."""
        last = time.monotonic()
        while True:
            now = time.monotonic()
            if now - last > _OWN_PAUSE_SECONDS:
                self._judge_after = now + self._silence_seconds
            last = now
            if not self._stopping:
                for slot in self.slots:
                    if slot.worker is None and now >= slot.start_at:
                        self._start(slot)
                for worker in self.workers:
                    self._watch(worker, now)
            await asyncio.sleep(TICK_SECONDS)

    # --- starting ---------------------------------------------------------------------------------------

    def _start(self, slot: Slot) -> Worker | None:
        rows = self._free_rows(slot)
        if not rows:  # two are on their way out, a spare one maybe: tried again with the next tick
            return None
        try:
            # Already so, unless the last worker's engine shut it down in its fall.
            slot.listener.listen(BACKLOG)
            worker = self._launch(slot, rows[0], spare=False)
            if slot.health is not None:
                slot.health.listen(BACKLOG)
                worker.send(Adopt(slot=slot.number, health=True), slot.health.fileno())
        except OSError as error:
            self._fail(slot, f"cannot start a process: {error.strerror}")
            return None
        slot.worker = worker
        self._audience.join(worker)
        self._log.debug("Worker Started", worker=slot.number, worker_pid=worker.pid)
        return worker

    def start_spare(self) -> Worker | None:
        """A worker that serves nobody and is for its owner to end; None when the host or a replacement has no room."""
        slot = self.slots[0]
        rows = self._free_rows(slot)
        try:
            return self._launch(slot, rows[0], spare=True) if rows and not self._stopping else None
        except OSError as error:
            self._log.warn("No Spare Worker", error=error.strerror)
            return None

    def _free_rows(self, slot: Slot) -> list[int]:
        taken = {worker.row_number for worker in self.workers}
        return [row for row in (2 * slot.number, 2 * slot.number + 1) if row not in taken]

    def _launch(self, slot: Slot, row: int, *, spare: bool) -> Worker:
        start = self._describe(slot.number, row, spare)
        board, listener = self._board, slot.listener
        worker = Worker(start, board.row(row), board.fd, listener, self._environ, popen=self._starter.start)
        if self._certificates is not None:
            worker.send(*self._certificates)
        self._workers[worker.pid] = worker
        asyncio.get_running_loop().add_reader(worker.channel.fileno(), self._read, worker)
        return worker

    def _fail(self, slot: Slot, reason: str) -> None:
        """Count a failed start and set the time of the next."""
        slot.failures += 1
        delay = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2 ** (slot.failures - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
        slot.start_at = time.monotonic() + delay
        self._log.error(
            "Worker Cannot Start", worker=slot.number, reason=reason, failures=slot.failures, retry_in=round(delay, 2)
        )
        if self.serving == 0 and all(other.failures >= _CRASHES_MOST for other in self.slots):
            raise CrashLoopError(f"no worker could start, {_CRASHES_MOST} times each: {reason}")

    # --- listening --------------------------------------------------------------------------------------

    def _read(self, worker: Worker) -> None:
        try:
            arrived = worker.channel.receive()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())
            return
        except ChannelError as error:
            self._log.error("Worker Talks Nonsense", worker=worker.slot, reason=str(error))
            worker.signal(signal.SIGKILL)
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())
            return
        for message, _ in arrived:
            self._hear(worker, message)

    def _hear(self, worker: Worker, message: Message) -> None:
        slot = self.slots[worker.slot]
        match message:
            case Booted():
                worker.booted = True
                if not worker.sent:
                    self._succeed(slot, worker)
            case Ack():
                self._succeed(slot, worker)
                self._audience.acked(worker, message)
            case Reject():
                self._audience.rejected(worker, message)
            case Want():
                self._audience.wanted(worker, message)
            case channel.Refusals() | channel.Spans():
                self.on_report(worker, message)
                return
            case _:
                self._log.error("Unexpected Message", worker=worker.slot, message=type(message).__name__)
        self._changed.set()

    def _succeed(self, slot: Slot, worker: Worker) -> None:
        worker.ready = True
        if slot.adopter is not None and slot.worker is worker:
            slot.adopter.send(Release(slot=slot.number))
            slot.adopter = None

    # --- watching ---------------------------------------------------------------------------------------

    def _watch(self, worker: Worker, now: float) -> None:
        """Deliver what waits, and end a worker whose event loop no longer turns."""
        if worker.channel.pending:
            try:
                worker.channel.flush()
            except OSError:
                return  # gone; SIGCHLD tells
        if worker.aborted_at is not None:
            if now - worker.aborted_at > _ABORT_SECONDS:
                worker.signal(signal.SIGKILL)
            return
        booting = worker.state in {State.ABSENT, State.BOOTING}
        allowed = BOOT_SECONDS if booting else self._silence_seconds
        silent, starved = worker.silent_for(now), worker.starved_for()
        if silent > allowed and now > self._judge_after and (starved < silent / 2 or silent > _STARVED_SECONDS):
            self._log.error(
                "Worker Silent, Killing",
                worker=worker.slot,
                worker_pid=worker.pid,
                seconds=round(silent, 2),
            )
            worker.aborted_at = now
            worker.signal(signal.SIGABRT)

    def reap(self) -> None:
        """Collect every child that has ended: ours are replaced, strangers are only collected."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: Worker, code: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.channel.fileno())
        age = time.monotonic() - worker.started_at
        worker.bury(code)
        self._audience.leave(worker)
        self._changed.set()
        slot = self.slots[worker.slot]
        for other in self.slots:
            if other.adopter is worker:
                other.adopter = None
        if self._stopping:
            return
        if slot.worker is worker:
            self._refill(slot, worker, code, age)
        self._lend_sockets()

    def _refill(self, slot: Slot, worker: Worker, code: int, age: float) -> None:
        """Find a successor for a worker that was not told to go."""
        slot.worker = next((other for other in self.workers if other.slot == slot.number and other.serving), None)
        slot.restarts += 1
        reason = signal.Signals(-code).name if code < 0 else f"exit {code}"
        if slot.worker is not None:  # its replacement failed: the one that was to be replaced stays
            self._log.error("Worker Died", worker=slot.number, worker_pid=worker.pid, reason=reason)
            return
        if worker.ready and (code == -signal.SIGKILL or age > _EARLY_SECONDS):
            slot.failures = 0
            self._log.error("Worker Died", worker=slot.number, worker_pid=worker.pid, reason=reason)
            slot.start_at = 0.0
            self._start(slot)
        else:
            self._fail(slot, reason)

    def _lend_sockets(self) -> None:
        """Let a serving worker accept for each slot that has none that serves."""
        serving = [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.serving]
        for slot in self.slots:
            if serving and slot.adopter is None and (slot.worker is None or not slot.worker.ready):
                slot.adopter = serving[slot.number % len(serving)]
                slot.adopter.send(Adopt(slot=slot.number), slot.listener.fileno())
                if slot.health is not None:
                    slot.adopter.send(Adopt(slot=slot.number, health=True), slot.health.fileno())

    # --- told by the operator -----------------------------------------------------------------------------

    def send_keys(self, keys: Keys) -> None:
        """Tell every worker which keys to accept."""
        for worker in self.workers:
            worker.send(keys)

    def send_certificates(self, certificates: Certificates, fd: int) -> None:
        """Tell every worker, and those to come, what to show; the descriptor is the caller's, until the next."""
        self._certificates = (certificates, fd)
        for worker in self.workers:
            worker.send(certificates, fd)

    async def replace_all(self, drain_seconds: float) -> None:
        """Replace the workers one by one: the new one serves before the old one stops taking connections."""
        for slot in self.slots:
            old = slot.worker
            if old is None or not old.serving:
                continue
            await self._wait_for(partial(self._has_room, slot), BOOT_SECONDS)
            new = self._start(slot)
            if new is None or not await self._wait_for(partial(self._settled, new), BOOT_SECONDS) or not new.serving:
                self._log.error("Replacement Stopped", worker=slot.number)
                return
            old.send(Drain(at_once=True))
            if not await self._wait_for(partial(self._gone, old), drain_seconds + 1):
                old.signal(signal.SIGKILL)
        self._log.info("Workers Replaced", workers=len(self.slots))

    def _has_room(self, slot: Slot) -> bool:
        return bool(self._free_rows(slot))

    def _gone(self, worker: Worker) -> bool:
        return worker.pid not in self._workers

    def _settled(self, worker: Worker) -> bool:
        return worker.serving or self._gone(worker)

    async def stop(self, drain_seconds: float) -> None:
        """Drain every worker, then end who has not gone after `drain_seconds` and a second."""
        self._stopping = True
        for slot in self.slots:
            slot.listener.close()  # the workers hold theirs until their pre-drain is over
            if slot.health is not None:
                slot.health.close()
        for worker in self.workers:
            worker.send(Drain(at_once=False))
        if not await self._wait_for(lambda: not self._workers, drain_seconds + 1):
            self.kill_all()
            await self._wait_for(lambda: not self._workers, 1.0)

    def kill_all(self) -> None:
        """End every worker at once."""
        for worker in self.workers:
            self._log.warn("Worker Killed", worker=worker.slot, worker_pid=worker.pid)
            worker.signal(signal.SIGKILL)

    async def all_serving(self) -> None:
        """Return once every slot has a worker that serves."""
        while self.serving < len(self.slots):
            self._changed.clear()
            await self._changed.wait()

    async def _wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition on the workers holds; False when it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
