"""Part A.2 of the checklist: the frame layer."""

from __future__ import annotations

import pytest
from wire.application import TALK, WATCH
from wire.peer import Peer
from wire.raw import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    continuation,
    data,
    fields,
    frame,
    framed,
    headers,
    literals,
    ping,
    request,
    settings,
)

KINDS = range(10)
BLOCK = literals(fields())


def head(kind: int, length: int, stream: int, flags: int = 0) -> bytes:
    """The nine bytes in front of a payload, without the payload."""
    return frame(kind, flags, stream, bytes(length))[:9]


@pytest.mark.parametrize("kind", [*KINDS, 0x10, 0xFF])
@pytest.mark.parametrize("stream", [0, 1, 77])
@pytest.mark.parametrize("length", [16_385, (1 << 24) - 1])
def test_a10_a_frame_too_large_is_refused_by_its_head(kind: int, stream: int, length: int) -> None:
    """A10: FRAME_SIZE_ERROR as soon as the nine bytes are there, whatever the frame is; nothing is waited for."""
    peer = Peer()
    peer.send(request(1, end=False), head(kind, length, stream))
    assert peer.error == FRAME_SIZE_ERROR or peer.reply(1).reset == FRAME_SIZE_ERROR


def test_a10_the_largest_frame_is_taken() -> None:
    """A10: 16,384 bytes are legal, for DATA, for a header block and for what we do not know."""
    peer = Peer()
    room = 16_384 - len(BLOCK)
    filler = literals([(b"x-filler", b"f" * (room - 13))])
    peer.send(frame(0xEE, 0, 0, bytes(16_384)), headers(1, BLOCK + filler))
    assert len(BLOCK + filler) == 16_384
    peer.send(data(1, framed(bytes(16_379)), end=True))
    assert peer.reply(1).ended
    assert not peer.closed


@pytest.mark.parametrize("stream", [0, 1, 3, 5, 7, 1 << 30])
@pytest.mark.parametrize("flags", [0, 0xFF])
def test_a11_unknown_types_are_ignored(stream: int, flags: int) -> None:
    """A11: on stream 0 and on streams closed, open, half-closed and idle, whatever the flags."""
    peer = Peer()
    peer.send(request(1), headers(3, literals(fields(TALK))), request(5, path=WATCH))
    came = peer.send(frame(0x0B, flags, stream, b"anything"), frame(0xFE, flags, stream), ping())
    assert [one.kind for one in came] == [PING]
    assert peer.call(b"x", stream=9).status == 0


@pytest.mark.parametrize("stream", [0, 1, 3])
def test_a11_unknown_types_break_a_header_block(stream: int) -> None:
    """A11: inside a header block they are PROTOCOL_ERROR."""
    peer = Peer()
    peer.send(headers(1, BLOCK[:9], flags=0), frame(0x0B, 0, stream, b"?"))
    assert peer.error == PROTOCOL_ERROR


def test_a12_undefined_flags_and_the_reserved_bit_are_ignored() -> None:
    """A12: every flag that a type does not define, and the first bit of a stream, of an increment and of GOAWAY's."""
    peer = Peer()
    reserved = 1 << 31
    peer.send(
        frame(SETTINGS, 0xFE, reserved, b"\0\4\0\1\0\0"),
        frame(PRIORITY, 0xFF, reserved | 1, b"\0\0\0\0\7"),
        frame(HEADERS, 0xD2, reserved | 1, BLOCK[:20]),
        frame(CONTINUATION, 0xFF, reserved | 1, BLOCK[20:]),
        frame(WINDOW_UPDATE, 0xFF, reserved | 1, b"\x80\0\0\1"),
        frame(WINDOW_UPDATE, 0xFF, reserved, b"\x80\0\0\1"),
        frame(DATA, 0xF6, reserved | 1, framed(b"one")[:5]),
        frame(DATA, 0xF7, reserved | 1, b"one"),
        frame(PING, 0xFE, reserved, b"12345678"),
        frame(HEADERS, 0xD6, reserved | 3, literals(fields(TALK))),
        frame(RST_STREAM, 0xFF, reserved | 3, bytes(4)),
        frame(GOAWAY, 0xFF, reserved, b"\x80" + bytes(7)),
    )
    assert (peer.reply(1).messages, peer.reply(1).status) == ([b"reply to one"], 0)
    assert (len(peer.of(PING)), peer.error) == (1, None)


@pytest.mark.parametrize("padding", [0, 1, 100, 255])
def test_a13_padding_is_taken_off(padding: int) -> None:
    """A13: padded HEADERS, with and without priority, and padded DATA mean the same as without; it may be all of it."""
    peer = Peer()
    pad = bytes([padding])
    peer.send(
        frame(HEADERS, END_HEADERS | PADDED, 1, pad + BLOCK + bytes(padding)),
        data(1, framed(b"x")[:3], padding=padding),
        data(1, b"", padding=padding),
        data(1, framed(b"x")[3:], padding=padding, end=True),
        frame(HEADERS, END_HEADERS | PADDED | PRIORITISED, 3, pad + b"\0\0\0\0\7" + BLOCK + bytes(padding)),
        data(3, framed(b"x"), padding=padding, end=True),
    )
    assert peer.reply(1).messages == peer.reply(3).messages == [b"reply to x"]


