"""A real grpcio client with nothing hidden: every call returns (status, message, answer)."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import grpc
from grpc_health.v1 import health_pb2

from avapd.pb import avap_pb2

_SERVICE = "/avap.DefinitionEngine/"


class Outcome(NamedTuple):
    """How a call ended: status code (0 is OK), message, and the answer's bytes."""

    code: int
    message: str
    payload: bytes


class Calls:
    """One channel to one server, with TLS when there are credentials."""

    def __init__(self, target: str, key: str | None = None, credentials: Any = None) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if credentials is not None:
            self.channel = grpc.secure_channel(target, credentials, options=options)
        else:
            self.channel = grpc.insecure_channel(target, options=options)
        self._metadata = (("x-avap-auth", key),) if key is not None else ()

    def call(
        self, path: str, request: bytes, metadata: Any = None, timeout: float = 10.0, *, wait: bool = False
    ) -> Outcome:
        """A unary call of raw bytes; `wait` keeps trying to connect until the timeout."""
        try:
            payload = self.channel.unary_unary(path)(
                request, metadata=self._metadata if metadata is None else metadata, timeout=timeout, wait_for_ready=wait
            )
        except grpc.RpcError as error:
            return Outcome(error.code().value[0], error.details() or "", b"")
        return Outcome(0, "", payload)

    def get(self, name: str, **options: Any) -> Outcome:
        """GetCommand."""
        return self.call(_SERVICE + "GetCommand", avap_pb2.CommandRequest(name=name).SerializeToString(), **options)

    def command(self, name: str) -> Any:
        """The CommandResponse of a name that must be there."""
        outcome = self.get(name)
        assert outcome.code == 0, outcome
        return avap_pb2.CommandResponse.FromString(outcome.payload)

    def sync(self, **options: Any) -> Outcome:
        """SyncCatalog."""
        return self.call(_SERVICE + "SyncCatalog", b"", **options)

    def catalog(self) -> Any:
        """The CatalogResponse, which must come."""
        outcome = self.sync()
        assert outcome.code == 0, outcome
        return avap_pb2.CatalogResponse.FromString(outcome.payload)

    def health(self, service: str = "", **options: Any) -> str:
        """The health status by name; the gRPC status code as text when there is none."""
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        outcome = self.call("/grpc.health.v1.Health/Check", request, metadata=(), **options)
        if outcome.code:
            return str(outcome.code)
        status = health_pb2.HealthCheckResponse.FromString(outcome.payload).status
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
