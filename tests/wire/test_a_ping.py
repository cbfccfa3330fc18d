"""Part A.6 of the checklist: PING, PRIORITY, keepalive."""

from __future__ import annotations

import pytest
from wire.application import LARGE, WATCH
from wire.peer import Peer
from wire.raw import (
    ACK,
    DATA,
    INITIAL_WINDOW_SIZE,
    MAX_WINDOW,
    PING,
    PRIORITY,
    data,
    fields,
    frame,
    framed,
    headers,
    literals,
    ping,
    priority,
    request,
    settings,
    window_update,
)

from avapd.wire.limits import Limits

FOREVER = 1e9


@pytest.mark.parametrize("payload", [bytes(8), b"\xff" * 8, b"h2spec\0\0", b"good-bye", b"are you?"])
def test_a47_a_ping_is_answered_with_its_own_bytes(payload: bytes) -> None:
    """A47: at once, with the ACK flag and the same eight bytes, whatever they are."""
    peer = Peer()
    came = peer.send(ping(payload))
    assert [(one.kind, one.flags, one.payload) for one in came] == [(PING, ACK, payload)]


def test_a47_pings_are_answered_in_order_and_before_data() -> None:
    """A47, F15: ahead of the DATA that is queued."""
    peer = Peer(settings_={INITIAL_WINDOW_SIZE: MAX_WINDOW})
    peer.writable = False
    peer.send(window_update(0, MAX_WINDOW - 65_535), request(1, b"3000000", path=LARGE))
    came = peer.send(ping(b"a......."), ping(b"b......."))
    assert [one.payload for one in came] == [b"a.......", b"b......."]
    peer.writable = True
    assert {one.kind for one in peer.settle()} >= {DATA}


def test_a47_an_ack_is_not_answered() -> None:
    """A47: an ACK of a PING that we never sent is read, and nothing comes of it."""
    peer = Peer()
    assert peer.send(ping(ack=True), ping(b"good-bye", ack=True), ping(b"are you?", ack=True)) == []
    assert peer.call(b"x").status == 0


def test_a48_priorities_are_ignored() -> None:
    """A48: PRIORITY and PRIORITY_UPDATE (RFC 9218) on streams of every state change nothing."""
    peer = Peer()
    peer.send(request(1), request(3, path=WATCH), headers(5, literals(fields())))
    came = peer.send(
        *(priority(stream, depends, weight) for stream in (1, 3, 5, 7, 8) for depends in (0, 9) for weight in (0, 255)),
        *(frame(0x10, 0, 0, stream.to_bytes(4, "big") + b"u=1, i") for stream in (0, 1, 3, 5, 7)),
    )
    assert came == []
    peer.send(data(5, framed(b"x"), end=True))
    assert peer.reply(5).status == 0
    assert peer.call(b"x", stream=7).status == 0
    assert not [one for one in peer.frames if one.kind == PRIORITY]


def silent(**limits: float) -> Peer:
    """A connection with a call that waits, and no limit but those of keepalive."""
    lasting = {"idle_seconds": FOREVER, "age_seconds": FOREVER, "keepalive_seconds": 100.0, "keepalive_timeout": 20.0}
    peer = Peer(limits=Limits(**(lasting | limits)))  # type: ignore[arg-type]
    peer.send(request(1, path=WATCH))
    return peer


def test_a49_a_silent_client_is_asked() -> None:
    """A49: after `keepalive_seconds` without a byte from the client comes a PING."""
    peer = silent()
    assert not peer.wait(99)
    assert [(one.kind, one.flags) for one in peer.wait(2)] == [(PING, 0)]


def test_a49_a_client_that_answers_is_kept() -> None:
    """A49: each answer starts the time anew, for as long as it goes on."""
    peer = silent()
    for _ in range(5):
        (asked,) = peer.wait(101)
        assert asked.kind == PING
        peer.send(ping(asked.payload, ack=True))
        assert peer.wait(60) == []
        assert not peer.closed
        peer.send(settings())  # any byte counts
    assert peer.application.cancelled == 0


def test_a49_a_client_that_is_gone_is_closed() -> None:
    """A49: without a byte for `keepalive_timeout` after the PING the connection is closed, and its calls cancelled."""
    peer = silent()
    peer.wait(100.5)
    assert not peer.wait(19)
    assert not peer.closed
    peer.wait(2)
    assert peer.closed
    assert peer.application.cancelled == 1


def test_a49_any_byte_is_a_sign_of_life() -> None:
    """A49: half a frame will do, before the PING and after it."""
    peer = silent()
    peer.wait(90)
    peer.send(b"\0\0")
    assert peer.wait(90) == []
    assert [one.kind for one in peer.wait(20)] == [PING]
    peer.send(b"\x08\x06")
    assert peer.wait(30) == []
    assert not peer.closed


def test_a49_the_default_is_two_hours() -> None:
    """A49: a connection that waits for news is left alone for two hours."""
    limits = Limits()
    peer = silent(keepalive_seconds=limits.keepalive_seconds, keepalive_timeout=limits.keepalive_timeout)
    assert peer.wait(7199) == []
    assert [one.kind for one in peer.wait(2)] == [PING]
