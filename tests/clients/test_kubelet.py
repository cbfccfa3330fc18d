"""The probes of a kubelet: its own way of asking, by a program on grpc-go, for readiness and liveness."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients.engines import ENGINES
from clients.tools import go_program
from support.database import Database
from support.server import Server
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # the first run builds the program

Serve = Callable[..., Server]
READY = ("", "avap.DefinitionEngine")


@pytest.fixture(scope="module")
def kubelet() -> Path:
    return go_program("kubelet")


@pytest.fixture(scope="module")
def table(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, table: Database) -> Iterator[Server]:
    with Server(table.reader_url, env={"AVAPD_ENGINE": request.param, "AVAPD_SILENCE_SECONDS": "60"}) as made:
        yield made.wait_serving()


def probe(kubelet: Path, server: Server, service: str, timeout: str = "10s") -> tuple[bool, str]:
    """Whether the probe succeeds, and why not. A kubelet waits for a second; a busy machine is no test of that."""
    done = subprocess.run(
        [kubelet, f"-address=127.0.0.1:{server.port}", f"-service={service}", f"-timeout={timeout}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done
    return done.returncode == 0, done.stdout.strip()


@pytest.mark.parametrize("service", [*READY, "liveness", "avapd.freshness"])
def test_a_serving_container_passes(kubelet: Path, server: Server, service: str) -> None:
    """Without a key, by every name of the contract."""
    assert probe(kubelet, server, service) == (True, "SERVING")


def test_a_wrong_name_fails_and_says_so(kubelet: Path, server: Server) -> None:
    """A manifest with a misspelt service is found at once."""
    passed, why = probe(kubelet, server, "livenes")
    assert (passed, "NotFound" in why) == (False, True)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_catalog_it_lives_and_is_not_ready(kubelet: Path, serve: Serve, engine: str) -> None:
    """A container that waits for its database is not killed, and gets no calls."""
    cold = serve("postgresql://nobody@127.0.0.1:1/none", env={"AVAPD_ENGINE": engine})
    wait_until(lambda: probe(kubelet, cold, "liveness") == (True, "SERVING"), 30)
    for service in READY:
        assert probe(kubelet, cold, service) == (False, "NOT_SERVING")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draining_container_is_not_ready(kubelet: Path, serve: Serve, sample: Database, engine: str) -> None:
    """From SIGTERM on, while it still takes calls: so that it is taken out of the service before it closes."""
    env = {"AVAPD_ENGINE": engine, "AVAPD_PRE_DRAIN_SECONDS": "60", "AVAPD_DRAIN_SECONDS": "60"}
    server = serve(sample.reader_url, env=env).wait_serving()
    assert probe(kubelet, server, "") == (True, "SERVING")
    server.process.send_signal(signal.SIGTERM)
    for service in READY:
        wait_until(lambda service=service: probe(kubelet, server, service) == (False, "NOT_SERVING"))  # type: ignore[misc]
    with server.calls() as calls:
        assert calls.get("addVar").code == 0
