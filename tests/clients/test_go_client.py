"""grpc-go as a client, by a program of our own (tests/clients/go/client): what it tells of each scenario is judged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from clients.engines import ENGINES
from clients.tools import go_program
from support.database import Database
from support.server import KEY, Server
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # the first run builds the client

NAME, BIG = "addVar", "command_000003"
# grpc-go pings after each call, and every ten seconds, never more often: three pings, and with one strike allowed the
# third may be too many.
IDLE_SECONDS = 21
# Servers with an idle connection that pings: by which engine, with which limits.
IDLE: dict[str, dict[str, str]] = {
    "allowed": {"AVAPD_ENGINE": "wire", "AVAPD_LIMIT_PING_STRIKES": "1", "AVAPD_LIMIT_PING_IDLE_SECONDS": "9"},
    "too often": {"AVAPD_ENGINE": "wire", "AVAPD_LIMIT_PING_STRIKES": "1"},
    "grpcio": {"AVAPD_ENGINE": "grpcio"},
}
Line = dict[str, Any]


@pytest.fixture(scope="module")
def client() -> Path:
    return go_program("client")


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    """A catalog of 17 MiB: more than any window of HTTP/2, or limit of a client, takes at once."""
    made = Database(postgres_url)
    made.insert_many(17, 1 << 20)
    made.insert([(NAME, "[]", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, client: Path, database: Database) -> Iterator[Server]:
    env = {"AVAPD_ENGINE": request.param, "AVAPD_SILENCE_SECONDS": "60"}
    with Server(database.reader_url, env=env) as made:
        yield made.wait_serving()


def start(client: Path, server: Server, scenario: str, **options: object) -> subprocess.Popen[str]:
    flags = [f"-{name}={value}" for name, value in options.items()]
    command = [str(client), f"-address=127.0.0.1:{server.port}", f"-key={KEY}", f"-name={NAME}", f"-big={BIG}"]
    command += [*flags, scenario]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(process: subprocess.Popen[str], seconds: float = 60) -> list[Line]:
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def run(client: Path, server: Server, scenario: str, **options: object) -> dict[str, Line]:
    """The lines of a scenario, by step; of those with one name, the last."""
    return {line["step"]: line for line in lines_of(start(client, server, scenario, **options))}


@pytest.fixture(scope="module", autouse=True)
def idle(client: Path, database: Database) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Connections that idle, with keepalive, while the other tests run."""
    processes = {}
    with contextlib.ExitStack() as stack:
        for name, env in IDLE.items():
            server = stack.enter_context(Server(database.reader_url, env={"AVAPD_WORKERS": "1", **env}))
            server.wait_serving()
            processes[name] = stack.enter_context(start(client, server, "keepalive", seconds=IDLE_SECONDS))
            stack.callback(processes[name].kill)
        yield processes


def test_calls_end_as_the_contract_says(client: Path, server: Server) -> None:
    """A hit, a miss, wrong keys and unknown methods have their status and message; one connection bears them all."""
    lines = run(client, server, "calls", count=4000)
    with server.calls() as calls:
        payload = calls.get(NAME).payload
    for step in ("found", "bearer", "binary metadata"):
        assert (lines[step]["code"], lines[step]["hash"]) == ("OK", hashlib.sha256(payload).hexdigest()), lines[step]
    told = {step: (line["code"], line["message"]) for step, line in lines.items() if line["code"] not in {"OK", ""}}
    denied = ("Unauthenticated", "Invalid Credentials")
    assert told.pop("unknown method")[0] == told.pop("unknown service")[0] == "Unimplemented"
    assert told == {
        "not found": ("NotFound", "Command 'nöthing' not found"),
        "wrong key": denied,
        "no key": denied,
    }
    many = lines["many"]
    assert (many["codes"], many["dials"], many["goaways"]) == ({"OK": 4000}, 1, [])


def test_a_large_catalog_arrives_whole(client: Path, server: Server) -> None:
    """17 MiB, in windows that grow by grpc-go's probes and in the smallest ones; small calls go on beside it."""
    process = start(client, server, "large")
    with server.calls() as calls:
        payload = calls.sync().payload
    expected = (len(payload), hashlib.sha256(payload).hexdigest())
    assert len(payload) > 16 << 20
    lines = lines_of(process)
    answers = [(line["code"], line["bytes"], line["hash"]) for line in lines if not line["codes"]]
    assert answers == [("OK", *expected)] * 6
    beside = [line for line in lines if line["codes"]]
    assert [(list(line["codes"]), line["dials"], line["goaways"]) for line in beside] == [(["OK"], 1, [])] * 2


