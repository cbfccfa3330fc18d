"""Part C of the checklist, what ends by itself: slow requests, memory, idle and old connections (C20 to C23)."""

from __future__ import annotations

import tracemalloc

import hpack
import pytest
from wire.application import ECHO, TALK, WATCH, Methods
from wire.raw import (
    GOAWAY,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    Field,
    data,
    fields,
    framed,
    goaway,
    headers,
    literals,
    ping,
    settings,
    window_update,
)  # fmt: skip
from wire.verdicts import Client, ask, seen

from avapd.wire.connection import Connection
from avapd.wire.errors import ErrorCode
from avapd.wire.headers import Heads, Routes
from avapd.wire.limits import Limits

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]
CALM = ErrorCode.ENHANCE_YOUR_CALM


def small(**limits: float) -> Client:
    """A connection with some limits small enough to be reached at once."""
    return Client(limits=Limits(**limits))  # type: ignore[arg-type]


# --- C20: slow requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ECHO, WATCH, b"/unknown"])
@pytest.mark.parametrize("body", [b"", b"\0\0", framed(b"x")])
@pytest.mark.parametrize("late", [0.0, 270.0])
def test_c20_a_request_has_thirty_seconds(path: bytes, body: bytes, late: float) -> None:
    """C20: a call that takes one request and has not got its end by then is answered 4 and reset."""
    peer = small(idle_seconds=1e6)
    ask(peer, path, body=body, end=False)
    if path == b"/unknown":
        assert seen(peer, 1) == ["TO 12", "RST NO_ERROR"]
        return
    peer.wait(29.9)
    assert seen(peer, 1) == []
    peer.wait(0.2 + late)
    assert seen(peer, 1) == ["TO 4", "RST CANCEL"]
    assert peer.application.asked == 0


def test_c20_an_octet_now_and_then_buys_no_time() -> None:
    """C20: the thirty seconds are for the whole request (slowloris)."""
    peer = Client()
    ask(peer, body=b"", end=False)
    for octet in framed(b"x" * 50):
        if not peer.reply(1).ended:
            peer.send(data(1, bytes([octet])))
        peer.wait(1)
    assert seen(peer, 1) == ["TO 4", "RST CANCEL"]


@pytest.mark.parametrize("type_", [b"text/plain", b"application/grpc"])
def test_c20_other_requests_end_too(type_: bytes) -> None:
    """C20: what will be answered 415 or 16 waits for its end no longer than a good call does."""
    peer = small(idle_seconds=1e6)
    head = [(name, type_ if name == b"content-type" else value) for name, value in fields(ECHO, [(b"x-deny", b"yes")])]
    peer.send(headers(1, literals(head)))
    peer.wait(31)
    assert peer.reply(1).reset is not None or peer.closed


def test_c20_a_conversation_may_be_silent_for_a_quarter_of_an_hour() -> None:
    """C20: any message begins the fifteen minutes anew; then it is 4 and RST_STREAM."""
    peer = small(idle_seconds=1e6, age_seconds=1e6)
    peer.send(headers(1, literals(fields(TALK))))
    for _ in range(3):
        peer.wait(899)
        peer.send(data(1, framed(b"x")))
    assert len(peer.reply(1).messages) == 3
    peer.wait(899)
    assert not peer.reply(1).ended
    peer.wait(2)
    assert seen(peer, 1)[-2:] == ["TRAILERS 4", "RST CANCEL"]
    assert peer.application.cancelled == 1


# --- C21: memory of what was seen ---------------------------------------------------------------------------------


