"""The frames of one connection, one at a time: what each type does, in each state.

`Connection` reads frames from octets and answers by itself what it knows by heart; every other frame comes here.
A wrong frame raises ConnectionFault, or StreamFault, which `frame` turns into RST_STREAM.
"""

from __future__ import annotations

from typing import Final

from avapd.wire import frames
from avapd.wire.account import Account, calm
from avapd.wire.calls import Calls
from avapd.wire.errors import ConnectionFault, ErrorCode, StreamFault
from avapd.wire.frames import DATA, END_HEADERS, END_STREAM, HEADERS, MAX_ID
from avapd.wire.headers import Heads, Known, Routes, check_trailers, malformed
from avapd.wire.lifetime import Lifetime, Phase
from avapd.wire.states import Act, Streams
from avapd.wire.windows import Outbox

# The client's DATA is credited when so much has come. A frame has at most half of that, so the window of the connection
# is never used up, and a client cannot break it (A43, A44).
CREDIT: Final = frames.WINDOW // 2
_GOODBYE: Final = b"good-bye"
_KEEPALIVE: Final = b"are you?"


class Session:
    """The state of one connection, and what frames do to it. `now` is set by the caller before each call."""

    __slots__ = (
        "_account", "_block", "_limits", "_settled", "_table_told", "calls", "heads", "lifetime", "now", "outbox",
        "streams", "uncredited",
    )  # fmt: skip

    def __init__(self, routes: Routes, now: float, jitter: float) -> None:
        self._limits = limits = routes.limits
        self._account = Account(limits, now)
        self.streams = Streams()
        self.outbox = Outbox(limits, self._account)
        self.heads = Heads(routes)
        self.calls = Calls(routes.application, limits, self.streams, self.outbox, self._account)
        self.lifetime = Lifetime(limits, now, jitter)
        self.now = now
        self.uncredited = 0
        self._settled = False  # the client's first SETTINGS have come
        self._table_told = False
        self._block: _OpenBlock | None = None  # a header block that goes on

    @property
    def plain(self) -> bool:
        """A HEADERS frame of a new stream now means what it says: the frame loop may take it."""
        return (
            self._settled
            and self._block is None
            and not self.outbox.size_update_due
            and self.lifetime.phase is not Phase.LEFT
        )

    def frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """One whole frame of any type. Raises ConnectionFault."""
        frames.check(kind, len(payload), number)
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block.number):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        if not self._settled and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        try:
            self._act(kind, flags, number, payload)
        except StreamFault as fault:
            self._reset(number, fault.code)

    def _act(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        match kind:
            case frames.DATA:
                self._data(flags, number, payload)
            case frames.HEADERS:
                self._headers(flags, number, payload)
            case frames.WINDOW_UPDATE:
                self._window_update(number, payload)
            case frames.RST_STREAM:
                self._rst_stream(number)
            case frames.PING:
                self._ping(flags, payload)
            case frames.SETTINGS:
                self._settings(flags, payload)
            case frames.CONTINUATION:
                self._continuation(flags, payload)
            case frames.GOAWAY:  # it is about streams of ours, and there are none; the client's own go on (A8)
                self._glitch()
            case _:
                if kind == frames.PRIORITY:
                    self._check_priority(number, payload)
                self._account.odd_frame(self._use)

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._account.our_reset(self.now)
        self._account.control()
        stream = self.streams.open.get(number)
        if stream is not None:
            self.calls.reset(stream, code)
        else:
            self.outbox.out.append(frames.rst_stream(number, code))
            self.streams.close_early(number)

    def credit(self, size: int) -> None:
        """Give the connection back what it received, in large pieces."""
        self.uncredited += size
        if self.uncredited >= CREDIT:
            self.outbox.out.append(frames.window_update(0, self.uncredited))
            self.uncredited = 0

    def known(self, number: int, block: bytes) -> Known | None:
        """Open the next stream with a block that is not remembered; None when the request is malformed, and reset."""
        try:
            return self.heads.read(block)
        except StreamFault as fault:
            self._reset(number, fault.code)
            return None

    @property
    def _use(self) -> int:
        """How much honest use there was: frames answered, and calls open."""
        return self.outbox.sent + len(self.streams.open)

    # --- frames on streams ------------------------------------------------------------------------------------

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        self.credit(len(payload))
        ended = bool(flags & END_STREAM)
        body = frames.unpadded(payload, flags)
        if not body and not ended:
            self._account.empty_data()
        if self.streams.act(DATA, number) is Act.TAKE:
            self.calls.data(self.streams.open[number], body, len(payload), self.now, ended=ended)
        elif ended:
            self.streams.early.pop(number, None)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        block = frames.unpadded(payload, flags)
        if flags & frames.WITH_PRIORITY:
            if len(block) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            self._check_priority(number, block)
            block = block[5:]
        self.streams.act(HEADERS, number)
        if flags & END_HEADERS:
            self._header_block(number, block, ended=bool(flags & END_STREAM))
        else:
            self._block = _OpenBlock(number, block, ended=bool(flags & END_STREAM))

    def _continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        ends = bool(flags & END_HEADERS)
        block.append(payload, self._limits.header_block, self._limits.continuations, ends=ends)
        if ends:
            self._block = None
            self._header_block(block.number, b"".join(block.pieces), ended=block.ended)

    def _header_block(self, number: int, block: bytes, *, ended: bool) -> None:
        """A whole header block, which is decoded whatever comes of it (A30)."""
        act = self.streams.act(HEADERS, number)
        if act is Act.BEGIN:
            self._begin(number, block, ended=ended)
        elif act is Act.TRAILERS:
            fields = self.heads.skip(block)
            if not ended:
                raise malformed("trailers that do not end the stream")
            check_trailers(fields)
            self.calls.data(self.streams.open[number], b"", 0, self.now, ended=True)  # trailers (B26)
        else:
            self.heads.skip(block)
            if ended:
                self.streams.early.pop(number, None)

    def _begin(self, number: int, block: bytes, *, ended: bool) -> None:
        self.streams.begin(number)
        try:
            try:
                self._open(number, block, ended=ended)
            except StreamFault as fault:
                self._reset(number, fault.code)
        except ConnectionFault:
            self.streams.pass_over()
            raise
        if ended:
            self.streams.early.pop(number, None)

    def _open(self, number: int, block: bytes, *, ended: bool) -> None:
        if self.lifetime.phase is Phase.LEFT:  # A7: the client will see that it came too late
            self.streams.pass_over()
            self.heads.skip(block)
        elif len(self.streams.open) >= self._limits.streams:
            self.streams.pass_over()
            self.heads.skip(block)
            self._account.refusal(self.now)
            self._account.control()
            self.outbox.out.append(frames.rst_stream(number, ErrorCode.REFUSED_STREAM))
        else:
            self.calls.begin(number, self.heads.known(block), self.now, ended=ended)
            return
        if not ended:
            self.streams.close_early(number)

    def _rst_stream(self, number: int) -> None:
        if self.streams.act(frames.RST_STREAM, number) is Act.END:
            self.calls.cancel(self.streams.open[number], self.now)
        else:
            self.streams.early.pop(number, None)

    @staticmethod
    def _check_priority(number: int, payload: bytes) -> None:
        """Priorities are ignored, but one that contradicts itself is an error still (A29, C5)."""
        if frames.number(payload) == number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    # --- frames on the connection -----------------------------------------------------------------------------

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self.lifetime.settings_acknowledged():
                self._glitch()
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        entries = frames.entries(payload)
        self._account.settings(self.now, len(entries))
        for setting, value in entries:
            self._apply(setting, value)
        self._account.control()
        self.outbox.out.append(frames.SETTINGS_ACK)
        self._settled = True
        self.lifetime.greeted()

    def _apply(self, setting: int, value: int) -> None:
        """One setting of the client's (section 6.5.2, A42); unknown ones are ignored."""
        if setting == frames.INITIAL_WINDOW_SIZE:
            self.outbox.resize(value, list(self.streams.open.values()))
        elif setting == frames.HEADER_TABLE_SIZE:
            if value < frames.TABLE and not self._table_told:
                self._table_told = self.outbox.size_update_due = True
        elif setting == frames.MAX_FRAME_SIZE:
            if not frames.MAX_FRAME <= value < 1 << 24:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
        elif setting == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")

    def _ping(self, flags: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self.outbox.out.append(frames.ping(payload, ack=True))
            self._account.control()
            self._account.ping(self.now, self.outbox.sent, calls_open=bool(self.streams.open))
        elif payload == _GOODBYE and self.lifetime.phase is Phase.LEAVING:
            self.say_last()
        elif payload != _KEEPALIVE:
            self._glitch()

    def _window_update(self, number: int, payload: bytes) -> None:
        increment = frames.number(payload)
        self._account.window_update(self._use)
        act = self.streams.act(frames.WINDOW_UPDATE, number) if number else Act.IGNORE
        if not increment:  # on a stream the RFC would have it reset, which an attacker could ask for (C5)
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if not number:
            self.outbox.credit(increment)
        elif act is Act.CREDIT:
            self.outbox.credit_stream(self.streams.open[number], increment)

    # --- output and good-bye ----------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """The good-bye is said, and every call answered."""
        return self.lifetime.phase is Phase.LEFT and not self.streams.open

    def pump(self) -> None:
        """One turn of DATA for the streams that may send."""
        for stream in self.outbox.pump():
            if stream.ending:
                self.calls.written(stream)
            else:
                self.calls.sent(stream)

    def drain(self, debug: bytes = b"") -> None:
        """The first step of the good-bye (A7)."""
        if self.lifetime.phase is not Phase.OPEN:
            return
        if not self._settled:
            raise ConnectionFault(ErrorCode.NO_ERROR, "")
        self.outbox.out.append(frames.goaway(MAX_ID, ErrorCode.NO_ERROR, debug))
        self.outbox.out.append(frames.ping(_GOODBYE))
        self.lifetime.leave(self.now)

    def say_last(self) -> None:
        """The second step: later streams are not served."""
        self.outbox.out.append(frames.goaway(self.streams.taken, ErrorCode.NO_ERROR))
        self.lifetime.left()

    def ask(self) -> None:
        """A PING of our own, to hear whether the client is there (A49)."""
        self.outbox.out.append(frames.ping(_KEEPALIVE))

    def flushed(self) -> None:
        """All that was written has left the process (C8)."""
        self._account.flushed()

    def _glitch(self) -> None:
        if self._account.glitch():
            self.drain(b"too many glitches")


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
