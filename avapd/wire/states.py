"""The streams of a connection and what each may receive (RFC 9113 section 5.1).

A stream as the server sees it; a client cannot reserve one, so two of the RFC's states never occur:

                        HEADERS                    HEADERS with END_STREAM
              ┌────────┐            ┌────────┐                             ┌─────────────┐
              │  IDLE  ├───────────►│  OPEN  ├── END_STREAM ──────────────►│ HALF_CLOSED │
              └────────┘            └───┬────┘                             └──────┬──────┘
                                        │ our answer is complete, or              │ our answer is written,
                                        │ we sent RST_STREAM                      │ or RST_STREAM
                                    ┌───▼────┐   END_STREAM, RST_STREAM    ┌──────▼──────┐
                                    │ EARLY  ├────────────────────────────►│   CLOSED    │
                                    └────────┘                             └─────────────┘

Nothing is kept of a closed stream: a stream number above the highest seen is IDLE, one in `Streams.open` is OPEN or
HALF_CLOSED, one in the small ring `Streams.early` was closed by us while the client may still be sending, and every
other one is CLOSED. A stream counts as open until its last octet is written, not until it is queued.
"""

from __future__ import annotations

import enum
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

from avapd.wire import frames
from avapd.wire.errors import ConnectionFault, ErrorCode

if TYPE_CHECKING:
    from avapd.wire.call import Call
    from avapd.wire.grpc import Mark
    from avapd.wire.meaning import Head


class State(enum.IntEnum):
    """Where a stream is."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED = 2  # the client has said all
    EARLY = 3  # we have said all, the client may not know yet
    CLOSED = 4


class Act(enum.IntEnum):
    """What to do with a frame that is legal."""

    BEGIN = 0
    TRAILERS = 1
    TAKE = 2
    END = 3  # the client gives the stream up
    CREDIT = 4
    DISCARD = 5  # decode, give the connection its credit back, answer nothing
    IGNORE = 6


_PROTOCOL: Final = ErrorCode.PROTOCOL_ERROR
_CLOSED: Final = ErrorCode.STREAM_CLOSED

# Frames on a stream, by its state. An error code ends the connection: for frames after the end the RFC would have
# only the stream reset, but each such reset is work an attacker can ask for (CVE-2025-8671).
_TABLE: Final[dict[int, tuple[Act | ErrorCode, ...]]] = {
    #                      IDLE        OPEN          HALF_CLOSED  EARLY        CLOSED
    frames.HEADERS:       (Act.BEGIN,  Act.TRAILERS, _CLOSED,     Act.DISCARD, _CLOSED),
    frames.DATA:          (_PROTOCOL,  Act.TAKE,     _CLOSED,     Act.DISCARD, _CLOSED),
    frames.RST_STREAM:    (_PROTOCOL,  Act.END,      Act.END,     Act.IGNORE,  Act.IGNORE),
    frames.WINDOW_UPDATE: (_PROTOCOL,  Act.CREDIT,   Act.CREDIT,  Act.IGNORE,  Act.IGNORE),
}  # fmt: skip
_NAMES: Final = {0: "DATA", 1: "HEADERS", 3: "RST_STREAM", 8: "WINDOW_UPDATE"}

# Streams closed early that are remembered; older ones count as closed. Five times the streams a client may have open.
_EARLY: Final = 512
# Gaps in the numbers that are remembered, to call a late HEADERS in one by its right name.
_SKIPPED: Final = 16


_NOTHING: Final[deque[bytes | memoryview]] = deque(maxlen=0)


class Stream:
    """One call on the wire. Windows are signed (section 6.9.2)."""

    __slots__ = (
        "buffer", "call", "deadline", "ended", "ending", "expires", "head", "headed", "in_turns", "mark", "number",
        "outcome", "private", "queue", "queued", "received", "stalls", "trailers", "window", "writable",
    )  # fmt: skip

    def __init__(self, number: int, head: Head, window: int) -> None:
        self.number = number
        self.head = head
        self.window = window  # what the client lets us send
        self.writable = frames.WINDOW  # what we let the client send
        self.received = 0  # DATA so far, padding not counted, for content-length
        self.ended = False  # END_STREAM has come
        self.buffer: bytearray | None = None  # request octets that are no whole message yet
        self.call: Call | None = None  # of a streaming method
        self.deadline = inf  # of the client
        self.expires = inf  # of ours, for the request
        self.stalls = inf  # of ours, for an answer that waits on a window
        # The answer that is under way; see windows.py.
        self.headed = False  # HEADERS are written
        self.queue: deque[bytes | memoryview] = _NOTHING
        self.queued = 0  # octets in it
        self.private = 0  # octets that were queued as `bytes`
        self.in_turns = False
        self.ending = False  # nothing more will be queued
        self.trailers: bytes | None = None
        self.outcome = -1
        self.mark: Mark | None = None


class Streams:
    """The streams of a connection: those that are open, and the traces of some that are not.

    `highest` is the number of the newest stream, -1 before the first: the next one of an orderly client is 2 higher.
    """

    __slots__ = ("_passed_over", "_skipped", "_taken", "early", "highest", "open")

    def __init__(self) -> None:
        self.open: dict[int, Stream] = {}
        self.early: dict[int, None] = {}
        self.highest = -1
        self._skipped: deque[range] = deque(maxlen=_SKIPPED)
        self._taken = 0  # the highest stream that was processed,
        self._passed_over = 0  # when the newest one was not

    def state(self, number: int) -> State:
        """The state of any stream."""
        stream = self.open.get(number)
        if stream is not None:
            return State.HALF_CLOSED if stream.ended else State.OPEN
        if number > self.highest:
            return State.IDLE
        return State.EARLY if number in self.early else State.CLOSED

    def act(self, kind: int, number: int) -> Act:
        """What to do with a frame of this type. Raises ConnectionFault when it is illegal now."""
        state = self.state(number)
        act = _TABLE[kind][state]
        if isinstance(act, ErrorCode):
            # 5.1.1: a number of ours, or one that may not be opened any more
            if not number & 1 or any(number in skipped for skipped in self._skipped):
                act = ErrorCode.PROTOCOL_ERROR
            raise ConnectionFault(act, f"{_NAMES[kind]} on a stream that is {state.name.lower()}")
        return act

    def begin(self, number: int) -> None:
        """Take note of a new stream (section 5.1.1)."""
        if not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's stream has an even number")
        if number > self.highest + 2:
            self._skipped.append(range(self.highest + 2, number, 2))
        self._taken = self.taken
        self.highest = number

    def pass_over(self) -> None:
        """The newest stream is not processed: the client may repeat its call."""
        self._passed_over = self.highest

    @property
    def taken(self) -> int:
        """The highest stream that was processed, for GOAWAY."""
        return self._taken if self.highest == self._passed_over else max(self.highest, 0)

    def close_early(self, number: int) -> None:
        """We are done with a stream and the client may not know."""
        if len(self.early) >= _EARLY:
            del self.early[next(iter(self.early))]
        self.early[number] = None
