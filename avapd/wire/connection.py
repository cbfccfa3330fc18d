"""A connection: HTTP/2 as a server speaks it to one client. Bytes in, bytes out, no socket and no clock.

    receive(data) ──frame loop──┬─ HEADERS + DATA of a call seen before ──► its ready response        (the fast path)
                                └─ session.py, by type ──► states.py ──► calls.py ──► windows.py ──► `out`

The frame loop knows two shapes by heart: a HEADERS frame with a remembered block, and a DATA frame that ends such a
stream with a remembered request. A call made of them costs two reads of a frame head, two look-ups and one join. It
never becomes a `Stream`: between the two frames, within one read, it is an entry of `_fresh`. Everything else goes
through `Session.frame`, one frame at a time. Both do the same: the fast path is only taken where the slow one would
write the same octets, and tests/wire/test_frame_loop.py holds one against the other.

Rules for editors:
- What changes the meaning of a HEADERS frame (a header block that goes on, a size update that is due, the last GOAWAY)
  belongs into `Session.plain`. Before anything else happens on the connection, `_fresh` becomes streams.
- Every header block is decoded, wanted or not (A30). Every octet of DATA is credited to the connection (A43).
- A wrong frame raises ConnectionFault or StreamFault; `_run` and `Session` turn them into GOAWAY and RST_STREAM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from avapd.wire import frames
from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.frames import DATA, END_HEADERS, END_STREAM, HEAD, HEAD_BYTES, HEADERS, MAX_FRAME, MAX_ID, PREFACE
from avapd.wire.headers import Head, Known, Routes
from avapd.wire.lifetime import Duty, Phase
from avapd.wire.session import CREDIT, Session

# A call on the fast path costs its octets and this many, as the quantum of a turn counts.
_CALL_WORK: Final = 64
_MISS_WORK: Final = 256
_OCTET_WORK: Final = 4  # of a header block: decoding takes its time
_TOO_LARGE: Final = MAX_FRAME + 1 << 8  # a frame's length and type
# Streams above this number: time for a new connection, before the numbers run out (A9).
_OLD: Final = 1 << 30


def _nothing() -> None:
    """Whom nobody hears any more is told nothing."""


class Connection:
    """One client's connection.

    `out` is what is to be written: the caller joins and clears it after each call of a method, then closes the
    transport if `closed`. `pending`: octets wait to be parsed, call `resume`. `ready`: DATA waits for a turn, call
    `pump`. Neither while the transport is full. `wake_at`: when to call `tick`. `now` is in seconds, on any one clock.
    `finished` is what the application's `outcome` gave for each call that ended; the caller clears it.
    """

    def __init__(self, routes: Routes, now: float, jitter: float = 0.0) -> None:
        """Begin: our SETTINGS are the first thing in `out`. `jitter`, -1 to 1, spreads the ages of connections."""
        self._limits = limits = routes.limits
        self._application = routes.application
        self._session = session = Session(routes, now, jitter)
        self._fresh: dict[int, Known] = {}
        self._kept = bytearray()  # what came after the last whole frame,
        self._need = 1  # and how much of it makes the next one
        self._greeted = False  # the preface has come
        self._quantum = limits.write_bytes // 4
        self._slow_work = self._quantum // limits.quantum_frames
        self.out = session.outbox.out
        self.finished = session.calls.finished
        self.closed = False
        self.pending = False
        values = {frames.MAX_CONCURRENT_STREAMS: limits.streams, frames.MAX_HEADER_LIST_SIZE: limits.header_bytes}
        self.out.append(frames.settings(values))

    # --- input ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Octets from the client, cut anywhere. Raises nothing."""
        if self.closed:
            return
        self._session.now = self._session.lifetime.heard = now
        if self._kept:
            self._kept += data
            if self.pending or len(self._kept) < self._need:
                return
            data = self._whole()
        self._run(data)

    def resume(self, now: float) -> None:
        """Go on with what the last quantum left."""
        self.pending = False
        if not self.closed:
            self._session.now = now
            self._run(self._whole())

    def _whole(self) -> bytes:
        data = bytes(self._kept)
        self._kept.clear()
        return data

    def _run(self, data: bytes) -> None:
        self._guard(self._frames if self._greeted else self._greet, data)
        session = self._session
        if session.streams.highest > _OLD:
            self.drain(session.now)
        if self.finished or session.streams.open:
            session.lifetime.called = session.now

    def _guard(self, act: Callable[..., None], *arguments: object) -> None:
        """Do something; what is raised ends the connection in the right way."""
        try:
            act(*arguments)
        except ConnectionFault as fault:
            self._fail(fault.code, fault.debug)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave the connection half dead
            self._application.failed(b"", error)
            self._fail(ErrorCode.INTERNAL_ERROR, "internal error")
        if self._session.over:
            self._end()

    def _greet(self, data: bytes) -> None:
        """The preface (section 3.4). Whoever says something else speaks another protocol: no answer would be read."""
        begin = data[: len(PREFACE)]
        if begin != PREFACE[: len(begin)]:
            self._end()
        elif len(begin) < len(PREFACE):
            self._kept += data
            self._need = len(begin) + 1
        else:
            self._greeted = True
            self._frames(data[len(PREFACE) :])

    def _frames(self, data: bytes) -> None:  # noqa: C901, PLR0912, PLR0915  # no call where none is needed
        """The frame loop; see the head of this file. Its plain twin is in tests/wire/test_frame_loop.py."""
        session, fresh, finished, emit = self._session, self._fresh, self.finished, self.out.append
        streams, outbox = session.streams, session.outbox
        settled, portable, opened, early = session.heads.settled, session.heads.portable, streams.open, streams.early
        read, at, end, work, quantum = HEAD.unpack_from, 0, len(data), 0, self._quantum
        room, plain, refusal = self._limits.streams, session.plain, session.calls.refusal
        shedding = session.calls.shedding
        while end - at >= HEAD_BYTES and work < quantum:
            word, flags, number = read(data, at)
            stop = at + HEAD_BYTES + (word >> 8)
            if plain and stop <= end and word < _TOO_LARGE:
                kind = word & 255
                if kind == DATA and flags == END_STREAM:
                    if number in fresh:
                        request = data[at + HEAD_BYTES : stop]
                        head = fresh[number][0]
                        response = (shedding and head.shed) or head.answers.get(request) or refusal(head)
                        if (
                            response
                            and response.size <= outbox.window
                            and response.size <= outbox.initial
                            and (head.length < 0 or head.length == len(request))
                        ):
                            del fresh[number]
                            session.uncredited += len(request)
                            if session.uncredited >= CREDIT:
                                session.credit(0)
                            outbox.window -= response.size
                            outbox.sent += 1
                            emit(data[at + 5 : at + 9].join(response.parts))
                            finished.append(head.owner + response.outcome)
                            work += response.size + _CALL_WORK
                            at = stop
                            continue
                        if self._complete(number, head, request):
                            work += _MISS_WORK + outbox.volume
                            outbox.volume = 0
                            at = stop
                            continue
                    elif number in early:
                        del early[number]
                        session.credit(word >> 8)
                        work += _CALL_WORK
                        at = stop
                        continue
                elif (
                    kind == HEADERS
                    and flags == END_HEADERS
                    and number == streams.highest + 2
                    and len(opened) + len(fresh) < room
                ):
                    block = data[at + HEAD_BYTES : stop]
                    known = settled.get(block) or portable.get(block)
                    if known and known[0].waits and not known[1]:
                        streams.highest = number
                        fresh[number] = known
                    else:
                        self._open(number, block, known)
                        work += _MISS_WORK + (0 if known else _OCTET_WORK * len(block))
                    at = stop
                    continue
            frames.check_size(word >> 8)
            if stop > end:
                break
            if fresh:
                self._begin_fresh()
            session.frame(word & 255, flags, number & MAX_ID, data[at + HEAD_BYTES : stop])
            if session.over:  # the octets that follow are too late, however they were cut
                return
            work += self._slow_work + outbox.volume + (_OCTET_WORK * (word >> 8) if word & 255 else 0)
            outbox.volume = 0
            plain = session.plain
            at = stop
        if fresh:
            self._begin_fresh()
        self.pending = work >= quantum and end > at
        if end > at:
            self._kept += data[at:]
            self._need = HEAD_BYTES if end - at < HEAD_BYTES else HEAD_BYTES + (read(data, at)[0] >> 8)

    def _open(self, number: int, block: bytes, known: Known | None) -> None:
        """HEADERS of the next stream that are new, or that do more than to wait for DATA."""
        session = self._session
        if known is None:
            known = session.known(number, block)
        elif known[1]:
            session.heads.replay(known[1])
        session.streams.highest = number
        if known is None:
            return
        head = known[0]
        if head.waits:
            self._fresh[number] = known
        elif head.early is not None:
            session.outbox.sent += 1
            self.out.append(number.to_bytes(4, "big").join(head.early_parts))
            self.finished.append(head.early.outcome)
            session.streams.close_early(number)
        else:
            session.calls.begin(number, known, session.now, ended=False)

    def _complete(self, number: int, head: Head, request: bytes) -> bool:
        """The whole request of a fresh stream, with an answer that is new or does not fit. False: it needs care."""
        session = self._session
        if head.length < 0 or head.length == len(request):
            calls = session.calls
            response = calls.respond(head, request)
            if response is not None:
                session.credit(len(request))
                if session.outbox.whole(number, session.outbox.initial, response):
                    del self._fresh[number]
                    self.finished.append(head.owner + response.outcome)
                else:
                    self._begin_fresh()
                    calls.answer(number, response, session.now)
                return True
        return False

    def _begin_fresh(self) -> None:
        """Make streams of those that had only HEADERS so far."""
        calls, now = self._session.calls, self._session.now
        for number, known in self._fresh.items():
            calls.begin(number, known, now, ended=False)
        self._fresh.clear()

    # --- output -----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Call `pump`."""
        return not self.closed and self._session.outbox.ready

    def pump(self, now: float) -> None:
        """One turn of DATA for the streams that may send."""
        self._session.now = now
        self._guard(self._session.pump)

    def flushed(self) -> None:
        """All that was taken from `out` has left the process (C8)."""
        self._session.flushed()

    def on_output(self, notify: Callable[[], None]) -> None:
        """Have `notify` called when a streaming call has put something into `out`, or made the connection `ready`."""
        self._session.calls.on_output = notify

    # --- time and ends ----------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Calls are open, or a good-bye is under way: `wake_at` may be near."""
        return bool(self._session.streams.open) or self._session.lifetime.phase is not Phase.OPEN

    @property
    def wake_at(self) -> float:
        """When `tick` is to be called; it may be in the past."""
        return min(self._session.lifetime.wake_at, self._session.calls.wake_at)

    def tick(self, now: float) -> None:
        """Do what is due."""
        if not self.closed:
            self._session.now = now
            self._guard(self._do_duties)

    def _do_duties(self) -> None:
        session = self._session
        session.calls.expire(session.now)
        match session.lifetime.due(session.now, calls_open=bool(session.streams.open)):
            case Duty.GIVE_UP:
                self._end()
            case Duty.NO_SETTINGS_ACK:
                raise ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS were not acknowledged")
            case Duty.SAY_MAX_AGE:
                session.drain(b"max_age")
            case Duty.SAY_MAX_IDLE:
                session.drain(b"max_idle")
            case Duty.SAY_LAST:
                session.say_last()
            case Duty.END:
                session.calls.end_all()
                self._end()
            case Duty.ASK:
                session.ask()

    def drain(self, now: float, debug: bytes = b"") -> None:
        """Say good-bye: no new calls after the client has heard it; those in flight are answered (A7)."""
        if not self.closed:
            self._session.now = now
            self._guard(self._session.drain, debug)

    def lost(self) -> None:
        """The transport is gone: end every call."""
        self.out.clear()
        self._end()
        self.on_output(_nothing)  # who holds us is held no longer: so we go at once, without the collector

    def stern(self, yes: bool) -> None:
        """Whether refusals are the sterner ones from now on; see grpc.Answer."""
        self._session.calls.stern = yes

    def shed(self, yes: bool) -> None:
        """Whether calls are not served from now on, but answered with their method's `shed`."""
        self._session.calls.shedding = yes

    def forget(self) -> None:
        """What headers mean has changed; see `Routes.forget`."""
        self._session.heads.forget()

    def read_anew(self, on: bool) -> None:
        """Whether header blocks that are known by heart are read all the same, so that one of them can be marked."""
        self._session.heads.read_anew(on)

    def _fail(self, code: ErrorCode, debug: str) -> None:
        """Tell the client what was wrong; nothing is written after it (section 5.4.1)."""
        self.out.append(frames.goaway(self._session.streams.taken, code, debug.encode()))
        self._end()

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self.pending = False
            self._kept.clear()
            written = len(self.out)
            self._session.calls.drop_all()
            del self.out[written:]
