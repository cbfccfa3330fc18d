"""Part A.5 of the checklist: flow control. That no window is overrun is judged by the peer itself, in every test."""

from __future__ import annotations

import pytest
from wire.application import COUNT, ECHO, LARGE, TALK, WATCH
from wire.peer import Peer
from wire.raw import (
    DATA,
    ENABLE_PUSH,
    FLOW_CONTROL_ERROR,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PADDED,
    PING,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    data,
    fields,
    frame,
    framed,
    headers,
    literals,
    ping,
    request,
    rst_stream,
    settings,
    window_update,
)

from avapd.wire.limits import Limits

MIB = 1 << 20
WIDE = {INITIAL_WINDOW_SIZE: MAX_WINDOW}
BLOCK = literals(fields())


def wide() -> Peer:
    """A client with the largest windows there are."""
    peer = Peer(settings_=WIDE)
    peer.send(window_update(0, MAX_WINDOW - 65_535))
    return peer


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, 65_531, 200_000, MIB])
def test_a38_an_answer_of_any_size_arrives_whole(size: int) -> None:
    """A38: in frames of 16,384 bytes at most, whatever the client would take."""
    peer = Peer(settings_=WIDE | {MAX_FRAME_SIZE: (1 << 24) - 1})
    peer.send(window_update(0, MAX_WINDOW - 65_535), request(1, b"%d" % size, path=LARGE))
    assert peer.reply(1).messages == [b"x" * size]
    assert max(len(one.payload) for one in peer.of(DATA)) <= 16_384
    assert peer.credit == MAX_WINDOW - size - 5


@pytest.mark.parametrize("step", [1, 7, 100, 16_384, 40_000])
def test_a38_a_stream_window_is_used_up_and_refilled(step: int) -> None:
    """A38: each WINDOW_UPDATE of a stream lets exactly so much through."""
    size = 5 + min(3000 * step, 400_000) // 10
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: 0})
    peer.send(window_update(0, MIB), request(1, b"%d" % (size - 5), path=LARGE))
    arrived = 0
    while arrived < size:
        assert len(peer.reply(1).data) == arrived
        peer.send(window_update(1, step))
        arrived = min(arrived + step, size)
    assert peer.reply(1).ended


def test_a38_a_window_shrinks_below_zero() -> None:
    """A38, F5: SETTINGS move every window by the difference; one below zero waits until it is above again."""
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: 1000})
    peer.send(request(1, b"5000", path=LARGE), request(3, b"5000", path=LARGE))
    peer.send(window_update(3, 500))
    peer.send(settings({INITIAL_WINDOW_SIZE: 0}))
    assert (peer.window(1), peer.window(3)) == (-1000, -1000)
    peer.send(window_update(1, 1000), window_update(3, 999))
    assert (len(peer.reply(1).data), len(peer.reply(3).data)) == (1000, 1500)
    peer.send(window_update(1, 1), window_update(3, 2))
    assert (len(peer.reply(1).data), len(peer.reply(3).data)) == (1001, 1501)
    peer.send(settings({INITIAL_WINDOW_SIZE: 10}))
    assert (len(peer.reply(1).data), len(peer.reply(3).data)) == (1011, 1511)
    peer.send(request(5, b"5000", path=LARGE), settings({INITIAL_WINDOW_SIZE: 10_000}))
    assert [peer.reply(stream).ended for stream in (1, 3, 5)] == [True] * 3


def test_a38_both_windows_count() -> None:
    """A38: the connection's window holds back a stream whose own is wide open, and the other way round."""
    peer = Peer(settings_=WIDE)
    peer.send(request(1, b"100000", path=LARGE))
    assert len(peer.reply(1).data) == 65_535
    peer.send(window_update(1, 1000))
    assert len(peer.reply(1).data) == 65_535
    peer.send(window_update(0, 1000))
    assert len(peer.reply(1).data) == 66_535


def test_a38_windows_of_what_is_remembered() -> None:
    """A38: a call seen before is held back by a window like any other."""
    peer = Peer()
    for stream in range(1, 41, 2):
        peer.send(request(stream, b"same"))
        assert peer.reply(stream).ended
    peer.send(settings({INITIAL_WINDOW_SIZE: 5}), *(request(stream, b"same") for stream in range(41, 81, 2)))
    assert {len(peer.reply(stream).data) for stream in range(41, 81, 2)} == {5}
    peer.send(settings({INITIAL_WINDOW_SIZE: 100}))
    assert all(peer.reply(stream).ended for stream in range(41, 81, 2))


