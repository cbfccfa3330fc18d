"""Conversations for the tests that have the same one twice: generated ones, and one that was written down.

A conversation is a list of segments. What waits for the transport is written after each segment, not within, so that
what comes back does not depend on how the network cut a segment, or on how much of it was read at once.
"""

from __future__ import annotations

import itertools

import hpack
from hypothesis import Phase
from hypothesis import strategies as st
from wire.application import COUNT, DENY, ECHO, FAIL, LARGE, REFUSE, TALK, WATCH, Field, Methods
from wire.peer import Peer
from wire.raw import (
    HEADERS,
    PREFACE,
    continuation,
    data,
    fields,
    frame,
    framed,
    goaway,
    headers,
    literals,
    ping,
    priority,
    request,
    rst_stream,
    window_update,
)  # fmt: skip
from wire.raw import settings as settings_frame

from avapd.wire.connection import Connection
from avapd.wire.headers import Routes
from avapd.wire.limits import Limits


class Script:
    """A client that writes a conversation: good calls for the most part, and whatever else hypothesis adds."""

    def __init__(self) -> None:
        self.stream = -1
        self.encoder = hpack.Encoder()
        self.began: list[int] = []  # calls whose request is not complete
        self.segments: list[bytes] = [PREFACE + settings_frame() + settings_frame(ack=True)]

    def next(self, skip: int = 0) -> int:
        self.stream += 2 + 2 * skip
        return self.stream

    def add(self, *parts: bytes) -> None:
        self.segments[-1] += b"".join(parts)


PATHS = (ECHO, ECHO, ECHO, LARGE, REFUSE, FAIL, COUNT, b"/no/where", b"/")
EXTRAS: tuple[tuple[Field, ...], ...] = (
    (), (), (), (DENY,), ((b"grpc-timeout", b"5S"),), ((b"x-trace", b"1"),), ((b"x-mark", b"1"),),
    ((b"content-length", b"6"),), ((b"content-length", b"7"),), ((b"X-Bad", b"1"),),
    ((b"grpc-accept-encoding", b"gzip"),), ((b"grpc-timeout", b"never"),),
)  # fmt: skip
MESSAGES = (b"1", b"2", b"3", b"70000", b"x" * 300)


def block(script: Script, path: bytes, extra: tuple[Field, ...], how: str) -> bytes:
    """The header block of a call, as clients write it: as it is, with pointers, or with inserts every time."""
    if how == "pointers":
        return script.encoder.encode(fields(path, extra))
    if how == "inserts":  # nginx and HAProxy: the same bytes each time, and each time two more entries
        both = b"".join(b"\x40" + literals([field])[1:] for field in fields(path)[2:4])
        return literals(fields(path)[:2]) + both + literals([*fields(path)[4:], *extra])
    return literals(fields(path, extra))


@st.composite
def call(draw: st.DrawFn, script: Script) -> None:
    """A call in two frames, as the loop knows it by heart; often the same again and again."""
    path, extra = draw(st.sampled_from(PATHS)), draw(st.sampled_from(EXTRAS))
    how = draw(st.sampled_from(["as it is", "as it is", "pointers", "inserts"]))
    message, skip = draw(st.sampled_from(MESSAGES)), draw(st.sampled_from([0] * 9 + [1]))
    for _ in range(draw(st.integers(1, 6))):
        stream = script.next(skip)
        script.add(headers(stream, block(script, path, extra, how)), data(stream, framed(message), end=True))


