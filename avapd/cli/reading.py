"""Readings of replicas: what a status says, and what became of it since the one before."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

from avapd.control.traffic import NOTHING, Counts, Traffic, between

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """One answer of a replica, or why there is none, and when it came (monotonic seconds)."""

    replica: str
    at: float
    status: dict[str, Any]
    error: str = ""

    @property
    def workers(self) -> list[dict[str, Any]]:
        """What it says of each worker."""
        return [one for one in get(self.status, "workers", list) if isinstance(one, dict)]

    def since(self, before: Reading | None) -> tuple[Traffic | None, list[Traffic | None]]:
        """The traffic of the replica and of each worker since an earlier reading.

        None where it cannot be told: with nothing to compare, or where the replica began anew meanwhile.
        """
        mine = self.workers
        if before is None or before.error or self.error or before.status.get("started") != self.status.get("started"):
            return None, [None] * len(mine)
        seconds = self.at - before.at
        theirs = {get(one, "worker", int): one for one in before.workers}
        of_workers = [_traffic(theirs.get(get(one, "worker", int)), one, seconds) for one in mine]
        return _traffic(before.status, self.status, seconds), of_workers


def get(facts: dict[str, Any], name: str, kind: type[T]) -> T:
    """A value if it is of this type, else the empty one: who answers may be anybody."""
    value = facts.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    endless = type(value) is float and not math.isfinite(value)
    return value if type(value) is kind and not endless else kind()


def _traffic(before: dict[str, Any] | None, after: dict[str, Any], seconds: float) -> Traffic | None:
    old, new = _counts(before or {}), _counts(after)
    return None if old is None or new is None else between(old, new, seconds)


def _counts(facts: dict[str, Any]) -> Counts | None:
    buckets = get(facts, "buckets", list)
    if len(buckets) != len(NOTHING.buckets) or not all(type(one) is int for one in buckets):
        return None
    return Counts(get(facts, "calls", int), get(facts, "errors", int), tuple(buckets))
