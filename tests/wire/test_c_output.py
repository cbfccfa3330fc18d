"""Part C of the checklist, what a client makes us send and hold: slow readers and small windows (C8 to C12)."""

from __future__ import annotations

import tracemalloc

import pytest
from wire.application import COUNT, LARGE, WATCH
from wire.raw import (
    DATA,
    INITIAL_WINDOW_SIZE,
    data,
    fields,
    framed,
    headers,
    literals,
    ping,
    request,
    settings,
    window_update,
)  # fmt: skip
from wire.verdicts import Client, ask, seen

from avapd.wire.errors import ErrorCode
from avapd.wire.limits import Limits

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]
CALM = ErrorCode.ENHANCE_YOUR_CALM
HUGE = 0x7FFF_FFFF - 65_535
MALFORMED = literals([*fields(), (b"connection", b"close")])


def small(settings_: dict[int, int] | None = None, **limits: float) -> Client:
    """A connection with some limits small enough to be reached at once."""
    return Client(limits=Limits(**limits), settings_=settings_)  # type: ignore[arg-type]


def calm(peer: Client) -> bool:
    """Whether the connection has been told to calm down, and ended."""
    assert peer.error in {None, CALM}, peer.error
    assert (peer.error == CALM) == peer.closed
    return peer.closed


# --- C8: answers that nobody reads --------------------------------------------------------------------------------


def control(kind: str, count: int) -> bytes:
    """Frames that are each answered by one: PING, SETTINGS, a call that is reset."""
    if kind == "PING":
        return ping() * count
    if kind == "SETTINGS":
        return settings() * count
    return b"".join(headers(at, MALFORMED, end=True) for at in range(1, 2 * count, 2))


@pytest.mark.parametrize("kind", ["PING", "SETTINGS", "RST_STREAM"])
def test_c8_a_thousand_answers_may_wait(kind: str) -> None:
    """C8, CVE-2019-9512 to 9515: more of them unsent, while the client does not read, are ENHANCE_YOUR_CALM."""
    free: dict[str, float] = {"ping_strikes": 1 << 30, "settings_per_minute": 1 << 30, "our_resets": 1 << 30}
    for count, over in ((1000, False), (1001, True), (10_000, True)):
        peer = Client(limits=Limits(**free))  # type: ignore[arg-type]
        peer.writable = False
        octets = control(kind, count)
        for at in range(0, len(octets), 8000):
            peer.send(octets[at : at + 8000])
        assert calm(peer) == over, count


def test_c8_answers_that_are_read_are_not_counted() -> None:
    """C8: a client that reads may have ten thousand, as far as the other rows let it."""
    peer = small(ping_strikes=1 << 30)
    for _ in range(100):
        peer.send(ping() * 100)
    assert not calm(peer)


# --- C9: the write buffer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 10])
def test_c9_output_that_nobody_takes_stops_the_reading(times: int) -> None:
    """C9, CVE-2019-9517: at `write_bytes` nothing more is parsed or answered, however many requests are there."""
    limit = Limits().write_bytes
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 1 << 30})
    peer.send(window_update(0, HUGE))
    calls = times * 2 * limit // 16_000
    octets = b"".join(request(at, b"16000", LARGE) for at in range(1, 2 * calls, 2))
    peer.feed(octets)
    held = sum(map(len, peer.connection.out))
    assert held <= limit + 2 * 16_384
    assert peer.connection.pending


