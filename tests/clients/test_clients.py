"""Real clients of other makers and languages; each must get from avapd what the contract promises, on every engine.

They are the programs beside this file, which all speak one language (program.py), so that the claims stand here once.
grpc-go has its own file, and `buf curl`, and the proxies.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest
from clients.catalog import ENV, calls_until_replaced, catalog, check_catalog, found, name_of
from clients.engines import ENGINES
from clients.program import GET, SYNC, Program, get, in_flight
from clients.tap import ACK, END_STREAM, GOAWAY, HEADERS, PING, Frame, Tap
from clients.tools import cargo, installed, npm
from support.calls import Outcome
from support.database import Database
from support.server import KEY, Server
from support.waiting import stays, wait_until

pytestmark = pytest.mark.timeout(600)  # the first run installs and builds the clients

HERE = Path(__file__).parent
STREAMS = 100  # AVAPD_LIMIT_STREAMS
IN_FLIGHT = 20
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE = 1, 4, 14


def python(module: str) -> list[str]:
    return [sys.executable, "-m", f"clients.python.{module}"]


def node() -> list[str]:
    return [str(installed("node")), str(npm(HERE / "node") / "client.js")]


def rust() -> list[str]:
    return [str(cargo(HERE / "rust", "avapd-test-client"))]


CLIENTS: dict[str, Callable[[], list[str]]] = {
    "grpcio": partial(python, "grpcio_sync"),
    "grpcio-aio": partial(python, "grpcio_aio"),
    "grpclib": partial(python, "grpclib_client"),
    "grpc-js": node,
    "tonic": rust,
}
# What these clients do to calls when they are told GOAWAY, however gently. grpclib closes its connection at once, with
# all that is in flight (EventsProcessor.process_connection_terminated); tonic cancels what it has not sent yet.
LOSES = {"grpclib": UNAVAILABLE, "tonic": CANCELLED}

# Who says so without being told to.
TAKES_GZIP = {"grpcio", "grpcio-aio", "grpc-js"}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def command(client: str) -> list[str]:
    return CLIENTS[client]()


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    with catalog(postgres_url) as made:
        yield made


@pytest.fixture(scope="module")
def servers(database: Database) -> Iterator[Callable[..., Server]]:
    """Starts a server with these settings, unless there is one already."""
    with contextlib.ExitStack() as stack:

        @cache
        def start(**env: str) -> Server:
            return stack.enter_context(Server(database.reader_url, env={**ENV, **env})).wait_serving()

        yield start


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server], engine: str) -> Server:
    return servers(AVAPD_ENGINE=engine)


def started(command: list[str], port: int, keepalive_ms: int = 0) -> Program:
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return Program(command, f"127.0.0.1:{port}", keepalive_ms, env)


@pytest.fixture(scope="module")
def program(server: Server, command: list[str]) -> Iterator[Program]:
    """The client, on one connection."""
    with started(command, server.port) as made:
        yield made


@pytest.mark.parametrize("at_once", [1, 50, 1000])
def test_every_call_gets_its_own_answer(program: Program, engine: str, at_once: int) -> None:
    """Calls on one connection, one at a time or a thousand together: each brings the definition it asked for."""
    if (engine, at_once) == ("grpcio", 1000):
        pytest.skip("grpcio answers REFUSED_STREAM to some of so many calls of its own client")
    names = [name_of(7 * number) for number in range(300 if at_once == 1 else 1000)]
    outcomes = in_flight((program.begin(GET, get(name)) for name in names), at_once)
    assert [found(outcome) for outcome in outcomes] == names


REFUSALS: list[tuple[str, bytes, str, int, str]] = [
    (GET, get("nothing"), KEY, 5, "Command 'nothing' not found"),
    (GET, get("ñ 🎉\n100%"), KEY, 5, "Command 'ñ 🎉\n100%' not found"),
    (GET, get(name_of(1)), "wrong-key-of-enough-length", 16, "Invalid Credentials"),
    (SYNC, b"", "", 16, "Invalid Credentials"),
    (GET, b"\xff", KEY, 13, "Request is not a valid avap.CommandRequest"),
    ("/avap.DefinitionEngine/Nothing", b"", KEY, 12, "Method '/avap.DefinitionEngine/Nothing' not found"),
    ("/avap.Nothing/GetCommand", b"", "", 12, "Method '/avap.Nothing/GetCommand' not found"),
]


def test_every_refusal_keeps_its_status_and_message(program: Program) -> None:
    """A hundred refusals of each sort, among calls that succeed, tell what the contract says they tell."""
    for _ in range(20):
        calls = [program.begin(path, request, key=key) for path, request, key, _, _ in REFUSALS * 5]
        good = program.begin(GET, get(name_of(1)))
        expected = [Outcome(code, message, b"") for _, _, _, code, message in REFUSALS * 5]
        assert [call.outcome() for call in calls] == expected
        assert found(good.outcome()) == name_of(1)


def test_a_request_that_is_too_large_is_refused(program: Program) -> None:
    """More than AVAPD_LIMIT_REQUEST_BYTES is RESOURCE_EXHAUSTED, and the connection goes on."""
    assert program.begin(GET, get("x" * 70_000)).outcome().code == 8
    assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)


def test_large_answers_arrive_whole_among_small_ones(server: Server, command: list[str], engine: str) -> None:
    """Two messages of more than 16 MiB at a time, with calls on the same connection meanwhile."""
    with started(command, server.port) as program:
        large = [program.begin(SYNC) for _ in range(2)]
        small = in_flight((program.begin(GET, get(name_of(number))) for number in range(200)), IN_FLIGHT)
        assert [found(outcome) for outcome in small] == [name_of(number) for number in range(200)]
        for call in large:
            check_catalog(call.outcome(), server)


def test_a_catalog_comes_in_gzip_to_who_takes_it(server: Server, command: list[str], client: str, engine: str) -> None:
    """In two thirds of its octets, once a client has asked for it so; to all others as it is, as ever."""
    with server.calls() as calls, Tap(server.port) as tap, started(command, tap.port) as program:
        check_catalog(calls.sync(), server)
        if engine == "wire":
            wait_until(lambda: server.events("Catalog Compressed"), 60)

        def octets() -> int:
            before = tap.octets()
            check_catalog(program.begin(SYNC).outcome(), server)
            return tap.octets() - before

        if engine == "wire" and client in TAKES_GZIP:
            wait_until(lambda: octets() < (16 << 20) * 2 / 3, 60)
        else:
            assert octets() > 16 << 20


def test_a_stream_tells_at_once_and_stays_open(program: Program) -> None:
    """Health Watch: its first message comes though the stream has not ended, for names that nobody has too."""
    known, unknown = program.watch(), program.watch("nothing")
    assert known.message() == SERVING
    assert unknown.message() == SERVICE_UNKNOWN
    assert stays(lambda: known.events.empty() and unknown.events.empty(), 0.2)
    for stream in (known, unknown):
        stream.cancel()
        assert stream.outcome().code == CANCELLED


def test_cancelled_streams_leave_their_places(program: Program) -> None:
    """Five rounds of as many streams as a connection may have: each round is cancelled, and the next one fits."""
    for _ in range(5):
        streams = [program.watch() for _ in range(STREAMS // 2)]
        assert {stream.message() for stream in streams} == {SERVING}
        for stream in streams:
            stream.cancel()
        assert {stream.outcome().code for stream in streams} == {CANCELLED}
    assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)


def test_large_answers_that_are_cancelled_cost_nothing(server: Server, command: list[str], engine: str) -> None:
    """Ten answers of 16 MiB, given up while they come, leave room for an eleventh."""
    with started(command, server.port) as program:
        for _ in range(10):
            beside, large = program.begin(GET, get(name_of(1))), program.begin(SYNC)
            assert found(beside.outcome()) == name_of(1)
            large.cancel()
            assert large.outcome().code in {0, CANCELLED}
        check_catalog(program.begin(SYNC).outcome(), server)


def test_calls_with_deadlines_are_served(program: Program) -> None:
    """The same deadline in every call, or what is left of an earlier one, which differs: every answer is right."""
    names = [name_of(13 * number) for number in range(500)]
    fixed = in_flight((program.begin(GET, get(name), 9.0) for name in names), 20)
    assert [found(outcome) for outcome in fixed] == names
    left = (program.begin(GET, get(name), 9.99 - number * 0.007) for number, name in enumerate(names))
    assert [found(outcome) for outcome in in_flight(left, 20)] == names


def test_a_deadline_ends_a_stream(program: Program) -> None:
    """Watches that outlive their deadline end with DEADLINE_EXCEEDED and leave their places to others."""
    streams = in_flight((program.watch(timeout=0.4 + number * 0.001) for number in range(150)), STREAMS - 20)
    assert {(outcome.code, outcome.payload) for outcome in streams} == {(DEADLINE_EXCEEDED, SERVING)}
    assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)


def own_pings(tap: Tap) -> list[Frame]:
    return [frame for frame in tap.asked(PING) if not frame.flags & ACK]


def test_pings_between_calls_are_welcome(server: Server, command: list[str]) -> None:
    """A client that pings, with calls between, has every ping acknowledged and keeps its one connection."""
    with Tap(server.port) as tap, started(command, tap.port, keepalive_ms=250) as program:
        stream = program.watch()
        for pings in range(1, 6):
            assert found(program.begin(GET, get(name_of(pings))).outcome()) == name_of(pings)
            wait_until(lambda pings=pings: len(own_pings(tap)) >= pings, 5, "the client pings")  # type: ignore[misc]
        expected = [frame.payload for frame in own_pings(tap)[:5]]
        wait_until(lambda: [frame.payload for frame in tap.answered(PING) if frame.flags & ACK][:5] == expected)
        assert stream.message() == SERVING
        assert stream.events.empty()
        assert not tap.answered(GOAWAY)
        assert len(tap.connections) == 1


@pytest.fixture(scope="module")
def patient(servers: Callable[..., Server], engine: str) -> Server:
    """A server that takes five pings a second."""
    if engine == "grpcio":
        pytest.skip("the grpcio engine has no setting for it")
    return servers(AVAPD_ENGINE=engine, AVAPD_LIMIT_PING_SECONDS="0.2", AVAPD_LIMIT_PING_IDLE_SECONDS="0.2")


def test_pings_at_an_allowed_interval_go_on_for_ever(patient: Server, command: list[str]) -> None:
    """Without any call, more pings than may come too early, each acknowledged; the connection serves after them."""
    with Tap(patient.port) as tap, started(command, tap.port, keepalive_ms=300) as program:
        assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)
        wait_until(lambda: len(own_pings(tap)) >= 5, 10, "the client pings")
        assert found(program.begin(GET, get(name_of(2))).outcome()) == name_of(2)
        assert not tap.answered(GOAWAY)
        assert len(tap.connections) == 1


def test_too_many_pings_end_the_connection_and_not_the_client(server: Server, command: list[str]) -> None:
    """Pings on a silent stream, far too often, bring GOAWAY `too_many_pings`; the next call has a new connection."""
    with Tap(server.port) as tap, started(command, tap.port, keepalive_ms=100) as program:
        stream = program.watch()
        assert stream.message() == SERVING
        assert stream.outcome(10).code != 0
        assert {frame.payload[4:] for frame in tap.answered(GOAWAY)} == {b"\0\0\0\x0btoo_many_pings"}
        assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)
        assert len(tap.connections) == 2


def test_no_call_is_lost_when_the_workers_are_replaced(server: Server, command: list[str], client: str) -> None:
    """SIGUSR2 under load: GOAWAY without an error, a new connection, what reaches avapd is answered; a Watch ends."""
    with Tap(server.port) as tap, started(command, tap.port) as program:
        stream = program.watch()
        assert stream.message() == SERVING
        outcomes = list(in_flight(calls_until_replaced(program, server), IN_FLIGHT))
        lost = [outcome for outcome in outcomes if outcome.code]
        assert stream.outcome().code == UNAVAILABLE
        assert found(program.begin(GET, get(name_of(1))).outcome()) == name_of(1)
        assert len(tap.connections) >= 2
        goaways = tap.answered(GOAWAY)
        assert {frame.payload[4:8] for frame in goaways} == {bytes(4)}
        if client in LOSES:
            assert {outcome.code for outcome in lost} <= {LOSES[client]}
            assert len(lost) <= IN_FLIGHT * (len(tap.connections) - 1)
        else:
            assert not lost
        if client != "grpclib":
            for sent, received in tap.connections:
                # What has a larger number than the last GOAWAY admits was not processed, and the client tried it again.
                last = min((int.from_bytes(frame.payload[:4], "big") for frame in received.of(GOAWAY)), default=1 << 31)
                ended = {frame.stream for frame in received.of(HEADERS) if frame.flags & END_STREAM}
                assert {frame.stream for frame in sent.of(HEADERS) if frame.stream <= last} <= ended
