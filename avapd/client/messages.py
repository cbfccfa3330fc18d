"""What clients get: definitions, catalogs, and the errors of calls."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from avapd.errors import AvapdError


class CallError(AvapdError):
    """A call that did not end with OK: `code` is the name of the gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class VerificationError(AvapdError):
    """What a server, a proxy or a disk gave us is not what its hash or its signature says."""


class Definition(NamedTuple):
    """One command. `code` is the UTF-8 source, or a signed package of it; `hash` the SHA-256 (hex) of the source."""

    name: str
    type: str
    interface_json: str
    code: bytes
    hash: str


class Catalog(NamedTuple):
    """All definitions of one generation, sorted by name; `size` is what travelled, in bytes."""

    definitions: list[Definition]
    version_hash: str
    size: int


def definition(message: Any) -> Definition:
    """A CommandResponse for people."""
    return Definition(message.name, message.type, message.interface_json, message.code, message.hash)


def decode(kind: Any, raw: bytes) -> Any:
    """A message of this kind. Raises CallError INTERNAL when it is none."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise CallError("INTERNAL", "the server's answer is not valid protobuf") from None
