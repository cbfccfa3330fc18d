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
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from avapd.data.access import Access
from avapd.data.grpcio_calls import CODES, Calls
from avapd.data.grpcio_doors import Doors, credentials_of
from avapd.data.grpcio_health import GrpcioHealth
from avapd.data.grpcio_listener import Door, connections_on, say_goaway
from avapd.data.grpcio_marks import MarkedCalls
from avapd.data.process import open_files
from avapd.data.reports import Reports
from avapd.data.service import Service, unimplemented
from avapd.data.tls import Identity
from avapd.log import Log
from avapd.shared.board import Row
from avapd.shared.channel import Start

_WARM_CALLS: Final = 20
_COUNTED_FILES: Final = 512
_SETTLE_SECONDS: Final = 0.05
# How long clients have to leave after the first GOAWAY, before the server refuses calls.
_FAREWELL_SECONDS: Final = 1.0


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """The health port knows nothing else."""

    def service(self, details: Any) -> Any:
        async def call(_requests: Any, context: Any) -> None:
            answer = unimplemented(details.method)
            await context.abort(CODES[answer.code], answer.message)

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
        self._calls = Calls(service, access, row, limits["header_bytes"], self.reports)
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

    def set_health(self, name: str, serving: bool) -> None:
        """Set the status of a health service name."""
        self._health.set(name, serving=serving)

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

    def drain(self) -> None:
        """Say NOT_SERVING under every name but liveness, for good."""
        self._health.drain()

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
        ("grpc.http2.max_ping_strikes", max(1, int(limits["ping_strikes"]))),  # 0 would mean any number
        ("grpc.http2.min_ping_interval_without_data_ms", milliseconds("ping_seconds")),
        # Probes are PINGs that size the window for what we receive, which is never more than a request.
        ("grpc.http2.bdp_probe", 0),
    ]


def _add_reflection(server: Any) -> None:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415  # in development only

    from avapd.pb import avap_pb2  # noqa: PLC0415  # its import registers the descriptors

    names = (*avap_pb2.DESCRIPTOR.services_by_name.values(), *health_pb2.DESCRIPTOR.services_by_name.values())
    reflection.enable_server_reflection((*(name.full_name for name in names), reflection.SERVICE_NAME), server)
