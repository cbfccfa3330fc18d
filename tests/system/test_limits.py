"""Limits of connections on a real server: what a client beyond them sees, and that all others notice nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from support.attacks import authorised
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load, knock
from support.raw import framed
from support.server import Server
from support.streams import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    settings,
)
from support.waiting import stays, wait_until
from wire.raw import literals  # fmt: skip

from avapd.config import ENGINES
from avapd.pb.avap_pb2 import CommandRequest

Serve = Callable[..., Server]


def get(calls: Calls) -> Outcome:
    return calls.get("addVar")


@contextlib.contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that have said hello and nothing more."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            with contextlib.suppress(OSError):
                sock.sendall(PREFACE + settings())
            made.append(sock)
        yield made


def greeted(sock: socket.socket) -> bool:
    """Whether the server has answered a connection, and not ended it."""
    try:
        return bool(sock.recv(9))
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    ("limit", "room"), [("TOTAL_CONNECTIONS", (20, 20)), ("ADDRESS_CONNECTIONS", (20, 40)), ("CONNECTIONS", (20, 40))]
)
def test_a_connection_beyond_the_limit_is_closed_at_once(
    serve: Serve, sample: Database, limit: str, room: tuple[int, int]
) -> None:
    """Before the server's SETTINGS, so that clients come back ever less often; counted; those within go on."""
    server = serve(sample.reader_url, env={f"AVAPD_LIMIT_{limit}": "20"}).wait_serving()
    with server.calls() as calls:
        assert get(calls).code == 0
        with connected(server.port, 60) as sockets:
            served = 1 + sum(map(greeted, sockets))
            assert room[0] <= served <= room[1]
            assert get(calls).code == 0
            wait_until(lambda: server.metric("avap_connections") == served, 5)
            name = {"TOTAL_CONNECTIONS": "total", "ADDRESS_CONNECTIONS": "address", "CONNECTIONS": "worker"}[limit]
            assert server.metric("avap_connections_refused_total", limit=name) == 61 - served
        wait_until(lambda: knock(server.port), what="there is room again")
        assert get(calls).code == 0


def test_grpcio_closes_connections_beyond_its_limit_as_well(serve: Serve, sample: Database) -> None:
    """Those of a worker, the one of its limits that grpcio knows; who is in goes on, and there is room again after."""
    env = {"AVAPD_ENGINE": "grpcio", "AVAPD_WORKERS": "1", "AVAPD_LIMIT_CONNECTIONS": "20"}
    server = serve(sample.reader_url, env=env).wait_serving()
    with server.calls() as calls:
        assert get(calls).code == 0
        with connected(server.port, 60) as sockets:
            assert sum(map(greeted, sockets)) == 19
            assert get(calls).code == 0
        wait_until(lambda: knock(server.port), what="there is room again")
        assert get(calls).code == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_old_connections_are_told_to_go_and_no_call_is_lost(serve: Serve, sample: Database, engine: str) -> None:
    """An idle one gets GOAWAY and its end; a client under load connects anew, which nobody notices."""
    env = {"AVAPD_ENGINE": engine, "AVAPD_LIMIT_AGE_SECONDS": "1", "AVAPD_LIMIT_GRACE_SECONDS": "5"}
    server = serve(sample.reader_url, env=env).wait_serving()
    with Load(server.calls, get, threads=2) as load, connected(server.port, 1) as (sock,):
        sock.settimeout(10)
        heard = b""
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(4096):
                heard += part
        assert b"max_age" in heard
        calls_then = len(load.history)
        wait_until(lambda: len(load.history) > calls_then + 100)
    assert load.failures() == []


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit (util-linux)")
@pytest.mark.parametrize("engine", ENGINES)
def test_more_connections_than_descriptors(serve: Serve, sample: Database, engine: str) -> None:
    """RLIMIT_NOFILE of 256 and 1,000 connections: who is there is served, health answers, no worker spins or dies.

    Soon after their end new clients are served: grpcio looks once a second whether it can accept again.
    """
    prlimit = (shutil.which("prlimit") or "", "--nofile=256:256")
    env = {"AVAPD_ENGINE": engine, "AVAPD_WORKERS": "1"}
    server = serve(sample.reader_url, env=env, command=prlimit).wait_serving()
    (pid,) = server.workers()
    with server.calls() as calls:
        assert get(calls).code == 0
        with connected(server.port, 1000):
            assert calls.health() == "SERVING"
            assert get(calls).code == 0
            used = busy(psutil.Process(pid), 2.0)
            assert calls.health() == "SERVING"
        wait_until(lambda: knock(server.port), {"wire": 3, "grpcio": 20}[engine])
        assert get(calls).code == 0
    assert used < 0.2
    assert server.workers() == [pid]


