"""A connection: HTTP/2 as a server speaks it to one client. Bytes in, bytes out, no socket and no clock.

    receive(data) ──frame loop──┬─ HEADERS + DATA of a call seen before ──► its ready response        (the fast path)
                                └─ _frame ──► _on_… by type ──► states.py ──► calls.py ──► windows.py ──► `out`

The frame loop knows one shape by heart: a HEADERS frame with a remembered block, and right behind it a DATA frame that
ends the stream with a remembered request. Such a call costs two reads of a frame head, two look-ups and one join; it
never becomes a `Stream`. Everything else goes through `_frame`, one frame at a time. Both do the same: the fast path is
only taken where the slow one would write the same octets, and tests/wire holds one against the other.

Rules for editors:
- What changes the meaning of a HEADERS frame (a header block that goes on, a size update that is due, the last GOAWAY)
  belongs into `_plain`.
- Every header block is decoded, wanted or not (A30). Every octet of DATA is credited to the connection (A43).
- A wrong frame raises ConnectionFault or StreamFault; `_run` and `_frame` alone turn them into GOAWAY and RST_STREAM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from avapd.wire import frames
from avapd.wire.account import Account, calm
from avapd.wire.calls import Calls
from avapd.wire.errors import ConnectionFault, ErrorCode, StreamFault
from avapd.wire.frames import DATA, END_HEADERS, END_STREAM, HEAD, HEAD_BYTES, HEADERS, MAX_FRAME, MAX_ID, PREFACE
from avapd.wire.headers import Heads, Routes, check_trailers, malformed
from avapd.wire.lifetime import Duty, Lifetime, Phase
from avapd.wire.states import Act, Streams
from avapd.wire.windows import Outbox

# A call on the fast path costs its octets and this many, as the quantum of a turn counts.
_CALL_WORK: Final = 64
# The client's DATA is credited when so much has come. A frame has at most half of that, so the window of the connection
# is never used up, and a client cannot break it (A43, A44).
_CREDIT: Final = frames.WINDOW // 2
_GOODBYE: Final = b"good-bye"
_KEEPALIVE: Final = b"are you?"
# Streams above this number: time for a new connection, before the numbers run out (A9).
_OLD: Final = 1 << 30


class Connection:
    """One client's connection.

    `out` is what is to be written: the caller joins and clears it after each call of a method, then closes the transport
    if `closed`. `pending`: octets wait to be parsed, call `resume`. `ready`: DATA waits for a turn, call `pump`. Neither
    while the transport is full. `wake_at`: when `tick` is to be called. `now` is in seconds, on any one clock.
    `finished` is what the application's `outcome` gave for each call that ended; the caller clears it.
    """

    def __init__(self, routes: Routes, now: float, jitter: float = 0.0) -> None:
        """Begin: our SETTINGS are the first thing in `out`. `jitter`, -1 to 1, spreads the ages of connections."""
        self._limits = limits = routes.limits
        self._application = routes.application
        self._account = Account(limits, now)
        self._streams = Streams()
        self._outbox = Outbox(limits, self._account)
        self._heads = Heads(routes)
        self._calls = Calls(routes.application, limits, self._streams, self._outbox, self._account)
        self._lifetime = Lifetime(limits, now, jitter)
        self._now = now
        self._kept: list[bytes] = []  # what came after the last whole frame,
        self._kept_size = 0
        self._need = len(PREFACE)  # and how much of it makes the next one
        self._greeted = False  # the preface has come,
        self._settled = False  # and SETTINGS
        self._block: _OpenBlock | None = None  # a header block that goes on
        self._table_told = False
        self._uncredited = 0
        self._slow_work = limits.write_bytes // limits.quantum_frames
        self.out = self._outbox.out
        self.finished = self._calls.finished
        self.closed = False
        self.pending = False
        values = {frames.MAX_CONCURRENT_STREAMS: limits.streams, frames.MAX_HEADER_LIST_SIZE: limits.header_bytes}
        self.out.append(frames.settings(values))

    # --- input ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Octets from the client, cut anywhere. Raises nothing."""
        if self.closed:
            return
        self._now = self._lifetime.heard = now
        if self._kept:
            self._keep(data)
            if self.pending or self._kept_size < self._need:
                return
            data = self._whole()
        self._run(data)

    def resume(self, now: float) -> None:
        """Go on with what the last quantum left."""
        self.pending = False
        if not self.closed:
            self._now = now
            self._run(self._whole())

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        self._kept_size += len(data)

    def _whole(self) -> bytes:
        data = b"".join(self._kept)
        self._kept.clear()
        self._kept_size = 0
        return data

    def _run(self, data: bytes) -> None:
        try:
            if self._greeted:
                self._frames(data, 0)
            else:
                self._greet(data)
            if self._streams.highest > _OLD:
                self.drain(self._now)
        except ConnectionFault as fault:
            self._fail(fault.code, fault.debug)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave the connection half dead
            self._application.failed(b"", error)
            self._fail(ErrorCode.INTERNAL_ERROR, "internal error")
        if self.finished or self._streams.open:
            self._lifetime.called = self._now
        self._end_if_left()

    def _greet(self, data: bytes) -> None:
        """The preface (section 3.4). Whoever says something else speaks another protocol: no answer would be read."""
        begin = data[: len(PREFACE)]
        if begin != PREFACE[: len(begin)]:
            self._end()
        elif len(begin) < len(PREFACE):
            self._keep(data)
        else:
            self._greeted = True
            self._frames(data, len(PREFACE))

    def _frames(self, data: bytes, at: int) -> None:
        """The frame loop; see the head of this file. Its plain twin is in tests/wire/test_frame_loop.py."""
        settled, portable = self._heads.settled, self._heads.portable
        streams, outbox, finished, emit = self._streams, self._outbox, self.finished, self.out.append
        opened, room = streams.open, self._limits.streams
        read, end, work, quantum = HEAD.unpack_from, len(data), 0, self._limits.write_bytes
        plain = self._plain()
        while end - at >= HEAD_BYTES:
            word, flags, number = read(data, at)
            stop = at + HEAD_BYTES + (word >> 8)
            if flags == END_HEADERS and word & 255 == HEADERS and plain and stop + HEAD_BYTES <= end:
                block = data[at + HEAD_BYTES : stop]
                known = settled.get(block) or portable.get(block)
                if known and number == streams.highest + 2 and len(opened) < room:
                    head = known[0]
                    follow, ends, again = read(data, stop)
                    size = follow >> 8
                    behind = stop + HEAD_BYTES + size
                    if (
                        ends == END_STREAM
                        and follow & 255 == DATA
                        and again == number
                        and behind <= end
                        and (head.length < 0 or head.length == size)
                    ):
                        response = head.refusal or head.answers.get(data[stop + HEAD_BYTES : behind])
                        if response and response.size <= outbox.window and response.size <= outbox.initial:
                            if known[1]:
                                self._heads.replay(known[1])
                            streams.highest = number
                            outbox.window -= response.size
                            outbox.sent += 1
                            emit(data[at + 5 : at + 9].join(response.parts))
                            finished.append(response.outcome)
                            self._uncredited += size
                            if self._uncredited >= _CREDIT:
                                self._credit(0)
                            at = behind
                            work += response.size + _CALL_WORK
                            if work >= quantum:
                                break
                            continue
            if word >> 8 > MAX_FRAME:
                frames.check_size(word >> 8)
            if stop > end:
                break
            self._frame(word & 255, flags, number & MAX_ID, data[at + HEAD_BYTES : stop])
            if self.closed:
                return
            at = stop
            plain = self._plain()
            work += self._slow_work + outbox.volume
            outbox.volume = 0
            if work >= quantum:
                break
        self.pending = work >= quantum and at < end
        if at < end:
            self._keep(data[at:])
            self._need = HEAD_BYTES if end - at < HEAD_BYTES else HEAD_BYTES + (HEAD.unpack_from(data, at)[0] >> 8)

    def _plain(self) -> bool:
        """Whether the frame loop may answer a call by itself."""
        return (
            self._settled
            and self._block is None
            and not self._outbox.size_update_due
            and self._lifetime.phase is not Phase.LEFT
        )

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """One whole frame of any type. Raises ConnectionFault."""
        frames.check(kind, len(payload), number)
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block.number):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        if not self._settled and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        handle = _HANDLERS.get(kind)
        if handle is None:
            self._account.odd_frame(self._calls.begun + self._outbox.sent)
            return
        try:
            handle(self, flags, number, payload)
        except StreamFault as fault:
            self._reset(number, fault.code)

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._account.our_reset(self._now)
        self._account.control()
        stream = self._streams.open.get(number)
        if stream is not None:
            self._calls.reset(stream, code)
        else:
            self.out.append(frames.rst_stream(number, code))
            self._streams.close_early(number)

    def _credit(self, size: int) -> None:
        """Give the connection back what it received, in large pieces."""
        self._uncredited += size
        if self._uncredited >= _CREDIT:
            self.out.append(frames.window_update(0, self._uncredited))
            self._uncredited = 0

    # --- frames on streams ------------------------------------------------------------------------------------

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        self._credit(len(payload))
        ended = bool(flags & END_STREAM)
        body = frames.unpadded(payload, flags)
        if not body and not ended:
            self._account.empty_data()
        if self._streams.act(DATA, number) is Act.TAKE:
            self._calls.data(self._streams.open[number], body, len(payload), self._now, ended=ended)
        elif ended:
            self._streams.early.pop(number, None)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        block = frames.unpadded(payload, flags)
        if flags & frames.WITH_PRIORITY:
            if len(block) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            self._check_priority(number, block)
            block = block[5:]
        self._streams.act(HEADERS, number)
        if flags & END_HEADERS:
            self._headers(number, block, ended=bool(flags & END_STREAM))
        else:
            self._block = _OpenBlock(number, block, ended=bool(flags & END_STREAM))

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        ends = bool(flags & END_HEADERS)
        block.append(payload, self._limits.header_block, self._limits.continuations, ends=ends)
        if ends:
            self._block = None
            self._headers(number, b"".join(block.pieces), ended=block.ended)

    def _headers(self, number: int, block: bytes, *, ended: bool) -> None:
        """A whole header block, which is decoded whatever comes of it (A30)."""
        act = self._streams.act(HEADERS, number)
        if act is Act.BEGIN:
            self._begin(number, block, ended=ended)
        elif act is Act.TRAILERS:
            fields = self._heads.skip(block)
            if not ended:
                raise malformed("trailers that do not end the stream")
            check_trailers(fields)
            self._calls.trailers(self._streams.open[number], self._now)
        else:
            self._heads.skip(block)
            if ended:
                self._streams.early.pop(number, None)

    def _begin(self, number: int, block: bytes, *, ended: bool) -> None:
        self._streams.begin(number)
        if self._lifetime.phase is Phase.LEFT:  # A7: the client will see that it came too late
            self._heads.skip(block)
            if not ended:
                self._streams.close_early(number)
        elif len(self._streams.open) >= self._limits.streams:
            self._heads.skip(block)
            self._account.refusal(self._now)
            self._account.control()
            self.out.append(frames.rst_stream(number, ErrorCode.REFUSED_STREAM))
            if not ended:
                self._streams.close_early(number)
        else:
            self._calls.begin(number, self._heads.known(block), self._now, ended=ended)

    def _on_rst_stream(self, _flags: int, number: int, _payload: bytes) -> None:
        if self._streams.act(frames.RST_STREAM, number) is Act.END:
            self._calls.cancel(self._streams.open[number], self._now)
        else:
            self._streams.early.pop(number, None)

    def _on_priority(self, _flags: int, number: int, payload: bytes) -> None:
        self._check_priority(number, payload)
        self._account.odd_frame(self._calls.begun + self._outbox.sent)

    @staticmethod
    def _check_priority(number: int, payload: bytes) -> None:
        """Priorities are ignored, but one that contradicts itself is an error still (A29, C5)."""
        if frames.number(payload) == number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    # --- frames on the connection -----------------------------------------------------------------------------

    def _on_settings(self, flags: int, _number: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self._lifetime.settings_acknowledged():
                self._glitch()
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        entries = frames.entries(payload)
        self._account.settings(self._now, len(entries))
        for setting, value in entries:
            self._apply(setting, value)
        self._account.control()
        self.out.append(frames.SETTINGS_ACK)
        self._settled = True
        self._lifetime.greeted()

    def _apply(self, setting: int, value: int) -> None:
        """One setting of the client's (section 6.5.2, A42); unknown ones are ignored."""
        if setting == frames.INITIAL_WINDOW_SIZE:
            self._outbox.resize(value, list(self._streams.open.values()))
        elif setting == frames.HEADER_TABLE_SIZE:
            if value < frames.TABLE and not self._table_told:
                self._table_told = self._outbox.size_update_due = True
        elif setting == frames.MAX_FRAME_SIZE:
            if not frames.MAX_FRAME <= value < 1 << 24:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
        elif setting == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")

    def _on_ping(self, flags: int, _number: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self.out.append(frames.ping(payload, ack=True))
            self._account.control()
            self._account.ping(self._now, self._outbox.sent, calls_open=bool(self._streams.open))
        elif payload == _GOODBYE and self._lifetime.phase is Phase.LEAVING:
            self._say_last()
        elif payload != _KEEPALIVE:
            self._glitch()

    def _on_goaway(self, _flags: int, _number: int, _payload: bytes) -> None:
        """The client will take no streams of ours; there are none. Its own calls go on (A8)."""
        self._glitch()

    def _on_window_update(self, _flags: int, number: int, payload: bytes) -> None:
        increment = frames.number(payload)
        self._account.window_update(self._outbox.sent, self._calls.begun)
        act = self._streams.act(frames.WINDOW_UPDATE, number) if number else Act.IGNORE
        if not increment:  # on a stream the RFC would have it reset, which an attacker could ask for (C5)
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if not number:
            self._outbox.credit(increment)
        elif act is Act.CREDIT:
            self._outbox.credit_stream(self._streams.open[number], increment)

    def _glitch(self) -> None:
        if self._account.glitch():
            self.drain(self._now, b"too many glitches")

    # --- output -----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Call `pump`."""
        return not self.closed and self._outbox.ready

    def pump(self, now: float) -> None:
        """One turn of DATA for the streams that may send."""
        self._now = now
        try:
            for stream in self._outbox.pump():
                if stream.ending:
                    self._calls.written(stream)
                else:
                    self._calls.sent(stream)
        except ConnectionFault as fault:
            self._fail(fault.code, fault.debug)
        self._end_if_left()

    def flushed(self) -> None:
        """All that was taken from `out` has left the process (C8)."""
        self._account.flushed()

    def on_output(self, notify: Callable[[], None]) -> None:
        """Have `notify` called when a streaming call has put something into `out`, or made the connection `ready`."""
        self._calls.on_output = notify

    # --- time and ends ----------------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When `tick` is to be called; it may be in the past."""
        return min(self._lifetime.wake_at, self._calls.wake_at)

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self.closed:
            return
        self._now = now
        try:
            self._calls.expire(now)
        except ConnectionFault as fault:
            self._fail(fault.code, fault.debug)
            return
        match self._lifetime.due(now, calls_open=bool(self._streams.open)):
            case Duty.GIVE_UP:
                self._end()
            case Duty.NO_SETTINGS_ACK:
                self._fail(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS were not acknowledged")
            case Duty.SAY_MAX_AGE:
                self.drain(now, b"max_age")
            case Duty.SAY_MAX_IDLE:
                self.drain(now, b"max_idle")
            case Duty.SAY_LAST:
                self._say_last()
            case Duty.END:
                self._calls.end_all()
                self._end()
            case Duty.ASK:
                self.out.append(frames.ping(_KEEPALIVE))
        self._end_if_left()

    def drain(self, now: float, debug: bytes = b"") -> None:
        """Say good-bye: no new calls after the client has heard it; those in flight are answered (A7)."""
        if self.closed or self._lifetime.phase is not Phase.OPEN:
            return
        if not self._settled:
            self._fail(ErrorCode.NO_ERROR, "")
            return
        self.out.append(frames.goaway(MAX_ID, ErrorCode.NO_ERROR, debug))
        self.out.append(frames.ping(_GOODBYE))
        self._lifetime.leave(now)

    def lost(self) -> None:
        """The transport is gone: end every call."""
        self.out.clear()
        self._end()

    def forget(self) -> None:
        """What headers mean has changed; see `Routes.forget`."""
        self._heads.forget()

    def _say_last(self) -> None:
        self.out.append(frames.goaway(max(self._streams.highest, 0), ErrorCode.NO_ERROR))
        self._lifetime.left()

    def _end_if_left(self) -> None:
        if self._lifetime.phase is Phase.LEFT and not self._streams.open:
            self._end()

    def _fail(self, code: ErrorCode, debug: str) -> None:
        """Tell the client what was wrong; nothing is written after it (section 5.4.1)."""
        self.out.append(frames.goaway(max(self._streams.highest, 0), code, debug.encode()))
        self._end()

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self.pending = False
            self._kept.clear()
            written = len(self.out)
            self._calls.drop_all()
            del self.out[written:]


class _OpenBlock:
    """A header block of which CONTINUATION frames are still to come."""

    __slots__ = ("_empty", "_size", "ended", "number", "pieces")

    def __init__(self, number: int, first: bytes, *, ended: bool) -> None:
        self.number = number
        self.ended = ended
        self.pieces = [first]
        self._size = len(first)
        self._empty = 0

    def append(self, piece: bytes, most_octets: int, most_frames: int, *, ends: bool) -> None:
        """One more CONTINUATION. Raises ConnectionFault when it is too many (C13)."""
        self.pieces.append(piece)
        self._size += len(piece)
        self._empty += not piece and not ends
        if self._size > most_octets or len(self.pieces) - 1 > most_frames or self._empty > 1:
            raise calm("header block too large")


_HANDLERS: Final[dict[int, Callable[[Connection, int, int, bytes], None]]] = {
    frames.DATA: Connection._on_data,
    frames.HEADERS: Connection._on_headers,
    frames.PRIORITY: Connection._on_priority,
    frames.RST_STREAM: Connection._on_rst_stream,
    frames.SETTINGS: Connection._on_settings,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
    frames.WINDOW_UPDATE: Connection._on_window_update,
    frames.CONTINUATION: Connection._on_continuation,
}
