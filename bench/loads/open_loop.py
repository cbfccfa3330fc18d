"""Open loops: calls that begin when they are due, at a fixed rate, whatever became of those before."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from avapd.shared.snapshot import key_of
from bench.frame import Column, Run
from bench.loads.load import Load
from bench.loads.replay import Calls, Replay
from bench.loads.styles import style
from bench.servers import proc
from bench.servers.avapd import BenchError, pinned
from bench.servers.contestants import Target
from bench.servers.database import name_of

CONNECTIONS: Final = 10
WARMUP_SECONDS: Final = 1.0
COLUMNS: Final = (
    Column(figure="p50_ms", head="P50", unit="ms", digits=3),
    Column(figure="p95_ms", head="P95", unit="ms", digits=3),
    Column(figure="p99_ms", head="P99", unit="ms", digits=3),
    Column(figure="p999_ms", head="P99.9", unit="ms", digits=3),
    Column(figure="max_ms", head="largest", unit="ms", digits=1, statistic="max"),
    Column(figure="late_p99_ms", head="behind, P99", unit="ms", digits=3),
    Column(figure="lost", head="without an answer, sum", statistic="sum"),
    Column(figure="server_cpu", head="server's CPU", unit="cores", digits=2),
    Column(figure="client_cpu", head="client's CPU", unit="cores", digits=2),
)
_FLOOD: Final = Calls(style("grpc-go", "no deadline"))


class Pace(NamedTuple):
    """So many calls a second for so many seconds; with `flood`, one more connection asks as fast as it is answered."""

    rate: int
    seconds: float
    flood: bool = False


def random_calls(definitions: int, names: int) -> Calls:
    """Calls for so many definitions drawn from all, with header blocks as grpc-go encodes them: nothing repeats."""
    draw = random.Random(1)
    drawn = (name_of(draw.randrange(definitions)) for _ in range(names))
    return Calls(style("grpc-go", "inherited"), tuple(map(key_of, drawn)))


def measure(
    run: Run, target: Target, calls: Calls, pace: Pace, beside: Callable[[float], dict[str, float]] | None = None
) -> dict[str, float]:
    """Percentiles of the latency, from the moment a call was due; CPU of both sides in cores.

    `beside` runs meanwhile, is told until when (perf_counter), and adds figures. Raises BenchError when no call was
    answered at all.
    """
    with contextlib.ExitStack() as stack, pinned({run.cores.client}):
        if pace.flood:
            flood = stack.enter_context(
                Replay(target, Load(1, 100), _FLOOD, pace.seconds + WARMUP_SECONDS, idle=True)
            )  # fmt: skip
        client = stack.enter_context(
            Replay(target, Load(CONNECTIONS, 0), calls, pace.seconds, warmup=WARMUP_SECONDS, rate=pace.rate)
        )
        run.commands.setdefault(f"load {pace.rate:,}/s", client.command)
        before, began = _cpu_seconds(target), time.perf_counter()
        added = beside(began + WARMUP_SECONDS + pace.seconds) if beside else {}
        seen = client.seen()
        busy = (_cpu_seconds(target) - before) / (time.perf_counter() - began)
        if pace.flood:
            flooded = flood.seen()
            added["flood_per_second"] = flooded.calls / flooded.seconds
    if not seen.calls:
        raise BenchError(f"no call was answered: {seen.failures}")
    return {
        **seen.latency, "late_p99_ms": seen.late_p99_ms, "lost": seen.failed + seen.unanswered, "server_cpu": busy,
        "client_cpu": seen.cpu_seconds / (seen.seconds + WARMUP_SECONDS), **added,
    }  # fmt: skip


def _cpu_seconds(target: Target) -> float:
    return sum(map(proc.cpu_seconds, target.answering))
