"""The master: wires the control plane (`Master.__init__`) and runs it (`run`). The composition root.

    INIT → CONFIG OK → sockets, board, workers start → DB OK → CATALOG OK → WORKERS OK → SERVING → … → drain → exit

Workers boot while the table is being read; whichever is first waits for the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from typing import Final

from avapd.config import Config
from avapd.control import host
from avapd.control.admin import Admin
from avapd.control.audit import Audit, sink_of
from avapd.control.backlog import Backlog
from avapd.control.budget import Budget
from avapd.control.certificates import Certificates
from avapd.control.guard import Switches
from avapd.control.history import Entry
from avapd.control.keys import KeyFile
from avapd.control.listeners import claim, open_listeners
from avapd.control.metrics import registry
from avapd.control.operator import Operator, admin_socket
from avapd.control.packer import Snapshot
from avapd.control.plane import Plane
from avapd.control.poll import Poll
from avapd.control.publisher import Publisher
from avapd.control.refresh import Refresh
from avapd.control.signals import Signals
from avapd.control.source import Source
from avapd.control.source.listener import Notifications
from avapd.control.starter import step_back
from avapd.control.store import Store
from avapd.control.supervisor import Supervisor
from avapd.control.telemetry import telemetry_of
from avapd.control.validator import validator_of
from avapd.control.worker import Worker, environment
from avapd.errors import AvapdError, ConfigError, CrashLoopError, Exit
from avapd.log import Log
from avapd.shared import board
from avapd.shared.channel import Refusals, Spans, Start

_FRESH_INTERVALS: Final = 3
# A database that has not answered by then is not waited for when the disk holds a catalog.
_DISK_AFTER_SECONDS: Final = 0.5
_SETTLED_SECONDS: Final = 30.0
# Tasks that are done one day; of the others each runs as long as the service.
_ENDING: Final = {"boot", "disk", "backlog", "audit", "telemetry"}
_VALIDATORS_MOST: Final = 4
_LEAST_PRIORITY: Final = 19


def source_of(config: Config) -> Source:
    """The source that the settings describe."""
    return Source(
        config.database_url,
        ca_file=config.database_ca_file,
        schema=config.database_schema,
        seconds=config.database_seconds,
        max_definition_bytes=config.max_definition_bytes,
        max_bytes=config.max_catalog_bytes,
        max_rows=config.max_definitions,
    )


class Master:
    """The control plane of one avapd.

    `reload` reads the settings again (SIGHUP); `on_serving` is called once, when the first catalog is served.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        *,
        reload: Callable[[], Config],
        require_database: bool = False,
        on_serving: Callable[[], None] | None = None,
    ) -> None:
        """Open the sockets and the board. Raises SocketError. Needs the running loop."""
        self._config = config
        self._log = log
        self._reload = reload
        self._require_database = require_database
        self._on_serving = on_serving
        self._telemetry = telemetry_of(config, log)
        self._cpus = host.usable_cpus()
        self._count = config.workers or len(self._cpus)
        self._certificates = Certificates(config, log) if config.tls else None
        self._claim = claim(config.host, config.port)
        rows = 2 * self._count
        self._board = board.Board(board.create(rows), rows)
        self._board[board.FRESH_FOR] = int(_FRESH_INTERVALS * config.refresh_seconds * 1e9)
        self._publisher = Publisher(log, config.canary_seconds)
        self._supervisor = self._supervise()
        self._keys = KeyFile(config, self._board, log, self._supervisor.send_keys)
        self._publisher.spare = self._supervisor.start_spare
        source = source_of(config)
        self._store = Store(config.snapshot_dir, config.signing_key, log) if config.snapshot_dir else None
        self._validators = [
            validator_of(config, children=min(_VALIDATORS_MOST, len(self._cpus))),
            validator_of(config, niceness=_LEAST_PRIORITY),
        ]
        self._refresh = self._refresh_of(source)
        self._backlog = Backlog(self._refresh, self._publisher, self._validators[1], log)
        self._poll = Poll(self._refresh, self._publisher, log, seconds=config.refresh_seconds)
        self._notifications = Notifications(source.database, config.notify_channel, self._poll.notified, log)
        plane = Plane(self._board, self._poll, self._refresh, self._publisher, self._supervisor, self._notifications)
        self._observe(plane)
        step_back()

    def _observe(self, plane: Plane) -> None:
        """Wire those who look on or give orders."""
        config, log = self._config, self._log
        self._audit = Audit(log, sink_of(config, log))
        self._operator = Operator(plane, log, keep=self._keep_switches, note=self._audit.note)
        self._metrics = registry(plane, config.engine, self._keys)
        self._admin = Admin(self._metrics, plane, config, self._certificates)
        self._refresh.note, self._refresh.span = self._audit.note, self._telemetry.span
        self._keys.note = self._audit.note
        self._supervisor.on_report = self._note_report
        self._metrics.register(self._audit)
        self._metrics.register(self._telemetry)
        if self._store is not None:
            self._metrics.register(self._store)
        if self._certificates is not None:
            self._metrics.register(self._certificates)
            self._certificates.note = self._audit.note

    def _note_report(self, worker: Worker, report: Refusals | Spans) -> None:
        if isinstance(report, Refusals):
            self._audit.note_refusals(worker.slot, report.entries)
        else:
            self._telemetry.take(worker.slot, report)

    def _refresh_of(self, source: Source) -> Refresh:
        config = self._config
        return Refresh(
            source, self._publisher, self._validators[0], self._log, signing_key=config.signing_key,
            seconds=config.refresh_seconds, start_seconds=config.start_check_seconds, on_checked=self._note_check,
            on_published=self._note_publication, recall=self._store.recall if self._store is not None else dict,
            budget=Budget(self._count),
        )  # fmt: skip

    def _supervise(self) -> Supervisor:
        """The supervisor, on sockets of its own. Raises SocketError."""
        config = self._config
        ports = [open_listeners(config.host, port, self._count) for port in (config.port, config.health_port) if port]
        made = Supervisor(
            board=self._board,
            listeners=ports[0],
            health_listeners=ports[1] if config.health_port else None,
            describe=self._describe,
            environ=environment(os.environ, config.threadpool),
            audience=self._publisher,
            log=self._log,
            silence_seconds=config.silence_seconds,
        )
        if self._certificates is not None:
            self._certificates.publish_to(made.send_certificates)
        return made

    def _note_publication(self, snap: Snapshot, entry: Entry) -> None:
        if self._store is not None:
            self._store.keep_entry(entry)
            if not self._refresh.unchecked:
                self._store.keep_catalog(snap, entry.generation)

    def _keep_switches(self) -> None:
        if self._store is not None:
            self._store.keep_switches(self._refresh.switches)
        elif self._refresh.switches != Switches():
            self._log.warn("Decision Not Kept", hint="set AVAPD_SNAPSHOT_DIR, else a restart forgets it")

    async def _recover(self) -> None:
        """What an earlier run left on disk: decisions and history. The catalog only if it must not be the table's."""
        if self._store is None:
            return
        self._refresh.switches = self._store.switches()
        self._refresh.history.entries = self._store.history()
        self._refresh.packer.generation = max([entry.generation for entry in self._refresh.history.entries], default=0)
        if self._refresh.switches.frozen:
            await self._store.serve(self._refresh.load)

    async def _serve_from_disk(self) -> None:
        """Serve the last good catalog until the database answers; nothing of it when the database is quick."""
        if self._store is None:
            return
        await asyncio.wait({self._poll.first}, timeout=_DISK_AFTER_SECONDS)
        if not self._refresh.loaded.is_set():
            await self._store.serve(self._refresh.load)
        if self._store.served:
            await asyncio.sleep(_SETTLED_SECONDS)
            self._store.settled()

    def _note_check(self) -> None:
        self._board[board.CHECKED] = time.monotonic_ns()

    def _describe(self, slot: int, row: int, spare: bool) -> Start:
        config = self._config
        return Start(
            slot=slot,
            row=row,
            rows=self._board.rows,
            slots=self._count,
            cpu=self._cpus[slot % len(self._cpus)],
            engine=config.engine,
            environment=config.environment,
            log_level=config.log_level,
            keys=self._keys.message().keys,
            catalog=self._publisher.current is not None,
            spare=spare,
            trace_ratio=config.otel_sample_ratio if config.otel else None,
            echo_request_id=config.echo_request_id,
            orphan_seconds=config.orphan_seconds,
            max_stale_seconds=config.max_stale_seconds,
            pre_drain_seconds=config.pre_drain_seconds,
            drain_seconds=config.drain_seconds,
            max_answer_bytes=config.max_answer_bytes,
            limits=dataclasses.asdict(config.limits),
            tls=config.tls,
            anonymous=config.anonymous,
            seed=config.seed if config.environment == "test" else None,
        )

    # --- running ----------------------------------------------------------------------------------------

    async def run(self) -> Exit:
        """Serve until a signal stops it; the exit code. Raises what makes serving impossible."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the keys
        signals = Signals()
        await self._admin.start(self._config.admin_host, self._config.admin_port)
        await self._operator.start(admin_socket(self._config.admin_socket, self._config.port))
        await self._recover()
        tasks = self._begin(signals)
        ending = {task for task in tasks if task.get_name() in _ENDING}
        code = Exit.OK
        try:
            running = set(tasks)
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if done - ending:
                    break
        except CrashLoopError as error:
            self._log.fatal("Crash Loop", error=str(error), hint=error.hint)
            code = error.exit_code
        except AvapdError as error:
            self._log.fatal("Giving Up", error=str(error), hint=error.hint)
            code = error.exit_code
        except Exception as error:  # noqa: BLE001  # a bug of ours: the workers are drained all the same
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._log.fatal("Internal Error", error=type(error).__name__, at=f"{where.name}, line {where.lineno}")
            code = Exit.INTERNAL
        for task in tasks:
            task.cancel()
        for validator in self._validators:
            validator.close()
        await self._stop(signals)
        self._log.info("STOPPED", exit_code=int(code))
        return code

    def _begin(self, signals: Signals) -> list[asyncio.Task[None]]:
        """Everything that runs as long as the service, and what is done one day (`_ENDING`)."""
        works = [
            ("signals", self._obey(signals)),
            ("supervisor", self._supervisor.run()),
            ("keys", self._keys.run()),
            ("poll", self._poll.keep_running()),
            ("notifications", self._notifications.run()),
            ("disk", self._serve_from_disk()),
            ("backlog", self._backlog.run()),
            ("audit", self._audit.run()),
            ("telemetry", self._telemetry.run(self._metrics)),
            ("boot", self._boot()),
        ]
        if self._certificates is not None:
            works.append(("certificates", self._certificates.run()))
        return [asyncio.create_task(work, name=name) for name, work in works]

    async def _boot(self) -> None:
        """Tell the last two checkpoints; with `require_database`, give up when there is no catalog to begin with."""
        error = await self._poll.first
        if error is not None and self._require_database:
            raise error
        await self._refresh.loaded.wait()
        await self._supervisor.all_serving()
        self._log.info("WORKERS OK", workers=self._count, cpus=self._cpus)
        self._log.info("SERVING", port=self._config.port, engine=self._config.engine, workers=self._count)
        if self._on_serving is not None:
            self._on_serving()

    async def _obey(self, signals: Signals) -> None:
        """Act on signals until one of them ends the service."""
        replacing: asyncio.Task[None] | None = None
        while True:
            match await signals.next():
                case signal.SIGCHLD:
                    self._supervisor.reap()
                case signal.SIGHUP:
                    self._handle_hup()
                case signal.SIGUSR2:
                    if replacing is None or replacing.done():
                        self._log.info("Replacing Workers")
                        replacing = asyncio.create_task(self._supervisor.replace_all(self._config.drain_seconds))
                case number:
                    self._log.info("STOPPING", signal=number.name, drain_seconds=self._config.drain_seconds)
                    if replacing is not None:
                        replacing.cancel()
                    return

    def _handle_hup(self) -> None:
        """Read keys and certificates again and refresh; bad ones change nothing."""
        try:
            self._config = self._reload()
        except ConfigError as error:
            self._log.error("Settings Not Reloaded", problems=error.problems)
        else:
            self._keys.reload(self._config)
        if self._certificates is not None:
            self._certificates.reload()
        self._poll.hurry()

    async def _stop(self, signals: Signals) -> None:
        self._admin.drain()
        stopping = asyncio.create_task(self._supervisor.stop(self._config.drain_seconds))
        while not stopping.done():
            heard = asyncio.create_task(signals.next())
            await asyncio.wait({stopping, heard}, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                heard.cancel()
            elif heard.result() is signal.SIGCHLD:
                self._supervisor.reap()
            elif heard.result() in {signal.SIGTERM, signal.SIGINT}:
                self._supervisor.kill_all()
        await stopping
        self._publisher.stop()
        await self._operator.stop()
        await self._admin.stop()
        await asyncio.gather(self._audit.finish(), self._telemetry.finish())
        if self._store is not None:
            await self._store.stop()
