"""A port of the wire engine: the sockets of its slots, with TLS before them or not, and the connections on them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from avapd.data.access import Admission
from avapd.data.health import Health
from avapd.data.service import unimplemented
from avapd.data.tls import Handshakes, Identity
from avapd.data.wire_protocol import Count, Make, Members, WireProtocol
from avapd.log import Log
from avapd.wire.grpc import Answer, Method
from avapd.wire.headers import Routes
from avapd.wire.hpack import Field

_BACKLOG: Final = 4_096
_UNCOUNTED: Final = -1


class HealthApplication:
    """What the health port serves: health, and nothing else."""

    names: frozenset[bytes] = frozenset()
    noted: frozenset[bytes] = frozenset()

    def __init__(self, health: Health, failed: Callable[[bytes, Exception], None]) -> None:
        self._methods = health.methods
        self.failed: Final = failed

    def route(self, path: bytes, _metadata: tuple[Field, ...]) -> Method | Answer:
        """By the exact octets of the path."""
        return self._methods.get(path) or unimplemented(path.decode("utf-8", "replace"))

    def mark(self, _fields: list[Field]) -> None:
        """Nothing is noted of a single call."""

    def outcome(self, _path: bytes, _code: int) -> int:
        """Nothing is counted."""
        return _UNCOUNTED


class WirePort:
    """One port. `access` says who may connect, `count` gets the outcomes of calls; with `identity` it speaks TLS.

    `make` makes its connections.
    """

    def __init__(
        self, routes: Routes, access: Admission, count: Count, identity: Identity | None, log: Log,
        *, make: Make = WireProtocol,
    ) -> None:  # fmt: skip
        self.routes = routes
        self.members = Members()
        self._access = access
        self._count = count
        self._make = make
        self._servers: dict[int, asyncio.Task[asyncio.Server]] = {}
        self._secured: dict[int, socket.socket] = {}
        self._handshakes = Handshakes(identity, routes.limits, self._protocol, log) if identity is not None else None

    def _protocol(self) -> WireProtocol:
        return self._make(self.routes, self.members, self._access, self._count)

    def open(self, slot: int, listener: socket.socket) -> None:
        """Accept connections of a slot; `listener` is closed when it is shut."""
        self.shut(slot)
        listener.setblocking(False)
        if self._handshakes is not None:
            self._secured[slot] = listener
            self._handshakes.listen(listener)
            return
        served = asyncio.get_running_loop().create_server(self._protocol, sock=listener, backlog=_BACKLOG)
        self._servers[slot] = asyncio.ensure_future(served)

    def shut(self, slot: int) -> None:
        """Accept no more connections of a slot."""
        if slot in self._servers:
            self._servers.pop(slot).add_done_callback(lambda opened: opened.result().close())
        if slot in self._secured and self._handshakes is not None:
            self._handshakes.deafen(self._secured.pop(slot))

    def shut_all(self) -> None:
        """Accept no more connections."""
        for slot in (*self._servers, *self._secured):
            self.shut(slot)

    @property
    def busy(self) -> bool:
        """Whether there is a connection, or one is about to be."""
        return bool(self.members.all or (self._handshakes is not None and self._handshakes.under_way))

    def abort(self) -> None:
        """Cut every connection."""
        for member in list(self.members.all):
            member.abort()
        if self._handshakes is not None:
            self._handshakes.abort()
