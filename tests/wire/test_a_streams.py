"""Part A.3 of the checklist: the states of streams."""

from __future__ import annotations

import gc
import sys
import types

import pytest
from wire.application import DENY, ECHO, LARGE, TALK, UNAUTHENTICATED, UNIMPLEMENTED, WATCH, Methods
from wire.peer import Peer
from wire.raw import (
    CANCEL,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    PING,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    continuation,
    data,
    fields,
    framed,
    headers,
    literals,
    ping,
    priority,
    request,
    rst_stream,
    window_update,
)

from avapd.wire.limits import Limits

BLOCK = literals(fields())
NOWHERE = b"/test.Service/Nothing"


@pytest.mark.parametrize("first", [1, 3, 13, 1001])
def test_a17_the_first_stream_may_be_any_odd_one(first: int) -> None:
    """A17: grpc-java begins with 3, nghttp with 13."""
    peer = Peer()
    assert peer.call(b"x", stream=first).status == 0
    assert peer.call(b"x", stream=first + 2).status == 0


@pytest.mark.parametrize("stream", [2, 6, 1 << 30])
def test_a17_even_streams_are_the_servers(stream: int) -> None:
    """A17: PROTOCOL_ERROR."""
    peer = Peer()
    peer.send(request(3), headers(stream, BLOCK))
    assert peer.error == PROTOCOL_ERROR


@pytest.mark.parametrize("stream", [1, 3, 7])
def test_a17_numbers_rise(stream: int) -> None:
    """A17: a number below the newest that was never used is closed: PROTOCOL_ERROR."""
    peer = Peer()
    peer.send(request(5), request(9), headers(stream, BLOCK))
    assert peer.error == PROTOCOL_ERROR


@pytest.mark.parametrize(
    "wrong",
    [data(9, b"x"), rst_stream(9), window_update(9, 1), continuation(9, BLOCK), data(8, b"x"), rst_stream(2)],
    ids=["DATA", "RST", "WINDOW_UPDATE", "CONTINUATION", "even DATA", "even RST"],
)
def test_a18_an_idle_stream_takes_only_headers(wrong: bytes) -> None:
    """A18: everything but HEADERS and PRIORITY is PROTOCOL_ERROR."""
    peer = Peer()
    peer.send(request(1, path=WATCH), priority(9), ping())
    assert not peer.closed
    peer.send(wrong)
    assert (peer.error, peer.closed) == (PROTOCOL_ERROR, True)


@pytest.mark.parametrize("wrong", [data(1, b"x"), data(1, b"", end=True), headers(1, BLOCK, end=True)])
@pytest.mark.parametrize("path", [WATCH, ECHO])
def test_a19_nothing_follows_the_end(wrong: bytes, path: bytes) -> None:
    """A19, A21, C5: DATA and HEADERS after END_STREAM are STREAM_CLOSED for the connection, answered or not."""
    peer = Peer()
    peer.send(request(1, path=path))
    peer.send(wrong)
    assert (peer.error, peer.closed) == (STREAM_CLOSED, True)


@pytest.mark.parametrize("path", [WATCH, ECHO, NOWHERE])
def test_a20_late_frames_are_legal(path: bytes) -> None:
    """A20: WINDOW_UPDATE, PRIORITY and RST_STREAM on half-closed and on closed streams are ignored."""
    peer = Peer()
    peer.send(request(1, path=path))
    came = peer.send(window_update(1, 5), priority(1), rst_stream(1), rst_stream(1), window_update(1, 5), priority(1))
    came += peer.send(ping())
    assert [one.kind for one in came] == [PING]
    assert peer.call(b"x", stream=3).status == 0


@pytest.mark.parametrize("wrong", [data(1, b"x"), headers(1, BLOCK, end=True), headers(1, BLOCK)])
def test_a21_nothing_follows_the_clients_reset(wrong: bytes) -> None:
    """A21: DATA and HEADERS after the client's RST_STREAM are STREAM_CLOSED for the connection."""
    peer = Peer()
    peer.send(request(1, path=TALK, end=False), rst_stream(1), wrong)
    assert (peer.error, peer.closed) == (STREAM_CLOSED, True)


def test_a22_what_was_in_flight_when_we_ended_a_stream_is_dropped() -> None:
    """A22: after our early end DATA, trailers and RST_STREAM are read quietly: decoded, credited, not answered."""
    peer = Peer()
    start = peer.upload
    for stream in range(1, 61, 2):
        peer.send(headers(stream, literals(fields(NOWHERE))))
        assert (peer.reply(stream).status, peer.reply(stream).reset) == (UNIMPLEMENTED, NO_ERROR)
        came = peer.send(data(stream, b"z" * 10_000), window_update(stream, 1))
        if stream % 4 == 1:
            came += peer.send(headers(stream, peer.block([DENY]), end=True))
        else:
            came += peer.send(data(stream, b"", end=True), rst_stream(stream))
        assert {one.kind for one in came} <= {WINDOW_UPDATE}
        assert {one.stream for one in came} <= {0}
        assert start // 2 <= peer.upload <= start
    peer.send(headers(61, peer.block(fields(ECHO, [DENY])), end=True))  # x-deny is a pointer into the table now
    assert peer.reply(61).status == UNAUTHENTICATED


