"""The asyncio shell of the wire engine: one `WireProtocol` for each connection, on any transport, TLS or not.

    transport ──data_received──► Connection.receive ──► out ──one write──► transport

Everything one read leads to leaves in one write. What is too much for one turn (`pending`, `ready`) goes on in another,
see `Turns`, so that a flood on one connection leaves the others their share. While the transport is full, nothing is
read, parsed or sent: a client that does not read is waited for at most `stall_seconds`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from time import monotonic, perf_counter_ns
from typing import Final, cast

from avapd.data.access import Admission
from avapd.data.failures import block_of
from avapd.shared.board import UNTIMED
from avapd.wire.connection import Connection
from avapd.wire.headers import Routes

# After GOAWAY the client's last octets are read and thrown away: closing with octets unread makes a TCP reset, and the
# client may never see the GOAWAY (RFC 9113 section 5.4.1).
_LINGER_SECONDS: Final = 1.0
# What is due later than this is seen by the next of the seldom ticks, a second apart.
_SOON_SECONDS: Final = 1.5

# How long refusals stay the sterner ones before a connection is tried again.
_STERN_SECONDS: Final = 1.0

Count = Callable[[list[int], int, "WireProtocol"], int]
Make = Callable[[Routes, "Members", Admission, Count], "WireProtocol"]


class Turns:
    """Connections that wait for another turn, and get it in the order in which they came.

    After `SLICE_SECONDS` of turns the loop looks at its sockets again: who asks little is answered between the turns of
    those who ask much, however many these are. Three hundred connections with a hundred calls each, all new to us, make
    a round of 50 ms; a probe needs three looks, one to connect and two to ask.
    """

    SLICE_SECONDS: Final = 0.0005

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def add(self, turn: Callable[[], None]) -> None:
        """Have this called soon, once."""
        self._waiting.append(turn)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        end = monotonic() + self.SLICE_SECONDS
        try:
            for _ in range(len(self._waiting)):
                self._waiting.popleft()()
                if monotonic() > end:
                    break
        finally:  # a defect in one turn must not keep the others from theirs
            self._schedule()


class Members:
    """The connections of an engine: `all`, and those that are `busy`, for which something is due soon.

    While there are busy ones, they are ticked every `TICK_SECONDS`: so precisely deadlines are kept. `tick` is for the
    others and may be seldom; ten thousand idle connections must cost next to nothing.
    """

    TICK_SECONDS: Final = 0.05

    def __init__(self) -> None:
        self.all: set[WireProtocol] = set()
        self.busy: set[WireProtocol] = set()
        self.turns = Turns()
        self._ticking = False

    def stir(self, member: WireProtocol) -> None:
        """A connection is busy."""
        self.busy.add(member)
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(self.TICK_SECONDS, self._tick_busy)

    def _tick_busy(self) -> None:
        self._ticking = False
        for member in list(self.busy):
            member.tick(monotonic())
            if member in self.busy:
                self.stir(member)

    def tick(self) -> None:
        """Have every connection do what is due."""
        for member in list(self.all):
            member.tick(monotonic())


class WireProtocol(asyncio.Protocol):
    """A connection.

    `count` gets the outcomes of calls, how long they took, and the connection; it tells how many had a wrong key.
    """

    __slots__ = (
        "_access", "_address", "_began", "_blocked_at", "_count", "_full", "_left", "_lingering", "_loop", "_members",
        "_routes", "_scheduled", "_transport", "_wire",
    )  # fmt: skip

    _transport: asyncio.Transport
    _wire: Connection

    def __init__(self, routes: Routes, members: Members, access: Admission, count: Count) -> None:
        self._access = access
        self._address = b""
        self._routes = routes
        self._members = members
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._full = self._scheduled = self._lingering = False
        self._blocked_at = 0.0
        self._began = 0  # when came what waits for a turn (perf_counter_ns); 0 when nothing does
        self._left = 0

    # --- the transport calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say our SETTINGS at once."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._address = block_of(peer[0]) if peer else b""
        if not self._access.enter(self._address):  # before our SETTINGS: so clients know to come back less often
            self._transport.abort()
            return
        # Half, since a turn may write the whole: what a client that does not read costs stays below twice that.
        self._transport.set_write_buffer_limits(self._routes.limits.write_bytes // 2)
        self._members.all.add(self)
        self._wire = Connection(self._routes, monotonic(), random.uniform(-1, 1))  # noqa: S311  # spreads, hides nothing
        self._wire.on_output(self._schedule)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Octets of the client."""
        wire, now, began = self._wire, monotonic(), perf_counter_ns()
        wire.receive(data, now)
        if wire.pending and not self._began:
            self._began = began
        if wire.ready:
            wire.pump(now)
        self._flush()
        if wire.finished:
            self._tell(perf_counter_ns() - began)

    def pause_writing(self) -> None:
        """The transport is full: nothing more goes in or out."""
        self._full = True
        self._members.stir(self)
        self._blocked_at = monotonic()
        self._left = self._transport.get_write_buffer_size()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has read. What it has not taken before is no time of ours."""
        self._full = False
        self._began = 0
        self._schedule()

    def connection_lost(self, _error: Exception | None) -> None:
        """The transport is gone."""
        if self in self._members.all:
            self._members.all.discard(self)
            self._members.busy.discard(self)
            self._access.leave(self._address)
            self._wire.lost()
            self._tell()

    # --- the engine calls -------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due by the clock."""
        if self._full or self._wire.wake_at <= now + _SOON_SECONDS:
            self._members.stir(self)
        else:  # also with calls open: a thousand watches must cost next to nothing
            self._members.busy.discard(self)
        if self._full:
            self._watch_reader(now)
        elif self._wire.wake_at <= now and not self._lingering:
            self._wire.tick(now)
            self._flush()
            self._tell()

    @property
    def peer(self) -> object:
        """The client's address, as sockets name it."""
        return self._transport.get_extra_info("peername")

    def drain(self) -> None:
        """Say good-bye."""
        self._wire.drain(monotonic())
        self._flush()

    def forget(self) -> None:
        """What headers mean has changed."""
        self._wire.forget()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    # --- turns ------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._members.turns.add(self._turn)

    def _turn(self) -> None:
        """Go on with what the last turn left."""
        self._scheduled = False
        if self._full or self._transport.is_closing():
            return
        wire, now, turn = self._wire, monotonic(), perf_counter_ns()
        began = self._began or turn
        if wire.pending:
            late = turn - began > self._routes.limits.queue_seconds * 1e9
            if late:  # who asked so long ago has mostly given up: what is left of the time goes to who has not
                wire.shed(True)
            wire.resume(now)
            if late:
                wire.shed(False)
        self._began = began if wire.pending else 0
        if wire.ready:
            wire.pump(now)
        self._flush()
        if wire.finished:
            self._tell(perf_counter_ns() - began)

    def _flush(self) -> None:
        """Write `out`, and see to what comes next."""
        wire = self._wire
        if wire.busy:
            self._members.stir(self)
        out = wire.out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if wire.closed:
            self._linger()
        elif self._full:
            return
        elif wire.pending:
            self._transport.pause_reading()
            self._schedule()
        else:
            if not self._transport.is_reading():
                self._transport.resume_reading()
            if wire.ready:
                self._schedule()
        if not self._transport.get_write_buffer_size():
            wire.flushed()

    def _tell(self, nanoseconds: int = UNTIMED) -> None:
        """Have the calls that ended counted."""
        if self._wire.finished:
            denied = self._count(self._wire.finished, nanoseconds, self)
            self._wire.finished.clear()
            if denied and not self._access.failed(self._address, monotonic(), denied):
                self._wire.stern(True)
                self._loop.call_later(_STERN_SECONDS, self._wire.stern, False)

    # --- ends -------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Say that nothing more comes, and wait until the client has all of it."""
        if self._lingering or self._transport.is_closing():
            return
        self._lingering = True
        self._blocked_at, self._left = monotonic(), self._transport.get_write_buffer_size()
        if self._transport.can_write_eof():
            self._transport.write_eof()
            if not self._transport.is_reading():
                self._transport.resume_reading()
        elif not self._left:
            self._transport.close()
        self._loop.call_later(_LINGER_SECONDS, self._leave)

    def _leave(self) -> None:
        """Close for good a second after the last octet has left the process, or when the client takes nothing."""
        if self._transport.is_closing():
            return
        before, left = self._left, self._transport.get_write_buffer_size()
        if left:
            self._watch_reader(monotonic())
        elif not self._transport.can_write_eof():
            self._transport.close()
        elif not before:
            self._transport.abort()
        self._left = left
        self._loop.call_later(_LINGER_SECONDS, self._leave)

    def _watch_reader(self, now: float) -> None:
        """C9: cut off a client that reads nothing."""
        left = self._transport.get_write_buffer_size()
        if left < self._left:
            self._left, self._blocked_at = left, now
        elif now - self._blocked_at > self._routes.limits.stall_seconds:
            self._transport.abort()
