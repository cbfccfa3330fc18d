"""Part C of the checklist: every limit has its default, and one above it the connection ends (C1 to C7)."""

from __future__ import annotations

import dataclasses

import pytest
from wire.application import ECHO, TALK, WATCH
from wire.raw import (
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    data,
    fields,
    frame,
    framed,
    headers,
    literals,
    ping,
    priority,
    rst_stream,
    settings,
    window_update,
)  # fmt: skip
from wire.verdicts import Client, ask, seen

from avapd.config import load
from avapd.config import settings as declared
from avapd.errors import ConfigError
from avapd.wire.errors import ErrorCode
from avapd.wire.limits import Limits

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]
CALM = ErrorCode.ENHANCE_YOUR_CALM
KIB, MIB = 1 << 10, 1 << 20

# Field → row of part C and its default. Where the default is not the one of the row, the reason stands beside it.
DEFAULTS: dict[str, tuple[str, float]] = {
    "preface_seconds": ("C1", 10),
    "handshake_seconds": ("C1", 4),  # not 5: by then it must be over
    "settings_seconds": ("C1", 60),
    "streams": ("C2", 100),
    "queue_seconds": ("B32", 1),
    "refusals": ("C2", 100),
    "resets": ("C3", 1000),
    "resets_per_second": ("C3", 33),
    "our_resets": ("C4", 200),
    "ping_strikes": ("C6", 2),
    "ping_seconds": ("C6", 300),
    "ping_idle_seconds": ("C6", 7200),
    "settings_entries": ("C7", 32),
    "settings_per_minute": ("C7", 100),
    "control_frames": ("C8", 1000),
    "write_bytes": ("C9", 128 * KIB),  # not 1 MiB: an attacker may cost 256 KiB in all
    "stall_seconds": ("C9", 30),
    "blocked_seconds": ("C10", 60),
    "blocked_bytes": ("C10", 8 * MIB),
    "tiny_frames": ("C11", 1000),
    "window_updates": ("C12", 100),
    "header_block": ("C13", 64 * KIB),
    "continuations": ("C13", 8),
    "header_bytes": ("C14", 16 * KIB),
    "header_fields": ("C14", 128),
    "empty_data": ("C16", 100),
    "priorities": ("C17", 100),
    "request_bytes": ("C18", 64 * KIB),
    "held_bytes": ("C18", 128 * KIB),  # a hundred calls must not hold a hundred unfinished messages
    "quantum_frames": ("C19", 64),  # not 32: frames, and a call is two of them
    "request_seconds": ("C20", 30),
    "bidi_seconds": ("C20", 900),
    "memo_blocks": ("C21", 32),  # not 256: only blocks that point into a settled table, and an attacker fills it
    "memo_shared": ("C21", 4096),
    "idle_seconds": ("C22", 900),
    "age_seconds": ("C22", 1800),
    "age_jitter": ("C22", 0.1),
    "grace_seconds": ("C22", 30),
    "connections": ("C22", 10_000),
    "handshakes": ("C22", 1000),
    "total_connections": ("C22", 100_000),
    "address_connections": ("C22", 2_000),
    "keepalive_seconds": ("A49", 7200),
    "keepalive_timeout": ("A49", 20),
    "glitches": ("C23", 1000),
    "failures": ("C24", 100),
    "failures_per_second": ("C24", 10),
}


def test_every_limit_has_the_default_of_its_row() -> None:
    """C1 to C24, A49: a field each, and no field without a row."""
    assert {field.name: field.default for field in dataclasses.fields(Limits)} == {
        name: default for name, (_, default) in DEFAULTS.items()
    }


