"""Calls to a definition server, synchronous and typed.

with Client("127.0.0.1:50051", key) as client:
    print(client.get("addVar").code.decode())
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from avapd.errors import AvapdError
from avapd.pb import avap_pb2

_SERVICE = "/avap.DefinitionEngine/"


class CallError(AvapdError):
    """A call that did not end with OK: `code` is the name of the gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Definition(NamedTuple):
    """One command. `code` is the UTF-8 source, or a signed package of it; `hash` the SHA-256 (hex) of the source."""

    name: str
    type: str
    interface_json: str
    code: bytes
    hash: str


class Catalog(NamedTuple):
    """All definitions of one generation, sorted by name; `size` is what travelled, in bytes."""

    definitions: list[Definition]
    version_hash: str
    size: int


def _definition(message: avap_pb2.CommandResponse) -> Definition:
    return Definition(message.name, message.type, message.interface_json, message.code, message.hash)


class Client:
    """A connection to one server, for one thread or many. Every call takes at most `timeout` seconds."""

    def __init__(self, target: str, key: str = "", *, timeout: float = 10.0) -> None:
        """Connect lazily to `host:port`; the key goes with every call but health."""
        # Catalogs may be larger than the 4 MiB that grpcio takes by default.
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(target, options=options)
        self._metadata = (("x-avap-auth", key),)
        self._timeout = timeout

    def get(self, name: str) -> Definition:
        """One definition. Raises CallError: NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE and others."""
        request = avap_pb2.CommandRequest(name=name).SerializeToString()
        raw = self._call(_SERVICE + "GetCommand", request, self._metadata)
        return _definition(_decode(avap_pb2.CommandResponse, raw))

    def catalog(self) -> Catalog:
        """The whole catalog. Raises CallError."""
        raw = self._call(_SERVICE + "SyncCatalog", b"", self._metadata)
        message = _decode(avap_pb2.CatalogResponse, raw)
        return Catalog([_definition(command) for command in message.commands], message.version_hash, len(raw))

    def health(self, service: str = "") -> str:
        """The health of a service name: `SERVING`, `NOT_SERVING`. Raises CallError, NOT_FOUND for an unknown name."""
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        raw = self._call("/grpc.health.v1.Health/Check", request, ())
        status: int = _decode(health_pb2.HealthCheckResponse, raw).status
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))

    def _call(self, path: str, request: bytes, metadata: tuple[tuple[str, str], ...]) -> bytes:
        try:
            answer: bytes = self._channel.unary_unary(path)(request, timeout=self._timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise CallError(error.code().name, error.details() or "") from None
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decode(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise CallError("INTERNAL", "the server's answer is not valid protobuf") from None
