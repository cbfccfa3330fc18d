"""The access of one worker, with keys as the master tells them."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from avapd.data.access import Access
from avapd.shared.board import Board, create
from avapd.wire.limits import Limits


def key_of(text: str, name: str = "default", **fields: Any) -> dict[str, Any]:
    """A key as a message to a worker holds it."""
    return {"name": name, "digest": hashlib.sha256(text.encode()).hexdigest(), **fields}


def access(*keys: dict[str, Any], limits: Limits | None = None) -> Access:
    """Of a worker alone."""
    fd = create(1)
    board = Board(fd, 1)
    os.close(fd)
    return Access(keys, board.row(0), board.all(), limits or Limits())
