"""Health on grpcio: grpcio-health-checking's servicer with `List`, and Watch streams that end when the worker drains.

Else each of them would hold the drain up to its last second.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from avapd.data.health import LIVENESS, listing


class GrpcioHealth(health.aio.HealthServicer):  # type: ignore[misc]  # grpcio has no types
    """Check and Watch of the library, plus List; `end_watches` ends the streams."""

    def __init__(self) -> None:
        super().__init__()
        self._draining = False
        self._watches: set[asyncio.Task[None]] = set()

    def handler(self) -> Any:
        """The handler of the health service. Requests come as raw bytes, so that bad ones end as INTERNAL."""
        kinds = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        methods = (("Check", kinds[0], self.Check), ("List", kinds[0], self.List), ("Watch", kinds[1], self.Watch))
        return grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {
                name: kind(
                    self._parsed(method),
                    response_serializer=None if name == "List" else health_pb2.HealthCheckResponse.SerializeToString,
                )
                for name, kind, method in methods
            },
        )

    @staticmethod
    def _parsed(method: Any) -> Any:
        async def call(raw: bytes, context: Any) -> Any:
            try:
                request = health_pb2.HealthCheckRequest.FromString(raw)
            except DecodeError:
                await context.abort(grpc.StatusCode.INTERNAL, "Request is not a valid grpc.health.v1 message")
            return await method(request, context)

        return call

    async def set(self, service: str, status: Any) -> None:
        """Set a status; while draining everything but liveness is and stays NOT_SERVING."""
        leaving = self._draining and service != LIVENESS
        await super().set(service, health_pb2.HealthCheckResponse.NOT_SERVING if leaving else status)

    async def drain(self) -> None:
        """NOT_SERVING under every name but liveness, for good."""
        self._draining = True
        for name in self._server_status.keys() - {LIVENESS}:
            await self.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The library's, with a message for an unknown name."""
        if request.service not in self._server_status:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Unknown health service name")
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """The library's, until `end_watches`."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
        finally:
            self._watches.discard(watch)
            watch.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Server is shutting down")

    async def List(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """All names; this rpc is younger than the grpcio we may use."""
        return listing(self._server_status)

    def end_watches(self) -> None:
        """Which would hold a drain up."""
        for watch in self._watches:
            watch.cancel()
