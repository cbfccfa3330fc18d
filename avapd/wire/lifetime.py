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
        for at, duty in self._agenda():
            if now >= at:
                self._asked = duty is Duty.ASK
                if duty is Duty.END:
                    self._end_at = inf
                self.wake_at = now
                return duty
        self.wake_at = self._next()
        return None

    def _agenda(self) -> tuple[tuple[float, Duty], ...]:
        """What is to be done when, the most urgent first."""
        silent_at = self.heard + self._limits.keepalive_seconds
        asked = silent_at + self._limits.keepalive_timeout if self._asked else inf
        staying = self.phase is Phase.OPEN
        return (
            (self._preface_at, Duty.GIVE_UP),
            (self._end_at, Duty.END),
            (self._last_at, Duty.SAY_LAST),
            (self._settings_at, Duty.NO_SETTINGS_ACK),
            (self._age_at if staying else inf, Duty.SAY_MAX_AGE),
            (self.called + self._limits.idle_seconds if staying else inf, Duty.SAY_MAX_IDLE),
            (asked, Duty.GIVE_UP),
            (inf if self._asked else silent_at, Duty.ASK),
        )

    def _next(self) -> float:
        return min(at for at, _ in self._agenda())
