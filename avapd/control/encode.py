"""Encoding: a definition as the CommandResponse that goes on the wire."""

from __future__ import annotations

from avapd.control.catalog import Definition
from avapd.pb import avap_pb2


def message(definition: Definition) -> bytes:
    """The serialized CommandResponse of a definition."""
    name, type_, interface_json, code, digest = definition
    return avap_pb2.CommandResponse(
        name=name, type=type_, interface_json=interface_json, code=code, hash=digest
    ).SerializeToString()


def decoded(octets: bytes | memoryview) -> Definition:
    """A definition out of its CommandResponse."""
    found = avap_pb2.CommandResponse.FromString(bytes(octets))
    return Definition(found.name, found.type, found.interface_json, found.code, found.hash)
