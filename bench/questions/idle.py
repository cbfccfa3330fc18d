"""What a server costs while nobody calls it: CPU time and wake-ups, with 1,000 open connections and with none.

All processes of each contestant, for 4 s, one after the other, each alone on the server core. The connections have
exchanged SETTINGS as HTTP/2 wants it and made no call; afterwards each is asked for a PING, and all must answer.
CPU time is the scheduler's own, in nanoseconds; wake-ups are the voluntary context switches of all threads.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from typing import Final

from bench.frame import Bar, Bench, Column, Plot, Run
from bench.servers import proc
from bench.servers.avapd import BenchError
from bench.servers.contestants import (
    GRPC_GO,
    GRPC_JS,
    GRPCIO,
    NGHTTPD,
    TONIC,
    WIRE,
    Target,
    present,
    service,
    started,
)
from bench.servers.database import READER, filled

_ALL: Final = (WIRE, GRPCIO, GRPC_JS, GRPC_GO, TONIC, NGHTTPD)
_DEFINITIONS, _DEFINITION_BYTES = 1_000, 1_200
_CASES: Final = {"1,000 connections": 1_000, "no connection": 0}
_SECONDS, _QUICK_SECONDS = 4.0, 3.0
_SETTLE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 10.0
# RFC 9113: the preface and empty SETTINGS; the ACK of the server's; a PING.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ACK: Final = bytes((0, 0, 0, 4, 1, 0, 0, 0, 0))
_PING: Final = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"are you?"
_PONG: Final = bytes((0, 0, 8, 6, 1, 0, 0, 0, 0)) + b"are you?"


def run(run: Run) -> None:
    """Each contestant with and without connections, in every round."""
    run.parameters |= {"seconds": _QUICK_SECONDS if run.quick else _SECONDS}
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # servers inherit it
    names = present(run, _ALL)
    with (
        filled(run, _DEFINITIONS, _DEFINITION_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _DEFINITION_BYTES) as served,
    ):
        numbers = run.rounds(full=5, quick=1)
        cases = [case for case in _CASES if run.wants(case, tuple(_CASES))]
        run.expect(len(numbers) * len(names) * len(cases))
        for number in numbers:
            for name in names:
                with started(run, [name], served) as targets:
                    for case in cases:
                        figures = _idle(targets[name], _CASES[case], run.parameters["seconds"])
                        run.record(case, number, figures, contestant=name)


def _idle(target: Target, connections: int, seconds: float) -> dict[str, float]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_connected(target.port)) for _ in range(connections)]
        time.sleep(_SETTLE_SECONDS)
        cpu, woken, began = _cpu(target), _wakeups(target), time.perf_counter()
        time.sleep(seconds)
        lasted = time.perf_counter() - began
        figures = {"cpu": 100 * (_cpu(target) - cpu) / lasted, "wakeups": (_wakeups(target) - woken) / lasted}
        for sock in sockets:
            sock.sendall(_PING)
        for sock in sockets:
            _read_until(sock, _PONG)
    return figures


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS)
    sock.sendall(_HELLO)
    _read_until(sock, _ACK)  # the server's own SETTINGS came before
    sock.sendall(_ACK)
    return sock


def _read_until(sock: socket.socket, end: bytes) -> None:
    """Read what nobody needs, up to these bytes."""
    got = b""
    while end not in got:
        more = sock.recv(4096)
        if not more:
            raise BenchError("the server closed an idle connection")
        got += more


def _cpu(target: Target) -> float:
    return sum(map(proc.cpu_seconds, target.pids))


def _wakeups(target: Target) -> int:
    return sum(map(proc.wakeups, target.pids))


BENCH = Bench(
    name="idle",
    title="what a server costs while nobody calls it",
    method=__doc__,
    cases=tuple(_CASES),
    contestants=_ALL,
    columns=(
        Column(figure="cpu", head="CPU", unit="% of a core", digits=2),
        Column(figure="wakeups", head="wake-ups", unit="1/s"),
    ),
    plots=(
        Plot(name="cpu", title="CPU of an idle server", kind="bars", figures=("cpu",), axis="% of a core"),
    ),
    bars=(
        Bar(
            says="1,000 idle connections cost under 1 % of a core", case="1,000 connections", figure="cpu",
            contestant=WIRE, limit=1, unit="%",
        ),
    ),
    run=run,
)  # fmt: skip