def test_a_catalog_comes_in_gzip_to_who_registers_it(client: Path, server: Server) -> None:
    """Every answer is the same catalog; in half its octets or fewer once it is compressed, on our own engine."""
    lines = lines_of(start(client, server, "compressed", seconds=20 if server.env["AVAPD_ENGINE"] == "wire" else 0))
    with server.calls() as calls:
        payload = calls.sync().payload
    expected = ("OK", len(payload), hashlib.sha256(payload).hexdigest())
    assert {(line["code"], line["bytes"], line["hash"]) for line in lines} == {expected}
    assert (lines[-1]["octets"] < len(payload) / 2) == (server.env["AVAPD_ENGINE"] == "wire")


def test_large_answers_go_side_by_side(client: Path, server: Server) -> None:
    """20 calls at once on one connection get 1 MiB each, whatever the windows."""
    lines = run(client, server, "crowd", count=40)
    ends = {windows: (line["codes"], line["dials"], line["goaways"]) for windows, line in lines.items()}
    assert ends == dict.fromkeys(("growing", "smallest"), ({"OK": 40}, 1, []))


def test_health_is_watched(client: Path, server: Server) -> None:
    """A Watch tells its status once and stays open, of unknown names too, until the client gives it up."""
    lines = run(client, server, "watch", seconds=0.5)
    for service, status in (("", "SERVING"), ("avap.DefinitionEngine", "SERVING"), ("nothing", "SERVICE_UNKNOWN")):
        line = lines[f"watch {service}"]
        assert (line["code"], line["statuses"]) == ("Canceled", [status]), line
        assert line["milliseconds"] > 450
    check = lines["check"]
    assert (check["code"], check["statuses"], check["dials"], check["goaways"]) == ("OK", ["SERVING"], 1, [])


def test_calls_are_given_up(client: Path, server: Server) -> None:
    """Answers given up at any moment cost neither the connection nor the calls after them."""
    lines = run(client, server, "cancel", count=80)
    assert set(lines["given up"]["codes"]) <= {"Canceled", "OK"}
    assert lines["given up"]["codes"]["Canceled"] >= 20
    after = lines["after"]
    assert (after["code"], after["dials"], after["goaways"]) == ("OK", 1, [])


def test_deadlines(client: Path, server: Server) -> None:
    """Calls with fixed, drifting and inherited deadlines are served; those too short end by the clock, not before."""
    lines = run(client, server, "deadlines", count=4000)
    served = {step: lines[step]["codes"] for step in ("fixed", "drifting", "inherited")}
    assert served == {"fixed": {"OK": 4000}, "drifting": {"OK": 4000}, "inherited": {"OK": 1000}}
    assert set(lines["too short"]["codes"]) <= {"DeadlineExceeded", "OK"}
    assert lines["too short"]["codes"]["DeadlineExceeded"] >= 10
    assert lines["over"]["code"] == "DeadlineExceeded"
    assert lines["of a stream"]["code"] == "DeadlineExceeded"
    assert 290 <= lines["of a stream"]["milliseconds"] < 2000
    after = lines["after"]
    assert (after["code"], after["dials"], after["goaways"]) == ("OK", 1, [])


def test_a_kubelet_probes(client: Path, server: Server) -> None:
    """A new connection for each Check, a second for each: all succeed."""
    assert run(client, server, "probe", count=200)["probe"]["codes"] == {"OK": 200}


def test_no_call_is_lost_when_workers_are_replaced(client: Path, server: Server) -> None:
    """SIGUSR2 sends each connection elsewhere by GOAWAY; not one call of those on their way fails."""
    before = server.workers()
    process = start(client, server, "reload")
    assert process.stdout
    running = [json.loads(process.stdout.readline()) for _ in range(4)]
    assert all(line["step"] == "running" for line in running)
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in before), 30, "every old worker has ended")
    lines = lines_of(process)
    assert [list(line["codes"]) for line in lines] == [["OK"]] * 4
    assert all(line["dials"] >= 2 and line["goaways"] for line in lines), lines
    assert {goaway for line in lines for goaway in line["goaways"]} <= {"0 "}


def test_an_idle_connection_is_kept_alive(idle: dict[str, subprocess.Popen[str]]) -> None:
    """Pings without a call are answered; no oftener than allowed, they cost the client nothing, else it is told so."""
    for name, process in idle.items():
        before, after = lines_of(process)
        assert (before["code"], after["code"]) == ("OK", "OK"), name
        expected = (2, ["11 too_many_pings"]) if name == "too often" else (1, [])
        assert (after["dials"], after["goaways"], after["acks"]) == (*expected, IDLE_SECONDS // 10), name