def held(peer: Client, octets: list[bytes]) -> int:
    """What a connection keeps after it was sent these, in bytes of memory."""
    peer.connection.receive(settings({INITIAL_WINDOW_SIZE: 1 << 20}) + window_update(0, 1 << 30), peer.now)
    tracemalloc.start()
    try:
        for piece in octets:
            peer.connection.receive(piece, peer.now)
            while peer.connection.pending:
                peer.connection.out.clear()
                peer.connection.resume(peer.now)
            peer.connection.out.clear()
            peer.connection.finished.clear()
            peer.connection.flushed()
        assert not peer.closed
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def calls_with(metadata: list[list[Field]], table: Client | None) -> list[bytes]:
    """Calls with such metadata, their blocks written with the table of a client, or without any."""
    found = []
    for number, more in enumerate(metadata):
        stream = 2 * number + 1
        block = table.block(fields(ECHO, more)) if table else literals(fields(ECHO, more))
        found.append(headers(stream, block) + data(stream, framed(b"x"), end=True))
    return found


@pytest.mark.parametrize("indexed", [True, False])
def test_c21_blocks_that_never_repeat_cost_no_memory(indexed: bool) -> None:
    """C21: ten thousand distinct header blocks, and then each of them twice, stay within the bounds of the memos."""
    peer = Client()
    distinct: list[list[Field]] = [[(b"x-request-id", b"%040d" % (number // 2))] for number in range(20_000)]
    assert held(peer, calls_with(distinct, peer if indexed else None)) < 8 << 20


def test_c21_what_one_connection_remembers_is_small() -> None:
    """C21: blocks that point into its own table count for the connection alone: `memo_blocks`, none large."""
    encoder, heads = hpack.Encoder(), Heads(Routes(Methods(), Limits()))
    heads.known(encoder.encode(fields()))
    indexed = encoder.encode(fields())
    for size in (400, 4000):
        for number in range(500):
            for _ in range(3):
                heads.known(indexed + literals([(b"x-%d" % number, b"y" * size)]))
    assert 0 < len(heads.settled) <= Limits().memo_blocks
    assert max(map(len, heads.settled)) < 2000


def test_c21_a_flood_of_new_blocks_does_not_change_an_answer() -> None:
    """C21: before, amid and after ten thousand of them a call is the same call."""
    peer = Client()
    for number in range(2000):
        peer.call(b"%d" % number, metadata=[(b"x-request-id", b"%d" % number)])
        if number % 100 == 0:
            assert peer.call(b"same").messages == [b"reply to same"]


# --- C22: idle and old connections --------------------------------------------------------------------------------


def goodbyes(peer: Client) -> list[tuple[int, int, bytes]]:
    """Every GOAWAY so far: last stream, code, debug data."""
    return [(int.from_bytes(one.payload[:4], "big"), one.code, one.payload[8:]) for one in peer.of(GOAWAY)]


def test_c22_an_idle_connection_is_told_good_bye() -> None:
    """C22, B39: 15 min without a call is a graceful end, with `max_idle`; a call in between begins the time anew."""
    peer = small(keepalive_seconds=1e9, age_seconds=1e9)
    peer.wait(890)
    peer.call()
    peer.wait(890)
    assert goodbyes(peer) == []
    peer.wait(20)
    last, code, debug = goodbyes(peer)[0]
    assert (last, code, debug) == (0x7FFF_FFFF, ErrorCode.NO_ERROR, b"max_idle")
    peer.wait(10)
    assert peer.closed
    assert [code for _, code, _ in goodbyes(peer)] == [0, 0]
    assert goodbyes(peer)[-1][0] == 1


def test_c22_a_connection_with_a_call_is_not_idle() -> None:
    """C22: a watch keeps it, however silent it is."""
    peer = small(keepalive_seconds=1e9, age_seconds=1e9)
    ask(peer, WATCH)
    peer.wait(9000)
    assert goodbyes(peer) == []
    peer.application.watching[0].finish()
    peer.settle()
    peer.wait(890)
    assert goodbyes(peer) == []
    peer.wait(20)
    assert goodbyes(peer)[0][2] == b"max_idle"


def busy(peer: Client, seconds: float) -> None:
    """A call a minute."""
    for _ in range(int(seconds) // 60):
        if not peer.closed:
            peer.call()
            peer.wait(60)


def test_c22_an_old_connection_is_told_good_bye() -> None:
    """C22, B39: after 30 min, `max_age`, in two steps; calls that come between the steps are served (A7)."""
    peer = Client()
    busy(peer, 1740)
    assert goodbyes(peer) == []
    peer.wait(61)
    assert goodbyes(peer) == [(0x7FFF_FFFF, 0, b"max_age")]
    assert peer.of(PING)
    assert peer.call().status == 0
    last = peer.next_stream - 2
    peer.send(ping(peer.of(PING)[-1].payload, ack=True))
    assert [code for _, code, _ in goodbyes(peer)] == [0, 0]
    assert goodbyes(peer)[-1][0] == last
    assert peer.closed


def test_c22_without_an_answer_the_second_step_comes_after_five_seconds() -> None:
    """C22, A7: a client that does not answer the PING is not waited for."""
    peer = small(idle_seconds=10)
    peer.wait(11)
    assert len(goodbyes(peer)) == 1
    peer.wait(5)
    assert len(goodbyes(peer)) == 2
    assert peer.closed


def test_c22_calls_in_flight_have_the_grace() -> None:
    """C22: 30 s after the good-bye the connection ends, whatever is still open, and handlers are told."""
    peer = small(age_seconds=100)
    ask(peer, WATCH)
    peer.wait(101)
    peer.send(ping(peer.of(PING)[-1].payload, ack=True))
    assert not peer.closed
    peer.wait(25)
    assert not peer.closed
    peer.wait(10)
    assert peer.closed
    assert peer.application.cancelled == 1


def test_c22_ages_are_spread() -> None:
    """C22: the jitter moves the age by ten per cent either way, so that connections of one minute end in six."""
    for jitter, age in ((-1.0, 1620), (0.0, 1800), (1.0, 1980)):
        connection = Connection(Routes(Methods(), Limits(idle_seconds=1e9)), 0.0, jitter)
        connection.receive(PREFACE + settings() + settings(ack=True), 0.0)
        connection.tick(age - 0.1)
        assert b"max_age" not in b"".join(connection.out)
        connection.tick(age + 0.1)
        assert b"max_age" in b"".join(connection.out)


def test_a49_a_silent_client_is_asked() -> None:
    """A49: a PING after two hours without an octet, and the end 20 s later when nothing answers."""
    peer = small(idle_seconds=1e9, age_seconds=1e9)
    ask(peer, WATCH)
    peer.wait(7199)
    assert not peer.of(PING)
    peer.wait(2)
    (asked,) = peer.of(PING)
    peer.send(ping(asked.payload, ack=True))
    peer.wait(7199)
    assert len(peer.of(PING)) == 1
    peer.wait(2)
    assert len(peer.of(PING)) == 2
    peer.wait(21)
    assert peer.closed
    assert peer.application.cancelled == 1


# --- C23: the rest ------------------------------------------------------------------------------------------------


GLITCHES = {
    "ACK of no PING": ping(b"whatever", ack=True),
    "ACK of no SETTINGS": settings(ack=True),
    "GOAWAY": goaway(),
}


@pytest.mark.parametrize("case", GLITCHES)
def test_c23_a_thousand_glitches(case: str) -> None:
    """C23: at three quarters the connection is told good-bye, above a thousand it ends; calls go on until then."""
    peer = Client()
    for _ in range(749):
        peer.send(GLITCHES[case])
    assert not peer.of(GOAWAY)
    peer.send(GLITCHES[case])
    assert goodbyes(peer)[0][:2] == (0x7FFF_FFFF, ErrorCode.NO_ERROR)
    assert peer.call().status == 0
    for _ in range(250):
        peer.send(GLITCHES[case])
    assert not peer.closed
    peer.send(GLITCHES[case])
    assert (peer.closed, peer.error) == (True, CALM)
    flood = Client()
    flood.send(GLITCHES[case] * 10_000)
    assert (flood.closed, flood.error) == (True, CALM)