@st.composite
def odd_call(draw: st.DrawFn, script: Script) -> None:
    """A call in other frames."""
    stream = script.next()
    whole, body = block(script, draw(st.sampled_from(PATHS)), (), "as it is"), framed(draw(st.sampled_from(MESSAGES)))
    cut, kind = draw(st.integers(0, 9)), draw(st.integers(0, 8))
    start = headers(stream, whole)
    script.add(*{
        0: (headers(stream, whole[:cut], flags=0), continuation(stream, whole[cut:]), data(stream, body, end=True)),
        1: (start, data(stream, body[:cut]), data(stream, body[cut:], end=True)),
        2: (start, data(stream, body, padding=cut, end=True)),
        3: (start, data(stream, body), data(stream, b"", end=True)),
        4: (start, data(stream, body), headers(stream, literals([(b"x-end", b"1")]), end=True)),
        5: (headers(stream, whole, end=True),),
        6: (frame(HEADERS, 0x2C, stream, b"\1\0\0\0\0\7" + whole + b"\0"), data(stream, body, end=True)),
        7: (start, rst_stream(stream), ping()),
        8: (start, data(stream, body, end=True), window_update(stream, 9), rst_stream(stream)),
    }[kind])  # fmt: skip


@st.composite
def long_call(draw: st.DrawFn, script: Script) -> None:
    """A call that stays open, or more of one that is."""
    more, end = draw(st.booleans()), draw(st.booleans())
    if script.began and more:
        stream = draw(st.sampled_from(script.began))
        script.add(data(stream, framed(b"more"), end=end))
        if end:
            script.began.remove(stream)
    else:
        stream, path = script.next(), draw(st.sampled_from([TALK, WATCH]))
        script.add(headers(stream, literals(fields(path))), data(stream, framed(b"first"), end=path == WATCH))
        if path == TALK:
            script.began.append(stream)


@st.composite
def control(draw: st.DrawFn, script: Script) -> None:
    """A frame of the connection."""
    number = draw(st.sampled_from([1, 5, 100, 70_000]))
    one = draw(
        st.sampled_from([
            settings_frame({4: number}), settings_frame({1: number}), settings_frame({1: 4096}), ping(),
            window_update(0, number), window_update(max(script.stream, 0), number), priority(7), goaway(),
            frame(0x10, 0, 0, b"\0\0\0\1u=1"), ping(ack=True), settings_frame({0xFE03: 1}),
        ])
    )  # fmt: skip
    script.add(one * draw(st.sampled_from([1, 1, 1, 1, 30])))


