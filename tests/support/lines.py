"""Log lines that a test can read."""

from __future__ import annotations

import io
import json
from typing import Any

from avapd.log import Sink


class Lines(Sink):
    """A sink of log lines that keeps them."""

    def __init__(self) -> None:
        self.dropped = 0
        self.buffer = io.BytesIO()

    def put(self, line: bytes) -> None:
        self.buffer.write(line)

    def said(self, msg: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.buffer.getvalue().splitlines())
        return [line for line in lines if line["msg"] == msg]
