"""The engine on grpcio: `grpc.aio` on uvloop, raw bytes in and out, the service decides what they mean.

Reflection exists in development only.

SyncCatalog goes out as identity here, whatever the client takes: grpcio cannot send a message that is compressed
already. It only compresses anew for each call, on the event loop, where a large catalog would hold up every other call.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import chain
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from avapd.data.access import Access
from avapd.data.auth import Key
from avapd.data.failures import address_of
from avapd.data.feed import Message
from avapd.data.grpcio_doors import Doors, credentials_of
from avapd.data.grpcio_health import GrpcioHealth
from avapd.data.grpcio_listener import Door, connections_on, say_goaway
from avapd.data.grpcio_marks import MarkedCalls
from avapd.data.meter import LIMITED
from avapd.data.process import open_files
from avapd.data.refusals import REASONS, address_in
from avapd.data.reports import Reports
from avapd.data.request import name_in
from avapd.data.service import DENIED, HEADERS_TOO_LARGE, NO_MESSAGE, SERVICE, Service, unimplemented
from avapd.data.streams import BAD_REQUEST, DEADLINE_EXCEEDED, NOT_LOADED, SHUTTING_DOWN, STALL_SECONDS, STALLED
from avapd.data.tls import Identity
from avapd.log import Log
from avapd.shared.board import METHODS, STATUS_OF_CODE, STATUSES, Row
from avapd.shared.channel import Start
from avapd.wire.grpc import INTERNAL, OK, UNAVAILABLE, Answer

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_COLUMN: Final = {code: STATUSES.index(status) for code, status in STATUS_OF_CODE.items()}
_WARM_CALLS: Final = 20
_COUNTED_FILES: Final = 512
_MEMO_ANSWERS: Final = 1024
_MEMO_BYTES: Final = 16 << 10
_SETTLE_SECONDS: Final = 0.05
# How long clients have to leave after the first GOAWAY, before the server refuses calls.
_FAREWELL_SECONDS: Final = 1.0
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


_Messages = Callable[[str, Key], AsyncIterator[Message]]


class _Calls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Routes by the exact bytes of the path to handlers made once; a wrong key is routed to a handler that says so."""

    def __init__(self, service: Service, access: Access, row: Row, max_header_bytes: float, reports: Reports) -> None:
        self._row = row
        self._reports = reports
        self.answers: dict[bytes, Answer] = {}
        self._max_header_bytes = max_header_bytes
        self._access = access
        self._unary_methods = {f"/{SERVICE}/{name}": serve for name, serve in service.methods.items()}
        self._stream_methods = {
            f"/{SERVICE}/{name}": messages
            for name, messages in (("StreamCatalog", self._chunks), ("WatchCatalog", self._events))
        }
        self._refusals = {
            path: tuple(
                grpc.stream_stream_rpc_method_handler(self._refuse(METHODS.index(path.rpartition("/")[2]), answer))
                for answer in (DENIED, HEADERS_TOO_LARGE)
            )
            for path in (*self._unary_methods, *self._stream_methods)
        }
        self._handlers: dict[tuple[str, Key], Any] = {}
        self._feed = service.feed
        self._swapped = asyncio.Event()
        self._ending = False
        self._unknown = METHODS.index("unknown")

    def service(self, details: Any) -> Any:
        """The handler of a call, by its path and its metadata."""
        refusals = self._refusals.get(details.method)
        if refusals is None:  # asked last, after health and reflection: what nobody knows ends here
            refuse = self._refuse(self._unknown, unimplemented(details.method))
            return grpc.stream_stream_rpc_method_handler(refuse)
        # Here and not in the handler: grpcio has made the metadata for this call already, and would make them anew.
        metadata = details.invocation_metadata
        # grpcio holds clients to the limit only once they have acknowledged it. Counted as in RFC 9113 section 6.5.2.
        if 32 * len(metadata) + sum(map(len, chain.from_iterable(metadata))) > self._max_header_bytes:
            return refusals[1]
        key = self._access.keyring().allows(metadata)
        if key is None:
            return refusals[0]
        handler = self._handlers.get((details.method, key))
        if handler is None:
            handler = self._handlers[details.method, key] = self._handler(details.method, key)
        return handler

    def _handler(self, path: str, key: Key) -> Any:
        """The handler of a method for who has this key."""
        method, serve = METHODS.index(path.rpartition("/")[2]), self._unary_methods.get(path)
        if serve is not None:  # not unary_unary: grpcio never answers a call that ends before its message does
            return grpc.stream_unary_rpc_method_handler(self._unary(method, serve, key))
        return grpc.stream_stream_rpc_method_handler(self._stream(method, self._stream_methods[path], key))

    def keys_changed(self) -> None:
        """The key ring is another one: watches look whether theirs is still there."""
        self._handlers.clear()
        self._wake()

    def _remembered(self, serve: Callable[[bytes], Answer], request: bytes) -> Answer:
        """GetCommand's answers are kept ready: at most 16 MiB, until the next swap."""
        answer = self.answers.get(request)
        if answer is None:
            answer = serve(request)
            if answer.code == OK and isinstance(answer.payload, bytes) and len(answer.payload) <= _MEMO_BYTES:
                if len(self.answers) >= _MEMO_ANSWERS:
                    self.answers.clear()
                self.answers[request] = answer
        return answer

    def _unary(self, method: int, serve: Callable[[bytes], Answer], key: Key) -> Any:
        count, clock = self._row.count, time.perf_counter_ns
        if METHODS[method] == "GetCommand":
            serve = partial(self._remembered, serve)

        async def call(_requests: Any, context: Any) -> bytes:
            request = await context.read()
            began = clock()
            answer = NO_MESSAGE if request is grpc.aio.EOF else serve(request) if self._access.admits(key) else LIMITED
            self._row.count_key(key.column)
            if answer.code == OK:
                count(method, 0, clock() - began)
                return answer.whole()
            count(method, _COLUMN[answer.code], clock() - began)
            self._note(answer, context, key)
            await context.abort(_CODES[answer.code], answer.message)
            raise AssertionError("abort raises")

        return call

    def _note(self, answer: Answer, context: Any, key: Key | None = None) -> None:
        """Have refusals audited."""
        reason = REASONS.get(STATUS_OF_CODE[answer.code])
        if reason is not None:
            self._reports.refusals.note(reason, address_in(context.peer()), key=key.name if key else "")

    # --- streams ----------------------------------------------------------------------------------------------

    def swapped(self) -> None:
        """There is another catalog."""
        self.answers.clear()
        self._wake()

    def _wake(self) -> None:
        self._swapped.set()
        self._swapped = asyncio.Event()

    def end_watches(self) -> None:
        """End the watches, which else would hold a drain up."""
        self._ending = True
        self._swapped.set()

    def _stream(self, method: int, messages: _Messages, key: Key) -> Any:
        """A handler that sends messages; a client that takes none for a while is cut off."""

        async def call(_requests: Any, context: Any) -> None:
            request = await context.read()
            try:
                answer = await self._sent(request, context, messages, key)
            except TimeoutError:
                answer = Answer(DEADLINE_EXCEEDED, STALLED)
            self._row.count(method, _COLUMN[answer.code], 0)
            self._row.count_key(key.column)
            if answer.code != OK:
                self._note(answer, context, key)
                await context.abort(_CODES[answer.code], answer.message)

        return call

    async def _sent(self, request: Any, context: Any, messages: _Messages, key: Key) -> Answer:
        """Send what a client asked for; how the call ends. Raises TimeoutError when it takes nothing."""
        if request is grpc.aio.EOF:
            return NO_MESSAGE
        try:
            has = name_in(request)
        except ValueError:
            return Answer(INTERNAL, BAD_REQUEST)
        if self._feed.view is None or not self._access.admits(key):
            return LIMITED if self._feed.view is not None else Answer(UNAVAILABLE, NOT_LOADED)
        async for message in messages(has, key):
            if not self._access.keyring().has(key):
                return DENIED
            async with asyncio.timeout(STALL_SECONDS):
                await context.write(b"".join(message))
        ended = Answer(OK) if self._access.keyring().has(key) else DENIED
        return Answer(UNAVAILABLE, SHUTTING_DOWN) if self._ending else ended

    async def _chunks(self, has: str, _key: Key) -> AsyncIterator[Message]:
        if self._feed.view is not None:
            for message in self._feed.chunks(self._feed.view, has):
                yield message

    async def _events(self, has: str, key: Key) -> AsyncIterator[Message]:
        first = True
        while not self._ending and self._access.keyring().has(key):
            view, swapped = self._feed.view, self._swapped
            if view is not None and (first or has != view.version_hash):
                first, becomes = False, view.version_hash
                for message in self._feed.event(view, has):
                    yield message
                has = becomes
            else:
                await swapped.wait()

    def _refuse(self, method: int, answer: Answer) -> Any:
        """A handler that answers before it reads anything."""

        async def call(_requests: Any, context: Any) -> None:
            said = answer
            if answer.sterner is not None and not self._access.failed(address_of(context.peer()), time.monotonic()):
                said = answer.sterner
            self._row.count(method, _COLUMN[said.code], 0)
            self._note(said, context)
            await context.abort(_CODES[said.code], said.message)

        return call


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """The health port knows nothing else."""

    def service(self, details: Any) -> Any:
        async def call(_requests: Any, context: Any) -> None:
            answer = unimplemented(details.method)
            await context.abort(_CODES[answer.code], answer.message)

        return grpc.stream_stream_rpc_method_handler(call)


