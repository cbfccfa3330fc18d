"""The contract of avapd on grpclib, HTTP/2 by the `h2` package: generated stubs, a dict, a listener for the key.

    API_KEY=... python server.py CATALOG

CATALOG is a file that holds a serialized avap.CatalogResponse. It listens on a free loopback port and prints it.
"""

from __future__ import annotations

import hmac
import os
import socket
import sys
from hashlib import sha256
from pathlib import Path

import avap_grpc
import avap_pb2
import uvloop
from grpclib.const import Status
from grpclib.events import RecvRequest, listen
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream


class DefinitionEngine(avap_grpc.DefinitionEngineBase):
    """The catalog and its commands by name."""

    def __init__(self, catalog: avap_pb2.CatalogResponse) -> None:
        self._catalog = catalog
        self._commands = {command.name: command for command in catalog.commands}

    async def GetCommand(  # noqa: N802
        self, stream: Stream[avap_pb2.CommandRequest, avap_pb2.CommandResponse]
    ) -> None:
        """One definition by its exact name."""
        request = await stream.recv_message()
        command = self._commands.get(request.name)
        if command is None:
            raise GRPCError(Status.NOT_FOUND, f"Command '{request.name}' not found")
        await stream.send_message(command)

    async def SyncCatalog(  # noqa: N802
        self, stream: Stream[avap_pb2.Empty, avap_pb2.CatalogResponse]
    ) -> None:
        """The whole catalog."""
        await stream.recv_message()
        await stream.send_message(self._catalog)


class Authenticate:
    """Compares digests in constant time, as avapd does."""

    def __init__(self, key: str) -> None:
        self._accepted = sha256(key.encode()).digest()

    async def __call__(self, event: RecvRequest) -> None:
        """Let the request pass, or not."""
        given = event.metadata.get("x-avap-auth", "")
        if not hmac.compare_digest(sha256(given.encode()).digest(), self._accepted):
            raise GRPCError(Status.UNAUTHENTICATED, "Invalid Credentials")


async def main(catalog: avap_pb2.CatalogResponse, key: str) -> None:
    """Serve until killed."""
    server = Server([DefinitionEngine(catalog)])
    listen(server, RecvRequest, Authenticate(key))
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(sock=listener)
    print(listener.getsockname()[1], flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    uvloop.run(main(avap_pb2.CatalogResponse.FromString(Path(sys.argv[1]).read_bytes()), os.environ["API_KEY"]))
