"""Part A.4 of the checklist, the blocks: CONTINUATION, priority, and HPACK as the connection sees it."""

from __future__ import annotations

import pytest
from wire.application import DENY, ECHO, TALK, UNAUTHENTICATED, WATCH
from wire.peer import Peer
from wire.raw import (
    COMPRESSION_ERROR,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    PADDED,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    SETTINGS,
    continuation,
    data,
    fields,
    frame,
    framed,
    headers,
    literals,
    ping,
    priority,
    request,
    rst_stream,
    settings,
    window_update,
)

from avapd.wire.limits import Limits

BLOCK = literals(fields())
INSERT_DENY = b"\x40" + literals([DENY])[1:]  # the same literal, with incremental indexing
NEWEST = b"\xbe"  # index 62: the entry inserted last


def denied(peer: Peer, stream: int, *, before: bytes = b"", after: bytes = NEWEST) -> bool:
    """Whether a call is refused for the key that the table holds: a block was decoded rightly, or else nobody knew."""
    peer.send(headers(stream, before + BLOCK + after), data(stream, framed(b"x"), end=True))
    return peer.reply(stream).status == UNAUTHENTICATED


@pytest.mark.parametrize(
    "wrong",
    [
        data(1, b"x"),
        headers(3, BLOCK),
        headers(1, BLOCK),
        priority(1),
        rst_stream(1),
        settings(),
        settings(ack=True),
        ping(),
        frame(GOAWAY, 0, 0, bytes(8)),
        window_update(0, 1),
        window_update(1, 1),
        continuation(3, BLOCK),
        frame(0x10, 0, 0, b"\0\0\0\1u=1"),
    ],
    ids=[
        "DATA",
        "HEADERS",
        "again",
        "PRIORITY",
        "RST",
        "SETTINGS",
        "ACK",
        "PING",
        "GOAWAY",
        "WINDOW",
        "stream",
        "other",
        "unknown",
    ],
)
@pytest.mark.parametrize("cut", [0, 9])
def test_a27_nothing_comes_between_the_parts_of_a_block(wrong: bytes, cut: int) -> None:
    """A27: until END_HEADERS only CONTINUATION of the same stream; PROTOCOL_ERROR for all else."""
    peer = Peer()
    peer.send(headers(1, BLOCK[:cut], flags=0), wrong, continuation(1, BLOCK[cut:]))
    assert (peer.error, peer.closed) == (PROTOCOL_ERROR, True)


def test_a27_a_continuation_needs_a_beginning() -> None:
    """A27: PROTOCOL_ERROR for a CONTINUATION after a block that was complete, on any stream."""
    for stream in (1, 3, 5):
        peer = Peer()
        peer.send(request(1), headers(3, literals(fields(TALK))), continuation(stream, BLOCK))
        assert peer.error == PROTOCOL_ERROR


@pytest.mark.parametrize("cuts", [(20,), (0,), (len(BLOCK),), (1, 2, 3, 4, 5, 6), (20, 20)])
def test_a28_a_block_may_be_cut_anywhere(cuts: tuple[int, ...]) -> None:
    """A28: in the middle of a field, and with an empty piece: at the end, at the start, between."""
    peer = Peer()
    parts = [BLOCK[start:end] for start, end in zip((0, *cuts), (*cuts, len(BLOCK)), strict=True)]
    peer.send(headers(1, parts[0], flags=0), *(continuation(1, part, flags=0) for part in parts[1:-1]))
    assert not peer.replies[1].headers
    peer.send(continuation(1, parts[-1]), data(1, framed(b"x"), end=True))
    assert peer.reply(1).messages == [b"reply to x"]


def test_a28_the_end_of_the_stream_stands_on_headers() -> None:
    """A28: END_STREAM on HEADERS counts when the block is complete; CONTINUATION has no such flag."""
    peer = Peer()
    peer.send(headers(1, BLOCK[:9], end=True, flags=0), continuation(1, BLOCK[9:]))
    assert peer.reply(1).ended  # a request without a message
    peer.send(headers(3, BLOCK[:9], flags=0), continuation(3, BLOCK[9:], flags=END_HEADERS | END_STREAM))
    peer.send(data(3, framed(b"x"), end=True))
    assert peer.reply(3).status == 0