class GrpcioEngine:
    """Serves a `Service` through doors; see grpcio_listener.py for what a door is."""

    def __init__(
        self, service: Service, access: Access, row: Row, start: Start, log: Log, *, identity: Identity | None
    ) -> None:
        limits = start.limits
        self.reports = Reports(start, log)
        options = _options(limits)
        self._server = grpc.aio.server(options=options)
        self._health_server = grpc.aio.server(options=options)
        self._health = GrpcioHealth()
        for server in (self._server, self._health_server):
            server.add_generic_rpc_handlers((self._health.handler(),))
        if start.environment == "development":
            _add_reflection(self._server)
        self._calls = _Calls(service, access, row, limits["header_bytes"], self.reports)
        self._server.add_generic_rpc_handlers((MarkedCalls(self._calls, self.reports),))
        self._health_server.add_generic_rpc_handlers((_Unknown(),))
        self._identity = identity
        self._slots = start.slots
        self._idle_files = self._counted = 0

    async def start(self) -> None:
        """Start serving; no door is open yet."""
        # One for each slot, since any may have to be adopted.
        self._port = Doors([Door(self._server, credentials_of(self._identity)) for _ in range(self._slots)])
        self._health_port = Doors([Door(self._health_server) for _ in range(self._slots)])
        self._warm_door = Door(self._server)
        await self._server.start()
        await self._health_server.start()

    async def ended(self) -> None:
        """Return when the server has stopped, asked or not."""
        await self._server.wait_for_termination()

    def open(self, slot: int, listener: socket.socket) -> None:
        """Accept connections of a slot; the engine closes `listener` when the door is shut."""
        self._port.open(slot, listener)

    def open_health(self, slot: int, listener: socket.socket) -> None:
        """Answer for health alone, in clear text, on a slot's socket of the health port; closed as the other."""
        self._health_port.open(slot, listener)

    def shut(self, slot: int) -> None:
        """Accept no more connections of a slot, on either port."""
        self._port.shut(slot)
        self._health_port.shut(slot)

    def connections(self) -> int:
        """Open connections. Counted one by one while they are few (8 µs each), by the number of descriptors above.

        Counting takes a descriptor itself: where none is left, it is as many as before.
        """
        with contextlib.suppress(OSError):
            files = open_files() - len(self._port.open_slots)
            if files < _COUNTED_FILES:
                self._counted = len(connections_on(self._port.ports()))
                self._idle_files = files - self._counted
            else:
                self._counted = files - self._idle_files
        return self._counted

    async def set_health(self, name: str, serving: bool) -> None:
        """Set the status of a health service name."""
        await self._health.set(name, _SERVING if serving else _NOT_SERVING)

    def swapped(self) -> None:
        """The service has another catalog."""
        self._calls.swapped()

    def compressed(self) -> None:
        """Nothing compressed is sent, so none was asked for."""

    def keys_changed(self) -> None:
        """The key ring is another one."""
        self._calls.keys_changed()

    async def warm_up(self) -> None:
        """A round of real calls through a door of our own, so that the first client finds everything in place."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            door = self._warm_door
            door.open(listener)
            host, port = listener.getsockname()
            async with grpc.aio.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                for _ in range(_WARM_CALLS):
                    await check(health_pb2.HealthCheckRequest(service="liveness"), timeout=5)
            door.shut()

    async def drain(self) -> None:
        """Say NOT_SERVING under every name but liveness, for good."""
        await self._health.drain()

    async def stop(self, seconds: float) -> None:
        """Shut every door, send GOAWAY, wait for calls in flight, at most `seconds`; then end them."""
        deadline = time.monotonic() + seconds
        # Under TLS nobody but grpcio can write to a connection: there its own GOAWAY, in `stop`, is the first.
        plain = self._health_port.ports() | (self._port.ports() if self._identity is None else set())
        self._port.shut_all()
        self._health_port.shut_all()
        self._health.end_watches()
        self._calls.end_watches()
        await asyncio.sleep(_SETTLE_SECONDS)  # a connection accepted just now must first send its SETTINGS
        say_goaway(plain)
        farewell = min(deadline, time.monotonic() + _FAREWELL_SECONDS)
        while connections_on(plain) and time.monotonic() < farewell:  # noqa: ASYNC110  # nobody tells when one closes
            await asyncio.sleep(_SETTLE_SECONDS)
        left = max(0.0, deadline - time.monotonic())
        await asyncio.gather(self._server.stop(left), self._health_server.stop(left))


def _options(limits: dict[str, float]) -> list[tuple[str, int]]:
    """Of our limits those that grpcio knows too, under its own names. It spreads the age of connections by itself."""

    def milliseconds(limit: str) -> int:
        return int(1000 * limits[limit])

    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", int(limits["request_bytes"])),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", int(limits["header_bytes"])),
        ("grpc.absolute_max_metadata_size", int(limits["header_bytes"])),
        ("grpc.max_concurrent_streams", int(limits["streams"])),
        ("grpc.max_allowed_incoming_connections", int(limits["connections"])),
        ("grpc.server_handshake_timeout_ms", milliseconds("handshake_seconds")),
        ("grpc.max_connection_age_ms", milliseconds("age_seconds")),
        ("grpc.max_connection_age_grace_ms", milliseconds("grace_seconds")),
        ("grpc.max_connection_idle_ms", milliseconds("idle_seconds")),
        ("grpc.keepalive_time_ms", milliseconds("keepalive_seconds")),
        ("grpc.keepalive_timeout_ms", milliseconds("keepalive_timeout")),
        ("grpc.http2.max_ping_strikes", int(limits["ping_strikes"])),
        ("grpc.http2.min_ping_interval_without_data_ms", milliseconds("ping_seconds")),
        # Probes are PINGs that size the window for what we receive, which is never more than a request.
        ("grpc.http2.bdp_probe", 0),
    ]


def _add_reflection(server: Any) -> None:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415  # in development only

    from avapd.pb import avap_pb2  # noqa: PLC0415  # its import registers the descriptors

    names = (*avap_pb2.DESCRIPTOR.services_by_name.values(), *health_pb2.DESCRIPTOR.services_by_name.values())
    reflection.enable_server_reflection((*(name.full_name for name in names), reflection.SERVICE_NAME), server)
