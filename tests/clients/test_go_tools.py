"""What people in operations have at hand: grpcurl, ghz and grpc_health_probe."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients.engines import ENGINES
from clients.tools import go_tool
from support.calls import Calls
from support.database import Database
from support.server import KEY, Server, free_port
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # the first run builds the tools

PROTO = Path(__file__).parents[2] / "proto"
CALLS = 20_000
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, database: Database) -> Iterator[Server]:
    """In development, where reflection is on."""
    env = {"AVAPD_ENGINE": request.param, "AVAPD_ENV": "development", "AVAPD_SILENCE_SECONDS": "60"}
    with Server(database.reader_url, env=env) as made:
        with Calls(f"127.0.0.1:{made.port}") as calls:
            wait_until(lambda: calls.health("avap.DefinitionEngine", wait=True) == "SERVING", 20)
        yield made


def run(program: Path, *arguments: str, seconds: float = 60) -> Done:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=seconds, check=False)


# --- grpcurl ------------------------------------------------------------------------------------------------------


def grpcurl(server: Server, *arguments: str, call: tuple[str, ...] = ()) -> Done:
    program = go_tool("github.com/fullstorydev/grpcurl/cmd/grpcurl")
    return run(program, "-plaintext", "-max-time", "10", *call, f"127.0.0.1:{server.port}", *arguments)


def test_grpcurl_lists_and_describes_by_reflection(server: Server) -> None:
    """The services, the methods of ours, and a message of it, all without a key and without a .proto."""
    services = set(grpcurl(server, "list").stdout.split())
    assert {"avap.DefinitionEngine", "grpc.health.v1.Health"} <= services
    methods = grpcurl(server, "list", "avap.DefinitionEngine").stdout.split()
    assert {"avap.DefinitionEngine.GetCommand", "avap.DefinitionEngine.SyncCatalog"} <= set(methods)
    described = grpcurl(server, "describe", "avap.DefinitionEngine")
    assert "rpc GetCommand ( .avap.CommandRequest ) returns ( .avap.CommandResponse );" in described.stdout, described
    assert "string interface_json = 3;" in grpcurl(server, "describe", "avap.CommandResponse").stdout
    unknown = grpcurl(server, "describe", "avap.Nothing")
    assert (unknown.returncode, "Symbol not found: avap.Nothing" in unknown.stderr) == (1, True), unknown


def test_grpcurl_calls_by_reflection(server: Server) -> None:
    """A hit as JSON; a miss and a missing key by their status, which grpcurl adds to 64 as its exit code."""
    key, get = ("-H", f"x-avap-auth: {KEY}"), "avap.DefinitionEngine/GetCommand"
    found = json.loads(grpcurl(server, get, call=(*key, "-d", '{"name": "addVar"}')).stdout)
    assert found["name"] == "addVar", found
    assert base64.b64decode(found["code"]) == b"x = 1\n"
    catalog = json.loads(grpcurl(server, "avap.DefinitionEngine/SyncCatalog", call=key).stdout)
    assert catalog["commands"] == [found]
    missing = grpcurl(server, get, call=(*key, "-d", '{"name": "é"}'))
    assert (missing.returncode, "Code: NotFound" in missing.stderr) == (64 + 5, True)
    assert "Message: Command 'é' not found" in missing.stderr
    denied = grpcurl(server, get, call=("-d", '{"name": "addVar"}'))
    assert (denied.returncode, "Message: Invalid Credentials" in denied.stderr) == (64 + 16, True)


def test_grpcurl_watches_health(server: Server) -> None:
    """The first status comes at once, then the stream stays open until grpcurl's deadline."""
    assert json.loads(grpcurl(server, "grpc.health.v1.Health/Check").stdout) == {"status": "SERVING"}
    done = grpcurl(server, "grpc.health.v1.Health/Watch", call=("-max-time", "1", "-d", '{"service": "nothing"}'))
    assert json.loads(done.stdout) == {"status": "SERVICE_UNKNOWN"}
    assert (done.returncode, "DeadlineExceeded" in done.stderr) == (64 + 4, True)


# --- ghz ----------------------------------------------------------------------------------------------------------


def test_ghz_sees_nothing_but_ok(server: Server) -> None:
    """20,000 calls of 50 clients on 4 connections, each call with ghz's default deadline, end with OK."""
    ghz = go_tool("github.com/bojand/ghz/cmd/ghz", "v0.93.0")
    done = run(
        ghz, "--insecure", "--proto", str(PROTO / "avap.proto"), "--call", "avap.DefinitionEngine.GetCommand",
        "--data", '{"name": "addVar"}', "--metadata", json.dumps({"x-avap-auth": KEY}), "--format", "json",
        "--total", str(CALLS), "--concurrency", "50", "--connections", "4", f"127.0.0.1:{server.port}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["statusCodeDistribution"] == {"OK": CALLS}
    assert not report["errorDistribution"]


# --- grpc_health_probe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "code", "told"),
    [
        ("", 0, "SERVING"),
        ("avap.DefinitionEngine", 0, "SERVING"),
        ("liveness", 0, "SERVING"),
        ("nothing", 3, "NotFound"),
    ],
    ids=lambda value: str(value) or "empty",
)
def test_grpc_health_probe_tells_by_its_exit_code(server: Server, service: str, code: int, told: str) -> None:
    """0 for a name that is SERVING, 3 for an rpc that failed."""
    done = probe(server.port, "-service", service)
    assert (done.returncode, told in done.stderr) == (code, True), done


@pytest.mark.parametrize("engine", ENGINES)
def test_grpc_health_probe_sees_what_does_not_serve(engine: str) -> None:
    """4 while there is no catalog, though `liveness` is 0."""
    go_tool(*PROBE)
    with Server("postgresql://nobody@127.0.0.1:1/none", env={"AVAPD_ENGINE": engine}) as cold:
        with cold.calls() as calls:
            wait_until(lambda: calls.health("liveness", wait=True) == "SERVING", 20)
        assert probe(cold.port).returncode == 4
        assert probe(cold.port, "-service", "liveness").returncode == 0


def test_grpc_health_probe_sees_that_nobody_listens() -> None:
    """2, and not a call that hangs."""
    assert probe(free_port()).returncode == 2


PROBE = ("github.com/grpc-ecosystem/grpc-health-probe", "v0.4.37")


def probe(port: int, *arguments: str) -> Done:
    return run(go_tool(*PROBE), f"-addr=127.0.0.1:{port}", *arguments)
