"""The contract of avapd on grpc.aio, as one would write it: generated stubs, a dict, an interceptor for the key.

    API_KEY=... python server.py CATALOG

CATALOG is a file that holds a serialized avap.CatalogResponse. It listens on a free loopback port and prints it.
"""

from __future__ import annotations

import hmac
import os
import sys
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import avap_pb2
import avap_pb2_grpc
import grpc
import grpc.aio
import uvloop


class DefinitionEngine(avap_pb2_grpc.DefinitionEngineServicer):
    """The catalog and its commands by name."""

    def __init__(self, catalog: avap_pb2.CatalogResponse) -> None:
        self._catalog = catalog
        self._commands = {command.name: command for command in catalog.commands}

    async def GetCommand(  # noqa: N802
        self, request: avap_pb2.CommandRequest, context: grpc.aio.ServicerContext
    ) -> avap_pb2.CommandResponse:
        """One definition by its exact name."""
        command = self._commands.get(request.name)
        if command is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Command '{request.name}' not found")
        return command

    async def SyncCatalog(  # noqa: N802
        self, _request: avap_pb2.Empty, _context: grpc.aio.ServicerContext
    ) -> avap_pb2.CatalogResponse:
        """The whole catalog."""
        return self._catalog


class Authenticate(grpc.aio.ServerInterceptor):
    """Compares digests in constant time, as avapd does."""

    def __init__(self, key: str) -> None:
        self._accepted = sha256(key.encode()).digest()

        async def refuse(_request: object, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid Credentials")

        self._refused = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The handler that is to answer."""
        given = dict(handler_call_details.invocation_metadata).get("x-avap-auth", "")
        if hmac.compare_digest(sha256(given.encode()).digest(), self._accepted):
            return await continuation(handler_call_details)
        return self._refused


async def main(catalog: avap_pb2.CatalogResponse, key: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server(interceptors=[Authenticate(key)], options=[("grpc.so_reuseport", 0)])
    avap_pb2_grpc.add_DefinitionEngineServicer_to_server(DefinitionEngine(catalog), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(avap_pb2.CatalogResponse.FromString(Path(sys.argv[1]).read_bytes()), os.environ["API_KEY"]))
