"""How long a change takes from the COMMIT until every worker serves it.

One row of the table is edited and committed; the clock starts when PostgreSQL has answered the COMMIT. *broadcast* ends
with the master's log line, which it writes once every worker has acknowledged the new generation; *served* when each of
12 connections, which the kernel spread over two workers, has been answered with the new code; they are asked one after
the other, every 2 ms until it comes. Half a second lies between two edits, since notifications that follow each other
faster wait for each other, up to 0.25 s, and that wait is not measured here.

*poll* waits for the next poll, 1 s apart here (60 s by default, so there it is half a minute on average). *hurried* is
told to look at once (SIGHUP): that is what the road itself takes, from looking at the table to the last worker.
*notified* has the triggers of `avapd db install-notify` on the table, and polls once a day. Edits begin when what the
start served unchecked has been checked. The time for which one worker serves a change alone (`AVAPD_CANARY_SECONDS`,
2 s by default) is off here, and comes on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import Iterator
from typing import Any, Final, Self

import asyncpg
import grpc

from avapd import config
from avapd.control.source.listener import trigger
from avapd.pb import avap_pb2
from avapd.shared.snapshot import key_of
from bench.frame import Bar, Bench, Column, Run
from bench.servers.avapd import KEY, Avapd, BenchError
from bench.servers.contestants import GET, OPTIONS
from bench.servers.database import READER, database, fill, name_of, version

_SIZES: Final = {"1,000 definitions": 1_000, "100,000 definitions": 100_000}
_NOTIFIED, _HURRIED, _POLL = "notified", "hurried", "poll"
_WAYS: Final = (_NOTIFIED, _HURRIED, _POLL)
_CASES: Final = tuple(f"{size}, {how}" for size in _SIZES for how in _WAYS)
_DEFINITION_BYTES: Final = 1_200
_WORKERS: Final = 2
_CONNECTIONS: Final = 12
_GIVE_UP_SECONDS: Final = 60.0
# Else the asking itself would take the CPU from who is measured.
_PAUSE_SECONDS: Final = 0.002
# Notifications that follow each other faster wait for each other, and a change alone is what is measured.
_CALM_SECONDS: Final = 0.5
_LOCAL: Final = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]


def run(run: Run) -> None:
    """So many edits of each kind."""
    run.parameters |= {"workers": _WORKERS, "connections": _CONNECTIONS, "definition_bytes": _DEFINITION_BYTES}
    numbers = run.rounds(full=20, quick=3)
    cases = [case for case in _CASES if run.wants(case, _CASES)]
    run.expect(len(numbers) * len(cases))
    edits = itertools.count(1)
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        for size, count in _SIZES.items():
            fill(postgres, count, _DEFINITION_BYTES)
            for how in (how for how in _WAYS if f"{size}, {how}" in cases):
                seconds = "1" if how == _POLL else "86400"
                postgres.psql("DROP FUNCTION IF EXISTS avapd_notify CASCADE")
                if how == _NOTIFIED:
                    postgres.psql(trigger("public", config.NOTIFY_CHANNEL, compiled=False))
                with (
                    Avapd(postgres.url(READER), workers=_WORKERS, AVAPD_REFRESH_SECONDS=seconds) as server,
                    _Watcher(server, name_of(count // 2), edits) as watcher,
                ):
                    server.wait("SERVING")
                    server.wait_checked()
                    run.commands.setdefault(f"avapd, {how}", server.command)
                    for number in numbers:
                        url = postgres.url()
                        run.record(f"{size}, {how}", number, watcher.round(url, hurry=how == _HURRIED))


class _Watcher:
    """Edits one definition, and asks for it on every connection until all have the new code."""

    def __init__(self, server: Avapd, name: str, edits: Iterator[int]) -> None:
        self._server = server
        self._name = name
        self._edits = edits
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        channels = [
            grpc.insecure_channel(f"127.0.0.1:{self._server.port}", options=_LOCAL) for _ in range(_CONNECTIONS)
        ]
        self._calls = [self._stack.enter_context(channel).unary_unary(GET) for channel in channels]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self, url: str, *, hurry: bool) -> dict[str, float]:
        """One edit; times in milliseconds."""
        published = len(self._server.events("Definitions Broadcasted"))
        code = f"edit = {next(self._edits)}\n"
        time.sleep(_CALM_SECONDS)
        committed, at_server = asyncio.run(self._commit(url, code))
        if hurry:
            self._server.process.send_signal(signal.SIGHUP)
        waiting = list(self._calls)
        while waiting:
            if self._code(waiting[-1]) == code:
                waiting.pop()
            else:
                time.sleep(_PAUSE_SECONDS)
            if time.perf_counter() > committed + _GIVE_UP_SECONDS:
                raise BenchError("the edit is not served")
        served = time.perf_counter()
        broadcast = self._server.wait("Definitions Broadcasted", published + 1).at
        return {"broadcast_ms": (broadcast - at_server) * 1e3, "served_ms": (served - committed) * 1e3}

    async def _commit(self, url: str, code: str) -> tuple[float, float]:
        """The moment of the COMMIT, on our clock and on that of the server's log lines."""
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = $2", code, self._name)
            return time.perf_counter(), self._server.elapsed()
        finally:
            await connection.close()

    def _code(self, call: Any) -> str:
        answer = call(key_of(self._name), timeout=10, metadata=(("x-avap-auth", KEY),), wait_for_ready=True)
        return avap_pb2.CommandResponse.FromString(answer).code.decode()


BENCH: Final = Bench(
    name="propagation",
    title="from the commit to every worker",
    method=__doc__,
    cases=_CASES,
    columns=(
        Column(figure="broadcast_ms", head="broadcast, P50", unit="ms", statistic="p50"),
        Column(figure="broadcast_ms", head="P99", unit="ms", statistic="p99"),
        Column(figure="served_ms", head="served, P50", unit="ms", statistic="p50"),
        Column(figure="served_ms", head="P99", unit="ms", statistic="p99"),
    ),
    bars=(
        Bar(says="one row in 100,000 changed, served by all", case=f"100,000 definitions, {_NOTIFIED}",
            figure="served_ms", statistic="p99", limit=150, unit="ms", digits=0),
    ),
    run=run,
)  # fmt: skip
