"""The engine on `avapd.wire`: our own HTTP/2 and gRPC, on the event loop, without a task or a future for a call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from time import monotonic
from typing import Final

from avapd.data.access import Access, Probes
from avapd.data.auth import AUTHORIZATION, HEADER, Key
from avapd.data.health import Health
from avapd.data.marks import Marks
from avapd.data.meter import LIMITED
from avapd.data.refusals import REASONS, address
from avapd.data.reports import Reports
from avapd.data.service import DENIED, OVERLOADED, SERVICE, Service, unimplemented
from avapd.data.streams import Watches
from avapd.data.tls import Identity
from avapd.data.wire_port import HealthApplication, WirePort
from avapd.data.wire_protocol import Count, Make, WireProtocol
from avapd.log import Log
from avapd.shared.board import CONNECTIONS, METHODS, STATUS_OF_CODE, STATUSES, Row
from avapd.shared.channel import Start
from avapd.wire import frames
from avapd.wire.call import Call
from avapd.wire.connection import Connection
from avapd.wire.grpc import Answer, Method, trailers_only
from avapd.wire.headers import Routes
from avapd.wire.hpack import Field, encode
from avapd.wire.limits import Limits

# How often idle connections are looked at, and, when the engine stops, whether the last one is gone.
_TICK_SECONDS: Final = 1.0
_LEFT_SECONDS: Final = 0.05
# Of the health port, where nobody shows a key: probes are few.
_HEALTH_CONNECTIONS: Final = 256
_WARM_CALLS: Final = 20
_UNCOUNTED: Final = -1
# An outcome is that of a call, of which there are so many, and as often this as the key's column, from 1, says.
OUTCOMES: Final = len(METHODS) * len(STATUSES)
_DENIED: Final = STATUSES.index(401)
_SHOWN: Final = 100
# When a client that retries by itself may do so, in milliseconds.
_LATER: Final = (b"grpc-retry-pushback-ms", b"1000")
# Statuses that are events of the audit, by their place.
_REFUSED: Final = {STATUSES.index(status): reason for status, reason in REASONS.items()}


@cache  # there are as many outcomes as counters on the board
def _places(outcome: int) -> tuple[int, int, int]:
    """Method, status and column of an outcome; the column is -1 without a key."""
    owner, call = divmod(outcome, OUTCOMES)
    return *divmod(call, len(STATUSES)), owner - 1


class DefinitionApplication:
    """What a worker serves: DefinitionEngine with a key, health without, reflection in development."""

    names = frozenset({HEADER.encode(), AUTHORIZATION.encode()})

    def __init__(
        self,
        service: Service,
        watches: Watches,
        access: Access,
        health: Health,
        log: Log,
        *,
        marks: Marks | None = None,
    ) -> None:
        marks = marks or Marks(log)
        self.noted, self.mark = marks.noted, marks.mark
        self._access = access
        self._log = log
        self._open = dict(health.methods)
        self._unary = {f"/{SERVICE}/{name}".encode(): serve for name, serve in service.methods.items()}
        self._streams = {
            f"/{SERVICE}/{name}".encode(): begin
            for name, begin in (("StreamCatalog", watches.stream), ("WatchCatalog", watches.watch))
        }
        self._keyed: dict[tuple[bytes, Key], Method] = {}
        unknown, failed = METHODS.index("unknown"), STATUSES.index(500)
        self._columns = {code: STATUSES.index(status) for code, status in STATUS_OF_CODE.items()}
        self._failed = failed
        paths = (*self._unary, *self._streams)
        self._rows = {path: METHODS.index(path.rpartition(b"/")[2].decode()) for path in paths}
        self._unknown = unknown

    def add(self, methods: dict[bytes, Method]) -> None:
        """Serve these methods too, without a key."""
        self._open |= methods

    def route(self, path: bytes, metadata: tuple[Field, ...]) -> Method | Answer:
        """By the exact octets of the path."""
        if path in self._rows:
            key = self._access.keyring().allows([(name.decode(), value) for name, value in metadata])
            if key is None:
                return DENIED
            return self._keyed.get((path, key)) or self._keyed.setdefault((path, key), self._method(path, key))
        return self._open.get(path) or unimplemented(path.decode("utf-8", "replace"))

    def _method(self, path: bytes, key: Key) -> Method:
        """A method as who has this key may call it."""
        admits = partial(self._access.meter.admits, key) if key.rate else None
        serve = self._unary.get(path)
        if serve is not None:
            method = Method.unary(path, serve if admits is None else _metered(serve, admits))
        else:
            stream = partial(self._streams[path], key=key)
            method = Method.server_stream(path, stream if admits is None else _metered_stream(stream, admits))
        method.shed = trailers_only(OVERLOADED.code, OVERLOADED.message, self.outcome(path, OVERLOADED.code), _LATER)
        method.owner = OUTCOMES * (1 + key.column)
        method.remembered = admits is None
        return method

    def keys_changed(self) -> None:
        """The key ring is another one."""
        self._keyed.clear()

    def outcome(self, path: bytes, code: int) -> int:
        """Index of the counter on the board; health and reflection are not counted."""
        if path in self._open:
            return _UNCOUNTED
        return self._rows.get(path, self._unknown) * len(STATUSES) + self._columns.get(code, self._failed)

    def failed(self, path: bytes, error: Exception) -> None:
        """A handler raised, or the engine did."""
        shown = path[:_SHOWN].decode("utf-8", "replace")
        self._log.error(
            "Call Failed", path=shown, error=type(error).__name__, hint="a defect of avapd; please report it"
        )


def _metered(serve: Callable[[bytes], Answer], admits: Callable[[], bool]) -> Callable[[bytes], Answer]:
    return lambda request: serve(request) if admits() else LIMITED


def _metered_stream(
    begin: Callable[[Call, bytes], None], admits: Callable[[], bool]
) -> Callable[[Call, bytes], None]:  # fmt: skip
    def begun(call: Call, request: bytes) -> None:
        if admits():
            begin(call, request)
        else:
            call.finish(LIMITED.code, LIMITED.message)

    return begun


class WireEngine:
    """Serves a `Service` on sockets that the master holds."""

    def __init__(
        self, service: Service, access: Access, row: Row, start: Start, log: Log, *, identity: Identity | None
    ) -> None:
        self._row = row
        self._access = access
        self._health = Health()
        self._watches = Watches(service.feed)
        self.reports = Reports(start, log)
        self._application = DefinitionApplication(
            service, self._watches, access, self._health, log, marks=self.reports.marks
        )
        if start.environment == "development":
            from avapd.data.reflection import methods  # noqa: PLC0415  # in development only

            self._application.add(methods())
        limits = Limits(**start.limits)  # type: ignore[arg-type]  # each is of its own kind
        self._routes = Routes(self._application, limits)
        count: Count = self._count
        make: Make = WireProtocol
        if self.reports.traced is not None:
            from avapd.data import spans  # noqa: PLC0415  # not there when it is off

            self._routes, count, make = spans.traced(self.reports.traced, self._application, limits, count)
        self._port = WirePort(self._routes, access, count, identity, log, make=make)
        probes = Routes(HealthApplication(self._health, self._application.failed), limits)
        few = Probes(min(limits.connections, _HEALTH_CONNECTIONS))
        self._health_port = WirePort(probes, few, self._count, None, log)
        self._ticker: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Begin to keep time; no socket is served yet."""
        self._ticker = asyncio.create_task(self._tick())

    async def ended(self) -> None:
        """Return when the engine has stopped, asked or not."""
        await self._ended.wait()

    # --- sockets ----------------------------------------------------------------------------------------------

    def open(self, slot: int, listener: socket.socket) -> None:
        """Accept connections of a slot; the engine closes `listener` when it is shut."""
        self._port.open(slot, listener)

    def open_health(self, slot: int, listener: socket.socket) -> None:
        """Answer for health alone, in clear text, on a slot's socket of the health port; closed as the other."""
        self._health_port.open(slot, listener)

    def shut(self, slot: int) -> None:
        """Accept no more connections of a slot, on either port."""
        self._port.shut(slot)
        self._health_port.shut(slot)

    def connections(self) -> int:
        """Open connections, those of the health port not counted."""
        return self._row[CONNECTIONS]

    # --- what changes -----------------------------------------------------------------------------------------

    def set_health(self, name: str, serving: bool) -> None:
        """Set the status of a health service name."""
        self._health.set(name, serving=serving)
        self._routes.forget_answers()
        self._health_port.routes.forget_answers()

    def swapped(self) -> None:
        """The service has another catalog."""
        self._routes.forget_answers()
        self._watches.swapped()

    def compressed(self) -> None:
        """The service has its catalog compressed as well: a plain answer to who takes gzip is remembered no longer."""
        self._routes.forget_answers()

    def keys_changed(self) -> None:
        """The key ring is another one: nobody is let in by what was remembered."""
        self._application.keys_changed()
        self._routes.forget()
        for member in self._port.members.all:
            member.forget()
        self._watches.end_without_key(self._access.keyring().has)

    async def warm_up(self) -> None:
        """A round of calls in memory, so that the first client finds everything in place."""
        connection = Connection(self._routes, monotonic())
        block = encode([
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/grpc.health.v1.Health/Check"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        ])  # fmt: skip
        connection.receive(frames.PREFACE + frames.settings({}), monotonic())
        for number in range(1, 2 * _WARM_CALLS, 2):
            call = frames.frame(frames.HEADERS, frames.END_HEADERS, number, block)
            message = frames.frame(frames.DATA, frames.END_STREAM, number, bytes(5))
            connection.receive(call + message, monotonic())
        connection.lost()

    # --- counting and time ------------------------------------------------------------------------------------

    def _count(self, finished: list[int], nanoseconds: int, member: WireProtocol) -> int:
        """Put calls on the board; how many had a wrong key. All of one read took as long as it: they left together."""
        denied = 0
        first = finished[0]
        times = finished.count(first)
        if times == len(finished):  # as a rule: a Counter costs a microsecond
            outcomes: Iterable[tuple[int, int]] = ((first, times),)
        else:
            outcomes = Counter(finished).items()
        for outcome, number in outcomes:
            if outcome == _UNCOUNTED:
                continue
            method, status, column = _places(outcome)
            self._row.count(method, status, nanoseconds, number)
            if column >= 0:
                self._row.count_key(column, number)
            elif status == _DENIED:
                denied += number
            if status in _REFUSED:
                key = self._access.name_at(column) if column >= 0 else ""
                self.reports.refusals.note(_REFUSED[status], address(member.peer), number, key)
        return denied

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._port.members.tick()
            self._health_port.members.tick()
            self._watches.tick(monotonic())

    # --- the end ----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Say NOT_SERVING under every name but liveness, for good."""
        self._health.drain()
        self._routes.forget_answers()
        self._health_port.routes.forget_answers()

    async def stop(self, seconds: float) -> None:
        """Shut every socket, say good-bye, wait for calls in flight, at most `seconds`; then cut what is left."""
        ports = (self._port, self._health_port)
        for port in ports:
            port.shut_all()
        self._health.end_watches()
        self._watches.end()
        told: set[WireProtocol] = set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(port.busy for port in ports):  # nobody waits for a connection to end but here
                    # Also who was accepted in the listener's last moment, for clients come back at once.
                    for member in (self._port.members.all | self._health_port.members.all) - told:
                        told.add(member)
                        member.drain()
                    await asyncio.sleep(_LEFT_SECONDS)
        for port in ports:
            port.abort()
        if self._ticker is not None:
            self._ticker.cancel()
        self._ended.set()
