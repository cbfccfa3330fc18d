"""Run modes, seen from outside: what each asks for, and one worker as a whole service."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest
from support.calls import Calls
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import wait_until

AGE, JITTER, SEED = 1.5, 0.9, 74  # of which three ages come out almost a second apart, the last first
Serve = Callable[..., Server]


@pytest.mark.parametrize("engine", ["wire", "grpcio"])
def test_development_on_loopback_serves_without_a_key_when_asked(serve: Serve, sample: Database, engine: str) -> None:
    """No key, or any; and `avapd get` needs none either."""
    env = {"AVAPD_ENV": "development", "AVAPD_HOST": "127.0.0.1", "AVAPD_ANONYMOUS": "on", "API_KEY": ""}
    server = serve(sample.reader_url, env={**env, "AVAPD_ENGINE": engine, "AVAPD_WORKERS": "1"})
    for key in (None, "any"):
        with Calls(f"127.0.0.1:{server.port}", key) as calls:
            wait_until(lambda calls=calls: calls.get("addVar", wait=True).code == 0, 20)  # type: ignore[misc]
    command = [sys.executable, "-P", "-m", "avapd", "get", "getDate", "--target", f"127.0.0.1:{server.port}"]
    environ = {"PATH": os.environ["PATH"], "AVAPD_ANONYMOUS": "on"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "import datetime\n", done


def test_production_says_what_is_not_protected(serve: Serve) -> None:
    """Clear text that was asked for, and a database that proves nothing: a WARN each, without a secret."""
    url = "postgresql://reader:hidden-word@127.0.0.1:1/none"
    server = serve(url, env={"AVAPD_ENV": "production", "AVAPD_WORKERS": "1"})
    wait_until(lambda: server.events("CONFIG OK"))
    warnings = [line["warning"] for line in server.events("Setting") if line["level"] == "WARN"]
    assert sorted(warning.split()[0] for warning in warnings) == ["AVAPD_INSECURE=1:", "the"]
    assert any("verify-full" in warning and "AVAPD_DATABASE_CA_FILE" in warning for warning in warnings)
    assert "hidden-word" not in server.log


def farewells(server: Server, count: int) -> list[int]:
    """The order in which connections, made one after the other, are told to go for their age."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            assert sock.recv(9)
            socks.append(sock)
        left: list[int] = []

        def note() -> bool:
            for number, sock in enumerate(socks):
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if number not in left and b"max_age" in sock.recv(4096):
                        left.append(number)
            return len(left) == count

        wait_until(note, 20)
        return left


def test_the_spread_of_ages_is_repeatable_in_test(serve: Serve, sample: Database) -> None:
    """The first worker begins from AVAPD_SEED: who is told to go first is known beforehand."""
    dice = random.Random(SEED)
    ages = [AGE * (1 + JITTER * dice.uniform(-1, 1)) for _ in range(3)]
    foreseen = sorted(range(len(ages)), key=ages.__getitem__)
    assert min(ages[b] - ages[a] for a, b in itertools.pairwise(foreseen)) > 0.9
    env = {
        "AVAPD_WORKERS": "1", "AVAPD_SEED": str(SEED), "AVAPD_LIMIT_AGE_SECONDS": str(AGE),
        "AVAPD_LIMIT_AGE_JITTER": str(JITTER),
    }  # fmt: skip
    server = serve(sample.reader_url, env=env).wait_serving()
    assert farewells(server, len(ages)) == foreseen


def test_one_worker_is_a_whole_service(serve: Serve, sample: Database) -> None:
    """AVAPD_WORKERS=1: changes, replacement without a lost call, a kill, the canary, health and the drain."""
    server = serve(sample.reader_url, env={"AVAPD_WORKERS": "1", "AVAPD_CANARY_SECONDS": "0.2"}).wait_serving()
    (before,) = server.workers()
    with Load(server.calls, lambda calls: calls.get("addVar", wait=True), threads=2) as load:
        generation = server.status()["generation"]
        sample.execute("UPDATE obex_dapl_functions SET code = 'changed = 1' WHERE name = 'addVar'")
        server.wait_served(lambda status: bool(status["generation"] > generation), 20)
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.events("Workers Replaced"), 20)
        assert server.workers() != [before]
    assert load.failures() == []
    with server.calls() as calls:
        assert calls.command("addVar").code == b"changed = 1"
    (before,) = server.workers()
    psutil.Process(before).kill()
    began = time.monotonic()
    with server.calls() as calls:  # its socket stayed open: the call waits for the next worker
        assert calls.get("addVar", wait=True).code == 0
        assert calls.health() == "SERVING"
    assert time.monotonic() - began < 10
    assert server.http("/readyz")[0] == 200
    assert server.metric("avap_worker_restarts_total") == 1
    assert server.stop() == 0