def test_a22_the_client_knows_when_it_ends_the_stream_itself() -> None:
    """A22: once the client has ended a stream that we had ended before, A21 counts."""
    peer = Peer()
    peer.send(headers(1, literals(fields(NOWHERE))), data(1, b"x", end=True))
    assert not peer.closed
    peer.send(data(1, b"x"))
    assert peer.error == STREAM_CLOSED


def test_a23_calls_beyond_the_limit_are_refused() -> None:
    """A23: REFUSED_STREAM for the 101st call; its block is decoded; a place is free again when a call ends."""
    peer = Peer()
    streams = list(range(1, 201, 2))
    peer.send(*(request(stream, path=WATCH) for stream in streams))
    assert len(peer.application.watching) == 100
    peer.send(headers(201, peer.block(fields(ECHO, [DENY]))), data(201, framed(b"x"), end=True))
    assert (peer.reply(201).reset, peer.reply(201).headers) == (REFUSED_STREAM, [])
    peer.application.watching[7].finish()
    peer.settle()
    peer.send(headers(203, peer.block(fields(ECHO, [DENY])), end=True))
    assert peer.reply(203).status == UNAUTHENTICATED
    assert [one.stream for one in peer.of(RST_STREAM)] == [201]


def test_a23_a_refused_call_may_still_be_on_its_way() -> None:
    """A23, A22: DATA and trailers of a refused call are dropped, and credited."""
    peer = Peer(limits=Limits(streams=1))
    start = peer.upload
    peer.send(request(1, path=WATCH), headers(3, BLOCK))
    for _ in range(20):
        assert {one.kind for one in peer.send(data(3, b"z" * 10_000))} <= {WINDOW_UPDATE}
        assert start // 2 <= peer.upload <= start
    peer.send(headers(3, literals([(b"x-t", b"1")]), end=True), ping())
    assert not peer.closed


def test_a24_a_reset_is_never_answered_with_a_reset() -> None:
    """A24: RST_STREAM on open, half-closed, closed, refused and malformed streams brings nothing back."""
    peer = Peer(limits=Limits(streams=2))
    peer.send(headers(1, literals(fields(TALK))), request(3, path=WATCH))
    peer.send(request(5))  # refused
    peer.send(rst_stream(1), request(7), headers(9, literals([(b"x", b"y")])))  # answered; malformed
    before = len(peer.of(RST_STREAM))
    assert {one.stream for one in peer.of(RST_STREAM)} == {5, 9}
    peer.send(*(rst_stream(stream, code) for stream in (1, 3, 5, 7, 9) for code in (CANCEL, NO_ERROR)), ping())
    assert len(peer.of(RST_STREAM)) == before
    assert peer.frames[-1].kind == PING


def test_a25_a_reset_drops_what_is_queued() -> None:
    """A25: after RST_STREAM nothing more comes on the stream, though windows open."""
    peer = Peer()
    peer.send(request(1, b"1000000", path=LARGE))
    assert len(peer.reply(1).data) == 65_535
    peer.send(rst_stream(1), window_update(0, 1 << 24), window_update(1, 1 << 24))
    assert len(peer.reply(1).data) == 65_535
    assert not peer.reply(1).ended
    assert peer.call(b"x", stream=3).status == 0


def test_a25_a_reset_cancels_the_handler() -> None:
    """A25, B25: the application hears of it once, and what it sends afterwards goes nowhere."""
    peer = Peer()
    peer.send(request(1, path=WATCH), headers(3, literals(fields(TALK))), rst_stream(1), rst_stream(3), rst_stream(1))
    assert peer.application.cancelled == 2
    peer.application.watching[0].send(b"late")
    peer.application.watching[0].finish()
    assert peer.settle() == []


def weight(root: object, besides: object) -> int:
    """The bytes of all objects that hang on one, but not on the other; code does not count."""
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    seen, waiting, total = {id(besides)}, [root], 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, code):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting.extend(gc.get_referents(one))
    return total


def test_a26_closed_streams_leave_nothing() -> None:
    """A26: a connection weighs after 4,000 streams, ended in every way, what it weighed after 2,000."""
    limits = Limits(streams=1, refusals=1 << 20, resets=1 << 20, our_resets=1 << 20, control_frames=1 << 20)
    peer = Peer(Methods(), limits)
    peer.send(request(1, path=WATCH))
    weights = []
    for start in (3, 4003, 8003):
        for stream in range(start, start + 4000, 10):
            peer.send(request(stream), headers(stream + 2, BLOCK))  # refused
            peer.send(rst_stream(stream - 2 if stream > 3 else 1))
            peer.send(request(stream + 4))
            peer.send(headers(stream + 6, literals(fields(NOWHERE))))
            peer.send(request(stream + 8, path=WATCH))
        peer.application.watching.clear()
        peer.connection.finished.clear()
        weights.append(weight(peer.connection, peer.application))
    assert weights[2] <= weights[1] + 1024


def test_a26_a_window_update_of_old_streams_is_not_idle() -> None:
    """A26, F9: the state of a stream that is long gone is still known to be closed."""
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: 1 << 20})
    peer.send(*(request(stream) for stream in range(1, 4001, 2)))
    came = peer.send(*(window_update(stream, 1) for stream in range(1, 4001, 400)), ping())
    assert [one.kind for one in came] == [PING]