@pytest.mark.parametrize(
    "wrong",
    [
        frame(DATA, PADDED, 1, b"\x05Test"),
        frame(DATA, PADDED, 1, b"\x01"),
        frame(DATA, PADDED | END_STREAM, 1, b"\xff" + bytes(254)),
        frame(HEADERS, PADDED | END_HEADERS, 3, bytes([len(BLOCK) + 1]) + BLOCK),
        frame(HEADERS, PADDED | END_HEADERS, 3, b"\xff" + BLOCK),
        frame(HEADERS, PADDED | PRIORITISED | END_HEADERS, 3, b"\x06\0\0\0\0\0"),
    ],
    ids=["data", "only", "ended", "headers", "much", "priority"],
)
def test_a13_too_much_padding_ends_the_connection(wrong: bytes) -> None:
    """A13: padding as long as the payload or longer is PROTOCOL_ERROR."""
    peer = Peer()
    peer.send(headers(1, BLOCK), wrong)
    assert peer.error == PROTOCOL_ERROR


@pytest.mark.parametrize("kind", [DATA, HEADERS])
def test_a13_padding_needs_its_length(kind: int) -> None:
    """A13: a padded frame of no bytes is an error of size or of protocol."""
    peer = Peer()
    peer.send(headers(1, BLOCK), frame(kind, PADDED | END_HEADERS, 1 if kind == DATA else 3))
    assert peer.error in {PROTOCOL_ERROR, FRAME_SIZE_ERROR}


def test_a13_padding_counts_for_flow_control() -> None:
    """A13: what the padding took of the connection's window comes back with the rest."""
    peer = Peer()
    start = peer.upload
    for stream in range(1, 201, 2):
        body = [data(stream, piece, padding=250) for piece in (framed(b"xyz")[:4], framed(b"xyz")[4:])]
        peer.send(headers(stream, BLOCK), *body, data(stream, b"", padding=255, end=True))
        assert peer.reply(stream).messages == [b"reply to xyz"]
        assert start // 2 <= peer.upload <= start


@pytest.mark.parametrize(
    ("kind", "flags", "stream", "sizes"),
    [
        (PRIORITY, 0, 1, (0, 4, 6)),
        (RST_STREAM, 0, 1, (0, 3, 5)),
        (SETTINGS, 0, 0, (1, 5, 7, 13)),
        (SETTINGS, 1, 0, (1, 6)),
        (PING, 0, 0, (0, 7, 9)),
        (PING, 1, 0, (0, 7, 9)),
        (GOAWAY, 0, 0, (0, 7)),
        (WINDOW_UPDATE, 0, 0, (0, 3, 5)),
        (WINDOW_UPDATE, 0, 1, (0, 3, 5)),
    ],
)
def test_a14_sizes_are_fixed(kind: int, flags: int, stream: int, sizes: tuple[int, ...]) -> None:
    """A14: FRAME_SIZE_ERROR for every other size."""
    for size in sizes:
        peer = Peer()
        peer.send(request(1, path=WATCH), frame(kind, flags, stream, b"\1" * size))
        assert peer.error == FRAME_SIZE_ERROR, size
        assert peer.closed


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\0\0"], ids=len)
def test_a14_headers_with_priority_need_five_bytes(payload: bytes) -> None:
    """A14: HEADERS whose priority is cut off are an error of size or of protocol."""
    peer = Peer()
    peer.send(frame(HEADERS, END_HEADERS | PRIORITISED, 1, payload))
    assert peer.error in {PROTOCOL_ERROR, FRAME_SIZE_ERROR}


@pytest.mark.parametrize(
    "wrong",
    [
        data(0, b"test"),
        headers(0, BLOCK),
        frame(PRIORITY, 0, 0, bytes(5)),
        frame(RST_STREAM, 0, 0, bytes(4)),
        continuation(0, BLOCK),
        frame(SETTINGS, 0, 1, bytes.fromhex("000300000064")),
        frame(SETTINGS, 1, 1),
        frame(PING, 0, 1, bytes(8)),
        frame(PING, 1, 1, bytes(8)),
        frame(GOAWAY, 0, 1, bytes(8)),
    ],
    ids=["DATA", "HEADERS", "PRIORITY", "RST", "CONT", "SETTINGS", "SETTINGS ACK", "PING", "PING ACK", "GOAWAY"],
)
def test_a15_every_frame_has_its_place(wrong: bytes) -> None:
    """A15: PROTOCOL_ERROR for a call's frame on stream 0, and for the connection's on a stream."""
    peer = Peer()
    peer.send(request(1, path=WATCH), wrong)
    assert (peer.error, peer.closed) == (PROTOCOL_ERROR, True)


def test_a15_continuation_on_stream_0_inside_a_block() -> None:
    """A15: a CONTINUATION of stream 0 does not continue stream 1."""
    peer = Peer()
    peer.send(headers(1, BLOCK[:9], flags=0), continuation(0, BLOCK[9:]))
    assert peer.error == PROTOCOL_ERROR


@pytest.mark.parametrize("stream", [0, 1, 2, 3])
def test_a16_a_client_cannot_push(stream: int) -> None:
    """A16: PUSH_PROMISE is PROTOCOL_ERROR, also when ENABLE_PUSH was never mentioned."""
    peer = Peer()
    peer.send(request(1, path=WATCH), settings({2: 1}), frame(PUSH_PROMISE, END_HEADERS, stream, b"\0\0\0\2" + BLOCK))
    assert (peer.error, peer.closed) == (PROTOCOL_ERROR, True)
