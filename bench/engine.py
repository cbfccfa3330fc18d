"""The grpcio engine of avapd against a bare grpc.aio server on uvloop that returns a constant answer of the same size.

Both run on the server core, one process that answers each. Each round starts both anew (two processes of one program
differ by some percent for as long as they live) and then loads them in turn, so that what else the machine does meets
both. The client is a closed loop on the client core: *10x10* is 10 connections with 10 calls under way on each, *1x1*
one call at a time. avapd checks the key, looks the name up in the mapped catalog (1,000 definitions) and counts the
call; the bare server does nothing. *per CPU second* divides by the CPU time of the answering process: the figure that
a shared machine disturbs least. Ratios are ours to theirs; above 1 we are faster.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc

from avapd.pb import avap_pb2
from avapd.shared.snapshot import key_of
from bench.database import READER, database, fill, name_of, version
from bench.frame import OURS, Bar, Bench, Column, Run
from bench.loads import CLIENT, Load, Target, client_version, drive
from bench.server import KEY, Avapd, BenchError, pinned

_PATH: Final = "/avap.DefinitionEngine/GetCommand"
_LOADS: Final = {"10x10": Load(10, 10), "1x1": Load(1, 1)}
_BARE: Final = "bare_aio"
_DEFINITIONS: Final = 1_000
_ANSWER_BYTES: Final = 2_048
_HEADERS: Final = {"x-avap-auth": KEY}


def run(run: Run) -> None:
    """Rounds A B A B, each load in every round."""
    seconds = 1.0 if run.quick else 4.0
    run.parameters |= {"seconds": seconds, "definitions": _DEFINITIONS, "answer_bytes": _ANSWER_BYTES, "client": CLIENT}
    run.versions[CLIENT] = client_version()
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        fill(postgres, _DEFINITIONS, _ANSWER_BYTES)
        for number in run.rounds(full=7, quick=2):
            _round(run, number, postgres.url(READER), seconds)


def _round(run: Run, number: int, url: str, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        with pinned({run.cores.server}):
            targets = {OURS: stack.enter_context(_avapd(url)), _BARE: stack.enter_context(_bare())}
        for case, load in _LOADS.items():
            for name, target in targets.items():
                if run.wants(case, tuple(_LOADS)) and run.wants(name, BENCH.contestants):
                    run.record(case, number, drive(target, load, seconds, run.cores.client), contestant=name)


@contextlib.contextmanager
def _avapd(url: str) -> Iterator[Target]:
    message = key_of(name_of(_DEFINITIONS // 2))
    with Avapd(url, workers=1, AVAPD_ENGINE="grpcio") as server:
        server.wait("SERVING")
        target = Target(server.port, _PATH, _HEADERS, message, server.worker_pids()[0], _ANSWER_BYTES)
        _check(target, name_of(_DEFINITIONS // 2))
        yield target


@contextlib.contextmanager
def _bare() -> Iterator[Target]:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "peers" / "bare_aio.py", _PATH, str(_ANSWER_BYTES)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        target = Target(int(process.stdout.readline()), _PATH, _HEADERS, key_of("x"), process.pid, _ANSWER_BYTES)
        _check(target)
        yield target
    finally:
        process.kill()
        process.wait()


def _check(target: Target, name: str = "") -> None:
    """One call, before anything is measured: the answer has the right size, and the right name where it has one."""
    with grpc.insecure_channel(f"127.0.0.1:{target.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = channel.unary_unary(_PATH)(target.message, timeout=10, metadata=tuple(target.headers.items()))
    if len(answer) != target.answer_bytes:
        raise BenchError(f"the answer has {len(answer)} bytes instead of {target.answer_bytes}")
    if name and avap_pb2.CommandResponse.FromString(answer).name != name:
        raise BenchError(f"the answer is not {name}")


def _ratio(case: str, figure: str, says: str, limit: float | None) -> Bar:
    return Bar(says=says, case=case, figure=figure, over=_BARE, sense="at least", limit=limit, digits=3)


_SAYS: Final = "the engine reaches 0.9 of a bare grpc.aio server"
BENCH = Bench(
    name="engine",
    title="grpcio engine against a bare grpc.aio server",
    method=__doc__,
    cases=tuple(_LOADS),
    contestants=(OURS, _BARE),
    columns=(
        Column(figure="per_second", head="calls", unit="1/s"),
        Column(figure="per_cpu_second", head="calls per CPU second", unit="1/s"),
        Column(figure="mean_ms", head="mean latency", unit="ms", digits=3),
        Column(figure="server_cpu", head="server's CPU", unit="cores", digits=2),
    ),
    bars=(
        _ratio("10x10", "per_second", _SAYS, 0.9),
        _ratio("1x1", "per_second", _SAYS, 0.9),
        _ratio("10x10", "per_cpu_second", "the same, per CPU second", None),
        _ratio("1x1", "per_cpu_second", "the same, per CPU second", None),
    ),
    run=run,
)