@st.composite
def error(draw: st.DrawFn, script: Script) -> None:
    """A frame that should end a stream or the connection."""
    stream = max(script.stream, 1)
    script.add(
        draw(
            st.sampled_from([
                data(stream, b"late"), data(stream + 100, b"idle"), headers(stream, literals(fields())),
                headers(stream + 1, literals(fields())), headers(stream + 2, b"\x80"), ping(b"short"),
                window_update(stream, 0), rst_stream(stream + 50), frame(0, 8, stream, b"\xff"), bytes(9) + b"\xff" * 9,
                b"\xff\xff\xff" + bytes(6), continuation(stream, b""), frame(5, 0, 1, bytes(8)), settings_frame({2: 2}),
            ])
        )
    )  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What a client sends, in segments between which everything that waits is written."""
    script = Script()
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from([call] * 12 + [odd_call] * 3 + [long_call] * 2 + [control] * 3))
        draw(kind(script))
        if draw(st.integers(0, 4)) == 0:
            script.segments.append(b"")
    if draw(st.integers(0, 2)) == 0:
        draw(error(script))
        draw(call(script))
    return script.segments


# Shrinking a conversation takes minutes; as it was found it tells as much.
FOUND = (Phase.explicit, Phase.reuse, Phase.generate)
FEW = Limits(
    streams=5, window_updates=6, priorities=2, control_frames=20, settings_per_minute=6, empty_data=2, glitches=6,
    resets=3, our_resets=3, refusals=3, ping_strikes=1, tiny_frames=3, request_bytes=300,
)  # fmt: skip


def said(kind: type[Connection], limits: Limits, before: list[bytes], segments: list[bytes], cuts: list[int]) -> Peer:
    """Let a connection have a conversation, each segment cut at some places.

    `before`: a conversation that the application had with another client, so that what all share remembers something.
    """
    methods = Methods()
    routes = Routes(methods, limits)
    for told in ([before] if before else []), [segments]:
        for parts in told:
            peer = Peer(methods, connection=kind(routes, 0.0), open_=False)
            for part in parts:
                peer.writable = False
                places = sorted({0, len(part), *(cut % (len(part) + 1) for cut in cuts if parts is segments)})
                for start, end in itertools.pairwise(places):
                    peer.send(part[start:end])
                peer.writable = True
                peer.settle()
    return peer


def same(one: Peer, other: Peer) -> None:
    """Two conversations that went alike."""
    assert bytes(one.received) == bytes(other.received)
    assert one.closed == other.closed
    assert sorted(one.connection.finished) == sorted(other.connection.finished)
    assert one.application.cancelled == other.application.cancelled


def recorded() -> list[bytes]:
    """A long conversation with every kind of frame, calls of every kind, and every way in which one can end."""
    encoder = hpack.Encoder()
    streams = iter(range(1, 1 << 20, 2))

    def call(message: bytes = b"again", path: bytes = ECHO, extra: tuple[Field, ...] = ()) -> bytes:
        stream = next(streams)
        return headers(stream, encoder.encode(fields(path, extra))) + data(stream, framed(message), end=True)

    def cut(at: int) -> bytes:
        stream, whole = next(streams), literals(fields())
        body = framed(b"in pieces")
        return (
            headers(stream, whole[:at], flags=0)
            + continuation(stream, whole[at:])
            + data(stream, body[:at])
            + data(stream, b"", padding=3)
            + data(stream, body[at:], padding=200)
            + headers(stream, encoder.encode([(b"x-end", b"%d" % at)]), end=True)
        )

    talk, watch, blocked = next(streams), next(streams), next(streams)
    return [
        PREFACE + settings_frame({4: 3000, 0xFE03: 1}) + window_update(0, 1 << 20) + settings_frame(ack=True),
        headers(talk, encoder.encode(fields(TALK))) + request(watch, b"", WATCH) + request(blocked, b"90000", LARGE),
        b"".join(call() for _ in range(12)) + ping(b"one....."),
        b"".join(call(b"%d" % size, LARGE) for size in (0, 2994, 2995, 2996, 20_000)) + priority(watch, talk),
        b"".join(cut(at) for at in range(1, 12, 3)) + b"".join(call(b"%d" % count, COUNT) for count in (0, 1, 40)),
        settings_frame({4: 100, 1: 0}) + b"".join(call() for _ in range(3)) + settings_frame({4: 60_000}),
        call(b"gone", REFUSE) + call(b"", FAIL) + call(b"", b"/no/where") + call(extra=(DENY,)) + call(extra=(DENY,)),
        data(talk, framed(b"1") + framed(b"2")[:3]) + call() + data(talk, framed(b"2")[3:]) + window_update(talk, 9),
        b"".join(call(extra=(one,)) for one in ((b"X-Bad", b"1"), (b"content-length", b"9"), (b"grpc-timeout", b"9S"))),
        frame(0x10, 0, 0, b"\0\0\0\1u=1") + frame(0xAA, 0xFF, watch, b"?" * 99) + goaway(0, 0, b"soon"),
        window_update(blocked, 1000) + rst_stream(blocked) + window_update(blocked, 1000) + rst_stream(watch),
        b"".join(call(b"x" * size) for size in (0, 1, 255, 256, 16_379, 16_000)) + ping(b"two....."),
        b"".join(call() for _ in range(30)) + data(talk, b"", end=True) + settings_frame(),
        b"".join(call(path=b"/no/where") + call(extra=((b"x-trace", b"%d" % number),)) for number in range(20)),
    ]


ENDINGS = {
    "well": b"",
    "index": headers(9001, b"\x80") + ping(),
    "idle": data(9001, b"x") + ping(),
    "again": headers(1, literals(fields())),
    "large": frame(0, 0, 1, bytes(16_385)),
    "block": headers(9001, literals(fields()), flags=0) + ping(),
    "window": window_update(0, (1 << 31) - 1),
    "nonsense": bytes(range(256)),
}
