"""Part B.1 of the checklist, the body of a request: how messages are framed, and the answer to each fault in one."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
import zlib

import pytest
from wire.application import ECHO, FAIL, PACK, PACKED_TIMES, REFUSE, TALK, WATCH
from wire.raw import DATA, HEADERS, Field, data, fields, framed, headers, literals, window_update
from wire.verdicts import TYPE, Client, ask, seen

from avapd.wire.connection import Connection
from avapd.wire.limits import Limits

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]
GZIP = ((b"grpc-encoding", b"gzip"),)
BR = ((b"grpc-encoding", b"br"),)
LIMIT = Limits().request_bytes


@pytest.fixture
def peer() -> Client:
    return Client()


def early(words: list[str], *, end: bool) -> list[str]:
    """An answer that may come before the client's end is followed by RST_STREAM(NO_ERROR) then."""
    return words if end else [*words, "RST NO_ERROR"]


# --- B1: a good call ----------------------------------------------------------------------------------------------


def test_b1_a_good_call_to_the_octet(peer: Client) -> None:
    """B1: HEADERS(200, application/grpc), DATA(0, length, message), HEADERS(END_STREAM, grpc-status 0), no more."""
    reply = peer.call(b"hello")
    assert reply.headers == [(b":status", b"200"), TYPE]
    assert bytes(reply.data) == b"\0\0\0\0\x0ereply to hello"
    assert reply.trailers == [(b"grpc-status", b"0")]
    frames = [(one.kind, one.flags) for one in peer.frames if one.stream == 1]
    assert frames == [(HEADERS, 4), (DATA, 0), (HEADERS, 5)]


def test_b1_an_empty_message_is_a_message(peer: Client) -> None:
    """B1: five octets of zero ask, and the answer has its DATA."""
    assert peer.call(b"").messages == [b"reply to "]
    assert ask(peer) == SERVED


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(1, 10), 2)), ids=str)
def test_b1_a_message_may_be_cut_anywhere(peer: Client, cuts: tuple[int, int]) -> None:
    """B1: three DATA frames, with empty ones and padding among them, are the one message they make."""
    body = framed(b"12345")
    one, two = cuts
    peer.send(headers(1, literals(fields())), data(1, body[:one]), data(1, b""), data(1, body[one:two], padding=7))
    assert seen(peer, 1) == []
    peer.send(data(1, body[two:]))
    assert seen(peer, 1) == []  # B13: what follows may still be wrong
    peer.send(data(1, b"", end=True))
    assert seen(peer, 1) == SERVED
    assert peer.reply(1).messages == [b"reply to 12345"]


def test_b1_end_stream_may_come_with_padding_alone(peer: Client) -> None:
    """B1: DATA of nothing but padding ends the request."""
    peer.send(headers(1, literals(fields())), data(1, framed(b"x"), padding=0), data(1, b"", end=True, padding=255))
    assert seen(peer, 1) == SERVED


# --- B12, B13, B14: no message, two messages, half a message ------------------------------------------------------


@pytest.mark.parametrize("path", [ECHO, WATCH])
@pytest.mark.parametrize("body", [None, b""], ids=["on HEADERS", "empty DATA"])
def test_b12_no_message_is_unimplemented(peer: Client, path: bytes, body: bytes | None) -> None:
    """B12: 12 for unary and server-streaming methods, as doc/statuscodes.md says of a wrong number of messages."""
    assert ask(peer, path, body=body) == ["TO 12"]
    assert peer.application.asked == 0


@pytest.mark.parametrize("path", [ECHO, WATCH])
def test_b13_two_messages_are_unimplemented(peer: Client, path: bytes) -> None:
    """B13: 12, in one DATA frame or in two, and no handler is asked."""
    assert ask(peer, path, body=framed(b"x") * 2) == ["TO 12"]
    stream = peer.next_stream
    assert ask(peer, path, body=framed(b"x"), end=False) == []
    peer.send(data(stream, framed(b"y"), end=True))
    assert seen(peer, stream) in (["TO 12"], ["TO 12", "RST NO_ERROR"])
    assert (peer.application.asked, peer.application.watching) == (0, [])


