"""Whether workers get into each other's way: 1, 2 and 4 of them on the one core there is for servers.

All workers of a server share the server core, so that *calls* cannot grow; what must stay flat is *calls per CPU
second*, added up over the workers. If it does, workers on more cores add up; what else bends that line (connections
that are not spread evenly, the network, the clients) is the capacity page's business. 20 connections for
each worker, with 10 calls under way on each: h2load asks for one definition, and the replay client asks with header
blocks as grpc-go encodes them, another deadline in each, so that none repeats.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Final

from bench.frame import OURS, Bench, Plot, Run
from bench.loads.drive import Client, Traffic, closed_loop, describe_client, drive, warm_up
from bench.loads.load import Load
from bench.loads.replay import Calls, replayed
from bench.loads.styles import style
from bench.questions.saturation import COLUMNS, QUICK_SECONDS, SECONDS, ratio
from bench.servers.avapd import pinned
from bench.servers.build import MissingToolError, go
from bench.servers.contestants import WIRE, avapd, service
from bench.servers.database import READER, filled

_WORKERS: Final = {"1 worker": 1, "2 workers": 2, "4 workers": 4}
_DRIFTING: Final = "avapd, blocks never repeat"
_CONNECTIONS, _STREAMS = 20, 10
_DEFINITIONS: Final = 10_000
_ANSWER_BYTES: Final = 2_048


def run(run: Run) -> None:
    """Each number of workers in every round."""
    seconds = QUICK_SECONDS if run.quick else SECONDS
    run.parameters |= {"answer_bytes": _ANSWER_BYTES, "seconds": seconds}
    describe_client(run)
    clients: dict[str, Client] = {OURS: closed_loop}
    try:
        go("replay")
    except MissingToolError as error:
        run.skip(_DRIFTING, str(error))
    else:
        clients[_DRIFTING] = functools.partial(replayed, Calls(style("grpc-go", "inherited")))
    counts = {name: count for name, count in _WORKERS.items() if run.wants(name, tuple(_WORKERS))}
    numbers = run.rounds(full=5, quick=2)
    run.expect(len(numbers) * len(counts) * len(clients))
    with (
        filled(run, _DEFINITIONS, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _ANSWER_BYTES) as served,
    ):
        for number in numbers:
            for name, count in counts.items():
                with contextlib.ExitStack() as stack:
                    with pinned({run.cores.server}):
                        target = stack.enter_context(avapd(run, WIRE, served, workers=count))
                    warm_up(run, [target])
                    load = Load(_CONNECTIONS * count, _STREAMS)
                    for contestant, client in clients.items():
                        figures = drive(run, f"{name}, {contestant}", target, Traffic(client, load), seconds)
                        run.record(name, number, figures, contestant=contestant)


BENCH: Final = Bench(
    name="scale",
    title="whether workers get into each other's way",
    method=__doc__,
    cases=tuple(_WORKERS),
    contestants=(OURS, _DRIFTING),
    columns=COLUMNS,
    bars=tuple(
        ratio(case, "calls per CPU second stay flat", 0.9, ours=ours, over_case="1 worker", figure="per_cpu_second")
        for ours in (OURS, _DRIFTING)
        for case in ("2 workers", "4 workers")
    ),
    plots=(
        Plot(
            name="workers", title="Calls per CPU second, by workers on one core", kind="lines",
            figures=("per_cpu_second",), axis="calls per CPU second",
        ),
    ),
    run=run,
)  # fmt: skip
