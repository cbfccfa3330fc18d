"""The board: one row of counters and gauges per worker process, in shared memory.

A row is written by one worker alone and read by the master, so nothing is locked: each number is one aligned 64-bit
word. Counters go on where the row's last process left them, so sums never fall. Workers know nothing of Prometheus.

Layout, native 64-bit words:

    page 0          words the master writes               `CHECKED` …
    row 1 … rows    gauges   `HEARTBEAT` … `STATE`
                    requests [method][status]
                    duration [method][bucket], then its sum in nanoseconds
                    keys     [key] calls, then let through by its rate, then beyond it
                    limits   [limit] that clients met

Each row begins on a page of its own, so that two CPUs never write the same cache line.

Every slot has two rows: while a worker is being replaced, the old and the new process each write to theirs.
"""

from __future__ import annotations

import enum
import mmap
from bisect import bisect_left
from typing import Final

from avapd.shared import memory

METHODS: Final = ("GetCommand", "SyncCatalog", "StreamCatalog", "WatchCatalog", "unknown")
STATUSES: Final = (200, 401, 404, 429, 499, 500, 501, 503, 504)
# gRPC status code → the HTTP-like status that the platform's alerts use (contract part 6).
STATUS_OF_CODE: Final = {
    0: 200, 1: 499, 4: 504, 5: 404, 8: 429, 12: 501, 13: 500, 14: 503, 16: 401,
}  # fmt: skip
# Upper bounds in seconds; one more bucket takes the rest.
BUCKETS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
UNTIMED: Final = -1  # a duration that is none
_BOUNDS: Final = tuple(int(bound * 1e9) for bound in BUCKETS)


class State(enum.IntEnum):
    """What a worker is doing, in the order it gets there."""

    ABSENT = 0
    BOOTING = 1
    WAITING = 2  # up, answering NOT_SERVING: no catalog yet
    SERVING = 3
    DRAINING = 4


# Words of the master's page. Times are CLOCK_MONOTONIC nanoseconds, one clock for all processes of a host.
CHECKED: Final = 0  # when the source was last found good, 0 for never
FRESH_FOR: Final = 1  # how long after that `avapd.freshness` is SERVING

# Words of a worker's row.
HEARTBEAT: Final = 0
PID: Final = 1
STATE: Final = 2
GENERATION: Final = 3
CONNECTIONS: Final = 4
_GAUGES: Final = 8
_REQUESTS: Final = _GAUGES
_DURATIONS: Final = _REQUESTS + len(METHODS) * len(STATUSES)
_DURATION_WORDS: Final = len(BUCKETS) + 2
# Names of keys that are counted at once; config/keys.py takes no more.
KEYS: Final = 64
# Limits that clients met: wrong keys from one address, and connections, of which those beyond are cut off.
CUT_OFF: Final = ("worker", "total", "address")
LIMITS: Final = ("failures", *CUT_OFF)
_KEY_CALLS: Final = _DURATIONS + len(METHODS) * _DURATION_WORDS
_KEY_LET: Final = _KEY_CALLS + KEYS
_KEY_LIMITED: Final = _KEY_LET + KEYS
_MET: Final = _KEY_LIMITED + KEYS
ROW_WORDS: Final = _MET + len(LIMITS)

_PAGE: Final = 4096


def size_of(rows: int) -> int:
    """The size in bytes of a board with so many rows."""
    return _PAGE * (1 + rows)


def create(rows: int) -> int:
    """A descriptor of a new board."""
    size = size_of(rows)
    fd = memory.create("avapd-board", size)
    memory.seal(fd, memory.BOARD_SEALS)
    return fd


class Board:
    """A mapped board."""

    def __init__(self, fd: int, rows: int) -> None:
        self.fd = fd
        self.rows = rows
        self._map: mmap.mmap = memory.map_shared(fd, size_of(rows))
        self._words = memoryview(self._map).cast("Q")

    def __getitem__(self, word: int) -> int:
        """A word of the master's page."""
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._words[word] = value

    def row(self, number: int) -> Row:
        """The row of a worker process."""
        first = _PAGE // 8 * (1 + number)
        return Row(self._words[first : first + ROW_WORDS])

    def all(self) -> list[Row]:
        """Every row."""
        return [self.row(number) for number in range(self.rows)]


class Row:
    """One worker's row. `count` is on the hot path."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview[int]) -> None:
        self.words = words

    def __getitem__(self, word: int) -> int:
        return self.words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self.words[word] = value

    def count(self, method: int, status: int, nanoseconds: int, times: int = 1) -> None:
        """Count finished calls: indexes into METHODS and STATUSES, how long each took, and how many there were.

        With UNTIMED they are in no bucket: what a client ended, or a deadline, says nothing of how quick we are.
        """
        words = self.words
        words[_REQUESTS + method * len(STATUSES) + status] += times
        if nanoseconds == UNTIMED:
            return
        base = _DURATIONS + method * _DURATION_WORDS
        words[base + bisect_left(_BOUNDS, nanoseconds)] += times
        words[base + _DURATION_WORDS - 1] += nanoseconds * times

    def count_key(self, column: int, times: int = 1) -> None:
        """Count finished calls with a key."""
        self.words[_KEY_CALLS + column] += times

    def key_calls(self, column: int) -> int:
        """Finished calls with a key."""
        return self.words[_KEY_CALLS + column]

    def count_let(self, column: int) -> None:
        """Count a call with a key that has a rate, within it."""
        self.words[_KEY_LET + column] += 1

    def count_limited(self, column: int) -> None:
        """Count a call beyond the rate of its key."""
        self.words[_KEY_LIMITED + column] += 1

    def key_rate(self, column: int) -> tuple[int, int]:
        """Calls with a key that has a rate: within it, and beyond."""
        return self.words[_KEY_LET + column], self.words[_KEY_LIMITED + column]

    def meet(self, limit: str) -> None:
        """Count that a client met one of LIMITS."""
        self.words[_MET + LIMITS.index(limit)] += 1

    def met(self, limit: str) -> int:
        """How often one of LIMITS was met."""
        return self.words[_MET + LIMITS.index(limit)]

    def requests(self, method: int) -> list[int]:
        """Finished calls of a method, by status."""
        first = _REQUESTS + method * len(STATUSES)
        return list(self.words[first : first + len(STATUSES)])

    def durations(self, method: int) -> tuple[list[int], float]:
        """Calls of a method by bucket (not cumulative; the last has no upper bound), and their sum in seconds."""
        first = _DURATIONS + method * _DURATION_WORDS
        *buckets, total = self.words[first : first + _DURATION_WORDS]
        return buckets, total / 1e9

    def clear_gauges(self) -> None:
        """Forget the process that wrote here; its counters stay."""
        for word in range(_GAUGES):
            self.words[word] = 0
