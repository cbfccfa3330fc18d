"""What a client is asked for, and what it tells afterwards."""

from __future__ import annotations

from typing import NamedTuple


class Load(NamedTuple):
    """A closed loop: `streams` calls are under way on each of `connections`, at any time."""

    connections: int
    streams: int


class Done(NamedTuple):
    """What a client did: whole calls, those of them that failed, the mean time of a call in seconds, and how."""

    calls: int
    failed: int
    seconds: float
    mean: float
    command: str