@pytest.mark.parametrize("path", [ECHO, WATCH, TALK])
@pytest.mark.parametrize("length", range(1, 10))
def test_b14_half_a_message_is_internal(peer: Client, path: bytes, length: int) -> None:
    """B14: END_STREAM inside the prefix or inside the message is 13."""
    assert ask(peer, path, body=framed(b"12345")[:length]) == ["TO 13"]
    assert peer.application.asked == 0


def test_b14_half_a_second_message_is_an_error(peer: Client) -> None:
    """B13, B14: after a whole message part of another one is 12 or 13, and never an answer."""
    for length in range(1, 7):
        assert ask(peer, body=framed(b"x") + framed(b"12")[:length]) in (["TO 12"], ["TO 13"])
    assert peer.application.asked == 0


# --- B15: too long ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ECHO, WATCH, TALK])
@pytest.mark.parametrize("length", [LIMIT + 1, 10 * LIMIT, 1 << 31, 0xFFFF_FFFF])
def test_b15_the_declared_length_is_enough_to_refuse(peer: Client, path: bytes, length: int) -> None:
    """B15: 8 as soon as the five octets are there, then RST_STREAM(NO_ERROR)."""
    prefix = framed(b"", length=length)
    peer.send(headers(1, literals(fields(path))), data(1, prefix[:4]))
    assert seen(peer, 1) == []
    peer.send(data(1, prefix[4:]))
    assert seen(peer, 1) == ["TO 8", "RST NO_ERROR"]
    peer.next_stream = 3
    assert ask(peer, path, body=prefix + b"x") == ["TO 8"]


def test_b15_what_follows_is_discarded_with_credit(peer: Client) -> None:
    """B15, A43: ten times the connection's window of a refused message pass, and other calls with it."""
    peer.send(headers(1, literals(fields())), data(1, framed(b"", length=1 << 20)))
    peer.next_stream = 3
    for _ in range(50):
        assert peer.upload >= 16_384
        peer.send(data(1, bytes(13_000)))
    assert seen(peer, 1) == ["TO 8", "RST NO_ERROR"]
    assert ask(peer) == SERVED


def test_b15_nothing_is_allocated_from_a_declared_length(peer: Client) -> None:
    """B15: a hundred calls that announce the longest legal message and send none of it cost less than one of them."""
    peer.call()
    tracemalloc.start()
    try:
        for stream in range(3, 203, 2):
            peer.send(headers(stream, literals(fields())), data(stream, framed(b"", length=LIMIT)))
        assert tracemalloc.get_traced_memory()[1] < 100 * LIMIT // 4
    finally:
        tracemalloc.stop()


# --- B16 to B20: compression --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [(), ((b"grpc-encoding", b"identity"),), ((b"grpc-encoding", b""),)])
@pytest.mark.parametrize("end", [True, False])
def test_b16_compressed_without_an_encoding_is_internal(peer: Client, metadata: tuple[Field, ...], end: bool) -> None:
    """B16: flag 1 while `grpc-encoding` is absent, empty or `identity` is 13."""
    assert ask(peer, metadata=metadata, body=framed(b"x", flag=1), end=end) == early(["TO 13"], end=end)


@pytest.mark.parametrize("encoding", [b"br", b"snappy", b"deflate", b"zstd", b"GZIP", b"gzip,gzip", b"x" * 100])
@pytest.mark.parametrize("end", [True, False])
def test_b17_an_unknown_encoding_is_told_the_known_ones(peer: Client, encoding: bytes, end: bool) -> None:
    """B17: flag 1 in an encoding that is not supported is 12, with `grpc-accept-encoding: identity,gzip`."""
    answer = ask(peer, metadata=[(b"grpc-encoding", encoding)], body=framed(b"x", flag=1), end=end)
    assert answer == early(["TO 12"], end=end)
    assert peer.reply(1)[b"grpc-accept-encoding"] == b"identity,gzip"


