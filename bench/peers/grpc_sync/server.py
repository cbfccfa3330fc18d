"""The contract of avapd on grpcio's synchronous server: generated stubs, a pool of threads, an interceptor for the key.

    API_KEY=... python server.py CATALOG

CATALOG is a file that holds a serialized avap.CatalogResponse. It listens on a free loopback port and prints it.
"""

from __future__ import annotations

import hmac
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import avap_pb2
import avap_pb2_grpc
import grpc

THREADS = 10  # as in the tutorials


class DefinitionEngine(avap_pb2_grpc.DefinitionEngineServicer):
    """The catalog and its commands by name."""

    def __init__(self, catalog: avap_pb2.CatalogResponse) -> None:
        self._catalog = catalog
        self._commands = {command.name: command for command in catalog.commands}

    def GetCommand(  # noqa: N802
        self, request: avap_pb2.CommandRequest, context: grpc.ServicerContext
    ) -> avap_pb2.CommandResponse:
        """One definition by its exact name."""
        command = self._commands.get(request.name)
        if command is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Command '{request.name}' not found")
        return command

    def SyncCatalog(  # noqa: N802
        self, _request: avap_pb2.Empty, _context: grpc.ServicerContext
    ) -> avap_pb2.CatalogResponse:
        """The whole catalog."""
        return self._catalog


class Authenticate(grpc.ServerInterceptor):
    """Compares digests in constant time, as avapd does."""

    def __init__(self, key: str) -> None:
        self._accepted = sha256(key.encode()).digest()

        def refuse(_request: object, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid Credentials")

        self._refused = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The handler that is to answer."""
        given = dict(handler_call_details.invocation_metadata).get("x-avap-auth", "")
        if hmac.compare_digest(sha256(given.encode()).digest(), self._accepted):
            return continuation(handler_call_details)
        return self._refused


def main(catalog: avap_pb2.CatalogResponse, key: str) -> None:
    """Serve until killed."""
    server = grpc.server(
        ThreadPoolExecutor(THREADS), interceptors=[Authenticate(key)], options=[("grpc.so_reuseport", 0)]
    )
    avap_pb2_grpc.add_DefinitionEngineServicer_to_server(DefinitionEngine(catalog), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(avap_pb2.CatalogResponse.FromString(Path(sys.argv[1]).read_bytes()), os.environ["API_KEY"])