def test_every_limit_is_a_setting() -> None:
    """C1 to C24: `AVAPD_LIMIT_` and its name sets it, with a default and a help text; nonsense is refused."""
    required = {"DATABASE_URL": "postgresql://reader@db/avap", "API_KEY": "a-key-of-enough-length", "AVAPD_ENV": "test"}
    assert load(required).limits == Limits()
    for name, (_, default) in DEFAULTS.items():
        variable, setting = f"AVAPD_LIMIT_{name.upper()}", declared()[f"limit_{name}"]
        assert setting.variables == (variable,)
        assert setting.help
        changed = default / 2 if name == "age_jitter" else default + 1
        found = load({**required, variable: str(changed)})
        assert getattr(found.limits, name) == changed, name
        with pytest.raises(ConfigError, match=variable):
            load({**required, variable: "-1"})


def small(**limits: float) -> Client:
    """A connection with some limits small enough to be reached at once."""
    return Client(limits=Limits(**limits))  # type: ignore[arg-type]


def calm(peer: Client) -> bool:
    """Whether the connection has been told to calm down, and ended."""
    assert peer.error in {None, CALM}, peer.error
    assert (peer.error == CALM) == peer.closed
    return peer.closed


# --- C1: the beginning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", PREFACE[:5], PREFACE, PREFACE + settings()[:8]])
def test_c1_the_preface_has_ten_seconds(sent: bytes) -> None:
    """C1: whoever has not sent preface and SETTINGS by then is cut off, after no time more and none less."""
    for late in (0.0, 90.0):
        peer = Client(open_=False)
        peer.send(sent)
        peer.wait(9.9)
        assert not peer.closed
        peer.wait(0.2 + late)
        assert peer.closed


def test_c1_the_acknowledgement_has_a_minute() -> None:
    """C1: our SETTINGS not acknowledged in 60 s is GOAWAY(SETTINGS_TIMEOUT), calls or no calls."""
    for late in (0.0, 540.0):
        peer = Client(open_=False)
        peer.send(PREFACE, settings())
        peer.wait(30)
        assert ask(peer) == SERVED
        peer.wait(29.9)
        assert not peer.closed
        peer.wait(0.2 + late)
        assert (peer.closed, peer.error) == (True, ErrorCode.SETTINGS_TIMEOUT)


# --- C2: concurrent streams ---------------------------------------------------------------------------------------


def test_c2_a_hundred_calls_at_once() -> None:
    """C2: one more is REFUSED_STREAM, which means: not begun, try again; when one ends, another may begin."""
    peer = Client()
    for _ in range(100):
        assert ask(peer, WATCH) == ["HEADERS 200", "DATA"]
    assert ask(peer, WATCH) == ["RST REFUSED_STREAM"]
    assert ask(peer, ECHO) == ["RST REFUSED_STREAM"]
    assert (len(peer.application.watching), peer.application.asked) == (100, 0)
    peer.send(rst_stream(1))
    assert ask(peer) == SERVED
    assert ask(peer, WATCH) == ["HEADERS 200", "DATA"]
    assert ask(peer) == ["RST REFUSED_STREAM"]
    peer.application.watching[5].finish()
    peer.settle()
    assert ask(peer) == SERVED


@pytest.mark.parametrize("path", [ECHO, TALK])
def test_c2_a_call_counts_until_its_output_is_written(path: bytes) -> None:
    """C2: answers that wait on a window hold their place, whether the client has half-closed or not."""
    peer = Client(settings_={INITIAL_WINDOW_SIZE: 0})
    for _ in range(100):
        ask(peer, path)
    assert ask(peer, path) == ["RST REFUSED_STREAM"]
    peer.send(window_update(1, 100))
    assert seen(peer, 1) == SERVED
    assert ask(peer, path) in ([], ["HEADERS 200"])
    assert ask(peer, path) == ["RST REFUSED_STREAM"]


def test_c2_a_refused_block_is_decoded() -> None:
    """C2, A30: what a refused call put into the table is there for the next one."""
    peer = small(streams=1)
    ask(peer, WATCH)
    head = [*fields(ECHO), (b"x-new", b"value")]
    peer.send(headers(3, peer.block(head)), data(3, framed(b"x"), end=True))
    assert seen(peer, 3) == ["RST REFUSED_STREAM"]
    peer.send(rst_stream(1), headers(5, peer.block(head)), data(5, framed(b"x"), end=True))
    assert seen(peer, 5) == SERVED


