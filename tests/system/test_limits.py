"""Limits of connections on a real server: what a client beyond them sees, and that all others notice nothing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import knock
from support.server import Server
from support.streams import PREFACE, settings
from support.waiting import stays, wait_until

from avapd.config import ENGINES

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
