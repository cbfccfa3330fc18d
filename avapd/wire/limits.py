"""Every limit of the engine with its default, and how a connection is held to it.

The numbers C1 to C24 are the rows of the project's HTTP/2 checklist; most defaults are those of nghttp2, Envoy, Netty,
grpc-core or grpc-go. Sizes are in bytes, times in seconds; all are per connection.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

_KIB, _MIB = 1 << 10, 1 << 20


def _limit(  # noqa: PLR0917  # a table
    default: float, row: str, seen: str, help: str, low: float = 1, high: float = 2**31 - 1,  # noqa: A002
) -> Any:  # fmt: skip
    """A field with what a setting needs to know.

    Its row of the checklist, what a client sees that goes beyond it, its help and the values it may have.
    """
    metadata = {"row": row, "seen": seen, "help": help, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


_CALM: Final = "GOAWAY ENHANCE_YOUR_CALM"
_PINGS: Final = "GOAWAY ENHANCE_YOUR_CALM `too_many_pings`"
_CLOSED: Final = "closed"
_EXHAUSTED: Final = "RESOURCE_EXHAUSTED"
_LATE: Final = "DEADLINE_EXCEEDED"
_WAITS: Final = "nothing, it waits"


_SECONDS: Final = 999_999


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a connection may do and cost. Each field is a setting, `AVAPD_LIMIT_` and its name; see config.py."""

    preface_seconds: float = _limit(10.0, "C1", _CLOSED, "until the client's preface and SETTINGS have come", 0.1, 3600)
    handshake_seconds: float = _limit(4.0, "C1", _CLOSED, "until the TLS handshake is done", 0.1, 3600)
    settings_seconds: float = _limit(
        60.0, "C1", "GOAWAY SETTINGS_TIMEOUT", "until the client has acknowledged our SETTINGS", 0.1, 3600
    )
    streams: int = _limit(
        100, "C2", "RST_STREAM REFUSED_STREAM", "calls at once, each until its answer is written", high=100_000
    )
    queue_seconds: float = _limit(
        1.0, "B32", _EXHAUSTED, "a call waits for its turn behind others of its connection", 0.001, _SECONDS
    )
    refusals: int = _limit(100, "C2", _CALM, "calls beyond that in 30 s")
    resets: int = _limit(1_000, "C3", _CALM, "calls reset by the client before they are answered (CVE-2023-44487)")
    resets_per_second: float = _limit(33.0, "C3", _CALM, "how fast that allowance grows again", 0.01, 999_999)
    our_resets: int = _limit(200, "C4", _CALM, "errors in 30 s that make us reset a call (CVE-2025-8671)")
    ping_strikes: int = _limit(
        2, "C6", _PINGS, "PINGs that come too early, with nothing answered between (CVE-2019-9512)", 0
    )
    ping_seconds: float = _limit(300.0, "C6", _PINGS, "which is sooner than this with calls open", 0, _SECONDS)
    ping_idle_seconds: float = _limit(7_200.0, "C6", _PINGS, "and sooner than this without", 0, _SECONDS)
    settings_entries: int = _limit(32, "C7", _CALM, "entries of a SETTINGS frame")
    settings_per_minute: int = _limit(100, "C7", _CALM, "SETTINGS frames in a minute (CVE-2019-9515)")
    control_frames: int = _limit(
        1_000, "C8", _CALM, "answers to PING, SETTINGS and errors that are not read (CVE-2019-9512)"
    )
    write_bytes: int = _limit(
        128 * _KIB, "C9, C19", _WAITS, "unsent output at which no more is read or answered", 16 * _KIB
    )
    stall_seconds: float = _limit(
        30.0, "C9", _CLOSED, "a client that reads nothing for so long is cut off", 0.1, _SECONDS
    )
    blocked_seconds: float = _limit(
        60.0, "C10", "RST_STREAM CANCEL", "an answer waits so long for a flow-control window", 0.1, _SECONDS
    )
    blocked_bytes: int = _limit(
        8 * _MIB,
        "C10",
        "RST_STREAM ENHANCE_YOUR_CALM",
        "messages that wait for windows, the largest call's not counted",
    )
    tiny_frames: int = _limit(
        1_000, "C11", _CALM, "DATA frames under 256 bytes forced by small windows (CVE-2019-9511)"
    )
    window_updates: int = _limit(
        100, "C12", _CALM, "WINDOW_UPDATE frames, and 10 more for each call and frame answered"
    )
    header_block: int = _limit(64 * _KIB, "C13", _CALM, "bytes of a header block (CVE-2024-27316)", 4 * _KIB)
    continuations: int = _limit(8, "C13", _CALM, "CONTINUATION frames of a header block, of which one may be empty", 0)
    header_bytes: int = _limit(
        16 * _KIB, "C14", _EXHAUSTED, "header list, 32 added for each field; at 4 times GOAWAY",
        4 * _KIB, _MIB,
    )  # fmt: skip
    header_fields: int = _limit(128, "C14", _EXHAUSTED, "fields of it, likewise (CVE-2016-6581)", 16, 10_000)
    empty_data: int = _limit(100, "C16", _CALM, "empty DATA frames that end nothing (CVE-2019-9518)")
    priorities: int = _limit(
        100, "C17", _CALM, "PRIORITY and unknown frames, and as many more for each call (CVE-2019-9513)"
    )
    request_bytes: int = _limit(64 * _KIB, "C18", _EXHAUSTED, "largest request message", 256, 4 * _MIB)
    held_bytes: int = _limit(
        128 * _KIB, "C18", _EXHAUSTED, "parts of unfinished requests, of all calls together", 16 * _KIB
    )
    quantum_frames: int = _limit(64, "C19", _WAITS, "frames that are not calls known already, in one turn of the loop")
    request_seconds: float = _limit(30.0, "C20", _LATE, "until the one request of a call is complete", 0.1, _SECONDS)
    bidi_seconds: float = _limit(900.0, "C20", _LATE, "silence of a client that may go on sending", 0.1, _SECONDS)
    memo_blocks: int = _limit(32, "C21", _WAITS, "header blocks remembered for a connection")
    memo_shared: int = _limit(4_096, "C21", _WAITS, "header blocks, header lists and answers remembered for a worker")
    idle_seconds: float = _limit(
        900.0, "C22", "GOAWAY NO_ERROR `max_idle`", "without a call, then good-bye", 1, _SECONDS
    )
    age_seconds: float = _limit(
        1_800.0,
        "C22",
        "GOAWAY NO_ERROR `max_age`",
        "then good-bye, so that clients spread over workers and pods",
        1,
        _SECONDS,
    )
    age_jitter: float = _limit(0.1, "C22", "GOAWAY NO_ERROR `max_age`", "spread of that age, as a share of it", 0, 1)
    grace_seconds: float = _limit(30.0, "C22", "UNAVAILABLE", "for calls under way after a good-bye", 0, _SECONDS)
    connections: int = _limit(10_000, "C22", _CLOSED, "connections of a worker; more are cut off")
    total_connections: int = _limit(100_000, "C22", _CLOSED, "connections of all workers; more are cut off")
    address_connections: int = _limit(
        2_000, "C22", _CLOSED, "connections of a worker with one address (IPv6: one /64); more are cut off"
    )
    handshakes: int = _limit(1_000, "C22", _CLOSED, "TLS handshakes of a worker at once; then the oldest is cut off")
    keepalive_seconds: float = _limit(
        7_200.0, "A49", "PING", "without a byte from the client, then a PING", 1, _SECONDS
    )
    keepalive_timeout: float = _limit(20.0, "A49", _CLOSED, "until that PING must be answered", 0.1, _SECONDS)
    glitches: int = _limit(1_000, "C23", _CALM, "other oddities; good-bye at three quarters of it", 4)
    failures: int = _limit(
        100, "C24", _EXHAUSTED, "wrong keys of a worker from one address (IPv6: one /64), UNAUTHENTICATED so far",
        high=1_000_000,
    )  # fmt: skip
    failures_per_second: float = _limit(10.0, "C24", _EXHAUSTED, "how fast that allowance grows again", 0.01, 999_999)


class Bucket:
    """An allowance that grows again with time: at most `size`, and `per_second`."""

    __slots__ = ("_at", "_left", "_rate", "_size")

    def __init__(self, size: float, per_second: float, now: float) -> None:
        self._size = self._left = size
        self._rate = per_second
        self._at = now

    def spend(self, now: float) -> bool:
        """Take one; False when there is none left."""
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Span:
    """At most `count` in any window of `seconds` that begins with the first."""

    __slots__ = ("_count", "_ends", "_seconds", "_spent")

    def __init__(self, count: int, seconds: float) -> None:
        self._count = count
        self._seconds = seconds
        self._spent = 0
        self._ends = 0.0

    def spend(self, now: float) -> bool:
        """Take one; False when there is none left."""
        if now >= self._ends:
            self._ends = now + self._seconds
            self._spent = 0
        self._spent += 1
        return self._spent <= self._count
