"""The public Python client of the definition server."""

import os

# Read by grpcio when it is imported: without it a child of a fork can make no connection.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")

from avapd.client.cache import AsyncCache, Cache, State
from avapd.client.calls import AsyncClient, Client
from avapd.client.messages import CallError, Catalog, Definition, VerificationError
from avapd.client.replica import Replica
from avapd.client.tls import Tls

__all__ = [
    "AsyncCache", "AsyncClient", "Cache", "CallError", "Catalog", "Client", "Definition", "Replica", "State",
    "Tls", "VerificationError",
]  # fmt: skip
