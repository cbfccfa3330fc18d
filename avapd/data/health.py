"""The health service (grpc.health.v1) for the wire engine, without a protobuf library.

HealthCheckRequest  { string service = 1 }            as a CommandRequest: one string, field 1
HealthCheckResponse { ServingStatus status = 1 }
HealthListResponse  { map<string, HealthCheckResponse> statuses = 1 }
"""

from __future__ import annotations

from typing import Final

from avapd.data.request import name_in
from avapd.data.service import NOT_FOUND
from avapd.data.streams import SHUTTING_DOWN
from avapd.shared.snapshot import key_of, varint
from avapd.wire.call import Call
from avapd.wire.grpc import INTERNAL, OK, UNAVAILABLE, Answer, Method

# Asked by liveness probes: whoever answers lives, also one that waits for its database or drains.
LIVENESS: Final = "liveness"
SERVING: Final = 1
NOT_SERVING: Final = 2
_SERVICE_UNKNOWN: Final = 3
BAD_REQUEST: Final = "Request is not a valid grpc.health.v1 message"


def path_of(method: str) -> bytes:
    """The path of a method of the service."""
    return f"/grpc.health.v1.Health/{method}".encode()


def response(status: int) -> bytes:
    """A HealthCheckResponse."""
    return b"\x08" + bytes((status,))


def listing(statuses: dict[str, int]) -> bytes:
    """A HealthListResponse. A map entry is a message with the key in field 1 and the value in field 2."""
    entries = [key_of(name) + b"\x12\x02" + response(status) for name, status in statuses.items()]
    return b"".join(b"\x0a" + varint(len(entry)) + entry for entry in entries)


class _Watcher:
    """One Watch call. It has one slot: a client that does not read gets the newest status later, and no queue."""

    def __init__(self, health: Health, name: str, call: Call) -> None:
        self._health = health
        self.name = name
        self.call = call
        self._told: int | None = None
        call.on_sent = self.tell

    def tell(self) -> None:
        """Send the status, unless the client has it or the last one has not gone yet."""
        status = self._health.status(self.name)
        if status != self._told and not self.call.backlog:
            self._told = status
            self.call.send(response(status))


class Health:
    """The statuses by service name, and who watches them."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self._draining = self._ending = False
        self._watchers: set[_Watcher] = set()
        self.methods: Final = {
            method.path: method
            for method in (
                Method.unary(path_of("Check"), self._check),
                Method.unary(path_of("List"), self._list),
                Method.server_stream(path_of("Watch"), self._watch),
            )
        }

    def set(self, name: str, *, serving: bool) -> None:
        """Set a status; while draining everything but liveness is and stays NOT_SERVING."""
        leaving = self._draining and name != LIVENESS
        self.statuses[name] = SERVING if serving and not leaving else NOT_SERVING
        for watcher in list(self._watchers):
            if watcher.name == name:
                watcher.tell()

    def drain(self) -> None:
        """NOT_SERVING under every name but liveness, for good."""
        self._draining = True
        for name in self.statuses.keys() - {LIVENESS}:
            self.set(name, serving=False)

    def status(self, name: str) -> int:
        """What a watcher is told."""
        return self.statuses.get(name, _SERVICE_UNKNOWN)

    def end_watches(self) -> None:
        """End the streams, and those that begin from now on: they would hold a drain up."""
        self._ending = True
        for watcher in list(self._watchers):
            watcher.call.finish(UNAVAILABLE, SHUTTING_DOWN)
        self._watchers.clear()

    def _check(self, request: bytes) -> Answer:
        try:
            status = self.statuses.get(name_in(request))
        except ValueError:
            return Answer(INTERNAL, BAD_REQUEST)
        if status is None:
            return Answer(NOT_FOUND, "Unknown health service name")
        return Answer(OK, payload=response(status))

    def _list(self, request: bytes) -> Answer:
        try:
            name_in(request)  # it has no fields that we know, and must be a message all the same
        except ValueError:
            return Answer(INTERNAL, BAD_REQUEST)
        return Answer(OK, payload=listing(self.statuses))

    def _watch(self, call: Call, request: bytes) -> None:
        try:
            watcher = _Watcher(self, name_in(request), call)
        except ValueError:
            call.finish(INTERNAL, BAD_REQUEST)
            return
        if self._ending:
            call.finish(UNAVAILABLE, SHUTTING_DOWN)
            return
        self._watchers.add(watcher)
        call.on_cancel = lambda: self._watchers.discard(watcher)
        watcher.tell()
