"""How long a connection lives, and its good-bye in two steps (RFC 9113 section 6.8, gRFC A9).

    OPEN ──age, idle, drain──► LEAVING ──PING ACK, or 5 s──► LEFT ──last call answered, or grace──► closed
              GOAWAY(2^31-1), PING         GOAWAY(highest)

A client that has read the first GOAWAY opens no more streams here; those it opened before reading it are still served.
Connections end by age so that clients spread anew over workers and pods, each at an age of its own.
"""

from __future__ import annotations

import enum
from math import inf
from typing import Final

from avapd.wire.limits import Limits

# How long the answer to the PING between the two steps is waited for (A7).
_LAST_SECONDS: Final = 5.0


class Phase(enum.Enum):
    """Where a connection is in its life."""

    OPEN = enum.auto()
    LEAVING = enum.auto()
    LEFT = enum.auto()


class Duty(enum.Enum):
    """What is to be done now."""

    GIVE_UP = enum.auto()  # the client never spoke HTTP/2, or is not there any more
    NO_SETTINGS_ACK = enum.auto()
    SAY_MAX_AGE = enum.auto()
    SAY_MAX_IDLE = enum.auto()
    SAY_LAST = enum.auto()
    END = enum.auto()  # the grace is over
    ASK = enum.auto()  # a PING of our own, to hear whether the client is there


class Lifetime:
    """The clocks of one connection. `heard` and `called` are the caller's to set: the last octet, the last call."""

    __slots__ = (
        "_age_at", "_asked", "_end_at", "_last_at", "_limits", "_preface_at", "_settings_at", "called", "heard",
        "phase", "wake_at",
    )  # fmt: skip

    def __init__(self, limits: Limits, now: float, jitter: float) -> None:
        self._limits = limits
        self.phase = Phase.OPEN
        self.heard = self.called = now
        self._preface_at = now + limits.preface_seconds
        self._settings_at = now + limits.settings_seconds
        self._age_at = now + limits.age_seconds * (1 + limits.age_jitter * jitter)
        self._last_at = self._end_at = inf
        self._asked = False
        self.wake_at = self._next()

    def greeted(self) -> None:
        """The client's preface and SETTINGS have come."""
        self._preface_at = inf

    def settings_acknowledged(self) -> bool:
        """The client acknowledged our SETTINGS; False when that was not awaited."""
        awaited = self._settings_at < inf
        self._settings_at = inf
        return awaited

    def leave(self, now: float) -> None:
        """The first GOAWAY is written."""
        self.phase = Phase.LEAVING
        self._last_at = now + _LAST_SECONDS
        self._end_at = now + self._limits.grace_seconds
        self.wake_at = min(self.wake_at, self._last_at, self._end_at)

    def left(self) -> None:
        """The last GOAWAY is written."""
        self.phase = Phase.LEFT
        self._last_at = inf

    def due(self, now: float, *, calls_open: bool) -> Duty | None:
        """The most urgent duty, if any; `wake_at` is when to ask again."""
        if calls_open:
            self.called = now
        if self.heard + self._limits.keepalive_seconds > now:
            self._asked = False
        duty = self._duty(now)
        self.wake_at = now if duty else self._next()
        return duty

    def _duty(self, now: float) -> Duty | None:
        if now >= self._preface_at:
            return Duty.GIVE_UP
        if now >= self._end_at:
            self._end_at = inf
            return Duty.END
        if now >= self._last_at:
            return Duty.SAY_LAST
        if now >= self._settings_at:
            return Duty.NO_SETTINGS_ACK
        if self.phase is Phase.OPEN:
            if now >= self._age_at:
                return Duty.SAY_MAX_AGE
            if now >= self.called + self._limits.idle_seconds:
                return Duty.SAY_MAX_IDLE
        if now >= self._silent_at():
            if self._asked:
                return Duty.GIVE_UP
            self._asked = True
            return Duty.ASK
        return None

    def _silent_at(self) -> float:
        """When the silence of the client asks for something."""
        return self.heard + self._limits.keepalive_seconds + (self._limits.keepalive_timeout if self._asked else 0.0)

    def _next(self) -> float:
        times = self._preface_at, self._settings_at, self._last_at, self._end_at, self._silent_at()
        if self.phase is not Phase.OPEN:
            return min(times)
        return min(*times, self._age_at, self.called + self._limits.idle_seconds)