@pytest.mark.parametrize("times", [1, 3])
def test_b18_an_encoding_nobody_uses(peer: Client, times: int) -> None:
    """B18: flag 0 is served under a `grpc-encoding` that is known, and 12 under another, also the third time."""
    for _ in range(times):
        assert ask(peer, metadata=GZIP) == SERVED
        assert ask(peer, metadata=BR) == ["TO 12"]


@pytest.mark.parametrize("flag", [2, 3, 0x80, 0xFF])
@pytest.mark.parametrize("metadata", [(), GZIP])
@pytest.mark.parametrize("end", [True, False])
def test_b19_another_flag_is_internal(peer: Client, flag: int, metadata: tuple[Field, ...], end: bool) -> None:
    """B19: the compressed flag is 0 or 1, all else is 13."""
    assert ask(peer, metadata=metadata, body=framed(b"x", flag=flag), end=end) == early(["TO 13"], end=end)


def test_b20_gzip_is_served(peer: Client) -> None:
    """B20: a message in gzip is the message; a compressed empty one too, and one that is not compressed beside it."""
    for message in (b"", b"x", b"y" * LIMIT):
        stream = peer.next_stream
        assert ask(peer, metadata=GZIP, body=framed(gzip.compress(message), flag=1))[:2] == SERVED[:2]
        if len(message) < 100:
            assert peer.reply(stream).messages == [b"reply to " + message]


NO_GZIP = {
    "garbage": b"zzzz",
    "nothing": b"",
    "zlib": zlib.compress(b"x"),
    "cut off": gzip.compress(b"x" * 100)[:-1],
    "half a head": gzip.compress(b"x")[:5],
    "wrong checksum": gzip.compress(b"x")[:-8] + bytes(8),
    "more behind it": gzip.compress(b"x") + b"y",
}


@pytest.mark.parametrize("case", NO_GZIP)
def test_b20_bad_gzip_is_internal(peer: Client, case: str) -> None:
    """B20: 13, and no handler is asked."""
    assert ask(peer, metadata=GZIP, body=framed(NO_GZIP[case], flag=1)) == ["TO 13"]
    assert peer.application.asked == 0


def test_b20_inflating_has_a_bound(peer: Client) -> None:
    """B20: one octet above the limit is 8; a bomb of 50 MiB in 48 KiB is 8 too, and never unfolds."""
    assert ask(peer, metadata=GZIP, body=framed(gzip.compress(b"x" * LIMIT), flag=1))[0] == "HEADERS 200"
    assert ask(peer, metadata=GZIP, body=framed(gzip.compress(b"x" * (LIMIT + 1)), flag=1)) == ["TO 8"]
    bomb = framed(gzip.compress(bytes(50 << 20)), flag=1)
    parts = [data(peer.next_stream, bomb[at : at + 16_000]) for at in range(0, len(bomb), 16_000)]
    stream = peer.next_stream
    peer.send(headers(stream, literals(fields(ECHO, GZIP))))
    tracemalloc.start()
    try:
        peer.send(*parts, data(stream, b"", end=True))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert seen(peer, stream) in (["TO 8"], ["TO 8", "RST NO_ERROR"])


def test_b20_each_message_has_a_context_of_its_own(peer: Client) -> None:
    """B20: on one stream compressed and plain messages take turns, and none depends on an earlier one."""
    bodies = [framed(gzip.compress(b"one"), 1), framed(b"two"), framed(gzip.compress(b"three"), 1)]
    peer.send(headers(1, literals(fields(TALK, GZIP))), *(data(1, body) for body in bodies), data(1, b"", end=True))
    assert peer.reply(1).messages == [b"reply to one", b"reply to two", b"reply to three"]
    assert peer.reply(1).status == 0


# --- answers in gzip ----------------------------------------------------------------------------------------------

TAKES = b"grpc-accept-encoding"
LONG = b"x" * 20  # its answer is too large to be remembered
TAKERS = [
    [b"gzip"], [b"identity,gzip"], [b"identity, deflate, gzip"], [b"gzip,br"], [b"br ,\tgzip ,zstd"], [b",,gzip,"],
    [b"identity", b"gzip"], [b"gzip", b"identity"],
]  # fmt: skip
OTHERS = [
    [], [b""], [b"identity"], [b"identity,deflate"], [b"GZIP"], [b"x-gzip"], [b"gzip2"], [b"gzi p"], [b"gzip;q=0"],
    [b"*"], [b"deflate", b"br"],
]  # fmt: skip


