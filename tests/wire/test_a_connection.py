"""Part A.1 of the checklist: how a connection starts and how it ends."""

from __future__ import annotations

import pytest
from wire.application import ECHO, TALK, WATCH
from wire.peer import Peer
from wire.raw import (
    ACK,
    COMPRESSION_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    data,
    fields,
    framed,
    goaway,
    headers,
    literals,
    ping,
    request,
    settings,
)

from avapd.wire.limits import Limits

LAST = (1 << 31) - 1


def test_a1_our_settings_come_at_once() -> None:
    """A1: SETTINGS are the first frame, before the client says a word, and without HEADER_TABLE_SIZE (finding 5)."""
    peer = Peer(open_=False)
    assert (peer.frames[0].kind, peer.frames[0].flags, peer.frames[0].stream) == (SETTINGS, 0, 0)
    assert peer.server_settings[MAX_CONCURRENT_STREAMS] == Limits().streams
    assert HEADER_TABLE_SIZE not in peer.server_settings
    assert not peer.of(SETTINGS)[1:]


@pytest.mark.parametrize("step", [0, 1, 7])
def test_a2_the_preface_may_come_in_any_pieces(step: int) -> None:
    """A2: the preface may come byte by byte, or glued to forty calls."""
    peer = Peer(open_=False)
    calls = [request(stream, b"%d" % stream) for stream in range(1, 81, 2)]
    peer.send(PREFACE, settings(), *calls, settings(ack=True), step=step)
    assert [peer.reply(stream).messages for stream in range(1, 81, 2)] == [
        [b"reply to %d" % stream] for stream in range(1, 81, 2)
    ]
    assert not peer.closed


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes.fromhex("1603010200010001fc0303"),  # the hello of TLS
        PREFACE[:20] + b"\r\nSN\r\n\r\n",
        b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n",
        b"\0",
    ],
    ids=["http/1.1", "tls", "late", "version", "zero"],
)
@pytest.mark.parametrize("step", [0, 1])
def test_a2_another_protocol_is_closed(start: bytes, step: int) -> None:
    """A2: what does not begin like HTTP/2 is closed, and told nothing but perhaps PROTOCOL_ERROR."""
    peer = Peer(open_=False)
    peer.send(start, step=step)
    assert peer.closed
    assert peer.error in {None, PROTOCOL_ERROR}


@pytest.mark.parametrize(
    "first", [settings(ack=True), request(1), ping(), b"\0\0\0\x16\0\0\0\0\0"], ids=["ack", "call", "ping", "unknown"]
)
def test_a2_settings_must_follow_the_preface(first: bytes) -> None:
    """A2: PROTOCOL_ERROR when the first frame is anything but SETTINGS."""
    peer = Peer(open_=False)
    peer.send(PREFACE, first)
    assert peer.closed
    assert peer.error in {None, PROTOCOL_ERROR}


def test_a3_every_settings_is_acknowledged_in_order() -> None:
    """A3: one ACK for each SETTINGS, where it stands among the other frames."""
    peer = Peer()
    came = peer.send(settings(), ping(b"first..."), settings({4: 1, 3: 9}), request(1), ping(b"second.."), settings())
    control = [(one.kind, one.flags) for one in came if one.kind in {SETTINGS, PING}]
    assert control == [(SETTINGS, ACK), (PING, ACK), (SETTINGS, ACK), (PING, ACK), (SETTINGS, ACK)]


def test_a3_values_apply_in_order_before_the_ack() -> None:
    """A3: the last of several values counts, and counts for what follows the ACK."""
    peer = Peer()
    peer.send(settings([(4, 100), (4, 3), (5, 20_000), (5, 16_384)]), request(1))
    assert len(peer.reply(1).data) == 3


def test_a4_an_ack_too_many_is_no_crash() -> None:
    """A4: an ACK of nothing is ignored, or PROTOCOL_ERROR."""
    peer = Peer()
    peer.send(settings(ack=True))
    assert peer.error == PROTOCOL_ERROR if peer.closed else peer.call(b"x").status == 0


def test_a5_before_its_ack_the_client_may_do_what_the_rfc_lets_it() -> None:
    """A5: without the client's ACK full frames, a full table and all our streams are taken."""
    peer = Peer(open_=False)
    peer.send(PREFACE, settings())
    for number in range(60):  # some 80 bytes of table each: the table fills and evicts
        stream = 2 * number + 1
        head = fields(ECHO, [(b"x-number", b"%040d" % number)])
        peer.send(headers(stream, peer.block(head)), data(stream, framed(b"x"), end=True))
        assert peer.reply(stream).status == 0
    body = framed(b"y" * 40_000)
    peer.send(headers(201, literals(fields())), *(data(201, body[at : at + 16_384]) for at in (0, 16_384, 32_768)))
    peer.send(data(201, b"", end=True))
    assert peer.reply(201).status == 0
    peer.send(*(request(stream, path=WATCH) for stream in range(203, 203 + 200, 2)))
    assert len(peer.application.watching) == 100


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (b"\0\0\1\6\0\0\0\0\0\0", FRAME_SIZE_ERROR),
        (data(9, b""), PROTOCOL_ERROR),
        (headers(5, b"\x80"), COMPRESSION_ERROR),
    ],
    ids=["frame", "idle", "block"],
)
def test_a6_an_error_is_told_by_goaway(wrong: bytes, code: int) -> None:
    """A6: GOAWAY with the last stream that was processed, the code and readable ASCII; then nothing, and closed."""
    peer = Peer()
    peer.send(request(1), request(3))
    came = peer.send(wrong, request(7), ping())
    assert [one.kind for one in came] == [GOAWAY]
    assert (peer.last_stream, peer.error, peer.closed) == (3, code, True)
    assert came[0].payload[8:].decode("ascii").isprintable()
    assert peer.send(request(9), ping(), b"\xff" * 99) == []  # whatever comes now is read and dropped


