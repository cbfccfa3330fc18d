"""Part C of the checklist, what a client sends: header blocks, lists, empty and odd frames, messages (C13 to C19)."""

from __future__ import annotations

import tracemalloc

import pytest
from wire.application import ECHO, TALK, WATCH
from wire.raw import (
    END_HEADERS,
    INITIAL_WINDOW_SIZE,
    Field,
    continuation,
    data,
    fields,
    frame,
    framed,
    headers,
    literals,
    priority,
    request,
    window_update,
)  # fmt: skip
from wire.verdicts import Client, seen

from avapd.wire.errors import ErrorCode
from avapd.wire.limits import Limits

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]
CALM = ErrorCode.ENHANCE_YOUR_CALM
KIB = 1 << 10


def small(**limits: float) -> Client:
    """A connection with some limits small enough to be reached at once."""
    return Client(limits=Limits(**limits))  # type: ignore[arg-type]


def calm(peer: Client) -> bool:
    """Whether the connection has been told to calm down, and ended."""
    assert peer.error in {None, CALM}, peer.error
    assert (peer.error == CALM) == peer.closed
    return peer.closed


def in_pieces(block: bytes, pieces: int, stream: int = 1) -> bytes:
    """A header block in HEADERS and so many CONTINUATION frames."""
    size = -(-len(block) // (pieces + 1))
    parts = [block[at : at + size] for at in range(0, size * (pieces + 1), size)]
    last = parts.pop()
    return (
        headers(stream, parts[0], flags=0)
        + b"".join(continuation(stream, part, flags=0) for part in parts[1:])
        + continuation(stream, last)
    )


def listed(size: int, count: int) -> list[Field]:
    """The head of a good call, filled up to a list of exactly `size` and `count` fields (RFC 9113 section 6.5.2)."""
    found = fields()
    while len(found) < count:
        found.append((b"x", b""))
    missing = size - sum(len(name) + len(value) + 32 for name, value in found)
    assert missing >= 0
    found[-1] = (found[-1][0], found[-1][1] + b"y" * missing)
    return found


# --- C13: CONTINUATION --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8, 9, 80])
def test_c13_eight_continuations(count: int) -> None:
    """C13, CVE-2024-27316: a header block may have eight, and the ninth is ENHANCE_YOUR_CALM before it ends."""
    peer = Client()
    peer.send(in_pieces(literals(fields()), count), data(1, framed(b"x"), end=True))
    assert calm(peer) == (count > 8)
    if count <= 8:
        assert seen(peer, 1) == SERVED


def test_c13_an_endless_block_ends_at_the_ninth() -> None:
    """C13: a client that never says END_HEADERS is not listened to; nothing of it is kept."""
    peer = Client()
    peer.send(headers(1, literals(fields()), flags=0))
    for _ in range(8):
        peer.send(continuation(1, b"\x00\x01a\x01b" * 10, flags=0))
    assert not calm(peer)
    peer.send(continuation(1, b"", flags=0))
    assert calm(peer)


@pytest.mark.parametrize("empties", [0, 1, 2, 10])
def test_c13_one_continuation_may_be_empty(empties: int) -> None:
    """C13, A28: besides the one that ends the block, for such is legal and seen."""
    peer = Client()
    block = literals(fields())
    peer.send(
        headers(1, block, flags=0), continuation(1, b"", flags=0) * empties, continuation(1, b""),
        data(1, framed(b"x"), end=True),
    )  # fmt: skip
    assert calm(peer) == (empties > 1)


@pytest.mark.parametrize(("extra", "over"), [(0, False), (1, True), (576 * KIB, True)])
def test_c13_a_block_of_64_kib(extra: int, over: bool) -> None:
    """C13: counted in octets as they came, over all frames of the block; before they are decoded."""
    peer = small(header_bytes=1 << 20, continuations=1000)
    head = literals(fields())
    size = 64 * KIB + extra
    block = head + literals([(b"x", b"y" * (size - len(head) - 7))])  # 7: a byte, two lengths and the name
    assert len(block) == size
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    parts = [headers(1, pieces[0], flags=0), *(continuation(1, piece, flags=0) for piece in pieces[1:-1])]
    for part in [*parts, continuation(1, pieces[-1])]:
        if not peer.closed:
            peer.send(part)
    assert calm(peer) == over


# --- C14: header lists --------------------------------------------------------------------------------------------


LIST = Limits().header_bytes
FIELDS = Limits().header_fields
LARGE = ["TO 8", "RST NO_ERROR"]


@pytest.mark.parametrize(
    ("size", "count", "answer"),
    [
        (LIST, 8, SERVED),
        (LIST + 1, 8, LARGE),
        (4 * LIST, 8, LARGE),
        (4 * LIST + 1, 8, ["GOAWAY ENHANCE_YOUR_CALM"]),
        (10 * LIST, 8, ["GOAWAY ENHANCE_YOUR_CALM"]),
        (LIST, FIELDS, SERVED),
        (LIST, FIELDS + 1, LARGE),
        (4 * LIST, 4 * FIELDS, LARGE),
        (4 * LIST, 4 * FIELDS + 1, ["GOAWAY ENHANCE_YOUR_CALM"]),
        (10 * LIST, 10 * FIELDS, ["GOAWAY ENHANCE_YOUR_CALM"]),
    ],
)
def test_c14_a_list_has_a_soft_and_a_hard_limit(size: int, count: int, answer: list[str]) -> None:
    """C14, B24: above 16 KiB or 128 fields it is status 8, above four times that the connection ends."""
    peer = small(header_block=1 << 20, continuations=100)
    block = literals(listed(size, count))
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    peer.send(headers(1, pieces[0], flags=END_HEADERS if len(pieces) == 1 else 0))
    for number, piece in enumerate(pieces[1:], 2):
        peer.send(continuation(1, piece, flags=END_HEADERS if number == len(pieces) else 0))
    if not peer.closed:
        peer.send(data(1, framed(b"x"), end=True))
    assert seen(peer, 1) == answer


def test_c14_the_hpack_bomb() -> None:
    """C14, CVE-2016-6581: a field of 4 KiB in the table, and an octet for each repeat, cost no more than the limit."""
    peer = Client()
    huge = (b"x", b"y" * 4000)
    peer.send(headers(1, peer.block([*fields(), huge])), data(1, framed(b"x"), end=True))
    assert seen(peer, 1) == SERVED
    bomb = peer.block([*fields(), *[huge] * 12_000])
    assert len(bomb) < 16_384
    tracemalloc.start()
    try:
        peer.connection.receive(headers(3, bomb, end=True), peer.now)
        kept, most = tracemalloc.get_traced_memory()
        assert kept < 32 * KIB
        assert most < 512 * KIB
    finally:
        tracemalloc.stop()
    peer.settle()
    assert calm(peer)


@pytest.mark.parametrize("count", [1, 100, 128])
def test_c14_fields_of_length_0_are_counted(count: int) -> None:
    """C14, CVE-2019-9516: an empty name is malformed, and 32 octets in the list each."""
    peer = Client()
    peer.send(headers(1, literals(fields()) + b"\x00\x00\x00" * count, end=True))
    assert seen(peer, 1) in (["RST PROTOCOL_ERROR"], ["TO 8"])
    many = Client()
    many.send(headers(1, literals(fields()) + b"\x00\x00\x00" * 600, end=True))
    assert calm(many)


# --- C15: HPACK ---------------------------------------------------------------------------------------------------


C15 = {
    "index of six octets": b"\xff\x80\x80\x80\x80\x80\x01",
    "padded with zeros": b"\xff" + b"\x80" * 100 + b"\x00",
    "index of 2^31": b"\xff\x80\xff\xff\xff\x07",
    "name longer than the block": b"\x00\x7f\xff\xff\xff\x7fx",
    "name one longer than the block": b"\x00\x03ab",
    "value longer than the block": b"\x00\x01a\x02b",
    "value of 1 GiB": b"\x00\x01a\x7f\xff\xff\xff\xff\x03",
    "Huffman name longer than the block": b"\x00\xffx\x01",
}


@pytest.mark.parametrize("case", C15)
def test_c15_an_integer_has_five_octets_and_a_string_its_block(case: str) -> None:
    """C15, CVE-2023-33953: GOAWAY(COMPRESSION_ERROR), judged by the length before anything is kept for it."""
    peer = Client()
    tracemalloc.start()
    try:
        peer.connection.receive(headers(1, literals(fields()) + C15[case], end=True), peer.now)
        assert tracemalloc.get_traced_memory()[1] < 64 * KIB
    finally:
        tracemalloc.stop()
    peer.settle()
    assert (peer.closed, peer.error) == (True, ErrorCode.COMPRESSION_ERROR)


@pytest.mark.parametrize("denied", [False, True])
def test_a10_a_frame_of_more_than_16_kib_is_never_taken(denied: bool) -> None:
    """A10: also when it is the DATA of a call whose headers are remembered, and whose answer is known before it."""
    peer = Client()
    head = literals(fields(ECHO, [(b"x-deny", b"yes")] if denied else []))
    for stream in (1, 3, 5):
        peer.send(headers(stream, head), data(stream, framed(b"x"), end=True))
    peer.send(headers(7, head), data(7, bytes(16_385), end=True))
    assert (peer.closed, peer.error) == (True, ErrorCode.FRAME_SIZE_ERROR)


# --- C16, C17: frames that do nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "over"), [(100, False), (101, True), (1000, True)])
@pytest.mark.parametrize("padding", [None, 0, 200])
def test_c16_a_hundred_empty_data_frames(count: int, over: bool, padding: int | None) -> None:
    """C16, CVE-2019-9518: on one stream, with padding or without."""
    peer = Client()
    peer.send(headers(1, literals(fields())))
    for _ in range(count):
        peer.send(data(1, b"", padding=padding))
    assert calm(peer) == over
    if not over:
        peer.send(data(1, framed(b"x"), end=True))
        assert seen(peer, 1) == SERVED


def test_c16_they_are_counted_over_all_streams() -> None:
    """C16: a new stream for each does not help; an empty DATA frame that ends a stream is honest (Caddy sends it)."""
    peer = Client()
    for _ in range(101):
        peer.send(headers(peer.next_stream, literals(fields(WATCH))), data(peer.next_stream, b""))
        peer.next_stream += 2
        if not peer.closed:
            peer.send(data(peer.next_stream - 2, b"", end=True))
    assert calm(peer)
    honest = Client()
    for _ in range(1000):
        stream, honest.next_stream = honest.next_stream, honest.next_stream + 2
        honest.send(headers(stream, literals(fields())), data(stream, framed(b"x")), data(stream, b"", end=True))
        assert seen(honest, stream) == SERVED
    assert not calm(honest)


C17 = {
    "PRIORITY": priority(1, 3),
    "PRIORITY of an idle stream": priority(999, 3),
    "unknown": frame(0xBE, 0xFF, 0, b"grease"),
    "unknown on a stream": frame(0x21, 0, 7, b""),
    "PRIORITY_UPDATE": frame(0x10, 0, 0, b"\0\0\0\1u=1"),
    "ALTSVC": frame(0x0A, 0, 0, b"\0\0x"),
}


@pytest.mark.parametrize("case", C17)
@pytest.mark.parametrize("calls", [0, 3])
def test_c17_a_hundred_odd_frames_for_each_call(case: str, calls: int) -> None:
    """C17, CVE-2019-9513: PRIORITY and what we do not know; a call is a reason for 100 more, its answer for another."""
    for count, over in ((100 + 100 * calls, False), (101 + 200 * calls, True), (1000 + 1000 * calls, True)):
        peer = Client()
        for _ in range(calls):
            peer.call()
        for _ in range(count):
            if not peer.closed:
                peer.send(C17[case])
        assert calm(peer) == over, count


# --- C18: messages ------------------------------------------------------------------------------------------------


MESSAGE = Limits().request_bytes


@pytest.mark.parametrize("path", [ECHO, TALK])
@pytest.mark.parametrize(("size", "status"), [(MESSAGE, 0), (MESSAGE + 1, 8), (10 * MESSAGE, 8)])
def test_c18_a_request_has_64_kib(path: bytes, size: int, status: int) -> None:
    """C18: exactly the limit is served, one octet more is status 8."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 1 << 20})
    peer.send(window_update(0, 1 << 20), headers(1, literals(fields(path))))
    body = framed(b"x" * size)
    for at in range(0, len(body), 16_384):
        if not peer.reply(1).ended:
            peer.send(data(1, body[at : at + 16_384], end=at + 16_384 >= len(body)))
    assert peer.reply(1).status == status


def test_c18_unfinished_requests_of_all_calls_have_a_bound() -> None:
    """C18: a hundred calls that each hold back the last octet of the longest message hold `held_bytes` in all."""
    peer = Client()
    whole = framed(b"x" * (MESSAGE - 8000))[:-1]
    for at in range(1, 200, 2):
        peer.reply(at)
    tracemalloc.start()
    try:
        for at in range(1, 200, 2):
            octets = [headers(at, literals(fields()))]
            octets += [data(at, whole[part : part + 16_384]) for part in range(0, len(whole), 16_384)]
            peer.connection.receive(b"".join(octets), peer.now)
        assert tracemalloc.get_traced_memory()[0] < 256 * KIB
    finally:
        tracemalloc.stop()
    peer.settle()
    assert peer.closed or {peer.reply(at).status for at in range(21, 200, 2)} == {8}


# --- C19: a quantum of work ---------------------------------------------------------------------------------------


def test_c19_a_turn_is_short_on_the_slow_path() -> None:
    """C19: frames that need work are taken `quantum_frames` at a time, the rest when the loop comes round again."""
    limit = Limits().quantum_frames
    for count, pending in ((limit // 2, False), (limit * 10, True)):
        peer = small(our_resets=1 << 20)
        octets = b"".join(request(at, b"x", b"/%d" % at) for at in range(1, 2 * count // 2, 2))
        peer.feed(octets)
        assert peer.connection.pending == pending
        peer.settle()
        assert not peer.connection.pending
        assert all(peer.reply(at).status == 12 for at in range(1, 2 * count // 2, 2))


def test_c19_a_turn_is_short_on_the_fast_path_too() -> None:
    """C19: a read full of good calls is answered in more than one turn, and in order."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 1 << 20})
    peer.send(window_update(0, 1 << 30))
    for _ in range(3):
        peer.call(b"same")
    octets = b"".join(request(at, b"same") for at in range(7, 40_007, 2))
    peer.feed(octets)
    assert peer.connection.pending
    before = len(peer.frames)
    peer.settle()
    answered = [one.stream for one in peer.frames[before:] if one.kind == 1 and one.flags & 1]
    assert answered == list(range(7, 40_007, 2))
