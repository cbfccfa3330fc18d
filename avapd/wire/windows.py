"""What leaves a connection, as far as the client's windows let it (RFC 9113 sections 5.2 and 6.9).

HEADERS are written at once. DATA waits in the queue of its stream and leaves in turns: each stream that may send gets
at most `_TURN` octets, then the next one, so that a small answer overtakes a blocked or a large one, and a PING ACK
slips in between. What is queued are references: octets of a catalog are not copied for a client that does not read.

A stream is in `_turns` when it has DATA and its own window is open, or when only its end is left to write. It leaves
when its window is used up, and returns with WINDOW_UPDATE or a larger SETTINGS_INITIAL_WINDOW_SIZE.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

from avapd.wire import frames, grpc
from avapd.wire.account import Account
from avapd.wire.errors import ConnectionFault, ErrorCode, StreamFault
from avapd.wire.hpack import SIZE_UPDATE_ZERO
from avapd.wire.limits import Limits
from avapd.wire.states import Stream

_TURN: Final = 64 << 10


class Outbox:
    """The sending half of a connection. `out` is what is to be written, in order; the caller empties it."""

    __slots__ = (
        "_account", "_limits", "_private", "_turns", "_waiting", "initial", "out", "sent", "size_update_due", "volume",
        "window",
    )  # fmt: skip

    def __init__(self, limits: Limits, account: Account) -> None:
        self._limits = limits
        self._account = account
        self._turns: deque[Stream] = deque()
        self._private = 0
        self._waiting: dict[int, Stream] = {}  # those with DATA
        self.out: list[bytes | memoryview] = []
        self.window = frames.WINDOW
        self.initial = frames.WINDOW
        self.sent = 0  # answers, HEADERS and DATA frames so far
        self.volume = 0  # octets of whole answers; the frame loop empties it
        # Our encoder has no dynamic table, but a client that makes it smaller must be told so (RFC 7541 section 4.2).
        self.size_update_due = False

    @property
    def ready(self) -> bool:
        """There is something to send for which only a turn is missing."""
        return bool(self._turns) and (self.window > 0 or any(not stream.queued for stream in self._turns))

    # --- writing ----------------------------------------------------------------------------------------------

    def headers(self, number: int, block: bytes, flags: int = 0) -> None:
        """Write a HEADERS frame. Blocks are short: fields of ours, and a message of at most 3 KiB."""
        if self.size_update_due:
            block = SIZE_UPDATE_ZERO + block
            self.size_update_due = False
        self.sent += 1
        self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS | flags, number, block))

    def whole(self, number: int, window: int, response: grpc.Response) -> bool:
        """Write all frames of a response at once, if nothing stands in the way; else write nothing."""
        if self.size_update_due:
            if response.body:
                return False
            self.headers(number, response.head, frames.END_STREAM)
            return True
        if response.size > min(window, self.window) or not response.parts:
            return False
        self.window -= response.size
        self.sent += 1
        self.volume += response.size
        self.out.append(number.to_bytes(4, "big").join(response.parts))
        return True

    def begin(self, stream: Stream, block: bytes) -> None:
        """Write the headers of an answer whose DATA will be queued."""
        self.headers(stream.number, block)
        stream.headed = True
        stream.queue = deque()

    def queue(self, stream: Stream, *chunks: grpc.Body) -> None:
        """Queue octets of DATA. Raises StreamFault when too much waits for the client's windows."""
        for chunk in chunks:
            stream.queue.append(chunk)
            stream.queued += len(chunk)
            if type(chunk) is bytes:  # a view is into memory that is there anyway
                stream.private += len(chunk)
                self._private += len(chunk)
        if self._private > self._limits.blocked_bytes:
            self._check_bound(stream)
        self._waiting[stream.number] = stream
        self._take_turn(stream)

    def _check_bound(self, stream: Stream) -> None:
        """C10: the answer of one call may be as large as it is, those of many may not all wait."""
        largest = max(other.private for other in (stream, *self._waiting.values()))
        if self._private - largest > self._limits.blocked_bytes:
            raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, "too much waits for the windows")

    def end(self, stream: Stream, trailers: bytes | None) -> None:
        """Nothing more will be queued; without trailers the last DATA ends the stream."""
        stream.trailers = trailers
        stream.ending = True
        self._take_turn(stream)

    def drop(self, stream: Stream) -> None:
        """Forget what is queued."""
        self._release(stream)
        stream.queued = 0
        stream.queue.clear()
        if stream.in_turns:
            self._turns.remove(stream)
            stream.in_turns = False

    def _release(self, stream: Stream) -> None:
        self._private -= stream.private
        stream.private = 0
        self._waiting.pop(stream.number, None)

    # --- turns ------------------------------------------------------------------------------------------------

    def _take_turn(self, stream: Stream) -> None:
        if not stream.in_turns and (stream.window > 0 or not stream.queued):
            stream.in_turns = True
            self._turns.append(stream)

    def pump(self) -> list[Stream]:
        """One turn for each stream that may send, half of `write_bytes` in all; those that have nothing more queued."""
        done: list[Stream] = []
        allowance = self._limits.write_bytes // 2
        for _ in range(len(self._turns)):
            if allowance <= 0:
                break
            stream = self._turns.popleft()
            stream.in_turns = False
            sent = self._send(stream, min(allowance, _TURN))
            allowance -= sent
            if sent:
                stream.stalls = inf  # C10: the client takes something
            if stream.queued:
                self._take_turn(stream)
            else:
                self._release(stream)
                if stream.trailers is not None:
                    self.headers(stream.number, stream.trailers, frames.END_STREAM)
                done.append(stream)
        return done

    def _send(self, stream: Stream, allowance: int) -> int:
        sent = 0
        while stream.queued and sent < allowance:
            room = min(self.window, stream.window)
            if room <= 0:
                break
            size = min(room, frames.MAX_FRAME, stream.queued)
            last = stream.ending and stream.trailers is None and size == stream.queued
            self._account.data_sent(size, forced=size == room and size < stream.queued)
            self.out.append(frames.HEAD.pack(size << 8 | frames.DATA, frames.END_STREAM if last else 0, stream.number))
            self._move(stream, size)
            self.window -= size
            stream.window -= size
            self.sent += 1
            sent += size
        return sent

    def _move(self, stream: Stream, size: int) -> None:
        """Move octets from the queue of a stream to `out`."""
        queue = stream.queue
        stream.queued -= size
        while size:
            chunk = queue[0]
            if len(chunk) <= size:
                self.out.append(queue.popleft())
                size -= len(chunk)
            else:
                view = memoryview(chunk)
                self.out.append(view[:size])
                queue[0] = view[size:]
                size = 0

    # --- windows ----------------------------------------------------------------------------------------------

    def credit(self, increment: int) -> None:
        """WINDOW_UPDATE of the connection."""
        self.window += increment
        if self.window > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window above 2^31-1")

    def credit_stream(self, stream: Stream, increment: int) -> None:
        """WINDOW_UPDATE of a stream."""
        stream.window += increment
        if stream.window > frames.MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")
        if stream.queued:
            self._take_turn(stream)

    def resize(self, initial: int, streams: list[Stream]) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE: every open stream moves by the difference, below zero if need be (6.9.2)."""
        if initial > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1")
        change = initial - self.initial
        self.initial = initial
        for stream in streams:
            stream.window += change
            if stream.window > frames.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")
            if stream.queued:
                self._take_turn(stream)
