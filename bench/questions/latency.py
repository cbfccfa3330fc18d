"""How long a call takes at a rate that a server can well do, and with a flood beside it.

An open loop on the client core (bench/peers/replay): calls begin when they are due, at even distances, over 10
connections, whatever became of those before. A latency counts from the moment its call was due to the last byte of its
answer, so a stall counts for every call it delayed (corrected for coordinated omission; the histogram is that of
HdrHistogram, with buckets of 1/128), and a call *without an answer* (reset as its deadline of 1 to 2 s was over, or
unanswered 5 s after the last call) counts up to then. The client is the same for all and part of every figure; *behind*
is how late it began calls itself. Each call asks for one of 10,000 definitions, with header blocks as grpc-go encodes
them, a new deadline in each: nothing repeats. The first second is left out. Servers run on the server core as in the
bench `engine`. A rate that a server cannot do shows as a latency of seconds and calls without an answer; the slowest
are only asked 2,000 times a second.

*flood*: one more connection keeps 100 calls under way, with blocks that repeat, as fast as the server answers. Its
client runs on the client core as well, and only gets the time that the measured client leaves.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bench.frame import Bar, Bench, Column, Plot, Run
from bench.loads.drive import warm_up
from bench.loads.open_loop import COLUMNS, CONNECTIONS, Pace, measure, random_calls
from bench.servers.build import go, tool, version_of
from bench.servers.contestants import (
    GRPC_GO,
    GRPC_JS,
    GRPCIO,
    NGHTTPD,
    TONIC,
    WIRE,
    present,
    service,
    started,
)
from bench.servers.database import READER, filled

_FAST: Final = (WIRE, GRPC_GO, TONIC, NGHTTPD)
_ALL: Final = (*_FAST, GRPC_JS, GRPCIO)
_DEFINITIONS: Final = 10_000
_ANSWER_BYTES: Final = 2_048
_SECONDS, _QUICK_SECONDS = 3.0, 2.0


class _Case(NamedTuple):
    """A rate in calls a second, and who is asked."""

    rate: int
    contestants: tuple[str, ...]
    flood: bool = False

    @property
    def name(self) -> str:
        return f"{self.rate:,}/s{' flood' if self.flood else ''}"


_CASES: Final = (
    _Case(2_000, _ALL),
    _Case(5_000, (*_FAST, GRPC_JS)),
    _Case(20_000, (*_FAST, GRPC_JS)),
    _Case(35_000, _FAST),
    _Case(5_000, (WIRE, GRPC_GO, TONIC), flood=True),
)


def run(run: Run) -> None:
    """Each case in every round. Raises MissingToolError without Go."""
    go("replay")
    run.versions["go"] = version_of(tool("go", ""), "version")
    seconds = _QUICK_SECONDS if run.quick else _SECONDS
    run.parameters |= {"connections": CONNECTIONS, "seconds": seconds}
    names, numbers = present(run, _ALL), run.rounds(full=5, quick=1)
    cases = [case for case in _CASES if run.wants(case.name, BENCH.cases)]
    run.expect(len(numbers) * sum(name in names for case in cases for name in case.contestants))
    calls = random_calls(_DEFINITIONS, _DEFINITIONS)
    with (
        filled(run, _DEFINITIONS, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _ANSWER_BYTES) as served,
    ):
        for number in numbers:
            with started(run, names, served) as targets:
                warm_up(run, targets.values())
                for case in cases:
                    for name in (name for name in case.contestants if name in names):
                        figures = measure(run, targets[name], calls, Pace(case.rate, seconds, case.flood))
                        run.record(case.name, number, figures, contestant=name)


_FASTEST, _FLOODED = _CASES[3], _CASES[4]
BENCH: Final = Bench(
    name="latency",
    title="how long a call takes at a fixed rate",
    method=__doc__,
    cases=tuple(case.name for case in _CASES),
    contestants=_ALL,
    columns=(*COLUMNS, Column(figure="flood_per_second", head="flood", unit="1/s")),
    bars=(
        *(
            Bar(says=f"{head} below 1 ms at 35,000 calls a second on one core", case=_FASTEST.name, figure=figure,
                contestant=WIRE, limit=1, unit="ms", digits=3)
            for head, figure in (("P95", "p95_ms"), ("P99", "p99_ms"))
        ),
        *(
            Bar(says="every call is answered", case=case.name, figure="lost", contestant=WIRE, statistic="sum", limit=0)
            for case in _CASES
        ),
        *(
            Bar(says=f"P95 against {other}", case=case.name, figure="p95_ms", contestant=WIRE, over=other, limit=1)
            for case in _CASES[1:4]
            for other in (GRPC_GO, TONIC)
        ),
        Bar(says="twice of without a flood", case=_FLOODED.name, figure="p95_ms", contestant=WIRE,
            over_case="5,000/s", limit=2),
    ),
    plots=(
        Plot(
            name="p95", title="P95 at a fixed rate, one core", kind="lines", figures=("p95_ms",), axis="ms",
            cases=("2,000/s", "5,000/s", "20,000/s", "35,000/s"), log=True,
        ),
        Plot(
            name="percentiles", title="Latency at 35,000 calls a second on one core", kind="bars",
            figures=("p50_ms", "p95_ms", "p99_ms", "p999_ms"), axis="ms", cases=("35,000/s",), log=True,
        ),
    ),
    run=run,
)  # fmt: skip
