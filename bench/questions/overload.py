"""Far more calls than can be answered: what is answered still, and how long those wait who ask little.

So many connections keep 100 calls each under way, as fast as the server answers, with header blocks as grpc-go encodes
them, a new deadline in each: thousands of calls are ahead of any other at each moment. Beside them a client asks the
same a few times in a hundred milliseconds: *open* on a connection that it holds, *new* on one of its own each time, as
a kubelet probes; *health* is the health service of avapd, on a new connection. *calls* are what the many got answered,
*after* is the slowest of a hundred calls that begin when the many have stopped. Their client shares the client core
with the one that is measured, and only gets the time that it leaves. The first second is left out.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

from bench.frame import Bar, Bench, Column, Plot, Run
from bench.loads.drive import warm_up
from bench.loads.knocking import Knocker, timed
from bench.loads.load import Load
from bench.loads.replay import Calls, Replay
from bench.loads.styles import style
from bench.pages.stats import percentile
from bench.questions.saturation import ratio
from bench.servers.avapd import BenchError, pinned
from bench.servers.build import go, tool, version_of
from bench.servers.contestants import GRPC_GO, TONIC, WIRE, Target, present, service, started
from bench.servers.database import READER, filled

_CONTESTANTS: Final = (WIRE, GRPC_GO, TONIC)
_DEFINITIONS: Final = 10_000
_ANSWER_BYTES: Final = 2_048
_STREAMS: Final = 100
_LOADS: Final = {f"{connections} x {_STREAMS}": Load(connections, _STREAMS) for connections in (10, 100, 300)}
_SECONDS, _QUICK_SECONDS = 4.0, 2.0
_WARMUP_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.02
_AFTER_SECONDS: Final = 2.5
_HEALTH: Final = "/grpc.health.v1.Health/Check"


def run(run: Run) -> None:
    """Each load against each server. Raises MissingToolError without Go."""
    go("replay")
    run.versions["go"] = version_of(tool("go", ""), "version")
    seconds = run.parameters["seconds"] = _QUICK_SECONDS if run.quick else _SECONDS
    names, numbers = present(run, _CONTESTANTS), run.rounds(full=5, quick=1)
    cases = [case for case in _LOADS if run.wants(case, tuple(_LOADS))]
    run.expect(len(numbers) * len(names) * len(cases))
    with (
        filled(run, _DEFINITIONS, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _ANSWER_BYTES) as served,
    ):
        for number in numbers:
            with started(run, names, served) as targets:
                warm_up(run, targets.values())
                for case in cases:
                    for name in names:
                        run.record(case, number, _flooded(run, targets[name], _LOADS[case], seconds), contestant=name)


def _flooded(run: Run, target: Target, load: Load, seconds: float) -> dict[str, float]:
    """What the many and the one have of a server, and the one afterwards."""
    many = Calls(style("grpc-go", "inherited"))
    with contextlib.ExitStack() as stack, pinned({run.cores.client}):
        one = stack.enter_context(Knocker(target))
        calls = {"open": one.again, "new": one.anew}
        if target.avapd is not None:
            calls["health"] = stack.enter_context(Knocker(target._replace(path=_HEALTH, headers={}, message=b""))).anew
        flood = stack.enter_context(Replay(target, load, many, seconds, warmup=_WARMUP_SECONDS, idle=True))
        run.commands.setdefault(f"load {load.connections} x {load.streams}", flood.command)
        timed(calls, time.monotonic() + _WARMUP_SECONDS, _PAUSE_SECONDS)
        times = timed(calls, time.monotonic() + seconds - _PAUSE_SECONDS, _PAUSE_SECONDS)
        seen = flood.seen()
        after = timed(calls, time.monotonic() + _AFTER_SECONDS, _PAUSE_SECONDS)
    if not seen.calls:
        raise BenchError(f"no call was answered: {seen.failures}")
    return {
        "per_second": seen.calls / seen.seconds,
        "lost": seen.failed + seen.unanswered,
        **{f"{name}_p95_ms": percentile(found, 95) for name, found in times.items()},
        **{f"{name}_max_ms": max(found) for name, found in times.items()},
        "after_ms": max(max(found) for found in after.values()),
    }


_MOST: Final = tuple(_LOADS)[-1]
BENCH: Final = Bench(
    name="overload",
    title="far more calls than can be answered",
    method=__doc__,
    cases=tuple(_LOADS),
    contestants=_CONTESTANTS,
    columns=(
        Column(figure="per_second", head="calls", unit="1/s"),
        Column(figure="lost", head="without an answer, sum", statistic="sum"),
        Column(figure="open_p95_ms", head="open, P95", unit="ms", digits=2),
        Column(figure="open_max_ms", head="largest", unit="ms", digits=1, statistic="max"),
        Column(figure="new_p95_ms", head="new, P95", unit="ms", digits=2),
        Column(figure="new_max_ms", head="largest", unit="ms", digits=1, statistic="max"),
        Column(figure="health_p95_ms", head="health, P95", unit="ms", digits=2),
        Column(figure="health_max_ms", head="largest", unit="ms", digits=1, statistic="max"),
        Column(figure="after_ms", head="after", unit="ms", digits=1, statistic="max"),
    ),
    bars=(
        *(
            Bar(says="health is answered meanwhile", case=case, figure="health_max_ms", contestant=WIRE,
                statistic="max", limit=100, unit="ms", digits=0)
            for case in _LOADS
        ),
        ratio(_MOST, "as much is answered as of a tenth as many", 0.9, over_case="10 x 100"),
        *(
            Bar(says="every call of the many is answered", case=case, figure="lost", contestant=WIRE,
                statistic="sum", limit=0, digits=0)
            for case in _LOADS
        ),
        *(
            Bar(says=f"who asks little, against {other}", case=_MOST, figure="open_p95_ms", contestant=WIRE,
                over=other, limit=1, digits=4)
            for other in (GRPC_GO, TONIC)
        ),
    ),
    plots=(
        Plot(
            name="light", title="P95 of who asks little, beside many who ask much, one core", kind="bars",
            figures=("open_p95_ms",), axis="ms", log=True,
        ),
    ),
    run=run,
)  # fmt: skip
