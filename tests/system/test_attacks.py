"""The attack suite over real sockets: every attack ends at once, costs little, and the others are answered meanwhile.

The wire engine is held to the bars of reliability scenario 20: closed within a second, at most 256 KiB of memory for an
attacker, ten octets out for one in. grpcio has rules of its own; there the others must not notice, and no worker die.
"""

from __future__ import annotations

import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from support.attacks import ATTACKS, BLOCKED, OPENED, Result, assault, authorised, head, http2_bomb
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.odd_calls import SYNC
from support.raw import framed
from support.server import Server
from support.streams import (
    CODES,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    Streams,
    frame,
    settings,
)
from support.waiting import wait_until
from wire.raw import literals  # fmt: skip

from avapd.config import ENGINES

KIB, MIB = 1 << 10, 1 << 20
CLOSED_SECONDS = 1.0
VICTIM_SECONDS = 0.5  # a busy machine, one process for attacker and victim; the exact ratio is the bench's business
ATTACKERS = 100
ATTACKER_BYTES = 256 * KIB
AMPLIFICATION = 10
CATALOG_BYTES = 2 * MIB


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("known", None, None, "x = 1\n")])
    made.insert_many(CATALOG_BYTES // 1000)
    yield made
    made.drop()


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, database: Database) -> Iterator[Server]:
    """One worker, so that attacker and victim share it."""
    env = {"AVAPD_ENGINE": str(request.param), "AVAPD_WORKERS": "1", "AVAPD_SILENCE_SECONDS": "60"}
    with Server(database.reader_url, env=env) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module")
def wire(database: Database) -> Iterator[Server]:
    """The wire engine as it is."""
    env = {"AVAPD_ENGINE": "wire", "AVAPD_WORKERS": "1", "AVAPD_SILENCE_SECONDS": "60"}
    with Server(database.reader_url, env=env) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module")
def hasty(database: Database) -> Iterator[Server]:
    """The wire engine with little patience: the limits that are times are a second."""
    names = ("PREFACE", "SETTINGS", "STALL", "BLOCKED", "REQUEST", "BIDI")
    env = {f"AVAPD_LIMIT_{name}_SECONDS": "1" for name in names}
    env |= {"AVAPD_ENGINE": "wire", "AVAPD_WORKERS": "1", "AVAPD_SILENCE_SECONDS": "60"}
    with Server(database.reader_url, env=env) as made:
        yield made.wait_serving()


def known(calls: Calls) -> Outcome:
    return calls.get("known")


def connections(server: Server) -> float:
    return server.metric("avap_connections")


