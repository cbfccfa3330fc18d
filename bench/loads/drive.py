"""Loads: closed loops of one unary call over connections by streams, from one client core.

The client is h2load (a C program) where it is installed: it costs a fraction of what any server here does. Otherwise
it is aio_load.py on grpc.aio, which is itself slower than the servers, so that ratios come out nearer to 1 than they
are. Calls that differ from one to the next are replay.py's.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Final, NamedTuple

from bench.servers import proc
from bench.servers.avapd import BenchError, pinned
from bench.servers.build import PEERS
from bench.servers.contestants import Target


class Load(NamedTuple):
    """A closed loop: `streams` calls are under way on each of `connections`, at any time."""

    connections: int
    streams: int


class Done(NamedTuple):
    """What a client did: whole calls, those of them that failed, and the mean time of a call in seconds."""

    calls: int
    failed: int
    seconds: float
    mean: float


Client = Callable[[Target, Load, float], Done]
HAVE_H2LOAD: Final = shutil.which("h2load") is not None
CLIENT: Final = "h2load" if HAVE_H2LOAD else "grpc.aio"


def client_version() -> str:
    """The version of the client that `closed_loop` is."""
    if not HAVE_H2LOAD:
        return "grpc.aio"
    return (
        subprocess.run(["h2load", "--version"], check=True, capture_output=True, text=True)
        .stdout.split("/")[-1]
        .strip()
    )


def drive(target: Target, load: Load, seconds: float, cpu: int, client: Client | None = None) -> dict[str, float]:
    """Load a server for so many seconds from this CPU; calls a second, also of its CPU time, and their mean time."""
    client = client or closed_loop
    with pinned({cpu}):
        client(target, load, min(1.0, seconds / 2))  # connections, caches and memos are warm afterwards
        before, ours_before = proc.cpu_seconds(target.pid), _children_seconds()
        done = client(target, load, seconds)
        cpu_seconds, ours = proc.cpu_seconds(target.pid) - before, _children_seconds() - ours_before
    if done.failed or not done.calls:
        raise BenchError(f"{done.failed} of {done.calls} calls failed")
    return {
        "per_second": done.calls / done.seconds,
        "per_cpu_second": done.calls / cpu_seconds,
        "mean_ms": done.mean * 1e3,
        "server_cpu": cpu_seconds / done.seconds,
        "client_cpu": ours / done.seconds,
    }


def _children_seconds() -> float:
    """The CPU time of the clients that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def closed_loop(target: Target, load: Load, seconds: float) -> Done:
    """The same call again and again, by the client there is."""
    return (_h2load if HAVE_H2LOAD else _aio)(target, load, seconds)


def _h2load(target: Target, load: Load, seconds: float) -> Done:
    """h2load counts HTTP statuses; that the answers are whole is seen from the bytes of data per call."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + len(target.message).to_bytes(4, "big") + target.message)
        body.flush()
        headers = {"content-type": "application/grpc", "te": "trailers", **target.headers}
        words = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        text = subprocess.run(
            ["h2load", "-D", f"{round(seconds * 1000)}ms", "-c", str(load.connections), "-m", str(load.streams),
             "-d", body.name, *words, f"http://127.0.0.1:{target.port}{target.path}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    finished = _numbers(r"finished in ([\d.]+)(s|ms),", text)
    done, failed, errored, timed_out = _numbers(
        r"(\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text
    )
    data = _numbers(r"\((\d+)\) data", text)
    # It ends in the midst of answers, and counts the bytes of those less exactly than the calls.
    whole = int(done) - load.connections * load.streams
    if int(data[0]) < 0.95 * whole * target.answer_bytes:
        raise BenchError(f"{data[0]} bytes came for {done} calls, each answer has {target.answer_bytes}")
    mean = _numbers(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s) ", text)
    lost = int(failed) + int(errored) + int(timed_out)
    return Done(int(done), lost, _seconds(*finished), _seconds(*mean))


def _numbers(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"h2load says nothing like {pattern!r}:\n{text}")
    return found.groups()


def _seconds(number: str, unit: str) -> float:
    return float(number) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def _aio(target: Target, load: Load, seconds: float) -> Done:
    asked = {
        "port": target.port, "path": target.path, "headers": target.headers, "message": target.message.hex(),
        "answer_bytes": target.answer_bytes, "status": target.status, **load._asdict(), "seconds": seconds,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, PEERS / "aio_load.py", json.dumps(asked)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Done(**json.loads(done.stdout))