def test_a38_the_window_of_the_connection_for_what_is_remembered() -> None:
    """A38: so does the connection's: the last call that does not fit waits, later smaller ones may pass."""
    peer = Peer(settings_=WIDE)
    body = len(framed(b"reply to same"))
    for stream in range(1, 2 * 65_535 // body + 81, 2):
        peer.send(request(stream, b"same"))
    assert peer.credit < body
    waiting = [stream for stream, reply in peer.replies.items() if not reply.ended]
    assert waiting
    peer.send(window_update(0, 100_000))
    assert all(reply.ended for reply in peer.replies.values())


@pytest.mark.parametrize("path", [ECHO, LARGE, COUNT])
def test_a39_headers_need_no_window(path: bytes) -> None:
    """A39: with a window of nothing the headers come, and trailers only after the last DATA."""
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: 0})
    peer.send(request(1, b"3", path=path))
    assert [one.kind for one in peer.frames if one.stream == 1] == [HEADERS]
    peer.send(window_update(1, 4))
    assert [one.kind for one in peer.frames if one.stream == 1] == [HEADERS, DATA]
    peer.send(window_update(1, 1000))
    assert peer.reply(1).status == 0
    assert peer.frames[-1].kind == HEADERS


def test_a39_an_answer_without_data_needs_none() -> None:
    """A39: a refusal passes by streams that wait."""
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: 0})
    peer.send(request(1), request(3, path=b"/no/where"))
    assert (peer.reply(1).ended, peer.reply(3).status) == (False, 12)


def test_a39_a_blocked_stream_blocks_no_other() -> None:
    """A39, F7: streams with a window are served past those without."""
    peer = Peer()
    peer.send(window_update(0, MIB), request(1, b"500000", path=LARGE))
    assert peer.window(1) == 0
    for stream in range(3, 43, 2):
        assert peer.call(b"x", stream=stream).status == 0
    assert peer.call(b"30000", LARGE, stream=43).status == 0
    assert not peer.reply(1).ended


@pytest.mark.parametrize("how", ["connection", "stream", "settings"])
def test_a40_every_kind_of_credit_wakes(how: str) -> None:
    """A40: DATA goes on after WINDOW_UPDATE of either kind and after a larger INITIAL_WINDOW_SIZE."""
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: 100_000} if how == "connection" else None)
    if how != "connection":
        peer.send(window_update(0, MIB))
    peer.send(request(1, b"90000", path=LARGE))
    assert not peer.reply(1).ended
    peer.send({
        "connection": window_update(0, 50_000),
        "stream": window_update(1, 50_000),
        "settings": settings({INITIAL_WINDOW_SIZE: 150_000}),
    }[how])  # fmt: skip
    assert peer.reply(1).ended


def test_a40_a_small_answer_overtakes_a_large_one() -> None:
    """A40: while 5 MB wait for their turns a small answer comes between."""
    peer = wide()
    peer.writable = False
    peer.send(request(1, b"5000000", path=LARGE))
    before = len(peer.reply(1).data)
    assert before < 500_000
    assert peer.call(b"x", stream=3).status == 0
    assert len(peer.reply(1).data) == before
    peer.writable = True
    peer.settle()
    assert len(peer.reply(1).messages[0]) == 5_000_000


def test_a40_streams_take_turns() -> None:
    """A40, A46: no stream sends more than 64 KiB while another one that could send waits."""
    peer = wide()
    peer.writable = False
    peer.send(*(request(stream, b"1000000", path=LARGE) for stream in (1, 3, 5)))
    before = len(peer.frames)
    peer.writable = True
    peer.settle()
    runs: list[list[int]] = []
    for one in peer.frames[before:]:
        if one.kind == DATA:
            if not runs or runs[-1][0] != one.stream:
                runs.append([one.stream, 0])
            runs[-1][1] += len(one.payload)
    assert all(reply.ended for reply in peer.replies.values())
    last_turns = 3 * 2  # of a stream that is alone at the end
    assert max(size for _, size in runs[:-last_turns]) <= 65_536


@pytest.mark.parametrize("stream", [0, 1, 3, 5])
def test_a41_an_increment_of_zero_is_an_error(stream: int) -> None:
    """A41, C5: PROTOCOL_ERROR for the connection, on any stream that was ever there."""
    peer = Peer()
    peer.send(headers(1, literals(fields(TALK))), request(3, path=WATCH), request(5), window_update(stream, 0))
    assert (peer.error, peer.closed) == (PROTOCOL_ERROR, True)