# --- floods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_at_once(wire: Server, name: str) -> None:
    """Closed within a second, with the right code, before ten times its octets have come back."""
    attack = ATTACKS[name]
    result = assault(wire.port, attack.opening + attack.octets())
    assert result.closed_after is not None, "still open"
    assert result.closed_after < CLOSED_SECONDS
    assert (None if result.code is None else CODES[result.code]) == attack.code
    assert len(result.received) < AMPLIFICATION * result.sent


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nobody_else(server: Server, name: str) -> None:
    """Another connection of the same worker is answered as ever, and the worker lives."""
    attack, pids = ATTACKS[name], server.workers()
    octets = attack.opening + attack.octets()
    with Load(server.calls, known, threads=1) as victim:
        wait_until(lambda: victim.history)
        for _ in range(3):
            assault(server.port, octets, seconds=0.2)
        after = time.monotonic()
        wait_until(lambda: victim.history[-1].began > after)
    assert not victim.failures()
    times = sorted(entry.ended - entry.began for entry in victim.history)
    assert times[len(times) * 95 // 100] < VICTIM_SECONDS, statistics.quantiles(times, n=20)
    assert server.workers() == pids


def test_connections_that_are_cut_leave_nothing(server: Server) -> None:
    """Two thousand connections reset in all stages of a call (CVE-2023-4785): none stays, memory does not grow."""
    call = frame(HEADERS, END_HEADERS, 1, literals(head())) + frame(DATA, END_STREAM, 1, framed(b""))
    stages = [b"", PREFACE[:9], OPENED[:30], OPENED, OPENED + call[:20], OPENED + call[:-7], OPENED + call * 1]
    worker = psutil.Process(server.workers()[0])

    def flood(count: int) -> None:
        for number in range(count):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(stages[number % len(stages)])
        wait_until(lambda: connections(server) == 0)

    flood(500)
    before, files = worker.memory_info().rss, worker.num_fds()
    flood(2000)
    assert worker.memory_info().rss - before < 2000 * 4 * KIB
    wait_until(lambda: worker.num_fds() - files < 10)
    with server.calls() as calls:
        assert known(calls).code == 0


# --- attackers that hold on ---------------------------------------------------------------------------------------


def _calls(path: bytes, count: int, body: bytes = framed(b""), *, end: bool = True) -> bytes:
    block = literals(authorised(path))
    flags = END_STREAM if end else 0
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    found = []
    for number in range(1, 2 * count, 2):
        found.append(frame(HEADERS, END_HEADERS, number, block))
        found += [frame(DATA, 0, number, piece) for piece in pieces[:-1]]
        found.append(frame(DATA, flags, number, pieces[-1]))
    return b"".join(found)


def _distinct() -> bytes:
    """Calls whose header blocks never repeat."""
    found = []
    for number in range(1, 2000, 2):
        block = literals([*authorised(), (b"x-request-id", b"%020d" % number + b"y" * 500)])
        found.append(frame(HEADERS, END_HEADERS, number, block) + frame(DATA, END_STREAM, number, framed(b"")))
    return b"".join(found)


def _table() -> bytes:
    """A dynamic table full of the smallest entries, and 4 KiB in the largest."""
    tiny = b"".join(b"\x40\x01%c\x00" % (97 + number % 26) for number in range(100))
    return frame(HEADERS, END_STREAM | END_HEADERS, 1, literals(head()) + tiny)


WIDE = PREFACE + settings(initial_window_size=(1 << 31) - 1) + frame(4, 1, 0) + frame(8, 0, 0, b"\x7f\xff\x00\x00")
HELD: dict[str, Callable[[], bytes]] = {
    "half a preface": lambda: PREFACE[:20],
    "nothing after SETTINGS": lambda: OPENED,
    "half a frame": lambda: OPENED + frame(HEADERS, END_HEADERS, 1, bytes(16_384))[:-1],
    "half a header block": lambda: (
        OPENED + frame(HEADERS, 0, 1, bytes(16_000)) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 3
    ),
    "half requests": lambda: OPENED + _calls(b"/grpc.health.v1.Health/Check", 4, framed(bytes(9000))[:-1], end=False),
    "calls that never end": lambda: OPENED + _calls(b"/grpc.health.v1.Health/Check", 100, b"\0", end=False),
    "watches": lambda: OPENED + _calls(b"/grpc.health.v1.Health/Watch", 100),
    "HTTP/2 bomb": lambda: BLOCKED + http2_bomb(100),
    "catalogs behind a shut window": lambda: BLOCKED + _calls(SYNC, 20),
    "catalogs that nobody reads": lambda: WIDE + _calls(SYNC, 20),
    "blocks that never repeat": lambda: WIDE + _distinct(),
    "a full table": lambda: OPENED + _table(),
}


@pytest.mark.parametrize("name", HELD)
def test_a_hundred_attackers_that_hold_on_cost_little(wire: Server, name: str) -> None:
    """At most 256 KiB of the worker's memory for each, whatever they make it keep; others are answered meanwhile."""
    worker, octets = psutil.Process(wire.workers()[0]), HELD[name]()

    def hold(count: int, held: list[socket.socket]) -> None:
        for _ in range(count):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", wire.port))
            sock.settimeout(2)
            held.append(sock)
            sock.sendall(octets)

    held: list[socket.socket] = []
    try:
        hold(10, held)  # what is shared by all is there now
        settled(worker)
        before = worker.memory_info().rss
        hold(ATTACKERS, held)
        settled(worker)
        assert (worker.memory_info().rss - before) / ATTACKERS <= ATTACKER_BYTES
        with wire.calls() as calls:
            assert known(calls).code == 0
    finally:
        for sock in held:
            sock.close()
    wait_until(lambda: connections(wire) == 0)


def settled(worker: psutil.Process) -> None:
    """Wait until the worker has nothing more to do with what it was sent."""
    samples: list[tuple[float, float]] = []

    def idle() -> bool:
        samples.append((time.monotonic(), sum(worker.cpu_times()[:2])))
        earlier = [used for at, used in samples if at <= samples[-1][0] - 0.2]
        return bool(earlier) and samples[-1][1] - earlier[-1] <= 0.02

    wait_until(idle, what="the worker is idle")


SLOW: dict[str, bytes] = {
    "silence": b"",
    "half a preface": PREFACE[:20],
    "a preface without SETTINGS": PREFACE,
    "SETTINGS never acknowledged": PREFACE + settings(),
    "answers that nobody reads": WIDE + _calls(SYNC, 20),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_client_that_stalls_is_cut_off(hasty: Server, name: str) -> None:
    """Whoever does not go on within the limit loses the connection, whether there is much to send it or nothing."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", hasty.port))
        sock.sendall(SLOW[name])
        wait_until(lambda: connections(hasty) == 1)
        wait_until(lambda: connections(hasty) == 0, 5, "the connection is cut off")


def test_slowloris_loses_its_call(hasty: Server) -> None:
    """A request that comes an octet at a time is answered DEADLINE_EXCEEDED when the time for it is over."""
    with Streams(hasty.port, seconds=0.05) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, literals(authorised())))
        for octet in framed(bytes(100))[:-1]:
            client.send(frame(DATA, 0, 1, bytes([octet])))
            ending = client.endings([1])[1]
            if ending.end != "silent":
                break
        assert ending.field(b"grpc-status") == b"4"


def test_a_shut_window_loses_its_call(hasty: Server) -> None:
    """An answer that no window lets out is given up after the limit; the connection goes on."""
    with Streams(hasty.port, window=0) as client:
        client.send(_calls(SYNC, 1))
        assert client.endings([1])[1].end == "RST_STREAM CANCEL"
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, literals(head(b"/unknown"))))
        assert client.endings([3])[3].field(b"grpc-status") == b"12"


# --- one that only looks like an attack ---------------------------------------------------------------------------


def test_two_hosts_are_one_call(server: Server) -> None:
    """A `host` that stands twice, beside `:authority` or not (CVE-2026-71554), is a call with an end like any other."""
    for more in ([(b"host", b"a"), (b"host", b"b")], [(b"host", b"a")] * 20):
        for fields in ([*authorised(), *more], [field for field in authorised() if field[0] != b":authority"] + more):
            with Streams(server.port) as client:
                client.send(frame(HEADERS, END_HEADERS, 1, literals(fields)) + frame(DATA, END_STREAM, 1, framed(b"")))
                assert client.endings([1])[1].end != "silent"
    with server.calls() as calls:
        assert known(calls).code == 0


def test_a_result_tells_its_goaway() -> None:
    """What the tests above look at."""
    goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\x0b"
    assert Result(0, b"\0\0\0\x04\0\0\0\0\0" + goaway, None).code == 11
    assert Result(0, b"", None).code is None
