"""Every limit of the engine with its default, and how a connection is held to it.

The numbers C1 to C23 are the rows of the project's HTTP/2 checklist; most defaults are those of nghttp2, Envoy, Netty,
grpc-core or grpc-go. Sizes are in bytes, times in seconds; all are per connection.
"""

from __future__ import annotations

import dataclasses

_KIB, _MIB = 1 << 10, 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a connection may do and cost."""

    preface_seconds: float = 10.0  # C1: until the client's preface and SETTINGS have come
    settings_seconds: float = 60.0  # C1: until it has acknowledged ours
    streams: int = 100  # C2: calls at once, counted until their answer is written
    refusals: int = 100  # C2: REFUSED_STREAM answers in 30 s
    resets: int = 1_000  # C3: RST_STREAM of calls not yet answered (CVE-2023-44487) …
    resets_per_second: float = 33.0  # … and how fast that allowance grows again
    our_resets: int = 200  # C4: errors that made us send RST_STREAM, in 30 s (CVE-2025-8671)
    ping_strikes: int = 2  # C6: PINGs that come too early (CVE-2019-9512, gRFC A8) …
    ping_seconds: float = 300.0  # … which is this soon with calls open …
    ping_idle_seconds: float = 7_200.0  # … and this soon without
    settings_entries: int = 32  # C7: in one SETTINGS frame (CVE-2019-9515)
    settings_per_minute: int = 100  # C7
    control_frames: int = 1_000  # C8: answers to PING, SETTINGS and errors that the client does not read
    write_bytes: int = 128 * _KIB  # C9, C19: unsent output at which nothing more is read or answered
    stall_seconds: float = 30.0  # C9: a client that reads nothing for so long is cut off
    blocked_seconds: float = 60.0  # C10: an answer that waits for a window that does not open (CVE-2026-49975)
    blocked_bytes: int = 8 * _MIB  # C10: messages of our own making that wait for a window
    tiny_frames: int = 1_000  # C11: DATA under 256 bytes that a small window forced (CVE-2019-9511)
    window_updates: int = 100  # C12: WINDOW_UPDATEs, plus 10 for each call and each DATA frame sent
    header_block: int = 64 * _KIB  # C13: bytes of one header block (CVE-2024-27316)
    continuations: int = 8  # C13: CONTINUATION frames of one header block; one may be empty
    header_bytes: int = 16 * _KIB  # C14: decoded header list, 32 added for each field; four times that is an attack
    header_fields: int = 128  # C14: fields of it; four times that is an attack (CVE-2016-6581)
    empty_data: int = 100  # C16: empty DATA frames that end nothing (CVE-2019-9518)
    priorities: int = 100  # C17: PRIORITY and unknown frames, times 1 + calls so far (CVE-2019-9513)
    request_bytes: int = 64 * _KIB  # C18: a request message, also after decompression
    held_bytes: int = 128 * _KIB  # C18: parts of unfinished request messages, of all calls together
    quantum_frames: int = 64  # C19: frames off the fast path in one turn of the loop
    request_seconds: float = 30.0  # C20: until the one request of a call is complete
    bidi_seconds: float = 900.0  # C20: silence on a stream whose client may go on sending
    memo_blocks: int = 32  # C21: header blocks remembered by a connection
    memo_shared: int = 4_096  # C21: header blocks, header lists and answers remembered by all together
    idle_seconds: float = 900.0  # C22: without a call, until we say good-bye
    age_seconds: float = 1_800.0  # C22: of a connection, so that clients spread over workers and pods
    age_jitter: float = 0.1  # C22: as a share of it, both ways
    grace_seconds: float = 30.0  # C22: for the calls in flight after a good-bye
    keepalive_seconds: float = 7_200.0  # A49: without a byte from the client, until we ask …
    keepalive_timeout: float = 20.0  # … and until we give up
    glitches: int = 1_000  # C23: every other oddity; a good-bye comes at three quarters


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