@pytest.mark.parametrize("times", [1, 10])
def test_c2_a_hundred_refusals_in_half_a_minute(times: int) -> None:
    """C2: one more is ENHANCE_YOUR_CALM; spread over more time they are not."""
    peer = small(streams=1)
    ask(peer, WATCH)
    for number in range(99):
        ask(peer, body=None)
        assert not calm(peer), number
    ask(peer, body=None)
    assert not calm(peer)
    for _ in range(1 if times == 1 else 900):
        ask(peer, body=None)
    assert calm(peer)
    patient = small(streams=1)
    ask(patient, WATCH)
    for _ in range(10):
        for _ in range(100):
            ask(patient, body=None)
        patient.wait(31)
    assert not calm(patient)


# --- C3: Rapid Reset ----------------------------------------------------------------------------------------------


def reset_calls(peer: Client, count: int, path: bytes = WATCH) -> None:
    """Begin calls and take them back before they are answered."""
    block = literals(fields(path))
    first, peer.next_stream = peer.next_stream, peer.next_stream + 2 * count
    peer.send(*(headers(at, block) + rst_stream(at) for at in range(first, peer.next_stream, 2)))


@pytest.mark.parametrize("path", [WATCH, ECHO, TALK])
def test_c3_a_thousand_resets(path: bytes) -> None:
    """C3, CVE-2023-44487: N are forgiven, one more is not, and none of the calls is asked."""
    peer = Client()
    reset_calls(peer, 1000, path)
    assert not calm(peer)
    reset_calls(peer, 1, path)
    assert calm(peer)
    flood = Client()
    reset_calls(flood, 10_000, path)
    assert calm(flood)
    assert flood.application.asked == 0


def test_c3_the_allowance_grows_again() -> None:
    """C3: by 33 a second, up to the thousand it was."""
    peer = Client()
    reset_calls(peer, 1000)
    peer.wait(2)
    reset_calls(peer, 66)
    assert not calm(peer)
    peer.wait(600)
    reset_calls(peer, 1000)
    assert not calm(peer)
    reset_calls(peer, 2)
    assert calm(peer)


def test_c3_a_reset_after_the_answer_is_free() -> None:
    """C3: clients that cancel what is over already, or is being written, do no harm."""
    peer = Client()
    for _ in range(3000):
        stream = peer.next_stream
        peer.call()
        peer.send(rst_stream(stream))
    assert not calm(peer)


# --- C4, C5: MadeYouReset -----------------------------------------------------------------------------------------


MALFORMED = literals([*fields(), (b"connection", b"close")])


def provoke(peer: Client, count: int) -> None:
    """Requests that must be answered by RST_STREAM(PROTOCOL_ERROR)."""
    first, peer.next_stream = peer.next_stream, peer.next_stream + 2 * count
    peer.send(*(headers(at, MALFORMED, end=True) for at in range(first, peer.next_stream, 2)))


def test_c4_two_hundred_resets_of_ours() -> None:
    """C4, CVE-2025-8671: N in half a minute are forgiven, one more is not; after that time it begins anew."""
    peer = Client()
    provoke(peer, 200)
    assert not calm(peer)
    assert seen(peer, 1) == ["RST PROTOCOL_ERROR"]
    peer.wait(31)
    provoke(peer, 200)
    assert not calm(peer)
    provoke(peer, 1)
    assert calm(peer)
    flood = Client()
    provoke(flood, 2000)
    assert calm(flood)


def test_c4_a_window_overflow_counts_as_one() -> None:
    """C4: the MadeYouReset primitive that must stay RST_STREAM(FLOW_CONTROL_ERROR) (A41) is counted here."""
    peer = Client()
    for number in range(201):
        stream = peer.next_stream
        assert ask(peer, WATCH) == ["HEADERS 200", "DATA"], number
        peer.send(window_update(stream, 0x7FFF_FFFF))
        if number < 200:
            assert seen(peer, stream)[-1] == "RST FLOW_CONTROL_ERROR"
    assert calm(peer)


