"""The account of a connection: what its client has run up, against `Limits`.

Every method takes one occurrence and raises ConnectionFault(ENHANCE_YOUR_CALM) once it is too many. The row of the
checklist and the attack each one answers stand in limits.py. Allowances that depend on honest use (calls answered,
DATA sent) are given more as that use goes on, so that a proxy which carries many users is not taken for an attacker.
"""

from __future__ import annotations

from typing import Final

from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.limits import Bucket, Limits, Span

_RESETS_SPAN: Final = 30.0
_TINY: Final = 256
# Clients parse exactly this text and then ping half as often (gRFC A8, grpc/grpc doc/keepalive.md).
TOO_MANY_PINGS: Final = "too_many_pings"


def calm(reason: str) -> ConnectionFault:
    """The fault that ends a connection which asks too much."""
    return ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason)


class Account:
    """One connection's counters."""

    __slots__ = (
        "_answered_at_ping", "_control", "_empty", "_glitches", "_limits", "_odd", "_our_resets", "_pinged_at",
        "_refusals", "_resets", "_settings", "_strikes", "_tiny", "_updates",
    )  # fmt: skip

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._resets = Bucket(limits.resets, limits.resets_per_second, now)
        self._our_resets = Span(limits.our_resets, _RESETS_SPAN)
        self._refusals = Span(limits.refusals, _RESETS_SPAN)
        self._settings = Span(limits.settings_per_minute, 60.0)
        self._control = self._empty = self._glitches = self._odd = self._strikes = self._tiny = self._updates = 0
        self._pinged_at: float | None = None
        self._answered_at_ping = 0

    def reset(self, now: float) -> None:
        """C3: the client reset a call that was not answered."""
        if not self._resets.spend(now):
            raise calm("too many streams reset")

    def our_reset(self, now: float) -> None:
        """C4: the client made us reset a stream."""
        if not self._our_resets.spend(now):
            raise calm("too many stream errors")

    def refusal(self, now: float) -> None:
        """C2: the client opened a stream beyond the limit."""
        if not self._refusals.spend(now):
            raise calm("too many streams beyond SETTINGS_MAX_CONCURRENT_STREAMS")

    def ping(self, now: float, sent: int, *, calls_open: bool) -> None:
        """C6: a PING. `sent` counts the HEADERS and DATA we have written: one of them forgives every PING before it.

        The rules of grpc-go's server: clients measure the path with a PING for each call, which must not count.
        """
        if sent != self._answered_at_ping or self._pinged_at is None:
            self._strikes = 0
        else:
            least = self._limits.ping_seconds if calls_open else self._limits.ping_idle_seconds
            if now - self._pinged_at < least:
                self._strikes += 1
                if self._strikes > self._limits.ping_strikes:
                    raise calm(TOO_MANY_PINGS)
        self._answered_at_ping = sent
        self._pinged_at = now

    def settings(self, now: float, entries: int) -> None:
        """C7: a SETTINGS frame with so many entries."""
        if entries > self._limits.settings_entries:
            raise calm("too many settings in a frame")
        if not self._settings.spend(now):
            raise calm("too many SETTINGS")

    def control(self) -> None:
        """C8: one more PING ACK, SETTINGS ACK or RST_STREAM is written."""
        self._control += 1
        if self._control > self._limits.control_frames:
            raise calm("answers are not read")

    def flushed(self) -> None:
        """All that was written has left the process."""
        self._control = 0

    def data_sent(self, size: int, *, forced: bool) -> None:
        """C11: a DATA frame leaves; `forced` when only a window kept it from being larger."""
        if forced and size < _TINY:
            self._tiny += 1
            if self._tiny > self._limits.tiny_frames:
                raise calm("windows force tiny frames")

    def window_update(self, use: int) -> None:
        """C12: a WINDOW_UPDATE, after so much honest use."""
        self._updates += 1
        if self._updates > self._limits.window_updates + 10 * use:
            raise calm("too many WINDOW_UPDATE")

    def empty_data(self) -> None:
        """C16: an empty DATA frame that ends nothing."""
        self._empty += 1
        if self._empty > self._limits.empty_data:
            raise calm("too many empty DATA frames")

    def odd_frame(self, use: int) -> None:
        """C17: PRIORITY, or a frame of an unknown type."""
        self._odd += 1
        if self._odd > self._limits.priorities * (1 + use):
            raise calm("too many PRIORITY or unknown frames")

    def glitch(self) -> bool:
        """C23: anything else that an honest client does seldom. True when it is time to say good-bye."""
        self._glitches += 1
        if self._glitches > self._limits.glitches:
            raise calm("too many glitches")
        return self._glitches * 4 >= self._limits.glitches * 3
