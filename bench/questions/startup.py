"""Time from the start of the process `avapd serve` until every worker serves.

The clock (perf_counter) starts before the process is created and stops when the log line SERVING arrives at the
reader of its stdout; the same for each checkpoint before it. The master writes SERVING once every worker has mapped
and verified the catalog, has been warmed up and takes calls. PostgreSQL runs on the same machine, its tables in the
page cache (one start goes unmeasured before). Steps, in seconds: *boot* until CONFIG OK, *read* until DB OK (all rows
fetched), *pack* until CATALOG OK (validated, hashed, encoded, sealed), *load* until Definitions Broadcasted (verified
and acknowledged by every worker), *rest* until SERVING.
"""

from __future__ import annotations

import shutil
from typing import Final

import psutil

from bench.frame import Bar, Bench, Column, Run
from bench.servers.avapd import CHECKPOINTS, Avapd, BenchError
from bench.servers.database import READER, database, fill, version

_SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
_WORKERS: Final = 2
_DEFINITION_BYTES: Final = 1_200
# A million definitions: rows, arena and database, measured 5 GB of memory and 3 GB of disk, and room beside it.
_LARGE: Final = 1_000_000
_LARGE_MEMORY: Final = 10 << 30
_LARGE_DISK: Final = 8 << 30
_STEPS: Final = {
    "boot": "CONFIG OK",
    "read": "DB OK",
    "pack": "CATALOG OK",
    "load": "Definitions Broadcasted",
    "rest": "SERVING",
}


def run(run: Run) -> None:
    """Measure every size that is asked for and fits."""
    run.parameters |= {"workers": _WORKERS, "definition_bytes": _DEFINITION_BYTES}
    cases = [str(size) for size in _SIZES]
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        for size in _SIZES:
            if not run.wants(str(size), cases) or (size == _LARGE and (run.quick or not _fits(run))):
                continue
            fill(postgres, size, _DEFINITION_BYTES)
            for number in (0, *run.rounds(full=5, quick=2)):
                figures = _start(run, postgres.url(READER), size)
                if number:
                    run.record(str(size), number, figures)


def _fits(run: Run) -> bool:
    fits = psutil.virtual_memory().available > _LARGE_MEMORY and shutil.disk_usage("/tmp").free > _LARGE_DISK
    if not fits:
        run.skip(f"{_LARGE:,} definitions", "too little memory or disk")
    return fits


def _start(run: Run, url: str, size: int) -> dict[str, float]:
    """One start, in seconds."""
    with Avapd(url, workers=_WORKERS, AVAPD_MAX_CATALOG_BYTES=str(8 << 30)) as server:
        run.commands.setdefault("avapd", server.command)
        at = {name: server.wait(name).at for name in reversed(CHECKPOINTS)}
        status = server.status()
    if status["count"] != size or any(worker["state"] != "SERVING" for worker in status["workers"]):
        raise BenchError(f"SERVING, but {status}")
    steps, before = {}, 0.0
    for step, checkpoint in _STEPS.items():
        steps[step] = at[checkpoint] - before
        before = at[checkpoint]
    return {"serving": at["SERVING"], **steps}


BENCH = Bench(
    name="startup",
    title="from process start to every worker SERVING",
    method=__doc__,
    cases=tuple(str(size) for size in _SIZES),
    columns=(
        Column(figure="serving", head="SERVING", unit="s", digits=2),
        *(Column(figure=step, head=step, unit="s", digits=2) for step in _STEPS),
    ),
    bars=(
        Bar(
            says="100,000 definitions are served 2.5 s after the start",
            case="100000",
            figure="serving",
            limit=2.5,
            unit="s",
        ),
    ),
    run=run,
)
