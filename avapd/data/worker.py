"""The worker: one process, one CPU, one catalog in mapped memory.

Its life is a straight line; the state is on the board for the master to see:

    BOOTING ──engine up──► WAITING ──Load──► SERVING ──Drain, SIGTERM──► DRAINING ──► exit 0
                           health answers    Load: the same again, while answers go on
                           NOT_SERVING       master gone: `orphan_seconds`, then drain

A Load is: map, verify, swap, warm up (the first time), ack.
The port is opened when there is something to serve. Only at a cold start without a database it is opened before, so
that probes hear NOT_SERVING. The heartbeat is written by the event loop that serves: when the loop hangs, the
heartbeat stops.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import time
from typing import Final

from avapd.data import process
from avapd.data.access import Access
from avapd.data.engine import Engine, build
from avapd.data.health import LIVENESS
from avapd.data.link import Link
from avapd.data.service import SERVICE, Service
from avapd.data.tls import Identity
from avapd.data.verifier import Verifier, base_of
from avapd.errors import Exit, SnapshotError
from avapd.log import Log
from avapd.shared import board as words
from avapd.shared import memory
from avapd.shared.board import Board, State
from avapd.shared.channel import (
    Ack,
    Adopt,
    Booted,
    Certificates,
    Channel,
    Compressed,
    Drain,
    Keys,
    Load,
    LoadPatch,
    Message,
    Missing,
    Reject,
    Release,
    Start,
    Want,
)
from avapd.shared.patch import PatchedView
from avapd.wire.limits import Limits

HEARTBEAT_SECONDS: Final = 0.1
# Descriptors are counted every so many heartbeats.
_COUNT_EVERY: Final = 10
FRESHNESS: Final = "avapd.freshness"


async def serve(start: Start, descriptors: list[int], channel: Channel, more: list[tuple[Message, list[int]]]) -> int:
    """Be a worker until told to stop; the exit code. `more` are messages that came together with Start."""
    board_fd, listener_fd = descriptors
    worker = Worker(start, board_fd, listener_fd, channel)
    for message, its_descriptors in more:
        worker.handle(message, its_descriptors)
    return await worker.run()


def _reason(error: SnapshotError | OSError) -> str:
    return str(error) if isinstance(error, SnapshotError) else f"{type(error).__name__}: {error.strerror}"


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


class Worker:
    """A worker as its Start message describes it."""

    def __init__(self, start: Start, board_fd: int, listener_fd: int, channel: Channel) -> None:
        """Wire the parts; needs the running loop. Takes over both descriptors."""
        self._start = start
        self._log = Log("worker", level=start.log_level, readable=start.environment == "development", worker=start.slot)
        self._board = Board(board_fd, start.rows)
        self._row = self._board.row(start.row)
        self._row.clear_gauges()
        self._row[words.PID] = os.getpid()
        self._row[words.HEARTBEAT] = time.monotonic_ns()
        self._row[words.STATE] = State.BOOTING
        self._listener: socket.socket | None = socket.socket(fileno=listener_fd)
        if start.spare:  # it only shows what becomes of who loads
            self._listener.close()
            self._listener = None
            os.nice(process.SPARE_NICENESS)
        if start.seed is not None:
            random.seed(start.seed + start.slot)
        self._health_listener: socket.socket | None = None
        self._identity = Identity()
        limits = Limits(**start.limits)  # type: ignore[arg-type]  # each is of its own kind
        self._access = Access(start.keys, self._row, self._board.all(), limits, anonymous=start.anonymous)
        self._service = Service(start.max_answer_bytes, lambda generation: self._link.send(Want(generation=generation)))
        identity = self._identity if start.tls else None
        self._engine: Engine = build(self._service, self._access, self._row, start, self._log, identity=identity)
        self._link = Link(channel, self.handle, self._orphaned)
        self._taking: asyncio.Task[None] | None = None
        self._wanted: tuple[Load | LoadPatch, list[int]] | None = None
        self._arrived = asyncio.Event()
        self._verifier = Verifier(start.max_answer_bytes)
        self._stop = asyncio.Event()
        self._pre_drain = True
        self._fresh = False
        self._stale = False
        self._began = time.monotonic_ns()

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        process.pin(self._start.cpu, self._log)
        files = process.raise_limits()
        if 0 <= files < process.ENOUGH_FILES and self._start.slot == 0:  # one WARN speaks for all
            self._log.warn("Few Open Files", limit=files, wanted=process.ENOUGH_FILES, hint="raise ulimit -Hn")
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        if self._start.tls and not await self._identified():
            return Exit.OK
        await self._engine.start()
        self._engine.set_health(LIVENESS, serving=True)
        for name in ("", SERVICE, FRESHNESS):
            self._engine.set_health(name, serving=False)
        if not self._start.catalog:
            self._open_port()
        self._row[words.STATE] = State.WAITING
        self._link.send(Booted())
        works = (self._beat, self._load_newest, self._engine.ended, self._stop.wait)
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(work()) for work in works]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if not self._stop.is_set():
            self._log.error("Engine Ended", hint="the worker is replaced")
            self._log.close()
            return Exit.INTERNAL
        await self._drain()
        for task in tasks:
            task.cancel()
        self._row[words.STATE] = State.ABSENT
        self._log.debug("Worker Stopped")
        self._log.close()
        return Exit.OK

    async def _identified(self) -> bool:
        """Wait for the first certificate; False when we are told to go before it has come."""
        waits = [asyncio.create_task(event.wait()) for event in (self._identity.known, self._stop)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._identity.known.is_set()

    def _open_port(self) -> None:
        if self._listener is not None:
            process.tune(self._listener)
            self._engine.open(self._start.slot, self._listener)
            self._listener = None
        if self._health_listener is not None:
            process.tune(self._health_listener)
            self._engine.open_health(self._start.slot, self._health_listener)
            self._health_listener = None

    # --- heartbeat ----------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        for beat in itertools.count():
            self._row[words.HEARTBEAT] = time.monotonic_ns()
            if beat % _COUNT_EVERY == 0:
                self._row[words.CONNECTIONS] = self._engine.connections()
                self._report()
            if self._access.beat(time.monotonic(), time.time()):
                self._engine.keys_changed()
            checked = self._board[words.CHECKED]
            fresh = bool(checked) and time.monotonic_ns() - checked < self._board[words.FRESH_FOR]
            if fresh != self._fresh:
                self._fresh = fresh
                self._engine.set_health(FRESHNESS, serving=fresh)
            self._judge_age(checked)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _report(self) -> None:
        """Once a second: what is more than counters. A master that does not read is not told."""
        if self._link.free():
            for message in self._engine.reports.take():
                self._link.send(message)

    def _judge_age(self, checked: int) -> None:
        """With `max_stale_seconds`: what was not checked for so long, since our start at least, is not served."""
        most = self._start.max_stale_seconds
        if not most or self._row[words.STATE] != State.SERVING:
            return
        stale = time.monotonic_ns() - max(checked, self._began) > most * 1e9
        if stale != self._stale:
            self._stale = stale
            self._log.warn("Catalog Too Old" if stale else "Catalog Fresh Again", max_stale_seconds=most)
            for name in ("", SERVICE):
                self._engine.set_health(name, serving=not stale)

    # --- messages from the master ---------------------------------------------------------------------------

    def handle(self, message: Message, descriptors: list[int]) -> None:
        """Act on a message at once; only a Load is left for the task that loads."""
        match message:
            case Load() | LoadPatch():
                if self._wanted is not None:  # newest wins: what was overtaken is not even mapped
                    _close(self._wanted[1])
                self._wanted = (message, descriptors)
                self._arrived.set()
            case Compressed():
                self._taking = asyncio.create_task(self._take_compressed(message, descriptors[0]))
            case Adopt():
                self._adopt(message, socket.socket(fileno=descriptors[0]))
            case Certificates(client_ca=client_ca):
                self._show(client_ca, descriptors[0])
            case Release(slot=slot):
                self._engine.shut(slot)
            case Missing(reasons=reasons):
                self._service.missing = reasons
                self._engine.swapped()
            case Keys(keys=keys):
                self._access.set_keys(keys)
                self._engine.keys_changed()
            case Drain(at_once=at_once):
                self._pre_drain = not at_once
                self._stop.set()
            case _:
                self._log.error("Unexpected Message", message=type(message).__name__)

    def _adopt(self, adopt: Adopt, listener: socket.socket) -> None:
        if not adopt.health:
            self._engine.open(adopt.slot, listener)
        elif adopt.slot == self._start.slot and self._listener is not None:  # not open yet
            self._health_listener = listener
        else:
            self._engine.open_health(adopt.slot, listener)

    def _show(self, client_ca: str, fd: int) -> None:
        """Take another certificate, proved by the master; what it is shown in begins with the next handshake."""
        try:
            self._identity.take(fd, client_ca)
        except OSError as error:
            self._log.error("Certificate Not Taken", error=type(error).__name__, reason=error.strerror)
        finally:
            os.close(fd)

    def _orphaned(self, reason: str) -> None:
        if not self._stop.is_set():
            seconds = self._start.orphan_seconds
            self._log.warn("Master Lost", reason=reason, serving_for_seconds=seconds)
            asyncio.get_running_loop().call_later(seconds, self._stop.set)

    # --- loading --------------------------------------------------------------------------------------------

    async def _load_newest(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._wanted is not None:
                (load, descriptors), self._wanted = self._wanted, None
                await self._load(load, descriptors)

    async def _load(self, load: Load | LoadPatch, descriptors: list[int]) -> None:
        """Map, verify, swap, ack; or keep what is served and say why."""
        began = time.monotonic()
        try:
            view = await self._verifier.verified(load, descriptors, self._service.view)
        except (SnapshotError, OSError) as error:
            reason = _reason(error)
            self._log.error("Snapshot Rejected", generation=load.generation, reason=reason)
            self._link.send(Reject(generation=load.generation, reason=reason, host=isinstance(error, OSError)))
            return
        finally:
            _close(descriptors)
        before = self._service.swap(view, load.before, load.changed)
        self._engine.swapped()
        self._row[words.GENERATION] = view.generation
        if before is None:
            await self._begin_serving()
        else:
            if isinstance(before, PatchedView):
                before.close()
            if base_of(before) is not base_of(view):
                base_of(before).close()
        seconds = time.monotonic() - began
        self._log.debug("Snapshot Loaded", generation=view.generation, count=len(view), seconds=round(seconds, 4))
        self._link.send(Ack(generation=view.generation, seconds=seconds))

    async def _take_compressed(self, message: Compressed, fd: int) -> None:
        """Map and verify what the master compressed, and send it from now on; or go on without and say why."""
        try:
            arena = await self._verifier.aside(memory.map_checked, fd, message.size, message.checksum)
        except (SnapshotError, OSError) as error:
            self._log.error("Compressed Catalog Rejected", generation=message.generation, reason=_reason(error))
            return
        finally:
            os.close(fd)
        # Never closed by hand: it is unmapped when the service has let go of it and the last answer is sent.
        if self._service.take_compressed(message.generation, memoryview(arena)):
            self._engine.compressed()

    async def _begin_serving(self) -> None:
        await self._engine.warm_up()
        process.freeze_heap()
        for name in ("", SERVICE):
            self._engine.set_health(name, serving=True)
        self._row[words.STATE] = State.SERVING
        self._open_port()

    # --- the end --------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """NOT_SERVING first, while connections are still taken; then no more connections; then the calls in flight.

        Who has been replaced already does not say NOT_SERVING: a probe that reached it would take it for the service's.
        """
        self._row[words.STATE] = State.DRAINING
        left = self._start.drain_seconds
        if self._pre_drain:
            self._engine.drain()
            await asyncio.sleep(self._start.pre_drain_seconds)
            left -= self._start.pre_drain_seconds
        if self._listener is not None:
            self._listener.close()
        if self._health_listener is not None:
            self._health_listener.close()
        await self._engine.stop(max(0.0, left))
        self._report()