def test_a41_a_window_of_the_connection_has_a_maximum() -> None:
    """A41: 2^31-1 is legal, one more is FLOW_CONTROL_ERROR."""
    peer = Peer()
    peer.send(window_update(0, MAX_WINDOW - 65_535), ping())
    assert not peer.closed
    peer.send(window_update(0, 1))
    assert (peer.error, peer.closed) == (FLOW_CONTROL_ERROR, True)


@pytest.mark.parametrize("path", [TALK, WATCH, LARGE])
def test_a41_a_window_of_a_stream_has_a_maximum(path: bytes) -> None:
    """A41: beyond it the stream alone is reset with FLOW_CONTROL_ERROR, and its call is over."""
    peer = Peer()
    peer.send(request(1, b"900000", path=path, end=path != TALK))
    peer.send(window_update(1, MAX_WINDOW - peer.window(1)), ping())
    assert peer.reply(1).reset is None
    peer.send(window_update(1, MAX_WINDOW), window_update(1, MAX_WINDOW))
    assert (peer.reply(1).reset, peer.closed) == (FLOW_CONTROL_ERROR, False)
    assert peer.application.cancelled == (path != LARGE)
    peer.send(window_update(0, 1000))
    assert peer.call(b"x", stream=3).status == 0


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({INITIAL_WINDOW_SIZE: 1 << 31}, FLOW_CONTROL_ERROR),
        ({INITIAL_WINDOW_SIZE: (1 << 32) - 1}, FLOW_CONTROL_ERROR),
        ({MAX_FRAME_SIZE: 16_383}, PROTOCOL_ERROR),
        ({MAX_FRAME_SIZE: 0}, PROTOCOL_ERROR),
        ({MAX_FRAME_SIZE: 1 << 24}, PROTOCOL_ERROR),
        ({ENABLE_PUSH: 2}, PROTOCOL_ERROR),
        ({ENABLE_PUSH: (1 << 32) - 1}, PROTOCOL_ERROR),
    ],
)
def test_a42_settings_have_bounds(values: dict[int, int], code: int) -> None:
    """A42: each with its own error, and no ACK."""
    peer = Peer()
    came = peer.send(settings({3: 1} | values))
    assert (peer.error, peer.closed) == (code, True)
    assert SETTINGS not in [one.kind for one in came]


def test_a42_the_bounds_themselves_are_legal() -> None:
    """A42: and what nobody knows is ignored: grpc-core sends 0xfe03, HAProxy 8, nghttpx 9."""
    peer = Peer()
    peer.send(settings([(INITIAL_WINDOW_SIZE, MAX_WINDOW), (INITIAL_WINDOW_SIZE, 0), (INITIAL_WINDOW_SIZE, 65_535)]))
    peer.send(settings([(MAX_FRAME_SIZE, (1 << 24) - 1), (MAX_FRAME_SIZE, 16_384), (ENABLE_PUSH, 1), (ENABLE_PUSH, 0)]))
    peer.send(settings([(0xFE03, 1), (8, 1), (9, 1), (0, 7), (0xFFFF, (1 << 32) - 1), (3, 0), (6, 0), (1, 1 << 31)]))
    assert len([one for one in peer.of(SETTINGS) if one.flags]) == 4
    assert peer.call(b"x").status == 0


def test_a42_a_larger_initial_window_may_overflow_a_stream() -> None:
    """A42: the change that lifts one window above 2^31-1 is FLOW_CONTROL_ERROR for the connection."""
    peer = Peer()
    peer.send(request(1, path=WATCH))
    peer.send(window_update(1, MAX_WINDOW - peer.window(1)), settings({INITIAL_WINDOW_SIZE: 65_535}))
    assert not peer.closed
    peer.send(settings({INITIAL_WINDOW_SIZE: 65_536}))
    assert (peer.error, peer.closed) == (FLOW_CONTROL_ERROR, True)