def test_c9_the_rest_follows_when_it_is_taken() -> None:
    """C9: nothing is lost by the pause: every call is answered in the end."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 1 << 30}, limits=Limits(streams=1000))
    peer.send(window_update(0, HUGE))
    peer.send(*(request(at, b"16000", LARGE) for at in range(1, 200, 2)))
    assert all(peer.reply(at).status == 0 for at in range(1, 200, 2))


# --- C10: answers that wait on a window ---------------------------------------------------------------------------


def test_c10_a_window_that_does_not_open_costs_the_call() -> None:
    """C10: after 60 s without progress the stream is reset; one octet of progress buys the time anew."""
    for late in (0.0, 540.0):
        peer = small({INITIAL_WINDOW_SIZE: 0}, idle_seconds=1e6, age_seconds=1e6)
        ask(peer, LARGE, body=framed(b"100"))
        peer.wait(59)
        peer.send(window_update(1, 1))
        peer.wait(59)
        assert peer.reply(1).reset is None
        peer.wait(2 + late)
        assert peer.reply(1).reset is not None
        assert ask(peer, body=None) == ["TO 12"]


@pytest.mark.parametrize("window", ["stream", "connection"])
def test_c10_both_windows_count(window: str) -> None:
    """C10: also when it is the window of the connection that is shut."""
    peer = small({INITIAL_WINDOW_SIZE: 0 if window == "stream" else 1 << 20}, idle_seconds=1e6, age_seconds=1e6)
    ask(peer, LARGE, body=framed(b"100000"))
    peer.wait(61)
    assert peer.reply(1).reset is not None


def test_c10_a_watch_with_nothing_to_say_is_not_blocked() -> None:
    """C10: a stream whose messages are all written may be silent for hours."""
    peer = small(idle_seconds=1e6, age_seconds=1e6, keepalive_seconds=1e6)
    ask(peer, WATCH)
    peer.wait(36_000)
    assert seen(peer, 1) == ["HEADERS 200", "DATA"]


def test_c10_what_is_blocked_has_a_bound() -> None:
    """C10, CVE-2026-49975: at 8 MiB of answers of our own making the next ones are reset, and never held as well."""
    peer = small({INITIAL_WINDOW_SIZE: 0}, streams=1000)
    for _ in range(8):
        ask(peer, LARGE, body=framed(b"1000000"))
    assert all(peer.reply(at).reset is None for at in range(1, 16, 2))
    words = [ask(peer, LARGE, body=framed(b"1000000")) for _ in range(3)]
    assert words[-1][-1] in {"RST ENHANCE_YOUR_CALM", "GOAWAY ENHANCE_YOUR_CALM"}
    tracemalloc.start()
    try:
        for _ in range(80):
            if not peer.closed:
                ask(peer, LARGE, body=framed(b"1000000"))
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()


def test_c10_the_http2_bomb() -> None:
    """C10, CVE-2026-49975: a hundred calls of cheap indexed fields behind a shut window hold less than 256 KiB."""
    peer = small({INITIAL_WINDOW_SIZE: 0})
    pair = (b"x-bomb", b"y" * 50)
    peer.send(headers(1, peer.block([*fields(), pair])), data(1, framed(b"x"), end=True))
    octets = []
    for at in range(3, 203, 2):
        block = peer.block([*fields(), *[pair] * 100])
        octets.append(headers(at, block) + data(at, framed(b"x"), end=True))
    tracemalloc.start()
    try:
        for piece in octets:
            peer.feed(piece)
        assert tracemalloc.get_traced_memory()[0] < 256 << 10
    finally:
        tracemalloc.stop()


# --- C11: tiny DATA frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "over"), [(1000, False), (1001, True), (10_000, True)])
def test_c11_windows_may_force_a_thousand_tiny_frames(frames: int, over: bool) -> None:
    """C11, CVE-2019-9511: one octet at a time, a thousand times and no more."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 1})
    ask(peer, LARGE, body=framed(b"50000"))
    for _ in range(frames - 1):
        if not peer.closed:
            peer.send(window_update(1, 1))
    assert calm(peer) == over
    assert len(peer.of(DATA)) == min(frames, 1000)


def test_c11_frames_that_nothing_forced_are_not_counted() -> None:
    """C11: small answers are small because they are, and the last piece of a large one too."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 255})
    for _ in range(3000):
        assert ask(peer) == SERVED
    assert not calm(peer)


# --- C12: WINDOW_UPDATE -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "over"), [(100, False), (101, True), (1000, True)])
@pytest.mark.parametrize("where", [0, 1])
def test_c12_a_hundred_window_updates(count: int, over: bool, where: int) -> None:
    """C12: and ten more for each call, each HEADERS and each DATA frame of ours, which may be a reason for them."""
    peer = Client()
    if where:
        assert ask(peer, WATCH) == ["HEADERS 200", "DATA"]
        count += 30
    peer.send(*(window_update(where, 1) for _ in range(count)))
    assert calm(peer) == over


def test_c12_two_for_each_call_are_usual() -> None:
    """C12: grpc-core and HAProxy send that many, for ever."""
    peer = Client()
    for _ in range(3000):
        stream = peer.next_stream
        peer.call()
        peer.send(window_update(stream, 20), window_update(0, 20))
    assert not calm(peer)


def test_c12_a_long_stream_may_be_fed_in_small_steps() -> None:
    """C12: a client that opens its window by 256 octets a time for a large answer has a reason each time."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 256})
    ask(peer, COUNT, body=framed(b"20000"))
    while not peer.reply(1).ended and not peer.closed:
        peer.send(window_update(1, 256), window_update(0, 256))
    assert not calm(peer)
    assert len(peer.reply(1).messages) == 20_000


def test_c12_settings_that_move_the_window_are_counted_as_settings() -> None:
    """C7, C12: INITIAL_WINDOW_SIZE up and down is work for every open stream; a hundred a minute is the end of it."""
    peer = Client()
    for _ in range(50):
        ask(peer, WATCH)
    peer.send(*(settings({INITIAL_WINDOW_SIZE: 65_535 * (at & 1)}) for at in range(1000)))
    assert calm(peer)