@pytest.mark.parametrize("depends", [b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\0\x63", b"\x80\0\0\1"])
def test_a29_priority_in_headers_is_skipped(depends: bytes) -> None:
    """A29: grpc-java sends it always; the five bytes are no part of the block, exclusive or not."""
    peer = Peer()
    start = depends + b"\x0f"
    peer.send(frame(HEADERS, 0x24, 3, start + BLOCK), data(3, framed(b"x"), end=True))
    peer.send(frame(HEADERS, PRIORITISED, 5, start + BLOCK[:9]), continuation(5, BLOCK[9:]))
    peer.send(data(5, framed(b"x"), end=True))
    peer.send(frame(HEADERS, 0x2C, 7, b"\2" + start + BLOCK + b"\0\0"), data(7, framed(b"x"), end=True))
    assert [peer.reply(stream).status for stream in (3, 5, 7)] == [0, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        frame(HEADERS, PRIORITISED | END_HEADERS, 1, b"\0\0\0\1\7" + BLOCK),
        frame(HEADERS, PRIORITISED | END_HEADERS, 1, b"\x80\0\0\1\7" + BLOCK),
        frame(HEADERS, PRIORITISED | PADDED | END_HEADERS, 1, b"\0\0\0\0\1\7" + BLOCK),
        frame(PRIORITY, 0, 1, b"\0\0\0\1\7"),
        frame(PRIORITY, 0, 1, b"\x80\0\0\1\7"),
    ],
    ids=["headers", "exclusive", "padded", "frame", "frame exclusive"],
)
def test_a29_a_stream_cannot_depend_on_itself(wrong: bytes) -> None:
    """A29: PROTOCOL_ERROR for the stream or for the connection."""
    peer = Peer()
    peer.send(wrong)
    assert PROTOCOL_ERROR in {peer.error, peer.reply(1).reset}


def test_a30_blocks_of_refused_streams_are_decoded() -> None:
    """A30: what a refused call inserts is in the table."""
    peer = Peer(limits=Limits(streams=1))
    peer.send(request(1, path=WATCH), headers(3, BLOCK + INSERT_DENY, end=True))
    assert peer.reply(3).reset == REFUSED_STREAM
    peer.send(rst_stream(1))
    assert denied(peer, 5)


def test_a30_blocks_of_malformed_requests_are_decoded() -> None:
    """A30: what stands behind the field that makes a request malformed is in the table."""
    peer = Peer()
    peer.send(headers(1, literals([(b"X-UPPER", b"1")]) + BLOCK + INSERT_DENY, end=True))
    assert peer.reply(1).reset == PROTOCOL_ERROR
    assert denied(peer, 3)


def test_a30_blocks_after_our_end_are_decoded() -> None:
    """A30: trailers of a call that we had answered early are in the table."""
    peer = Peer()
    peer.send(headers(1, literals(fields(b"/no/where"))), headers(1, INSERT_DENY, end=True))
    assert denied(peer, 3)


def test_a30_trailers_are_decoded() -> None:
    """A30: so are trailers of a call that goes on, which is answered as ever (B26)."""
    peer = Peer()
    peer.send(headers(1, BLOCK), data(1, framed(b"x")), headers(1, INSERT_DENY, end=True))
    assert peer.reply(1).messages == [b"reply to x"]
    assert denied(peer, 3)


def test_a30_too_large_a_list_is_decoded() -> None:
    """A30, B24: a header list over the soft limit is refused for its call only, and the table is right."""
    peer = Peer()
    filler = literals([(b"x-filler", b"f" * 8000)] * 2)
    peer.send(headers(1, BLOCK[:9] + BLOCK[9:], flags=0), continuation(1, filler[:16_000], flags=0))
    peer.send(continuation(1, filler[16_000:] + literals([(b"x-more", b"m" * 1000)]) + INSERT_DENY))
    peer.send(data(1, framed(b"x"), end=True))
    assert peer.reply(1).status == 8
    assert denied(peer, 3)


def test_a30_a_table_entry_lives_as_long_as_the_table_says() -> None:
    """A30, F1, F2: the same bytes mean another thing once another entry is the newest, also for remembered blocks."""
    peer = Peer()
    allow = b"\x40" + literals([(DENY[0], b"no")])[1:]
    for stream in range(1, 120, 6):
        assert denied(peer, stream, after=INSERT_DENY)
        assert not denied(peer, stream + 2, after=allow)
        assert not denied(peer, stream + 4)  # NEWEST


def test_a30_a_remembered_block_inserts_each_time() -> None:
    """A30, F1: the same bytes again and again, as nginx and HAProxy send them, move the older entries on each time."""
    peer = Peer()
    assert denied(peer, 1, after=INSERT_DENY)
    insert = b"\x40" + literals([(b"x-request", b"1")])[1:]
    for times in range(1, 21):
        assert not denied(peer, 4 * times - 1, after=insert)
        assert denied(peer, 4 * times + 1, after=bytes([0xBE + times]))


BAD_BLOCKS = {
    "index 0": "80",
    "index beyond": "be",
    "name beyond": "7f0061",
    "name beyond, not indexed": "0f3061",
    "size over 4096": "3fe21f",
    "huffman, 8 bits of padding": "000161" + "82ffff",
    "huffman, zero padding": "000161" + "8118",
    "huffman, EOS": "000161" + "84ffffffff",
    "string cut off": "00026161",
    "no value": "000161",
    "integer cut off": "ff",
    "integer endless": "ffffffffffffffffff00",
    "length endless": "00" + "7fffffffffffff7f",
    "literal alone": "40",
    "long string": "0001617fffff7f",
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a31_a_bad_block_ends_the_connection(name: str) -> None:
    """A31: COMPRESSION_ERROR for the connection, wherever the block stands: first, after a good one, cut up."""
    bad = bytes.fromhex(BAD_BLOCKS[name])
    for block in (bad, BLOCK + bad):
        peer = Peer()
        peer.send(headers(1, block, end=True))
        assert (peer.error, peer.closed) == (COMPRESSION_ERROR, True), block
        cut = Peer()
        cut.send(request(1), headers(3, block[:1], flags=0), continuation(3, block[1:]))
        assert (cut.error, cut.closed) == (COMPRESSION_ERROR, True), block


@pytest.mark.parametrize("update", [b"\x20", b"\x3f\x01", b"\x3f\xe1\x1f"])
def test_a31_size_updates_come_first(update: bytes) -> None:
    """A31: after a field a size update is COMPRESSION_ERROR, in the middle of a block and at its end."""
    for block in (BLOCK + update, literals(fields()[:2]) + update + literals(fields()[2:])):
        peer = Peer()
        peer.send(headers(1, block, end=True))
        assert peer.error == COMPRESSION_ERROR


@pytest.mark.parametrize("where", ["trailers", "refused", "discarded", "after goaway"])
def test_a31_a_bad_block_is_bad_on_every_stream(where: str) -> None:
    """A31, A30: also where nobody wanted the headers, for nothing after it could be read."""
    peer = Peer(limits=Limits(streams=1))
    if where == "trailers":
        peer.send(headers(1, BLOCK), headers(1, b"\x80", end=True))
    elif where == "refused":
        peer.send(request(1, path=WATCH), headers(3, b"\x80", end=True))
    elif where == "discarded":
        peer.send(headers(1, literals(fields(b"/no/where"))), headers(1, b"\x80", end=True))
    else:
        peer.send(request(1, path=WATCH))
        peer.send(ping(peer.drain()[1].payload, ack=True), headers(3, b"\x80", end=True))
    assert (peer.error, peer.closed) == (COMPRESSION_ERROR, True)


@pytest.mark.parametrize("updates", ["", "20", "3fe11f", "203fe11f", "3f0120", "3f613fe11f"])
def test_a32_two_size_updates_are_legal(updates: str) -> None:
    """A32: none, one or two at the start of a block; what was in the table before is gone when one of them was 0."""
    peer = Peer()
    assert denied(peer, 1, after=INSERT_DENY)
    start = bytes.fromhex(updates)
    if "20" in updates:
        peer.send(headers(3, start + BLOCK + NEWEST, end=True))
        assert peer.error == COMPRESSION_ERROR
    else:
        assert denied(peer, 3, before=start)


@pytest.mark.parametrize(
    "rest",
    [b"\x10" + literals([DENY])[1:], literals([DENY]), INSERT_DENY],
    ids=["never indexed", "not indexed", "indexed"],
)
def test_a32_every_literal_is_legal(rest: bytes) -> None:
    """A32: and all mean the same."""
    assert denied(Peer(), 1, after=rest)


def test_a32_names_come_from_the_table() -> None:
    """A32: a literal may take its name from an entry of the dynamic table, in all three kinds."""
    peer = Peer()
    assert denied(peer, 1, after=INSERT_DENY)
    for stream, start in ((3, b"\x0f\x2f"), (5, b"\x1f\x2f"), (7, b"\x7e")):
        assert denied(peer, stream, after=start + b"\3yes")


def test_a32_an_entry_larger_than_the_table_empties_it() -> None:
    """A32: no error, and nothing is left to point at."""
    peer = Peer()
    assert denied(peer, 1, after=INSERT_DENY)
    huge = b"\x40" + literals([(b"x-huge", b"h" * 5000)])[1:]
    assert not denied(peer, 3, after=huge)
    peer.send(headers(5, BLOCK + NEWEST, end=True))
    assert peer.error == COMPRESSION_ERROR


def test_a32_an_insert_may_evict_its_own_name() -> None:
    """A32: the entry that lends its name goes as the new one comes (RFC 7541 section 4.4)."""
    peer = Peer()
    assert denied(peer, 1, after=INSERT_DENY)
    value = b"n" * (4096 - 32 - len(DENY[0]))
    long = b"\x7e" + literals([(b"", value)])[2:]  # fills the table to the last byte
    assert not denied(peer, 3, after=long)
    assert denied(peer, 5, after=b"\x7e\3yes")  # the name is that of the entry just inserted
    assert denied(peer, 7)


@pytest.mark.parametrize("size", [0, 1, 1024, 4095])
def test_a33_a_smaller_table_is_acknowledged_by_a_size_update(size: int) -> None:
    """A33: after the ACK of a smaller HEADER_TABLE_SIZE the next block begins with a size update, the one after not."""
    peer = Peer()
    assert peer.call(b"x").status == 0
    peer.send(settings({HEADER_TABLE_SIZE: size}))
    for path in (ECHO, b"/no/where", ECHO):
        assert peer.call(b"x", path).headers
    first, *others = [one.payload for one in peer.of(HEADERS) if one.stream > 1]
    assert first[0] == 0x20
    assert not any(block[0] & 0xE0 == 0x20 for block in others)


@pytest.mark.parametrize("path", [ECHO, WATCH, b"/no/where"])
def test_a33_from_the_first_settings_on(path: bytes) -> None:
    """A33: h2load --header-table-size=0 and nginx say 0 at once."""
    peer = Peer(settings_={HEADER_TABLE_SIZE: 0})
    peer.call(b"x", path)
    assert peer.of(HEADERS)[0].payload[0] == 0x20


def test_a33_a_table_that_shrinks_and_grows_is_acknowledged() -> None:
    """A33: the smallest size between two blocks must be told, though the last one is large (RFC 7541 section 4.2)."""
    peer = Peer()
    peer.send(settings({HEADER_TABLE_SIZE: 0}), settings({HEADER_TABLE_SIZE: 4096}))
    peer.send(settings([(HEADER_TABLE_SIZE, 8192), (HEADER_TABLE_SIZE, 65_536)]))
    assert peer.call(b"x").status == 0
    assert peer.of(HEADERS)[0].payload[0] == 0x20
    assert len([one for one in peer.of(SETTINGS) if one.flags]) == 4


def test_a33_a_larger_table_needs_no_word() -> None:
    """A33: nothing changes for a client that offers more than 4096."""
    peer = Peer(settings_={HEADER_TABLE_SIZE: 65_536})
    assert peer.call(b"x").status == 0
    assert peer.of(HEADERS)[0].payload[0] & 0xE0 != 0x20


def test_a33_blocks_in_a_burst_say_it_once() -> None:
    """A33: also when the calls come with the SETTINGS in one read, remembered or not."""
    peer = Peer()
    calls = [request(stream, b"same") for stream in range(1, 41, 2)]
    peer.send(*calls)
    later = [request(stream, b"same") for stream in range(41, 81, 2)]
    came = peer.send(settings({HEADER_TABLE_SIZE: 100}), *later, ping())
    starts = [one.payload[0] for one in came if one.kind == HEADERS and not one.flags & END_STREAM]
    assert starts[0] == 0x20
    assert 0x20 not in starts[1:]


def test_a31_a_frame_error_is_no_block_error() -> None:
    """A31, A10: a block longer than a frame is an error of size."""
    peer = Peer()
    peer.send(headers(1, BLOCK + bytes(16_384)))
    assert peer.error == FRAME_SIZE_ERROR
