"""Marks: what belongs to one call alone goes with it to its end, whichever way the call takes."""

from __future__ import annotations

import pytest
from wire.application import COUNT, DENY, ECHO, FAIL, LARGE, REFUSE, TALK, WATCH
from wire.peer import Peer
from wire.raw import HEADERS, Field, data, fields, framed, headers, literals, rst_stream, window_update
from wire.verdicts import ask

from avapd.wire.limits import Limits

OK, CANCELLED, UNKNOWN, NOT_FOUND, TOO_LARGE, UNIMPLEMENTED, INTERNAL, UNAUTHENTICATED = 0, 1, 2, 5, 8, 12, 13, 16
CALLS = [
    (ECHO, framed(b"x"), OK),
    (LARGE, framed(b"40000"), OK),  # more than a frame: through the queue
    (LARGE, framed(b"200000"), OK),  # more than the windows
    (REFUSE, framed(b"x"), NOT_FOUND),
    (FAIL, framed(b"x"), UNKNOWN),
    (ECHO, b"\2\0\0\0\0", INTERNAL),
    (ECHO, b"", UNIMPLEMENTED),
    (COUNT, framed(b"3"), OK),
    (COUNT, framed(b"0"), OK),
    (TALK, framed(b"hello"), OK),
    (b"/no/where", framed(b"x"), UNIMPLEMENTED),
]


def mark(number: int = 0) -> Field:
    return b"x-mark", b"mark-%d" % number


def open_stream(peer: Peer, block: bytes) -> int:
    stream, peer.next_stream = peer.next_stream, peer.next_stream + 2
    peer.send(headers(stream, block))
    return stream


@pytest.mark.parametrize(("path", "body", "code"), CALLS)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_the_answer_has_the_echo_and_the_mark_is_told_once(path: bytes, body: bytes, code: int, split: bool) -> None:
    """Known by heart or not, whole or in pieces, unary or not, good or bad; unmarked calls between are not touched."""
    peer = Peer()
    peer.send(window_update(0, 1 << 30))
    for number in range(4):
        plain = literals(fields(path))
        marked = literals(fields(path, [mark(number)]))
        replies = []
        for block in (plain, marked):
            pieces = [body[at : at + 1] for at in range(len(body))] if split else [body]
            if split:
                stream = open_stream(peer, block)
                for piece in pieces:
                    peer.send(data(stream, piece))
                peer.send(data(stream, b"", end=True))
            else:
                stream, peer.next_stream = peer.next_stream, peer.next_stream + 2
                peer.send(headers(stream, block), data(stream, body, end=True))
            if peer.reply(stream).headers and not peer.reply(stream).ended:
                peer.send(window_update(stream, 1 << 20))
            replies.append(peer.reply(stream))
        assert replies[1].headers == [*replies[0].headers, mark(number)]
        assert replies[1].trailers == replies[0].trailers
        assert replies[1].data == replies[0].data
    assert [told.outcomes for told in peer.application.marks] == [[code]] * 4


def test_the_mark_knows_the_request() -> None:
    """Of a unary call, as it came."""
    peer = Peer()
    for _ in range(3):
        ask(peer, ECHO, [mark()], body=framed(b"question"))
    assert [told.request for told in peer.application.marks] == [framed(b"question")] * 3


def test_a_block_with_a_mark_is_a_call_of_its_own_each_time() -> None:
    """Even if it comes again byte for byte, it is never answered from memory without its mark being told."""
    peer = Peer()
    for _ in range(5):
        assert ask(peer, ECHO, [mark(7)]) == ["HEADERS 200", "DATA", "TRAILERS 0"]
    assert len(peer.application.marks) == 5


def test_fields_of_no_use_make_no_mark() -> None:
    """The application may say no, and values that are not visible ASCII never come to it."""
    peer = Peer()
    for value in (b"no", b"", b"with blank", b"\xc3\xb1"):
        stream = peer.next_stream
        assert ask(peer, ECHO, [(b"x-mark", value)]) == ["HEADERS 200", "DATA", "TRAILERS 0"]
        assert all(name != b"x-mark" for name, _ in peer.reply(stream).headers)
    assert peer.application.marks == []


def test_a_refused_call_is_marked_too() -> None:
    """By its metadata, and when its headers are too many."""
    peer = Peer(limits=Limits(header_fields=16))
    for _ in range(3):
        assert ask(peer, ECHO, [DENY, mark()]) == ["TO 16"]
        assert ask(peer, ECHO, [mark(), *[(b"x-%d" % number, b"") for number in range(20)]])[0] == "TO 8"
    assert [told.outcomes for told in peer.application.marks] == [[UNAUTHENTICATED], [TOO_LARGE]] * 3
    assert all(mark() in peer.reply(one.stream).headers for one in peer.of(HEADERS))


def test_a_call_that_ends_otherwise_tells_its_mark() -> None:
    """Cancelled by the client, lost with the connection, too late."""
    peer = Peer()
    block = literals(fields(WATCH, [mark()]))
    first, second = (open_stream(peer, block) for _ in range(2))
    late = open_stream(peer, literals(fields(WATCH, [mark(), (b"grpc-timeout", b"1S")])))
    unfinished = open_stream(peer, literals(fields(ECHO, [mark()])))
    for stream in (first, second, late):
        peer.send(data(stream, framed(b"x"), end=True))
        assert mark() in peer.reply(stream).headers
    peer.send(data(unfinished, b"\0"))
    told = [one.outcomes for one in peer.application.marks]
    assert told == [[], [], [], []]
    peer.send(rst_stream(first))
    assert told == [[CANCELLED], [], [], []]
    peer.wait(2)
    assert told == [[CANCELLED], [], [4], []]
    peer.connection.lost()
    assert told == [[CANCELLED], [CANCELLED], [4], [CANCELLED]]
