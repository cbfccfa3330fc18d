"""Header blocks as fifteen clients and proxies sent them; `bench/blocks.py` tells what is in the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).parents[2] / "bench" / "data" / "header-blocks.json.gz"


class Capture(NamedTuple):
    """The blocks of one connection, in order."""

    name: str
    blocks: tuple[bytes, ...]


def captures() -> list[Capture]:
    """All of them, fifteen connections of 300 blocks."""
    cases = json.loads(gzip.decompress(_FILE.read_bytes()))["cases"]
    return [
        Capture(f"{case['client']}, {case['case']}", tuple(bytes.fromhex(block) for block in case["blocks"]))
        for case in cases
    ]
