"""The master: wires the control plane (`Master.__init__`) and runs it (`run`). The composition root.

    INIT → CONFIG OK → sockets, board, workers start → DB OK → CATALOG OK → WORKERS OK → SERVING → … → drain → exit

Workers boot while the table is being read; whichever is first waits for the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
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
from avapd.control.listeners import claim, open_listeners
from avapd.control.metrics import registry
from avapd.control.poll import Poll
from avapd.control.publisher import Publisher
from avapd.control.signals import Signals
from avapd.control.source import Source
from avapd.control.supervisor import Supervisor
from avapd.control.worker import environment
from avapd.errors import AvapdError, ConfigError, CrashLoopError, Exit
from avapd.log import Log
from avapd.shared import board
from avapd.shared.channel import Keys, Start

_FRESH_INTERVALS: Final = 3


def source_of(config: Config) -> Source:
    """The source that the settings describe."""
    return Source(
        config.database_url,
        schema=config.database_schema,
        seconds=config.database_seconds,
        max_definition_bytes=config.max_definition_bytes,
        max_bytes=config.max_catalog_bytes,
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
        self._cpus = host.usable_cpus()
        self._count = config.workers or len(self._cpus)
        self._claim = claim(config.host, config.port)
        listeners = open_listeners(config.host, config.port, self._count)
        rows = 2 * self._count
        self._board = board.Board(board.create(rows), rows)
        self._board[board.FRESH_FOR] = int(_FRESH_INTERVALS * config.refresh_seconds * 1e9)
        self._publisher = Publisher(log)
        self._supervisor = Supervisor(
            board=self._board,
            listeners=listeners,
            describe=self._describe,
            environ=environment(os.environ, config.threadpool),
            audience=self._publisher,
            log=log,
            silence_seconds=config.silence_seconds,
        )
        self._poll = Poll(
            source_of(config),
            self._publisher,
            log,
            seconds=config.refresh_seconds,
            signing_key=config.signing_key,
            on_checked=self._note_check,
        )
        metrics = registry(self._board, self._poll, self._publisher, self._supervisor, config.engine)
        self._admin = Admin(metrics, self._poll, self._publisher, self._supervisor, config.environment)

    def _note_check(self) -> None:
        self._board[board.CHECKED] = time.monotonic_ns()

    def _keys(self) -> Keys:
        return Keys(key_digests=[hashlib.sha256(key.encode()).hexdigest() for key in self._config.api_keys])

    def _describe(self, slot: int, row: int) -> Start:
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
            key_digests=self._keys().key_digests,
            catalog=self._publisher.current is not None,
            orphan_seconds=config.orphan_seconds,
            pre_drain_seconds=config.pre_drain_seconds,
            drain_seconds=config.drain_seconds,
            max_answer_bytes=config.max_answer_bytes,
            limits=dataclasses.asdict(config.limits),
        )

    # --- running ----------------------------------------------------------------------------------------

    async def run(self) -> Exit:
        """Serve until a signal stops it; the exit code. Raises what makes serving impossible."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the keys
        signals = Signals()
        await self._admin.start(self._config.admin_host, self._config.admin_port)
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("signals", self._obey(signals)),
                ("supervisor", self._supervisor.run()),
                ("poll", self._poll.run()),
                ("boot", self._boot()),
            )
        ]
        boot = tasks[-1]
        code = Exit.OK
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if boot in done and boot.exception() is None:
                done, _ = await asyncio.wait(tasks[:-1], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
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
        await self._stop(signals)
        self._log.info("STOPPED", exit_code=int(code))
        return code

    async def _boot(self) -> None:
        """Tell the last two checkpoints; with `require_database`, give up when there is no catalog to begin with."""
        error = await self._poll.first
        if error is not None and self._require_database:
            raise error
        await self._poll.loaded.wait()
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
        """Read the keys again and refresh; bad settings change nothing."""
        try:
            self._config = self._reload()
        except ConfigError as error:
            self._log.error("Settings Not Reloaded", problems=error.problems)
        else:
            self._supervisor.send_keys(self._keys())
            self._log.info("Keys Reloaded", keys=len(self._config.api_keys))
        self._poll.refresh()

    async def _stop(self, signals: Signals) -> None:
        self._admin.draining = True
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
        await self._admin.stop()
