"""What a worker asks of an engine, and which one it gets. Only the chosen one is imported."""

from __future__ import annotations

import socket
from typing import Protocol

from avapd.data.access import Access
from avapd.data.reports import Reports
from avapd.data.service import Service
from avapd.data.tls import Identity
from avapd.log import Log
from avapd.shared.board import Row
from avapd.shared.channel import Start


class Engine(Protocol):
    """Serves a `Service` to gRPC clients. `reports` is what the master is to be told now and then."""

    reports: Reports

    async def start(self) -> None:
        """Start serving; no socket is open yet."""

    async def ended(self) -> None:
        """Return when the engine has stopped, asked or not."""

    def open(self, slot: int, listener: socket.socket) -> None:
        """Accept connections of a slot; the engine closes `listener` when it is shut."""

    def open_health(self, slot: int, listener: socket.socket) -> None:
        """Answer for health alone, in clear text, on a slot's socket of the health port; closed as the other."""

    def shut(self, slot: int) -> None:
        """Accept no more connections of a slot, on either port."""

    def connections(self) -> int:
        """Open connections."""

    def set_health(self, name: str, serving: bool) -> None:
        """Set the status of a health service name."""

    def swapped(self) -> None:
        """The service has another catalog."""

    def compressed(self) -> None:
        """The service has its catalog compressed as well."""

    def keys_changed(self) -> None:
        """The key ring is another one."""

    async def warm_up(self) -> None:
        """Do everything once, so that the first client finds it in place."""

    def drain(self) -> None:
        """Say NOT_SERVING under every name but liveness, for good."""

    async def stop(self, seconds: float) -> None:
        """Accept nothing more, say good-bye, wait for calls in flight, at most `seconds`; then end them."""


def build(service: Service, access: Access, row: Row, start: Start, log: Log, *, identity: Identity | None) -> Engine:
    """The engine that the Start message names; with `identity` its port speaks TLS."""
    if start.engine == "wire":
        from avapd.data.wire_engine import WireEngine  # noqa: PLC0415  # grpcio costs 30 MB and 0.1 s

        return WireEngine(service, access, row, start, log, identity=identity)
    from avapd.data.grpcio_engine import GrpcioEngine  # noqa: PLC0415  # as above

    return GrpcioEngine(service, access, row, start, log, identity=identity)
