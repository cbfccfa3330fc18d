"""Calls to a definition server, synchronous or with asyncio, and typed.

with Client("127.0.0.1:50051", key) as client:
    print(client.get("addVar").code.decode())

async with AsyncClient("127.0.0.1:50051", key) as client:
    async for event in client.watch():
        ...

What is the same of both stands once, in `_Protocol`; they differ in how they wait.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from avapd.client.messages import CallError, Catalog, Definition, decode, definition
from avapd.client.tls import Tls
from avapd.pb import avap_pb2

_SERVICE: Final = "/avap.DefinitionEngine/"
_GET, _SYNC, _WATCH = _SERVICE + "GetCommand", _SERVICE + "SyncCatalog", _SERVICE + "WatchCatalog"
_CHECK: Final = "/grpc.health.v1.Health/Check"
# Catalogs may be larger than the 4 MiB that grpcio takes by default. A dead peer is noticed within half a minute, by
# PINGs as seldom as servers allow.
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

Event = list[Any]  # the CatalogEvent messages of one event


class _Protocol:
    """Requests, answers and errors of a server at `host:port`; the key goes with every call but health.

    With `tls` the connection is encrypted, without it is in clear text.
    """

    def __init__(self, target: str, key: str = "", *, timeout: float = 10.0, tls: Tls | None = None) -> None:
        self._target = target
        self._tls = tls
        self._metadata = (("x-avap-auth", key),)
        self._timeout = timeout

    def _connect(self, library: Any) -> Any:
        """A channel of `grpc` or of `grpc.aio`."""
        if self._tls is None:
            return library.insecure_channel(self._target, options=_OPTIONS)
        options = [*_OPTIONS, *self._tls.options()]
        return library.secure_channel(self._target, self._tls.credentials(), options=options)

    def _request(self, has: str) -> bytes:
        return bytes(avap_pb2.CatalogRequest(version_hash=has).SerializeToString())

    def _named(self, name: str) -> bytes:
        return bytes(avap_pb2.CommandRequest(name=name).SerializeToString())

    def _service(self, service: str) -> bytes:
        return bytes(health_pb2.HealthCheckRequest(service=service).SerializeToString())

    def _definition(self, raw: bytes) -> Definition:
        return definition(decode(avap_pb2.CommandResponse, raw))

    def _catalog(self, raw: bytes) -> Catalog:
        message = decode(avap_pb2.CatalogResponse, raw)
        return Catalog([definition(command) for command in message.commands], message.version_hash, len(raw))

    def _status(self, raw: bytes) -> str:
        status: int = decode(health_pb2.HealthCheckResponse, raw).status
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def _failed(error: Any) -> CallError:
    return CallError(error.code().name, error.details() or "")


class Client(_Protocol):
    """A connection to one server, for one thread or many. Every call takes at most `timeout` seconds."""

    def __init__(self, target: str, key: str = "", *, timeout: float = 10.0, tls: Tls | None = None) -> None:
        """Connect lazily."""
        super().__init__(target, key, timeout=timeout, tls=tls)
        self._channel = self._connect(grpc)

    def get(self, name: str) -> Definition:
        """One definition. Raises CallError: NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE and others."""
        return self._definition(self._call(_GET, self._named(name), self._metadata))

    def catalog(self) -> Catalog:
        """The whole catalog. Raises CallError."""
        return self._catalog(self.raw_catalog())

    def raw_catalog(self) -> bytes:
        """The serialized CatalogResponse. Raises CallError."""
        return self._call(_SYNC, b"", self._metadata)

    def watch(self, has: str = "") -> Iterator[Event]:
        """Events, from the catalog with the hash `has` on, until the stream ends with CallError."""
        call = self._channel.unary_stream(_WATCH)(self._request(has), metadata=self._metadata)
        event: Event = []
        try:
            for raw in call:
                event.append(decode(avap_pb2.CatalogEvent, raw))
                if not event[-1].more:
                    yield event
                    event = []
        except grpc.RpcError as error:
            raise _failed(error) from None
        finally:
            call.cancel()

    def health(self, service: str = "") -> str:
        """The health of a service name: `SERVING`, `NOT_SERVING`. Raises CallError, NOT_FOUND for an unknown name."""
        return self._status(self._call(_CHECK, self._service(service), ()))

    def _call(self, path: str, request: bytes, metadata: tuple[tuple[str, str], ...]) -> bytes:
        try:
            answer: bytes = self._channel.unary_unary(path)(request, timeout=self._timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise _failed(error) from None
        return answer

    def close(self) -> None:
        """Close the connection; a watch ends."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Protocol):
    """The same for asyncio; to be made and used on one event loop."""

    def __init__(self, target: str, key: str = "", *, timeout: float = 10.0, tls: Tls | None = None) -> None:
        """Connect lazily."""
        super().__init__(target, key, timeout=timeout, tls=tls)
        self._channel = self._connect(grpc.aio)

    async def get(self, name: str) -> Definition:
        """One definition. Raises CallError."""
        return self._definition(await self._call(_GET, self._named(name), self._metadata))

    async def catalog(self) -> Catalog:
        """The whole catalog. Raises CallError."""
        return self._catalog(await self.raw_catalog())

    async def raw_catalog(self) -> bytes:
        """The serialized CatalogResponse. Raises CallError."""
        return await self._call(_SYNC, b"", self._metadata)

    async def watch(self, has: str = "") -> AsyncGenerator[Event, None]:
        """Events, from the catalog with the hash `has` on, until the stream ends with CallError."""
        call = self._channel.unary_stream(_WATCH)(self._request(has), metadata=self._metadata)
        event: Event = []
        try:
            async for raw in call:
                event.append(decode(avap_pb2.CatalogEvent, raw))
                if not event[-1].more:
                    yield event
                    event = []
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None
        finally:
            call.cancel()

    async def health(self, service: str = "") -> str:
        """The health of a service name. Raises CallError."""
        return self._status(await self._call(_CHECK, self._service(service), ()))

    async def _call(self, path: str, request: bytes, metadata: tuple[tuple[str, str], ...]) -> bytes:
        try:
            answer: bytes = await self._channel.unary_unary(path)(request, timeout=self._timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None
        return answer

    async def close(self) -> None:
        """Close the connection; a watch ends."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