def pack(peer: Client, values: list[bytes], message: bytes = LONG) -> tuple[int, int]:
    """One call of a client that takes this; the flag of its answer, which must be right, and its octets."""
    stream = peer.next_stream
    peer.send(window_update(0, len(message) * PACKED_TIMES))
    assert ask(peer, PACK, [(TAKES, value) for value in values], body=framed(message))[-1] == "TRAILERS 0"
    reply = peer.reply(stream)
    assert reply.messages == [message * PACKED_TIMES]
    return reply.data[0], len(reply.data)


@pytest.mark.parametrize("values", TAKERS, ids=repr)
def test_an_answer_is_in_gzip_for_who_takes_it(peer: Client, values: list[bytes]) -> None:
    """Wherever `gzip` stands in the list, in one field or in several: flag 1 and fewer octets, however often."""
    peer.application.packed = True
    for _ in range(3):
        flag, size = pack(peer, values)
        assert flag == 1
        assert size < len(LONG) * PACKED_TIMES / 50


@pytest.mark.parametrize("values", OTHERS, ids=repr)
def test_an_answer_is_plain_for_all_others(peer: Client, values: list[bytes]) -> None:
    """Without the field or without that word in it: flag 0, no `grpc-encoding`, and nobody asks for it compressed."""
    peer.application.packed = True
    for _ in range(3):
        assert pack(peer, values) == (0, 5 + len(LONG) * PACKED_TIMES)
    assert all(name != b"grpc-encoding" for reply in peer.replies.values() for name, _ in reply.headers)
    assert peer.application.wanted == 0


@pytest.mark.parametrize("message", [b"x", LONG], ids=["remembered", "too large to be"])
def test_both_kinds_of_clients_get_their_own_from_one_memo(message: bytes) -> None:
    """By turns on two connections of one worker, each block often enough to be known by heart."""
    one = Client()
    two = Client(one.application, connection=Connection(one.connection._session.heads._routes, one.now))
    one.application.packed = True
    for _ in range(4):
        for peer in (one, two):
            assert pack(peer, [b"gzip"], message)[0] == 1
            assert pack(peer, [b"identity"], message)[0] == 0
            assert pack(peer, [], message)[0] == 0


def test_an_answer_stays_plain_until_it_is_there_in_gzip(peer: Client) -> None:
    """A plain answer that was remembered is replaced when `forget_answers` tells that there is another."""
    for _ in range(3):
        assert pack(peer, [b"gzip"], b"x")[0] == 0
    assert peer.application.wanted > 0
    peer.application.packed = True
    peer.connection._session.heads._routes.forget_answers()
    for _ in range(3):
        assert pack(peer, [b"gzip"], b"x")[0] == 1


def test_only_the_answer_that_has_one_is_in_gzip(peer: Client) -> None:
    """What is not kept compressed is not compressed for a call, and a refusal has nothing to compress."""
    for path, words in ((ECHO, SERVED), (FAIL, ["TO 2"]), (REFUSE, ["TO 5"])):
        stream = peer.next_stream
        assert ask(peer, path, [(TAKES, b"gzip")]) == words
        assert not any(name == b"grpc-encoding" for name, _ in peer.reply(stream).headers)


# --- B22: a handler that raises -----------------------------------------------------------------------------------


def test_b22_an_exception_is_unknown_without_its_text(peer: Client) -> None:
    """B22: 2 with a fixed message; the text, which may hold anything, stays here."""
    stream = peer.next_stream
    assert ask(peer, FAIL, body=framed(b"secret")) == ["TO 2"]
    message = peer.reply(stream)[b"grpc-message"]
    assert message
    assert not any(word in message for word in (b"secret", b"asked", b"RuntimeError"))
    assert ask(peer) == SERVED