KINDS = {
    "served": lambda stream: request(stream, b"seven77"),
    "refused": lambda stream: request(stream, b"seven77", path=WATCH) + request(stream + 2, b"e" * 300),
    "malformed": lambda stream: headers(stream, literals([(b"x", b"y")])) + data(stream, b"z" * 500, end=True),
    "unknown": lambda stream: request(stream, b"u" * 900, path=b"/no/where"),
    "padded": lambda stream: headers(stream, BLOCK) + data(stream, framed(b"p"), padding=255, end=True),
    "no gRPC": lambda stream: headers(stream, literals(fields()[:4])) + data(stream, b"h" * 800, end=True),
    "too large": lambda stream: headers(stream, BLOCK) + data(stream, framed(b"", 0, 1 << 30) + b"x" * 9000, end=True),
    "two": lambda stream: headers(stream, BLOCK) + data(stream, framed(b"a") * 500, end=True),
    "aborted": lambda stream: headers(stream, BLOCK) + data(stream, b"\0\0\0\0" + b"a" * 700) + rst_stream(stream),
    "bidi": lambda stream: headers(stream, literals(fields(TALK))) + data(stream, framed(b"b") * 50, end=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a43_every_byte_of_data_is_credited(kind: str) -> None:
    """A43, F4: whatever became of the call, the connection's window stays above half, and never rises above all."""
    limits = Limits(streams=1, refusals=MIB, our_resets=MIB, resets=MIB, control_frames=MIB, window_updates=MIB)
    peer = Peer(limits=limits, settings_=WIDE)
    peer.send(window_update(0, MAX_WINDOW - 65_535))
    start, sent, lowest = peer.upload, 0, peer.upload
    stream = 1
    while sent < 10 * start:
        part = KINDS[kind](stream)
        before = peer.upload
        peer.send(part)
        sent += len(part)
        lowest = min(lowest, peer.upload)
        assert peer.upload <= start, before
        if kind == "refused":
            peer.send(rst_stream(stream))
        stream += 4 if kind == "refused" else 2
        assert not peer.closed
    assert lowest >= start // 2 - 16_384
    assert len(peer.of(WINDOW_UPDATE, 0)) <= 2 * sent // start + 1  # credited in large pieces


def test_a44_the_window_of_a_stream_is_enforced() -> None:
    """A44: a client that sends more than its stream's window is told FLOW_CONTROL_ERROR."""
    peer = Peer(limits=Limits(empty_data=MIB))
    peer.send(headers(1, BLOCK))
    padding = data(1, b"", padding=255)  # takes 256 bytes of the window, and is nothing to make more room for
    peer.send(*[padding] * 255)
    assert peer.reply(1).reset is None
    peer.send(padding * 2)
    assert FLOW_CONTROL_ERROR in {peer.error, peer.reply(1).reset}


def test_a45_small_requests_need_no_stream_window() -> None:
    """A45: no WINDOW_UPDATE of a stream for a request that fits into the window it has."""
    peer = Peer()
    for stream in range(1, 401, 2):
        peer.send(request(stream, b"x" * 20))
    peer.send(headers(401, BLOCK), data(401, framed(b"y" * 60_000)[:16_384]), data(401, b"y" * 16_000))
    assert {one.stream for one in peer.of(WINDOW_UPDATE)} <= {0}


def test_a45_the_largest_request_gets_the_room_it_needs() -> None:
    """A45: 64 KiB and five bytes do not fit into 65,535: the rest is granted as soon as the length is known."""
    peer = wide()
    body = framed(b"y" * 65_536)
    peer.send(headers(1, BLOCK), data(1, body[:5]))
    assert peer.upload_credit[1] + 65_535 >= len(body)
    room = 65_535 + peer.upload_credit[1]
    assert room < 2 * 65_535
    peer.send(*(data(1, body[at : at + 10_000]) for at in range(5, len(body), 10_000)), data(1, b"", end=True))
    assert peer.reply(1).messages == [b"reply to " + b"y" * 65_536]


def test_a45_a_long_conversation_never_runs_dry() -> None:
    """A45, A43: a bidirectional call whose client sends 2 MB in small messages always has a window."""
    peer = wide()
    peer.send(headers(1, literals(fields(TALK))))
    sent = 0
    while sent < 2 * MIB:
        body = framed(b"m" * 3000)
        sent += len(body)
        peer.send(data(1, body))
        assert 65_535 + peer.upload_credit.get(1, 0) - sent >= 3005
        assert peer.upload >= 3005
    assert len(peer.reply(1).messages) == sent // 3005


def test_a46_answers_come_in_frames_that_let_others_pass() -> None:
    """A46: while megabytes wait a PING is answered after 64 KiB at most."""
    peer = wide()
    peer.writable = False
    peer.send(request(1, b"9000000", path=LARGE))
    peer.connection.pump(peer.now)
    peer.settle()
    came = peer.send(ping(b"in turn!"))
    assert [one.kind for one in came] == [PING]
    peer.send(rst_stream(1))
    assert RST_STREAM not in [one.kind for one in peer.frames]
    assert max(len(one.payload) for one in peer.of(DATA)) <= 16_384


def test_a38_no_window_for_padding_of_ours() -> None:
    """A38: our own DATA is never padded: what flow control counts is what arrives."""
    peer = wide()
    peer.send(request(1, b"300000", path=LARGE))
    assert not any(one.flags & PADDED for one in peer.of(DATA))
    assert frame(DATA, 0, 1, b"")[3] == DATA
