"""Traffic: how many calls a second, how many of them fail, and how long nineteen of twenty take at most.

All of it is the difference of two readings of the board's counters, over the buckets that `/metrics` exports; the admin
port reads them each second, `avapd top` whenever it asks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from avapd.shared.board import BUCKETS, METHODS, STATUSES, Board, Row

WINDOW_SECONDS: Final = 5
KEPT_SECONDS: Final = 120
# What the server owes an apology for; 401, 404, 499 and 501 are the client's own doing.
_FAILED: Final = tuple(STATUSES.index(status) for status in (429, 500, 503, 504))
# A stream lasts as long as its client likes, which says nothing of the server.
_TIMED: Final = tuple(METHODS.index(name) for name in ("GetCommand", "SyncCatalog"))
_SHARE: Final = 0.95


class Counts(NamedTuple):
    """Finished calls so far; `buckets` are those of the unary methods by duration, not cumulative."""

    calls: int
    errors: int
    buckets: tuple[int, ...]


NOTHING: Final = Counts(0, 0, (0,) * (len(BUCKETS) + 1))


class Traffic(NamedTuple):
    """What happened between two readings: calls and failed calls a second, and their 95th percentile in seconds.

    The percentile is None when no call was timed.
    """

    rate: float
    error_rate: float
    p95_seconds: float | None


def counts(rows: Iterable[Row]) -> Counts:
    """The counters of some rows, summed."""
    calls = errors = 0
    buckets = [0] * (len(BUCKETS) + 1)
    for row in rows:
        for method in range(len(METHODS)):
            requests = row.requests(method)
            calls += sum(requests)
            errors += sum(requests[status] for status in _FAILED)
        for method in _TIMED:
            buckets = [have + more for have, more in zip(buckets, row.durations(method)[0], strict=True)]
    return Counts(calls, errors, tuple(buckets))


def total(parts: Sequence[Counts]) -> Counts:
    """The counters of several, summed."""
    buckets = tuple(sum(column) for column in zip(*(one.buckets for one in parts), strict=True))
    return Counts(sum(one.calls for one in parts), sum(one.errors for one in parts), buckets)


def between(before: Counts, after: Counts, seconds: float) -> Traffic | None:
    """The traffic of so many seconds; None when counters fell, which is a server that began anew."""
    grown = [new - old for old, new in zip(before.buckets, after.buckets, strict=True)]
    calls, errors = after.calls - before.calls, after.errors - before.errors
    if seconds <= 0 or min(calls, errors, *grown) < 0:
        return None
    return Traffic(calls / seconds, errors / seconds, percentile(grown))


def percentile(buckets: Sequence[int], share: float = _SHARE, bounds: Sequence[float] = BUCKETS) -> float | None:
    """The time in seconds that this share of calls did not exceed, as `histogram_quantile` of Prometheus has it.

    Within a bucket calls are taken to lie evenly; what is beyond the last bound counts as the last bound.
    """
    wanted, seen, low = share * sum(buckets), 0, 0.0
    if not wanted:
        return None
    for bound, count in zip(bounds, buckets, strict=False):
        if count and seen + count >= wanted:
            return low + (bound - low) * (wanted - seen) / count
        seen += count
        low = bound
    return low


class Meter:
    """Reads the board each second, and tells the traffic of the last WINDOW_SECONDS by slot."""

    def __init__(self, board: Board) -> None:
        """Needs the running loop."""
        self._slots = [(board.row(row), board.row(row + 1)) for row in range(0, board.rows, 2)]
        self._loop = asyncio.get_running_loop()
        self._readings: deque[tuple[float, list[Counts]]] = deque(maxlen=WINDOW_SECONDS + 1)
        self._next: asyncio.TimerHandle | None = None
        self.rates: deque[float] = deque(maxlen=KEPT_SECONDS)

    def start(self) -> None:
        """Read now and each second from now on."""
        self._next = self._loop.call_later(1.0, self.start)
        before = self._readings[-1] if self._readings else None
        self._readings.append((self._loop.time(), self.counts()))
        if before is not None:
            at, now = self._readings[-1]
            calls = sum(one.calls for one in now) - sum(one.calls for one in before[1])
            self.rates.append(calls / (at - before[0]))

    def stop(self) -> None:
        """Read no more."""
        if self._next is not None:
            self._next.cancel()

    def counts(self) -> list[Counts]:
        """The counters of each slot, both its rows together."""
        return [counts(rows) for rows in self._slots]

    def traffic(self) -> tuple[Traffic, list[Traffic]]:
        """The traffic of all and of each slot; nothing while there is one reading only."""
        nothing = Traffic(0.0, 0.0, None)
        if len(self._readings) < 2:
            return nothing, [nothing for _ in self._slots]
        (began, before), (ended, after) = self._readings[0], self._readings[-1]
        seconds = ended - began
        pairs = zip(before, after, strict=True)
        slots = [between(old, new, seconds) or nothing for old, new in pairs]
        return between(total(before), total(after), seconds) or nothing, slots
