"""Memory with a catalog of about 220 MB: what each worker adds, and how far the master's memory rises while it loads.

Workers: /proc/PID/smaps_rollup of the master and of each worker, 1 s after SERVING. PSS divides each page by the
number of processes that map it, so its sum over all processes is what the server takes; *added* is what each
worker more than in the line above adds to that sum, in the same round. *own* is the PSS of a worker without shared
memory. Peak: *VmHWM* is the kernel's own high-water mark of the resident set (begun anew before the refresh); *PSS* and
*held* are sampled every 30 ms, where *held* is the PSS that is no shared memory plus every arena whose descriptor the
master holds, mapped or not: memory the host must have. Multiples are of the catalog (the arena's size). The refresh is
ordered by SIGHUP after 1 % of the rows were changed.
"""

from __future__ import annotations

import signal
import time
from typing import Final

from avapd.demo.postgres import Postgres
from bench.frame import Bar, Bench, Column, Run
from bench.servers import proc
from bench.servers.avapd import Avapd
from bench.servers.database import READER, filled

_COUNT: Final = 200_000
_QUICK_COUNT: Final = 20_000
_DEFINITION_BYTES: Final = 1_100
_SETTLE_SECONDS: Final = 1.0
_WORKERS: Final = {"1 worker": 1, "2 workers": 2, "4 workers": 4, "8 workers": 8}
_FIRST, _REFRESH = "first load", "refresh 1 %"
_CASES: Final = (*_WORKERS, _FIRST, _REFRESH)


def run(run: Run) -> None:
    """Measure workers, then peaks."""
    count = _QUICK_COUNT if run.quick else _COUNT
    with filled(run, count, _DEFINITION_BYTES) as postgres:
        for number in run.rounds(full=5, quick=1):
            fewer = total = 0.0
            for case, workers in _WORKERS.items():
                if run.wants(case, _CASES):
                    figures = _workers(run, postgres.url(READER), workers)
                    added = {"added": (figures["total"] - total) / (workers - fewer)} if fewer else {}
                    fewer, total = workers, figures["total"]
                    run.record(case, number, {**figures, **added})
            if run.wants(_FIRST, _CASES) or run.wants(_REFRESH, _CASES):
                first, refresh = _peaks(postgres)
                run.record(_FIRST, number, first)
                run.record(_REFRESH, number, refresh)


def _workers(run: Run, url: str, count: int) -> dict[str, float]:
    """Memory of a settled server, in MB (10⁶ bytes); for workers the mean over them."""
    with Avapd(url, workers=count) as server:
        server.wait("SERVING")
        run.commands.setdefault("avapd", server.command)
        time.sleep(_SETTLE_SECONDS)
        master = proc.memory(server.process.pid)
        workers = [proc.memory(pid) for pid in server.worker_pids()]
        arena = server.status()["snapshot_bytes"]
    return {
        "catalog": arena / proc.MB,
        "total": (master.pss + sum(worker.pss for worker in workers)) / proc.MB,
        "master_pss": master.pss / proc.MB,
        "worker_pss": sum(worker.pss for worker in workers) / count / proc.MB,
        "worker_own": sum(worker.own for worker in workers) / count / proc.MB,
        "worker_private": sum(worker.private for worker in workers) / count / proc.MB,
        "worker_shared": sum(worker.shared for worker in workers) / count / proc.MB,
    }


def _peaks(postgres: Postgres) -> tuple[dict[str, float], dict[str, float]]:
    """The master's peaks at the first load and at a refresh."""
    with Avapd(postgres.url(READER), workers=2) as server:
        pid = server.process.pid
        with proc.Peak(pid) as peak:
            server.wait("SERVING")
        first = _multiples(server, peak)
        postgres.psql("UPDATE obex_dapl_functions SET code = code || ' ' WHERE id % 100 = 0")
        proc.reset_high_water(pid)
        with proc.Peak(pid) as peak:
            server.process.send_signal(signal.SIGHUP)
            server.wait("Definitions Broadcasted", 2)
        return first, _multiples(server, peak)


def _multiples(server: Avapd, peak: proc.Peak) -> dict[str, float]:
    arena = server.status()["snapshot_bytes"]
    return {
        "hwm": proc.high_water(server.process.pid) / arena,
        "peak_pss": peak.pss / arena,
        "held": peak.held / arena,
        "samples": peak.samples,
    }


def _added(case: str) -> Bar:
    return Bar(
        says="a further worker adds at most 60 MB",
        case=case,
        figure="added",
        statistic="max",
        limit=60,
        unit="MB",
        digits=1,
    )


def _peak(case: str, figure: str, says: str) -> Bar:
    return Bar(says=says, case=case, figure=figure, statistic="max", limit=3.5, unit="catalogs")


BENCH = Bench(
    name="memory",
    title="what workers add, and the master's peak",
    method=__doc__,
    cases=_CASES,
    columns=(
        Column(figure="catalog", head="catalog", unit="MB"),
        Column(figure="total", head="all processes, PSS", unit="MB"),
        Column(figure="added", head="added", unit="MB", digits=1),
        Column(figure="master_pss", head="master, PSS", unit="MB"),
        Column(figure="worker_pss", head="worker, PSS", unit="MB"),
        Column(figure="worker_own", head="own", unit="MB", digits=1),
        Column(figure="worker_private", head="private", unit="MB", digits=1),
        Column(figure="worker_shared", head="shared", unit="MB"),
        Column(figure="hwm", head="master's peak, VmHWM", unit="catalogs", digits=2),
        Column(figure="peak_pss", head="PSS", unit="catalogs", digits=2),
        Column(figure="held", head="held", unit="catalogs", digits=2),
    ),
    bars=(
        *(_added(case) for case in ("2 workers", "4 workers", "8 workers")),
        *(_peak(case, "hwm", "the master's resident set peaks at 3.5 catalogs") for case in (_FIRST, _REFRESH)),
        *(_peak(case, "held", "with all arenas, too") for case in (_FIRST, _REFRESH)),
    ),
    run=run,
)
