"""Stopping: NOT_SERVING first, then no new connections, then what is in flight, then exit 0 in time."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable

import grpc
import hpack
import pytest
from grpc_health.v1 import health_pb2
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load, knock
from support.raw import PREFACE, frame, framed
from support.server import KEY, Server
from support.waiting import wait_until

from avapd.config import ENGINES

Serve = Callable[..., Server]


def watch(calls: Calls) -> queue.Queue[str]:
    """The statuses of a health Watch as they come; `end CODE` when it ends."""
    seen: queue.Queue[str] = queue.Queue()
    stream = calls.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")

    def read() -> None:
        try:
            for message in stream:
                status = health_pb2.HealthCheckResponse.FromString(message).status
                seen.put(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
        except grpc.RpcError as error:
            seen.put(f"end {error.code().name}")

    threading.Thread(target=read, daemon=True).start()
    return seen


@pytest.mark.parametrize(
    ("number", "engine"), [(signal.SIGTERM, "wire"), (signal.SIGINT, "wire"), (signal.SIGTERM, "grpcio")]
)
def test_not_serving_comes_first_and_the_listener_stays_open_meanwhile(
    sample: Database, serve: Serve, number: signal.Signals, engine: str
) -> None:
    """During the pre-drain health says NOT_SERVING, while calls and new connections are still served; it lives."""
    env = {"AVAPD_PRE_DRAIN_SECONDS": "1.5", "AVAPD_DRAIN_SECONDS": "5", "AVAPD_ENGINE": engine}
    server = serve(sample.reader_url, env=env).wait_serving()
    with server.calls() as calls:
        seen = watch(calls)
        assert seen.get(timeout=5) == "SERVING"
        began = time.monotonic()
        server.process.send_signal(number)
        assert seen.get(timeout=1) == "NOT_SERVING"
        with server.calls() as late:
            assert late.get("addVar").code == 0
            assert (late.health(), late.health("liveness")) == ("NOT_SERVING", "SERVING")
        assert server.http("/readyz") == (503, "draining\n")
        assert seen.get(timeout=5).startswith("end ")
    assert server.wait_end() == 0
    assert time.monotonic() - began <= 5 + 2
    with pytest.raises(OSError, match="refused"):
        knock(server.port)


def test_calls_in_flight_finish(sample: Database, serve: Serve) -> None:
    """SIGTERM under load: what was begun before the listener closed is answered, none is cut off half-way."""
    server = serve(sample.reader_url).wait_serving()

    def get(calls: Calls) -> Outcome:
        return calls.get("addVar", timeout=0.5, wait=True)

    with Load(server.calls, get, 4) as load:
        wait_until(lambda: len(load.history) > 100)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
    # Afterwards nobody listens: the calls that never found a server end by their deadline, nothing else fails.
    assert {entry.outcome.code for entry in load.failures()} <= {4}
    assert [entry for entry in load.history if entry.outcome.code == 0]


def test_a_client_that_does_not_read_cannot_hold_the_drain(sample: Database, serve: Serve) -> None:
    """A stuck reader of a large answer: exit 0 within AVAPD_DRAIN_SECONDS + 2."""
    sample.insert_many(8000)
    server = serve(sample.reader_url, env={"AVAPD_DRAIN_SECONDS": "1"}).wait_serving()
    stuck = _ask_for_the_catalog_and_read_nothing(server)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began <= 1 + 2
    stuck.close()


def _ask_for_the_catalog_and_read_nothing(server: Server) -> socket.socket:
    """A connection whose flow-control window fills up after 64 KiB of an answer of 10 MB."""
    head = hpack.Encoder().encode([
        (":method", "POST"), (":scheme", "http"), (":path", "/avap.DefinitionEngine/SyncCatalog"),
        (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers"), ("x-avap-auth", KEY),
    ])  # fmt: skip
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.sendall(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, head) + frame(0, 1, 1, framed(b"")))
    wait_until(lambda: len(sock.recv(65_536, socket.MSG_PEEK)) > 60_000)
    return sock


@pytest.mark.parametrize("engine", ENGINES)
def test_who_watches_and_never_reads_stops_nothing(sample: Database, serve: Serve, engine: str) -> None:
    """Without a key and with a shut window: the workers beat on, and the drain is as quick as any.

    grpcio's own health service would hold a lock for such a client, which setting any status waits for.
    """
    env = {"AVAPD_ENGINE": engine, "AVAPD_DRAIN_SECONDS": "6"}
    server = serve(sample.reader_url, env=env).wait_serving()
    head = hpack.Encoder().encode([
        (":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Watch"),
        (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers"),
    ])  # fmt: skip
    shut = frame(4, 0, 0, b"\0\4\0\0\0\0")
    names = [b"", b"\x0a\x0favapd.freshness", b"\x0a\x15avap.DefinitionEngine"]
    with contextlib.ExitStack() as stack:
        for name in names * 8:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.sendall(PREFACE + shut + frame(1, 4, 1, head) + frame(0, 1, 1, framed(name)))
            wait_until(lambda sock=sock: len(sock.recv(4096, socket.MSG_PEEK)) > 9)  # type: ignore[misc]
        with server.calls() as calls:
            seen = watch(calls)
            assert seen.get(timeout=5) == "SERVING"
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert seen.get(timeout=2) == "NOT_SERVING"
            assert seen.get(timeout=5).startswith("end ")
    assert server.wait_end() == 0
    assert time.monotonic() - began <= 6 + 2
    assert not server.events("Worker Silent, Killing")


def test_a_second_signal_ends_at_once(sample: Database, serve: Serve) -> None:
    """An operator who signals twice does not want to wait."""
    env = {"AVAPD_PRE_DRAIN_SECONDS": "8", "AVAPD_DRAIN_SECONDS": "30"}
    server = serve(sample.reader_url, env=env).wait_serving()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.events("STOPPING"))
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_end() == 0
    assert time.monotonic() - began < 3


def test_nothing_is_left_behind(sample: Database, serve: Serve) -> None:
    """After the end there is no process of ours, and the ports are free."""
    server = serve(sample.reader_url).wait_serving()
    family = server.family()
    assert server.stop() == 0
    assert not [process for process in family if process.is_running()]
    for port in (server.port, server.admin_port):
        with socket.create_server(("127.0.0.1", port)) as again:
            assert again.getsockname()[1] == port
    assert server.events("STOPPED")[0]["exit_code"] == 0