C5 = {
    "DATA after END_STREAM": (data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "HEADERS after END_STREAM": (headers(1, literals(fields()), end=True), ErrorCode.STREAM_CLOSED),
    "WINDOW_UPDATE of 0": (window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY of 4 octets": (frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "PRIORITY on itself": (priority(1, 1), ErrorCode.PROTOCOL_ERROR),
    "HEADERS depending on itself": (
        headers(3, b"\0\0\0\3\xff" + literals(fields()), flags=0x25), ErrorCode.PROTOCOL_ERROR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", C5)
@pytest.mark.parametrize("path", [ECHO, WATCH])
def test_c5_the_other_primitives_end_the_connection(case: str, path: bytes) -> None:
    """C5: none is forgiven, whether the answer is written or under way; a reset for each would be the attack."""
    peer = Client()
    ask(peer, path)
    octets, code = C5[case]
    peer.send(octets)
    assert (peer.closed, peer.error) == (True, code)


# --- C6: PING -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "seconds"), [(WATCH, 299.0), (None, 7199.0)], ids=["with a call", "idle"])
def test_c6_two_strikes(path: bytes | None, seconds: float) -> None:
    """C6, B38: PINGs under 5 min apart with a call open, or under 2 h without, are a strike; the third ends all."""
    peer = small(idle_seconds=1e9, age_seconds=1e9, keepalive_seconds=1e9)
    if path:
        ask(peer, path)
    for number in range(3):  # the first is none
        assert len(peer.send(ping(b"%08d" % number))) == 1
        peer.wait(seconds)
    assert not calm(peer)
    before = len(peer.of(PING))
    peer.send(ping())
    assert calm(peer)
    assert len(peer.of(PING)) == before + 1  # acknowledged first, then judged
    assert peer.frames[-1].payload[8:] == b"too_many_pings"


@pytest.mark.parametrize(("path", "seconds"), [(WATCH, 301.0), (None, 7201.0)], ids=["with a call", "idle"])
def test_c6_a_patient_client_pings_for_ever(path: bytes | None, seconds: float) -> None:
    """C6: no strike for a PING that comes late enough."""
    peer = small(idle_seconds=1e9, age_seconds=1e9, keepalive_seconds=1e9)
    if path:
        ask(peer, path)
    for number in range(30):
        peer.send(ping(b"%08d" % number))
        peer.wait(seconds)
    assert not calm(peer)


def test_c6_an_answer_forgives_every_ping_before_it() -> None:
    """C6: grpc-go and grpc-java measure the path with a PING for each call."""
    peer = Client()
    for _ in range(2000):
        assert peer.call().status == 0
        peer.send(ping())
    assert not calm(peer)


def test_c6_a_flood_of_pings() -> None:
    """C6, CVE-2019-9512: ten times the strikes, in one segment, are answered by a few frames and the end."""
    peer = Client()
    peer.send(*(ping() for _ in range(1000)))
    assert calm(peer)
    assert len(peer.of(PING)) <= 4


# --- C7: SETTINGS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [32, 33, 320])
def test_c7_thirty_two_entries_a_frame(count: int) -> None:
    """C7, CVE-2019-9515: more in one frame are ENHANCE_YOUR_CALM, known or unknown."""
    for key in (0xFE03, 4):
        peer = Client()
        peer.send(settings([(key, 1)] * count))
        assert calm(peer) == (count > 32)


def test_c7_a_hundred_a_minute() -> None:
    """C7: the hundred and first SETTINGS of a minute is one too many; ACKs are not counted."""
    peer = Client()  # has sent one
    for _ in range(99):
        peer.send(settings())
    assert not calm(peer)
    peer.send(settings())
    assert calm(peer)
    patient = Client()
    for _ in range(1000):
        patient.send(settings())
        patient.wait(0.7)
    assert not calm(patient)
    flood = Client()
    flood.send(settings() * 1000)
    assert calm(flood)
