"""nginx, HAProxy and Envoy in front of avapd: what they make of calls on their way must not change an answer.

nginx and HAProxy put fields into the header table on every call, so that a block which is taken for one seen before,
without what it did to the table, makes a later block mean another call (http2.md F1). Envoy's blocks never repeat.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from clients.catalog import ENV, NAMES, calls_until_replaced, catalog, check_catalog, found, name_of
from clients.engines import ENGINES
from clients.program import CHECK, GET, SYNC, Call, Program, get, in_flight
from clients.tap import GOAWAY, HEADERS, Tap
from clients.tools import installed, wheels
from support.calls import Outcome
from support.database import Database
from support.server import KEY, Server, free_port
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # the first run installs Envoy

HERE = Path(__file__).parent
CONFIGURATIONS = HERE / "proxies"
SERVING = b"\x08\x01"
CANCELLED, DEADLINE_EXCEEDED = 1, 4
SEED = 20


def nginx(folder: Path) -> list[str]:
    return [str(installed("nginx")), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def haproxy(folder: Path) -> list[str]:
    return [str(installed("haproxy")), "-db", "-q", "-f", str(folder / "haproxy.cfg")]


def envoy(folder: Path) -> list[str]:
    program = wheels(CONFIGURATIONS / "requirements.txt") / "envoy" / "_bin" / "envoy"
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]
    return [str(program), *options, "-c", str(folder / "envoy.yaml")]


PROXIES: dict[str, Callable[[Path], list[str]]] = {"nginx": nginx, "haproxy": haproxy, "envoy": envoy}


class Front(NamedTuple):
    """A proxy on `port`, and what passes between it and avapd."""

    port: int
    tap: Tap


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    with catalog(postgres_url) as made:
        yield made


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(engine: str, database: Database) -> Iterator[Server]:
    with Server(database.reader_url, env={"AVAPD_ENGINE": engine, **ENV}) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module", params=PROXIES)
def front(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The proxy, running."""
    folder = tmp_path_factory.mktemp(request.param)
    command = PROXIES[request.param](folder)
    port = free_port()
    with Tap(server.port) as tap, (folder / "log").open("wb") as log:
        for configuration in CONFIGURATIONS.glob(f"{request.param}.*"):
            text = configuration.read_text(encoding="utf-8")
            for word, value in (("port", port), ("server", tap.port), ("folder", folder)):
                text = text.replace(f"@{word}@", str(value))
            (folder / configuration.name).write_text(text, encoding="utf-8")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: answers(port, process, folder / "log"), 20, f"{request.param} listens")
            yield Front(port, tap)
        finally:
            process.terminate()
            process.wait(10)


def answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {log.read_text()}")
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


@pytest.fixture(scope="module")
def program(front: Front) -> Iterator[Program]:
    """A client, which is grpcio, on one connection to the proxy."""
    command = [sys.executable, "-m", "clients.python.grpcio_aio"]
    with Program(command, f"127.0.0.1:{front.port}", env={**os.environ, "PYTHONPATH": str(HERE.parent)}) as made:
        yield made


def test_a_thousand_calls_bring_what_they_asked_for(program: Program, front: Front) -> None:
    """Each name its own definition, over few connections to avapd that carry many calls."""
    before = len(front.tap.asked(HEADERS))
    names = [name_of(7 * number) for number in range(1000)]
    outcomes = in_flight((program.begin(GET, get(name)) for name in names), 20)
    assert [found(outcome) for outcome in outcomes] == names
    assert len(front.tap.asked(HEADERS)) - before == 1000
    assert len(front.tap.connections) <= 40


def test_calls_of_all_sorts_are_not_mistaken_for_each_other(program: Program) -> None:
    """In any order of names, methods, keys and deadlines each call gets its own status, message and answer."""
    draw = random.Random(SEED)

    def known() -> tuple[Call, Outcome | str]:
        name = name_of(draw.randrange(NAMES))
        return program.begin(GET, get(name), draw.choice((None, 9.0, draw.uniform(5, 20)))), name

    def missing() -> tuple[Call, Outcome]:
        name = f"ñ 100% {draw.randrange(50)}"
        return program.begin(GET, get(name)), Outcome(5, f"Command '{name}' not found", b"")

    def denied() -> tuple[Call, Outcome]:
        key = draw.choice(("", KEY.upper(), "x" * draw.randrange(1, 60)))
        return program.begin(GET, get(name_of(1)), key=key), Outcome(16, "Invalid Credentials", b"")

    def unknown() -> tuple[Call, Outcome]:
        path = f"/avap.DefinitionEngine/Method{draw.randrange(200)}"
        return program.begin(path), Outcome(12, f"Method '{path}' not found", b"")

    def checked() -> tuple[Call, Outcome]:
        return program.begin(CHECK, key=""), Outcome(0, "", SERVING)

    sorts = [known, known, known, missing, denied, unknown, checked]
    for _ in range(40):
        calls = [draw.choice(sorts)() for _ in range(50)]
        for call, expected in calls:
            outcome = call.outcome()
            assert (found(outcome) if isinstance(expected, str) else outcome) == expected


def test_large_answers_arrive_whole(program: Program, server: Server, engine: str) -> None:
    """Two messages of more than 16 MiB at a time, which may come over one connection, with calls beside them."""
    large = [program.begin(SYNC) for _ in range(2)]
    small = in_flight((program.begin(GET, get(name_of(number))) for number in range(100)), 10)
    assert [found(outcome) for outcome in small] == [name_of(number) for number in range(100)]
    for call in large:
        check_catalog(call.outcome(), server)


def test_streams_pass_and_end_when_they_are_given_up(program: Program) -> None:
    """Health Watch: the first message comes at once; after 90 cancelled streams and 90 expired ones calls go on."""
    for _ in range(3):
        streams = [program.watch() for _ in range(30)]
        assert {stream.message() for stream in streams} == {SERVING}
        for stream in streams:
            stream.cancel()
        assert {stream.outcome().code for stream in streams} == {CANCELLED}
        streams = [program.watch(timeout=0.4) for _ in range(30)]
        assert {stream.outcome().code for stream in streams} == {DEADLINE_EXCEEDED}
    assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)


def test_large_answers_that_are_cancelled_cost_nobody_anything(program: Program, engine: str) -> None:
    """Five answers of 16 MiB, given up while they come, leave room for a sixth."""
    for _ in range(5):
        beside, large = program.begin(GET, get(name_of(1))), program.begin(SYNC)
        assert found(beside.outcome()) == name_of(1)
        large.cancel()
        assert large.outcome().code in {0, CANCELLED}
    assert len(program.begin(SYNC).outcome().payload) > 16 << 20


def test_no_call_is_lost_when_the_workers_are_replaced(program: Program, front: Front, server: Server) -> None:
    """SIGUSR2 under load: each connection to avapd ends by GOAWAY without an error, and every call is answered."""
    for outcome in in_flight(calls_until_replaced(program, server), 20):
        assert found(outcome)
    assert {frame.payload[4:8] for frame in front.tap.answered(GOAWAY)} == {bytes(4)}
