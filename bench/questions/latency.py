"""How long a call takes at a rate that a server can well do, with and without things that go on beside it.

An open loop on the client core (peers/replay): calls begin when they are due, at even distances, over 10 connections,
whatever became of those before. A latency counts from the moment its call was due to the last byte of its answer, so a
stall counts for every call it delayed (no coordinated omission), and a call *without an answer* (reset as its deadline
of 1 to 2 s was over, or unanswered 5 s after the last call) counts up to then. The client is the same for all and part
of every figure; *behind* is how late it began calls itself. Each call asks for one of 20,000 definitions out of
100,000, with header blocks as grpc-go encodes them, a new deadline in each: nothing repeats. The first second is left
out. Servers run on the server core as in the bench `engine`, all processes of each.

*swaps*: the whole table is edited every 5 s, so that avapd reads, packs, verifies and publishes all definitions anew,
master and worker on the one core of the server. PostgreSQL, which would be elsewhere, runs on the client core and only
gets the time that the client leaves (SCHED_IDLE).

*flood*: one more connection keeps 100 calls under way, with blocks that repeat, as fast as the server answers. Its
client runs on the client core as well, and only gets the time that the measured client leaves.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import Final, NamedTuple

import psutil

from avapd.demo.postgres import Postgres
from avapd.shared.snapshot import key_of
from bench.frame import Bar, Bench, Column, Run
from bench.loads.drive import Load
from bench.loads.replay import Calls, Replay, Seen
from bench.loads.styles import style
from bench.servers import proc
from bench.servers.avapd import BenchError, pinned
from bench.servers.build import go, go_version
from bench.servers.contestants import GRPC_GO, GRPCIO, WIRE, Target, present, service, started
from bench.servers.database import READER, filled, name_of
from bench.servers.source import Source

_ALL: Final = (WIRE, GRPC_GO, GRPCIO)
_DEFINITIONS, _QUICK_DEFINITIONS = 100_000, 10_000
_ANSWER_BYTES: Final = 2_048
_NAMES: Final = 20_000
_CONNECTIONS: Final = 10
_FLOODING: Final = Calls(style("grpc-go", "no deadline"))
_SECONDS, _SWAP_SECONDS = 8.0, 20.0
_WARMUP_SECONDS: Final = 1.0
_SWAP_EVERY: Final = 5.0
_SWAPS, _FLOOD = " swaps", " flood"


class _Case(NamedTuple):
    """A rate in calls a second, and what goes on meanwhile."""

    rate: int
    contestants: tuple[str, ...]
    beside: str = ""

    @property
    def name(self) -> str:
        return f"{self.rate:,}/s{self.beside}"


_CASES: Final = (
    _Case(2_000, _ALL),
    _Case(5_000, (WIRE, GRPC_GO)),
    _Case(20_000, (WIRE, GRPC_GO)),
    _Case(35_000, (WIRE, GRPC_GO)),
    _Case(2_000, (WIRE, GRPCIO), _SWAPS),
    _Case(35_000, (WIRE,), _SWAPS),
    _Case(5_000, (WIRE, GRPC_GO), _FLOOD),
)


def run(run: Run) -> None:
    """Each case in every round. Raises MissingToolError without Go."""
    go("replay")
    run.versions["go"] = go_version()
    definitions = _QUICK_DEFINITIONS if run.quick else _DEFINITIONS
    run.parameters |= {"connections": _CONNECTIONS, "seconds": _SECONDS, "swap_seconds": _SWAP_SECONDS}
    names = present(run, _ALL)
    with (
        filled(run, definitions, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), definitions, _ANSWER_BYTES) as served,
    ):
        _step_back(postgres, run.cores.client)
        source, calls = Source(postgres, cycle=10), _calls(definitions)
        for number in run.rounds(full=5, quick=1):
            with started(run, names, served) as targets:
                for case in (case for case in _CASES if run.wants(case.name, BENCH.cases)):
                    for name in (name for name in names if name in case.contestants):
                        figures = _measure(run, case, targets[name], calls, source)
                        run.record(case.name, number, figures, contestant=name)


def _measure(run: Run, case: _Case, target: Target, calls: Calls, source: Source) -> dict[str, float]:
    load = Load(_CONNECTIONS, 0)
    seconds = 2.0 if run.quick else _SWAP_SECONDS if case.beside == _SWAPS else _SECONDS
    with contextlib.ExitStack() as stack, pinned({run.cores.client}):
        if case.beside == _FLOOD:
            flood = stack.enter_context(Replay(target, Load(1, 100), _FLOODING, seconds + _WARMUP_SECONDS, idle=True))
        client = stack.enter_context(Replay(target, load, calls, seconds, warmup=_WARMUP_SECONDS, rate=case.rate))
        before, began = proc.cpu_seconds(target.pid), time.perf_counter()
        swaps = _swap(source, target, began + _WARMUP_SECONDS + seconds) if case.beside == _SWAPS else 0
        seen = client.seen()
        busy = (proc.cpu_seconds(target.pid) - before) / (time.perf_counter() - began)
        beside = {"flood_per_second": _per_second(flood.seen())} if case.beside == _FLOOD else {}
    if not seen.calls:
        raise BenchError(f"no call was answered: {seen.failures}")
    return {
        **seen.latency, "late_p99_ms": seen.late_p99_ms, "lost": seen.failed + seen.unanswered, "server_cpu": busy,
        "client_cpu": seen.cpu_seconds / (seen.seconds + _WARMUP_SECONDS), **({"swaps": swaps} if swaps else {}),
        **beside,
    }  # fmt: skip


def _swap(source: Source, target: Target, until: float) -> int:
    """Replace the catalog every so many seconds, as long as there is time for it; how often."""
    assert target.avapd is not None
    swaps = 0
    while (began := time.perf_counter()) < until - _SWAP_EVERY / 2:
        source.swap(target.avapd, hurry=True)
        swaps += 1
        time.sleep(max(0.0, min(began + _SWAP_EVERY, until) - time.perf_counter()))
    return swaps


def _step_back(postgres: Postgres, cpu: int) -> None:
    """Leave PostgreSQL only what nobody else wants of this CPU; what it starts later inherits that."""
    family = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, {cpu})
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _calls(definitions: int) -> Calls:
    draw = random.Random(1)
    names = (name_of(draw.randrange(definitions)) for _ in range(_NAMES))
    return Calls(style("grpc-go", "inherited"), tuple(map(key_of, names)))


def _per_second(seen: Seen) -> float:
    return seen.calls / seen.seconds


def _over(case: _Case, figure: str, says: str) -> Bar:
    """Within twice of the same rate with nothing beside it."""
    return Bar(
        says=says, case=case.name, figure=figure, contestant=WIRE, over_case=case._replace(beside="").name, limit=2
    )  # fmt: skip


_PERCENTILES: Final = {"p50_ms": "P50", "p95_ms": "P95", "p99_ms": "P99", "p999_ms": "P99.9"}
_FASTEST, _SWAPPING, _VICTIM = _CASES[3], _CASES[5], _CASES[6]
BENCH = Bench(
    name="latency",
    title="how long a call takes at a fixed rate",
    method=__doc__,
    cases=tuple(case.name for case in _CASES),
    contestants=_ALL,
    columns=(
        *(Column(figure=figure, head=head, unit="ms", digits=3) for figure, head in _PERCENTILES.items()),
        Column(figure="max_ms", head="largest", unit="ms", digits=1, statistic="max"),
        Column(figure="late_p99_ms", head="behind, P99", unit="ms", digits=3),
        Column(figure="lost", head="without an answer, sum", statistic="sum"),
        Column(figure="server_cpu", head="server's CPU", unit="cores", digits=2),
        Column(figure="client_cpu", head="client's CPU", unit="cores", digits=2),
        Column(figure="swaps", head="swaps, sum", statistic="sum"),
        Column(figure="flood_per_second", head="flood", unit="1/s"),
    ),
    bars=(
        Bar(
            says="P99 below 1 ms at 35,000 calls a second on one core", case=_FASTEST.name, figure="p99_ms",
            contestant=WIRE, limit=1, unit="ms", digits=3,
        ),
        *(
            Bar(says="every call is answered", case=case.name, figure="lost", contestant=WIRE, statistic="sum", limit=0)
            for case in (_FASTEST, _SWAPPING, _VICTIM)
        ),
        _over(_SWAPPING, "p95_ms", "twice of without swaps"),
        _over(_SWAPPING, "p99_ms", "twice of without swaps"),
        _over(_VICTIM, "p95_ms", "twice of without a flood"),
    ),
    run=run,
)  # fmt: skip
