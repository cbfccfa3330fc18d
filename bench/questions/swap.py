"""A catalog of 100,000 definitions is replaced every 5 s under load: what calls wait for, and whether any is wrong.

*5,000/s* and the like are open loops as in the bench `latency`, on one worker; with *swaps* the whole table is edited
every 5 s meanwhile, so that avapd reads, validates, packs, verifies and publishes all definitions anew: master and
worker on the one core of the server. PostgreSQL, which would be elsewhere, runs on the client core and only gets the
time that the client leaves (SCHED_IDLE).

*checked* has two workers, and every answer is checked. One process calls GetCommand in a closed loop, one call at a
time on each of 6 connections, and another fetches the whole catalog (SyncCatalog) about once a second, each time on a
new connection. Of each answer: the name is the one asked for, `hash` is the SHA-256 of `code`, `code` is exactly what
one generation holds, and no connection sees an older generation after a newer one. Of each catalog: all rows are there
and of one generation, and `version_hash` is the SHA-256 over the definitions. Everything else, and every error, is a
*violation*. *checked, quiet* is the same load, with the same polls, while nothing changes. All processes share the
cores there.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import psutil

from avapd.demo.postgres import Postgres
from bench.frame import OURS, Bar, Bench, Column, Plot, Run
from bench.loads.checking import Seen, Task, get_commands, sync_catalogs
from bench.loads.open_loop import COLUMNS, CONNECTIONS, WARMUP_SECONDS, Pace, measure, random_calls
from bench.pages.stats import percentile
from bench.servers.avapd import Avapd, BenchError, pinned
from bench.servers.build import MissingToolError, go, tool, version_of
from bench.servers.contestants import WIRE, Target, avapd, service
from bench.servers.database import READER, filled
from bench.servers.source import Source

_COUNT, _QUICK_COUNT = 100_000, 10_000
_DEFINITION_BYTES: Final = 1_200
_NAMES: Final = 20_000
_RATES: Final = (5_000, 20_000, 35_000)
_SWAP_EVERY: Final = 5.0
_SECONDS, _SWAP_SECONDS, _QUICK_SECONDS = 3.0, 11.0, 6.0
_SWAPS: Final = " swaps"
_QUIET, _CHECKED = "checked, quiet", "checked"
_WORKERS: Final = 2
_REFRESH_SECONDS: Final = "1"
_QUIET_SECONDS: Final = 4.0
_CHECKED_SWAPS, _QUICK_SWAPS = 3, 2
_SPAWN: Final = multiprocessing.get_context("spawn")


class _Case(NamedTuple):
    rate: int
    swaps: bool

    @property
    def name(self) -> str:
        return f"{self.rate:,}/s{_SWAPS if self.swaps else ''}"


_CASES: Final = tuple(_Case(rate, swaps) for rate in _RATES for swaps in (False, True))
_NAMED: Final = (*(case.name for case in _CASES), _QUIET, _CHECKED)


def run(run: Run) -> None:
    """Open loops, then checked phases, in every round."""
    count = _QUICK_COUNT if run.quick else _COUNT
    run.parameters |= {"workers": _WORKERS, "connections": CONNECTIONS, "swap_every": _SWAP_EVERY}
    numbers = run.rounds(full=5, quick=1)
    cases = [case for case in _CASES if run.wants(case.name, _NAMED)]
    checked = [name for name in (_QUIET, _CHECKED) if run.wants(name, _NAMED)]
    with filled(run, count, _DEFINITION_BYTES) as postgres:
        source = Source(postgres, cycle=10)
        try:
            go("replay")
            run.versions["go"] = version_of(tool("go", ""), "version")
        except MissingToolError as error:
            run.skip("replay", str(error))
            cases = []
        run.expect(len(numbers) * (len(cases) + len(checked)))
        for number in numbers:
            _open_loops(run, number, postgres, source, cases)
            if checked:
                _checked(run, number, postgres, source, checked)


# --- open loops ---------------------------------------------------------------------------------------------


def _open_loops(run: Run, number: int, postgres: Postgres, source: Source, cases: list[_Case]) -> None:
    count = run.parameters["definitions"]
    calls = random_calls(count, _NAMES)
    with service(postgres.url(READER), count, _DEFINITION_BYTES) as served, contextlib.ExitStack() as stack:
        with pinned({run.cores.server}):
            target = stack.enter_context(avapd(run, WIRE, served))
        assert target.avapd is not None
        target.avapd.wait_checked()
        stack.enter_context(_stepped_back(postgres, run.cores.client))
        for case in cases:
            seconds = _QUICK_SECONDS if run.quick else _SWAP_SECONDS if case.swaps else _SECONDS
            beside = functools.partial(_swaps, source, target) if case.swaps else None
            figures = measure(run, target, calls, Pace(case.rate, seconds), beside)
            run.record(case.name, number, figures, contestant=WIRE)


def _swaps(source: Source, target: Target, until: float) -> dict[str, float]:
    """Replace the catalog every so many seconds, as long as there is time for it; how often."""
    assert target.avapd is not None
    swaps = 0
    while (began := time.perf_counter()) < until - _SWAP_EVERY / 2 - WARMUP_SECONDS:
        source.swap(target.avapd, hurry=True)
        swaps += 1
        time.sleep(max(0.0, min(began + _SWAP_EVERY, until) - time.perf_counter()))
    return {"swaps": swaps}


@contextlib.contextmanager
def _stepped_back(postgres: Postgres, cpu: int) -> Any:
    """Leave PostgreSQL only what nobody else wants of this CPU; what it starts meanwhile inherits that."""
    family = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
    before = os.sched_getaffinity(0)
    for cpus, policy in (({cpu}, os.SCHED_IDLE), (before, os.SCHED_OTHER)):
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, cpus)
                os.sched_setscheduler(pid, policy, os.sched_param(0))
        if policy == os.SCHED_IDLE:
            yield


# --- every answer checked -----------------------------------------------------------------------------------


def _checked(run: Run, number: int, postgres: Postgres, source: Source, cases: list[str]) -> None:
    count, swaps = run.parameters["definitions"], _QUICK_SWAPS if run.quick else _CHECKED_SWAPS
    source.rewind()
    settings = {"AVAPD_REFRESH_SECONDS": _REFRESH_SECONDS, "AVAPD_MAX_ANSWER_BYTES": str(1 << 30)}
    with Avapd(postgres.url(READER), workers=_WORKERS, **settings) as server:
        server.wait("SERVING")
        server.wait_checked()
        run.commands.setdefault("avapd, checked", server.command)
        task = Task(server.port, count, _DEFINITION_BYTES, run.cores.client)
        if _QUIET in cases:
            run.record(_QUIET, number, _phase(run, task, lambda: time.sleep(_QUIET_SECONDS)))
        if _CHECKED in cases:
            figures = _phase(run, task, lambda: _swap(source, server, swaps))
            run.record(_CHECKED, number, {"swaps": swaps, **figures})
        for trouble in server.troubles():
            run.tell(trouble)


def _swap(source: Source, server: Avapd, times: int) -> None:
    """Edit every row and wait until every worker serves it; so many times."""
    for _ in range(times):
        source.swap(server)


def _phase(run: Run, task: Task, work: Callable[[], None]) -> dict[str, float]:
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
        run.tell(f"VIOLATION {what}")
    return {
        "answers": gets.answers,
        "catalogs": syncs.answers,
        "generations": len(gets.generations | syncs.generations),
        "violations": gets.violated + syncs.violated,
        "per_second": gets.answers / seconds,
        "get_p95_ms": percentile(gets.latencies, 95) * 1e3,
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


BENCH: Final = Bench(
    name="swap",
    title="the catalog is replaced under load",
    method=__doc__,
    cases=_NAMED,
    contestants=(WIRE, OURS),
    columns=(
        *COLUMNS,
        Column(figure="answers", head="answers checked, sum", statistic="sum"),
        Column(figure="catalogs", head="catalogs checked, sum", statistic="sum"),
        Column(figure="violations", head="violations, sum", statistic="sum"),
        Column(figure="get_p95_ms", head="GetCommand, P95", unit="ms", digits=2),
        Column(figure="catalog_ms", head="SyncCatalog, P50", unit="ms"),
        Column(figure="swaps", head="swaps, sum", statistic="sum"),
    ),
    bars=(
        *(
            Bar(says="no torn, stale or lost answer", case=case, figure="violations", statistic="sum", limit=0,
                digits=0)
            for case in (_QUIET, _CHECKED)
        ),
        *(
            Bar(says="every call is answered", case=case.name, figure="lost", contestant=WIRE, statistic="sum", limit=0)
            for case in _CASES if case.swaps
        ),
        *(
            Bar(says="twice of without swaps", case=case.name, figure=figure, contestant=WIRE,
                over_case=case._replace(swaps=False).name, limit=2)
            for case in _CASES if case.swaps for figure in ("p95_ms", "p99_ms")
        ),
    ),
    plots=(
        Plot(
            name="swaps", title="P95 with and without swaps of 100,000 definitions, one core", kind="bars",
            figures=("p95_ms",), axis="ms", cases=tuple(case.name for case in _CASES), log=True,
        ),
    ),
    run=run,
)  # fmt: skip
