"""Protobuf messages from a FileDescriptorSet, so that no generated code is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory


def load(path: str) -> dict[str, Any]:
    """The message classes of a serialized FileDescriptorSet, by full name."""
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(path).read_bytes())
    return message_factory.GetMessages(files.file)
