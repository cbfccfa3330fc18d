"""Closed loops of one unary call over connections by streams, from the client core; what they cost on both sides.

A client is a function that calls and tells what it did. `h2load` (C) costs a fraction of what any server here does, so
that the server is the limit. `ghz`, `grpcio`, `grpc_js` and `grpc_go` are what people really call with: they are often
slower than the server, and then only the server's CPU time for a call can be compared. Calls that differ from one to
the next are replay.py's.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from bench.frame import Run
from bench.loads import programs
from bench.loads.h2load import h2load
from bench.loads.load import Done, Load
from bench.servers import proc
from bench.servers.avapd import BenchError, pinned
from bench.servers.build import version_of
from bench.servers.contestants import Target

Client = Callable[[Target, Load, float], Done]
# Compilers that work while a program runs (Node's) need seconds to find out what is worth it.
_START_SECONDS, _QUICK_START_SECONDS = 2.0, 1.0
_WARMUP_SECONDS: Final = 0.3
HAVE_H2LOAD: Final = shutil.which("h2load") is not None
CLIENT: Final = "h2load" if HAVE_H2LOAD else "grpcio"
# The same call again and again. Without h2load it is grpc.aio, which is itself slower than the servers, so that ratios
# come out nearer to 1 than they are.
closed_loop: Final[Client] = h2load if HAVE_H2LOAD else programs.grpcio


class Traffic(NamedTuple):
    """A client and the loop it keeps up."""

    client: Client
    load: Load


def describe_client(run: Run) -> None:
    """Note which client `closed_loop` is."""
    run.parameters["client"] = CLIENT
    if HAVE_H2LOAD:
        run.versions["h2load"] = version_of("h2load", "--version")


def warm_up(run: Run, targets: Iterable[Target]) -> None:
    """Load servers that were just started, so that what they compile, allocate and remember is there."""
    with pinned({run.cores.client}):
        for target in targets:
            closed_loop(target, Load(10, 10), _QUICK_START_SECONDS if run.quick else _START_SECONDS)


def drive(run: Run, case: str, target: Target, traffic: Traffic, seconds: float) -> dict[str, float]:
    """Load a server for so many seconds from the client core: calls a second, also of its CPU time, bytes, latency.

    `server_cpu` and `client_cpu` are in cores; of the server the processes that answer. Raises BenchError when a call
    failed.
    """
    client, load = traffic
    with pinned({run.cores.client}):
        client(target, load, min(_WARMUP_SECONDS, seconds / 2))  # whatever this case is the first to need
        before, ours_before = _cpu_seconds(target), _children_seconds()
        done = client(target, load, seconds)
        cpu_seconds, ours = _cpu_seconds(target) - before, _children_seconds() - ours_before
    if done.failed or not done.calls:
        raise BenchError(f"{done.failed} of {done.calls} calls failed")
    run.commands.setdefault(f"load {case}", done.command)
    return {
        "per_second": done.calls / done.seconds,
        "per_cpu_second": done.calls / cpu_seconds,
        "mb_per_second": done.calls * target.answer_bytes / done.seconds / 1e6,
        "mean_ms": done.mean * 1e3,
        "server_cpu": cpu_seconds / done.seconds,
        "client_cpu": ours / done.seconds,
    }


def _cpu_seconds(target: Target) -> float:
    return sum(map(proc.cpu_seconds, target.answering))


def _children_seconds() -> float:
    """The CPU time of the clients that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
