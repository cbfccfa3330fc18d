"""Encoding: a definition as the CommandResponse that goes on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from avapd.control.catalog import Definition
from avapd.pb import avap_pb2


def messages(definitions: Iterable[Definition]) -> Iterator[bytes]:
    """The serialized CommandResponse of each definition, one by one, in the same order."""
    for name, type_, interface_json, code, digest in definitions:
        yield avap_pb2.CommandResponse(
            name=name, type=type_, interface_json=interface_json, code=code, hash=digest
        ).SerializeToString()