def busy(process: psutil.Process, seconds: float) -> float:
    """The share of a CPU that a process takes for a while."""
    before = sum(process.cpu_times()[:2])
    stays(lambda: True, seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


# --- scenario 21: more calls than can be answered ---------------------------------------------------------------------

FLOODS, BATCHES, STREAMS = 8, 40, 100
REQUEST = CommandRequest(name="addVar").SerializeToString()
STATUS = b"\x00\x0bgrpc-status\x01"  # as the engine writes it, with every answer
OK_TRAILERS = STATUS + b"0"


class Flood:
    """A connection that sends calls as fast as they are taken, and reads what comes without looking at it.

    It is through when so many answers have ended with `mark`.
    """

    def __init__(self, port: int, mark: bytes = OK_TRAILERS) -> None:
        self._mark = mark
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.sendall(PREFACE + settings(initial_window_size=(1 << 31) - 1) + frame(SETTINGS, ACK, 0))
        self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, ((1 << 31) - 65_536).to_bytes(4, "big")))
        self.ends = 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._read)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        block = literals(authorised())
        for batch in range(BATCHES):
            numbers = range(1 + 2 * STREAMS * batch, 1 + 2 * STREAMS * (batch + 1), 2)
            self.socket.sendall(b"".join(
                frame(HEADERS, END_HEADERS, number, block) + frame(DATA, END_STREAM, number, framed(REQUEST))
                for number in numbers
            ))  # fmt: skip

    def _read(self) -> None:
        rest = b""
        while self.ends < BATCHES * STREAMS and (data := self.socket.recv(1 << 18)):
            found = rest + data
            self.ends += found.count(self._mark) - rest.count(self._mark)
            rest = found[-len(self._mark) + 1 :]

    def wait(self) -> int:
        """The calls that were answered so, once all are."""
        for thread in self._threads:
            thread.join(60)
        self.socket.close()
        return self.ends


def test_more_calls_than_can_be_answered(serve: Serve, sample: Database) -> None:
    """Scenario 21: a queue is what is in flight and no more, so every call is answered, and others get their turn.

    Health and a client that asks now and then are answered within a second meanwhile, and at once after it.
    """
    server = serve(sample.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    with server.calls() as calls:
        assert get(calls).code == 0
        floods = [Flood(server.port) for _ in range(FLOODS)]
        while any(thread.is_alive() for flood in floods for thread in flood._threads):
            assert calls.health(timeout=1.0) == "SERVING"
            assert get(calls).code == 0
        assert [flood.wait() for flood in floods] == [BATCHES * STREAMS] * FLOODS
        assert calls.get("addVar", timeout=1.0).code == 0
    assert server.metric("avap_requests_total", status="200", method="GetCommand") >= FLOODS * BATCHES * STREAMS
    assert server.metric("avap_requests_total", status="429") == 0


def test_calls_that_wait_too_long_for_their_turn_are_shed(serve: Serve, sample: Database) -> None:
    """RESOURCE_EXHAUSTED, counted and audited; every call is answered, health and who asks little are served."""
    env = {"AVAPD_WORKERS": "1", "AVAPD_LIMIT_QUEUE_SECONDS": "0.001"}
    server = serve(sample.reader_url, env=env).wait_serving()
    with server.calls() as calls:
        assert get(calls).code == 0
        floods = [Flood(server.port, STATUS) for _ in range(FLOODS)]
        while any(thread.is_alive() for flood in floods for thread in flood._threads):
            assert calls.health(timeout=1.0) == "SERVING"
            assert get(calls).code == 0
        assert sum(flood.wait() for flood in floods) == FLOODS * BATCHES * STREAMS
    shed = server.metric("avap_requests_total", status="429")
    assert shed > 0
    assert server.metric("avap_requests_total", method="GetCommand") >= FLOODS * BATCHES * STREAMS

    def told() -> list[dict[str, Any]]:
        return [line for line in server.events("Audit") if line["event"] == "limited"]

    wait_until(lambda: sum(line["count"] for line in told()) == shed)
    assert {line["key"] for line in told()} == {"default"}


# --- scenario 22: connections spread again ----------------------------------------------------------------------------


def test_long_connections_spread_over_workers_again(serve: Serve, sample: Database) -> None:
    """Scenario 22: a worker dies and its clients go to the other; their age brings them back, a good-bye before it.

    No call fails but those that were under way with the worker that died.
    """
    server = serve(
        sample.reader_url, env={"AVAPD_LIMIT_AGE_SECONDS": "2", "AVAPD_SILENCE_SECONDS": "60"}
    ).wait_serving()

    def connections() -> list[float]:
        return [server.metric("avap_connections", worker=str(worker)) for worker in range(2)]

    with Load(server.calls, lambda calls: calls.get("addVar", wait=True), threads=16) as load:
        wait_until(lambda: sum(connections()) >= 16)
        killed = time.monotonic()
        os.kill(server.workers()[0], signal.SIGKILL)
        wait_until(lambda: server.metric("avap_worker_restarts_total", worker="0") == 1)
        wait_until(lambda: sum(connections()) >= 16 and max(connections()) <= 0.75 * sum(connections()), 20)
    # A client may send one more call into the connection that it does not know to be dead yet.
    late = [entry for entry in load.failures() if entry.began > killed + 1]
    assert late == []