def test_a6_a_stream_refused_is_not_processed() -> None:
    """A6, F22: GOAWAY names the last stream that was worked on, so that the client may repeat the others."""
    peer = Peer(limits=Limits(streams=1))
    peer.send(request(1, path=WATCH), request(3))
    assert peer.reply(3).reset == REFUSED_STREAM
    peer.send(data(0, b""))
    assert peer.last_stream == 1


def test_a7_a_drain_says_goaway_twice() -> None:
    """A7: GOAWAY(2^31-1) with a PING, then GOAWAY(last stream) on its ACK, then calls in flight end, then closed."""
    peer = Peer()
    peer.send(request(1, path=WATCH))
    first = peer.drain()
    assert [(one.kind, one.flags) for one in first] == [(GOAWAY, 0), (PING, 0)]
    assert (peer.last_stream, peer.error) == (LAST, NO_ERROR)
    assert peer.call(b"in between", stream=3).status == 0  # the client could not know
    peer.send(ping(first[1].payload, ack=True))
    assert len(peer.of(GOAWAY)) == 2
    assert (peer.last_stream, peer.error, peer.closed) == (3, NO_ERROR, False)
    peer.application.watching[0].finish()
    peer.settle()
    assert (peer.reply(1).status, peer.closed) == (0, True)


def test_a7_a_drain_does_not_wait_for_a_silent_client() -> None:
    """A7: without the PING's ACK the last GOAWAY comes after 5 s, and after the grace the connection is closed."""
    peer = Peer(limits=Limits(grace_seconds=30))
    peer.send(request(1, path=WATCH))
    peer.drain()
    peer.wait(4.9)
    assert len(peer.of(GOAWAY)) == 1
    peer.wait(0.2)
    assert [peer.last_stream, peer.closed] == [1, False]
    peer.wait(24)
    assert not peer.closed
    peer.wait(7)
    assert peer.closed


def test_a7_a_drain_without_calls_closes_at_the_ack() -> None:
    """A7: nothing in flight, nothing to wait for."""
    peer = Peer()
    asked = peer.drain()
    assert not peer.closed
    peer.send(ping(asked[1].payload, ack=True))
    assert peer.closed


def test_a7_newer_streams_are_ignored_but_decoded_and_credited() -> None:
    """A7: after the last GOAWAY a new call gets no answer and no RST_STREAM; its block and its DATA still count."""
    peer = Peer()
    peer.send(headers(1, literals(fields(TALK))))
    asked = peer.drain()
    peer.send(ping(asked[1].payload, ack=True))
    start = peer.upload
    before = len(peer.frames)
    for stream in range(3, 43, 2):
        body = framed(b"z" * 10_000)
        peer.send(
            headers(stream, peer.block(fields(ECHO, [(b"x-late", b"%d" % stream)]))), data(stream, body, end=True)
        )
        assert peer.upload >= start // 2
    assert {one.kind for one in peer.frames[before:]} <= {8}  # WINDOW_UPDATE
    peer.send(data(1, framed(b"still")), headers(1, peer.block([(b"x-late", b"41")]), end=True))
    assert (peer.reply(1).messages, peer.reply(1).status, peer.closed) == ([b"reply to still"], 0, True)


def test_a7_an_error_after_the_last_goaway_takes_nothing_back() -> None:
    """A7, RFC 9113 section 6.8: the GOAWAY of an error names no stream above that of the last one."""
    peer = Peer()
    peer.send(request(1, path=WATCH))
    peer.send(ping(peer.drain()[1].payload, ack=True), request(3), data(99, b"x"))
    assert (peer.last_stream, peer.error) == (1, PROTOCOL_ERROR)


def test_a8_a_client_that_says_goaway_is_served_to_the_end() -> None:
    """A8: after the client's GOAWAY its open calls go on, in both directions."""
    peer = Peer()
    peer.send(headers(1, literals(fields(TALK))), request(3, path=WATCH))
    peer.send(goaway(0, NO_ERROR, b"bye"), data(1, framed(b"one")))
    peer.send(data(1, framed(b"two"), end=True))
    assert peer.reply(1).messages == [b"reply to one", b"reply to two"]
    assert peer.reply(1).status == 0
    peer.application.watching[0].send(b"news")
    peer.settle()
    assert peer.reply(3).messages == [b"watching ", b"news"]


def test_a9_the_client_is_sent_away_before_its_numbers_run_out() -> None:
    """A9: a call above 2^30 is served, and followed by a graceful GOAWAY."""
    peer = Peer()
    assert peer.call(b"x", stream=(1 << 30) - 1).status == 0
    assert not peer.of(GOAWAY)
    assert peer.call(b"x", stream=(1 << 30) + 1).status == 0
    assert (peer.last_stream, peer.error, peer.closed) == (LAST, NO_ERROR, False)
    assert not [one for one in peer.frames if one.kind == RST_STREAM]
    assert peer.of(HEADERS, (1 << 30) + 1)
