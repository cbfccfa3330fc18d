"""The public Python client of the definition server."""

from avapd.client.calls import CallError, Catalog, Client, Definition

__all__ = ["CallError", "Catalog", "Client", "Definition"]
