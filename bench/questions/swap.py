"""A catalog of 100,000 definitions is replaced under load, and everything that clients were told is checked.

One UPDATE writes a new generation number into the code of every row; the poll finds it. Meanwhile one process calls
GetCommand in a closed loop, one call at a time on each of its connections, and another fetches the whole catalog
(SyncCatalog) about once a second, each time on a new connection. Checked of each answer: the name is the one asked
for, `hash` is the SHA-256 of `code`, `code` is exactly what one generation holds, and no connection sees an older
generation after a newer one. Checked of each catalog: all rows are there and of one generation, and `version_hash` is
the SHA-256 over the definitions. Everything else, and every error, is a *violation*. *quiet* is the same load, with
the same polls, while nothing changes. Latencies are those of GetCommand, client included, all processes on the same
cores.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, Final

from bench.frame import Bar, Bench, Column, Run
from bench.loads.checking import Seen, Task, get_commands, sync_catalogs
from bench.pages.stats import percentile
from bench.servers.avapd import Avapd, BenchError
from bench.servers.database import READER, filled
from bench.servers.source import Source

_COUNT: Final = 100_000
_QUICK_COUNT: Final = 10_000
_DEFINITION_BYTES: Final = 1_200
_CONNECTIONS: Final = 6
_QUIET, _SWAPPING = "quiet", "swapping"
_CASES: Final = (_QUIET, _SWAPPING)
_WORKERS: Final = 2
_REFRESH_SECONDS: Final = "1"
_QUIET_SECONDS: Final = 6.0
_SPAWN: Final = multiprocessing.get_context("spawn")


def run(run: Run) -> None:
    """Quiet and swapping phases, in turn."""
    count = _QUICK_COUNT if run.quick else _COUNT
    swaps = 2 if run.quick else 5
    run.parameters |= {
        "workers": _WORKERS,
        "connections": _CONNECTIONS,
        "refresh_seconds": _REFRESH_SECONDS,
        "swaps": swaps,
    }
    settings = {"AVAPD_REFRESH_SECONDS": _REFRESH_SECONDS, "AVAPD_MAX_ANSWER_BYTES": str(1 << 30)}
    with (
        filled(run, count, _DEFINITION_BYTES) as postgres,
        Avapd(postgres.url(READER), workers=_WORKERS, **settings) as server,
    ):
        server.wait("SERVING")
        source = Source(postgres)
        task = Task(server.port, count, _DEFINITION_BYTES, run.cores.client, _CONNECTIONS)
        for number in run.rounds(full=3, quick=1):
            if run.wants(_QUIET, _CASES):
                run.record(_QUIET, number, _phase(task, lambda: time.sleep(_QUIET_SECONDS)))
            if run.wants(_SWAPPING, _CASES):
                figures = _phase(task, lambda: _swap(source, server, swaps))
                run.record(_SWAPPING, number, {"swaps": swaps, **figures})
        run.parameters["workers_died"] = sum(worker["restarts"] for worker in server.status()["workers"])
        print(*server.troubles(), sep="\n")


def _swap(source: Source, server: Avapd, times: int) -> None:
    """Edit every row and wait until every worker serves it; so many times."""
    for _ in range(times):
        source.swap(server)


def _phase(task: Task, work: Callable[[], None]) -> dict[str, float]:
    """Load the server while `work` is done; what was seen."""
    stop, ready = _SPAWN.Event(), _SPAWN.Barrier(3)
    clients = [
        _Client(get_commands, task, ready, stop),
        _Client(sync_catalogs, task, ready, stop),
    ]
    ready.wait(60)
    began = time.perf_counter()
    work()
    stop.set()
    gets, syncs = (client.seen() for client in clients)
    seconds = time.perf_counter() - began
    if not gets.latencies or not syncs.latencies:
        raise BenchError("a client saw no answer at all")
    for what in (*gets.violations, *syncs.violations):
        print(f"  VIOLATION {what}")
    return {
        "answers": gets.answers,
        "catalogs": syncs.answers,
        "generations": len(gets.generations | syncs.generations),
        "violations": gets.violated + syncs.violated,
        "per_second": gets.answers / seconds,
        "p50_ms": percentile(gets.latencies, 50) * 1e3,
        "p95_ms": percentile(gets.latencies, 95) * 1e3,
        "p99_ms": percentile(gets.latencies, 99) * 1e3,
        "max_ms": max(gets.latencies) * 1e3,
        "catalog_ms": percentile(syncs.latencies, 50) * 1e3,
    }


class _Client:
    """A client in a process of its own; spawned, since grpcio does not survive a fork."""

    def __init__(self, work: Any, *arguments: Any) -> None:
        self._pipe, theirs = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def seen(self) -> Seen:
        """What it saw, once it was told to stop. Raises EOFError when it died."""
        seen: Seen = self._pipe.recv()
        self._process.join()
        return seen


def _latency(percent: int) -> Column:
    return Column(figure=f"p{percent}_ms", head=f"p{percent}", unit="ms", digits=2)


BENCH = Bench(
    name="swap",
    title="the catalog is replaced under load",
    method=__doc__,
    cases=_CASES,
    columns=(
        Column(figure="answers", head="answers checked, sum", statistic="sum"),
        Column(figure="catalogs", head="catalogs checked, sum", statistic="sum"),
        Column(figure="swaps", head="swaps, sum", statistic="sum"),
        Column(figure="violations", head="violations, sum", statistic="sum"),
        *(_latency(percent) for percent in (50, 95, 99)),
        Column(figure="max_ms", head="largest", unit="ms", digits=1, statistic="max"),
        Column(figure="catalog_ms", head="SyncCatalog, p50", unit="ms"),
    ),
    bars=tuple(
        Bar(says="no torn, stale or lost answer", case=case, figure="violations", statistic="sum", limit=0, digits=0)
        for case in _CASES
    ),
    run=run,
)
