"""The first call after SERVING: a worker is killed (SIGKILL) again and again, its successor watched from outside.

One worker, a small catalog. From the kill on, fresh connections (a grpcio channel with a subchannel pool of its own)
ask the health service; a try that is not answered within 100 ms is given up and the next connection made. On each
connection that answers, whatever its health says, GetCommand is called at once. SERVING must be followed by the right
definition, byte for byte; before it, only NOT_SERVING and UNAVAILABLE (or the right definition already) are allowed:
everything else is a *failure*. *kill to SERVING* ends with the health answer.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from avapd.shared.snapshot import key_of
from bench.frame import Bar, Bench, Column, Run
from bench.servers.avapd import KEY, Avapd, BenchError, pinned
from bench.servers.database import READER, filled, name_of

_DEFINITIONS: Final = 200
_DEFINITION_BYTES: Final = 1_200
_TRY_SECONDS: Final = 0.1
_CALL_SECONDS: Final = 5.0
_GIVE_UP_SECONDS: Final = 30.0
_CASE: Final = "kill -9"
_METADATA: Final = (("x-avap-auth", KEY),)
_OPTIONS: Final = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
_SERVING: Final = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
_NOT_YET: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def run(run: Run) -> None:
    """Kill, watch, repeat."""
    run.parameters |= {"workers": 1, "try_seconds": _TRY_SECONDS}
    with filled(run, _DEFINITIONS, _DEFINITION_BYTES) as postgres, Avapd(postgres.url(READER), workers=1) as server:
        server.wait("SERVING")
        watcher = _Watcher(server)
        run.commands["avapd"] = server.command
        numbers = run.rounds(full=200, quick=20)
        run.expect(len(numbers))
        with pinned({run.cores.client}):
            for number in numbers:
                run.record(_CASE, number, watcher.round())


class _Watcher:
    """Asks as a client does, on connections of its own."""

    def __init__(self, server: Avapd) -> None:
        self._server = server
        self._target = f"127.0.0.1:{server.port}"
        self._key = key_of(name_of(_DEFINITIONS // 2))
        self._failures = 0
        self._right = b""
        if not self._serves(_CALL_SECONDS):
            raise BenchError("the first worker does not serve")

    def round(self) -> dict[str, float]:
        """One kill; times in milliseconds."""
        (before,) = self._server.worker_pids()
        self._failures = tries = 0
        os.kill(before, signal.SIGKILL)
        killed = time.perf_counter()
        while not self._serves(_TRY_SECONDS):
            tries += 1
            if time.perf_counter() - killed > _GIVE_UP_SECONDS:
                raise BenchError("no worker serves any more")
        figures = {
            "kill_to_serving_ms": (self._answered - killed) * 1e3,
            "first_call_ms": self._first_call * 1e3,
            "unanswered": tries,
            "failures": self._failures,
        }
        if before in self._server.worker_pids():
            raise BenchError("the killed worker is still there")
        return figures

    def _serves(self, seconds: float) -> bool:
        """One connection: its health, then a call that must fit to it."""
        with grpc.insecure_channel(self._target, options=_OPTIONS) as channel:
            try:
                health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=seconds)
            except grpc.RpcError as error:
                self._failures += error.code() not in _NOT_YET
                return False
            self._answered = time.perf_counter()
            serving: bool = health == _SERVING
            self._failures += not self._fits(channel, serving=serving)
            self._first_call = time.perf_counter() - self._answered
        return serving

    def _fits(self, channel: grpc.Channel, *, serving: bool) -> bool:
        call = channel.unary_unary("/avap.DefinitionEngine/GetCommand")
        try:
            answer = call(self._key, timeout=_CALL_SECONDS, metadata=_METADATA)
        except grpc.RpcError as error:
            return not serving and error.code() is grpc.StatusCode.UNAVAILABLE
        self._right = self._right or answer
        return len(answer) == _DEFINITION_BYTES and answer == self._right


BENCH = Bench(
    name="starts",
    title="the first call after SERVING, start after start",
    method=__doc__,
    cases=(_CASE,),
    columns=(
        Column(figure="kill_to_serving_ms", head="kill to SERVING, p50", unit="ms", statistic="p50"),
        Column(figure="kill_to_serving_ms", head="p99", unit="ms", statistic="p99"),
        Column(figure="first_call_ms", head="first call, p50", unit="ms", digits=2, statistic="p50"),
        Column(figure="first_call_ms", head="p99", unit="ms", digits=2, statistic="p99"),
        Column(figure="unanswered", head="tries unanswered", digits=0),
        Column(figure="failures", head="failures, sum", statistic="sum"),
    ),
    bars=(
        Bar(
            says="no call fails after SERVING, no wrong answer before",
            case=_CASE,
            figure="failures",
            statistic="sum",
            limit=0,
            digits=0,
        ),
        Bar(
            says="a killed worker is replaced within 300 ms",
            case=_CASE,
            figure="kill_to_serving_ms",
            statistic="p99",
            limit=300,
            unit="ms",
            digits=0,
        ),
    ),
    run=run,
)
