"""The frame loop of Connection against its plain twin."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.application import ECHO, LARGE, WATCH
from wire.conversations import FEW, FOUND, Script, block, conversations, said, same
from wire.peer import Peer
from wire.raw import data, fields, framed, headers, literals, ping, priority, window_update

from avapd.wire import frames
from avapd.wire.connection import Connection
from avapd.wire.limits import Limits
from avapd.wire.session import Session


class Plain(Connection):
    """The frame loop as one would write it: a frame at a time, all of them to the method that knows all of them."""

    def _frames(self, data: bytes) -> None:
        at = 0
        while len(data) >= at + 9:
            length = int.from_bytes(data[at : at + 3], "big")
            frames.check_size(length)
            if len(data) < at + 9 + length:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
            self._session.frame(data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + length])
            at += 9 + length
        self._need = 0
        if at < len(data):
            self._kept += data[at:]


def watch(stream: int) -> bytes:
    return headers(stream, literals(fields(WATCH))) + data(stream, framed(b""), end=True)


def pointed(index: int) -> bytes:
    """A call with one more field, which stands at this place of the table."""
    stream = 9001 + 2 * index
    return headers(stream, literals(fields()) + bytes([0x80 | index])) + data(stream, framed(b"x"), end=True)


FINALES = {
    "nothing": b"",
    "windows": headers(9001, literals(fields(LARGE)))
    + data(9001, framed(b"3000000"), end=True)
    + window_update(9001, 1 << 30),
    "streams": b"".join(watch(stream) for stream in range(9001, 9203, 2)),
    "table": b"".join(pointed(index) for index in range(62, 127)),
    "credit": headers(9001, literals(fields(b"/no/where"))) + data(9001, b"z" * 1000) * 40,
    "account": (priority(7) + ping()) * 3000,
    "updates": (window_update(0, 1) + ping()) * 3000,
}


@settings(max_examples=150, deadline=None, phases=FOUND)
@given(
    segments=conversations(),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=6),
    before=st.one_of(st.just([]), conversations()),
    finale=st.sampled_from(list(FINALES)),
    limits=st.sampled_from([Limits(), Limits(), FEW, Limits(quantum_frames=1, write_bytes=2000)]),
)
def test_the_fast_loop_does_what_the_plain_one_does(
    segments: list[bytes], cuts: list[int], before: list[bytes], finale: str, limits: Limits
) -> None:
    """The same bytes come out whether calls are answered by heart or frame by frame.

    So they do in the end, which shows what is left behind: windows, open streams, the dynamic table, the account.
    """
    whole = [*segments, FINALES[finale]]
    same(said(Connection, limits, before, whole, cuts), said(Plain, limits, before, whole, []))


@pytest.mark.parametrize("odd", [priority(7), window_update(0, 1)], ids=["PRIORITY", "WINDOW_UPDATE"])
def test_both_loops_count_calls_alike(odd: bytes) -> None:
    """What a client may send for each call that it made is the same after either loop."""
    script = Script()
    for _ in range(50):
        stream = script.next()
        script.add(headers(stream, block(script, ECHO, (), "as it is")), data(stream, framed(b"x"), end=True))
    segments = [*script.segments, (odd + ping()) * 3000]  # the answers to PING show how many were allowed
    limits = Limits(priorities=2, window_updates=6, ping_strikes=1 << 20, control_frames=1 << 20)
    same(said(Connection, limits, [], segments, []), said(Plain, limits, [], segments, []))


def test_both_loops_name_the_same_last_stream() -> None:
    """One malformed request too many is no stream that was processed, whichever loop reads it."""
    script = Script()
    for _ in range(5):
        stream = script.next()
        script.add(headers(stream, block(script, ECHO, ((b"X-Bad", b"1"),), "as it is")))
    limits = Limits(our_resets=3)
    same(said(Connection, limits, [], script.segments, []), said(Plain, limits, [], script.segments, []))


@pytest.mark.parametrize("how", ["as it is", "pointers", "inserts"])
def test_what_is_known_by_heart_never_becomes_a_frame(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third time the same call comes, the loop answers it alone: with literals, with pointers, with inserts."""
    seen: list[int] = []
    frame_by_frame = Session.frame

    def counted(session: Session, kind: int, flags: int, number: int, payload: bytes) -> None:
        seen.append(kind)
        frame_by_frame(session, kind, flags, number, payload)

    monkeypatch.setattr(Session, "frame", counted)
    peer, script = Peer(), Script()
    for _ in range(10):
        seen.clear()
        stream = script.next()
        peer.send(headers(stream, block(script, ECHO, (), how)), data(stream, framed(b"x"), end=True))
        assert peer.reply(stream).messages == [b"reply to x"]
    assert not seen
