"""What one core answers, at saturation: avapd on both engines, and what a user would take instead.

*wire* and *grpcio* are `avapd serve` with one worker: they check the key, look the name up in the mapped catalog and
count the call. The peers are servers of our own for the same contract, catalog and key, each as its library's users
write it (bench/peers): *grpc_aio* and *grpc_sync* on grpcio, *grpclib*, *grpc_js* on Node in one process and as a
cluster of two, *grpc_go*, and *tonic* in Rust. *constant_aio* is a grpc.aio server that returns a constant and knows no
keys: what an engine on grpcio could reach at best. *nghttpd* (C) sends a static file of the same size and a trailer,
and knows no keys either: the limit.

All run on the server core. Each round starts all anew (two processes of one program differ by some percent for as long
as they live), warms each up for 2 s and then loads them in turn, case by case, so that what else the machine does meets
all. The client is h2load on the client core, in a closed loop: *10x10* is 10 connections with 10 calls under way on
each, *1x1* one call at a time; it asks for the same definition again and again.

*per CPU second* divides by the CPU time of the answering processes: the figure that a shared machine disturbs least.
Where *server's CPU* is well below one core, the server waited: for a client that has no core left (*client's CPU*), or
for the wake-ups between the two cores. Ratios are those of the first to the second; above 1 the first is faster.
"""

from __future__ import annotations

from typing import Final

from bench.frame import Bench, Plot, Run
from bench.loads.drive import describe_client
from bench.loads.load import Load
from bench.questions.saturation import COLUMNS, TEN_BY_TEN, Case, ratio, saturate
from bench.servers.contestants import (
    ALL,
    CONSTANT_AIO,
    GRPC_AIO,
    GRPC_GO,
    GRPC_JS,
    GRPC_JS_CLUSTER,
    GRPC_SYNC,
    GRPCIO,
    GRPCLIB,
    NGHTTPD,
    TONIC,
    service,
)
from bench.servers.database import READER, filled

_DEFINITIONS: Final = 10_000
_ANSWER_BYTES: Final = 2_048
_LOADS: Final = {"1x1": Load(1, 1), "10x10": TEN_BY_TEN, "50x20": Load(50, 20), "1x100": Load(1, 100)}


def run(run: Run) -> None:
    """All contestants under all loads."""
    run.parameters |= {"answer_bytes": _ANSWER_BYTES}
    describe_client(run)
    cases = [Case(name, ALL, load) for name, load in _LOADS.items() if run.wants(name, tuple(_LOADS))]
    with (
        filled(run, _DEFINITIONS, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _ANSWER_BYTES) as served,
    ):
        saturate(run, served, cases)


_OTHERS: Final = (GRPCIO, GRPC_AIO, GRPC_SYNC, GRPCLIB, GRPC_JS, GRPC_JS_CLUSTER, GRPC_GO, TONIC, NGHTTPD)
BENCH: Final = Bench(
    name="engine",
    title="what one core answers, on both engines and elsewhere",
    method=__doc__,
    cases=tuple(_LOADS),
    contestants=ALL,
    columns=COLUMNS,
    bars=(
        ratio("10x10", "20 times the grpcio engine", 20, over=GRPCIO),
        ratio("10x10", "4 times grpc-go", 4, over=GRPC_GO),
        ratio("10x10", "ahead of tonic", 1, over=TONIC),
        ratio("10x10", "ahead of grpc-js, which it replaces", 1, over=GRPC_JS),
        ratio("10x10", "0.7 of nghttpd with a static file", 0.7, over=NGHTTPD),
        *(ratio("10x10", "per CPU second", over=other, figure="per_cpu_second") for other in _OTHERS),
        ratio("1x1", "one call at a time, 4 times the grpcio engine", 4, over=GRPCIO),
        ratio("1x1", "one call at a time, ahead of grpc-go", 1, over=GRPC_GO),
        ratio("1x1", "one call at a time, ahead of tonic", 1, over=TONIC),
        *(ratio("1x1", "per CPU second", over=other, figure="per_cpu_second") for other in (GRPCIO, GRPC_GO, TONIC)),
        *(
            ratio(case, "the grpcio engine reaches 0.9 of a constant answer on grpc.aio", 0.9, ours=GRPCIO,
                  over=CONSTANT_AIO)
            for case in ("10x10", "1x1")
        ),
    ),
    plots=(
        Plot(
            name="throughput", title="Calls per CPU second, 10 connections x 10 calls", kind="bars",
            figures=("per_cpu_second",), axis="calls per CPU second", cases=("10x10",), log=True,
        ),
        Plot(
            name="loads", title="Calls a second on one core, by load", kind="lines", figures=("per_second",),
            axis="calls a second", log=True,
        ),
    ),
    run=run,
)  # fmt: skip
