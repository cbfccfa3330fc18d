"""Target `request`: the parser of request messages takes, refuses and finds what the protobuf library does."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from avapd.data.request import check_empty, name_in
from avapd.pb.avap_pb2 import CommandRequest, Empty


def run(data: bytes) -> None:
    """`data` is a request of GetCommand and of SyncCatalog."""
    assert _ours(data) == _library(data)
    assert _is_empty(data) == _library_empty(data)


def _ours(data: bytes) -> str | None:
    try:
        return name_in(data)
    except ValueError:
        return None


def _library(data: bytes) -> str | None:
    try:
        return CommandRequest.FromString(data).name
    except DecodeError:
        return None


def _is_empty(data: bytes) -> bool:
    try:
        check_empty(data)
    except ValueError:
        return False
    return True


def _library_empty(data: bytes) -> bool:
    try:
        Empty.FromString(data)
    except DecodeError:
        return False
    return True
