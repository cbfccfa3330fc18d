"""What `avapd top` draws of whatever answers."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avapd.cli.reading import Reading
from avapd.cli.top import frame

KEYS = (
    "workers", "worker", "state", "started", "buckets", "calls", "errors", "ready", "draining", "memory", "connections",
    "private_bytes", "snapshot_bytes", "generation", "version_hash", "catalog_age_seconds", "uptime_seconds", "count",
    "database", "up", "last_error", "frozen", "refused", "denied", "quarantined", "canary", "pid", "restarts",
)  # fmt: skip
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=10,
)
statuses: Any = st.dictionaries(st.sampled_from(KEYS), values, max_size=8)


def drawn(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return list(frame([Reading("a", 1.0, before)], [Reading("a", 2.0, now)], color=False))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(before=statuses, now=statuses)
def test_whatever_answers_is_drawn(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Values of any type under the names that are looked at: lines without control characters, and no exception."""
    assert not any(CONTROL.search(line) for line in drawn(before, now))


def status(calls: int, *, started: str = "now", slow: int = 0) -> dict[str, Any]:
    """A status after so many calls of 0.5 to 1 ms, and so many of the slowest."""
    buckets = [0, 0, 0, 0, calls, *[0] * 10, slow]
    worker = {"worker": 0, "state": "SERVING", "calls": calls + slow, "errors": 0, "buckets": buckets}
    return {**worker, "started": started, "ready": True, "workers": [worker]}


def test_rate_and_p95_are_of_the_time_between_two_looks() -> None:
    """Not of all time: what was slow before does not count."""
    lines = drawn(status(0, slow=1000), status(500, slow=1000))
    assert lines[1].split()[3:6] == ["500", "975", "µs"]
    assert lines[-1].split()[2:5] == ["500", "975", "µs"]


def test_a_replica_that_began_anew_has_no_traffic_yet() -> None:
    """Also when its counters have grown beyond the old ones."""
    assert drawn(status(10), status(500, started="later"))[1].split()[3:6] == ["-", "-", "-"]
