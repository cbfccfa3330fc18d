"""The guard: what the operator has decided, and whether a new generation is plausible.

A table that was emptied, lost a fifth of its commands or doubled over night is more often an accident than a release.
Such a candidate is refused as a whole, everything keeps serving, and it is named by its hash: `avapd approve HASH` lets
exactly that one through.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from avapd.control.difference import Difference
from avapd.errors import SnapshotError
from avapd.shared.patch import Content

# The last is no judgement of the guard but of the worker that took it first.
WORKER: Final = "worker"
REASONS: Final = ("empty", "removed", "size", WORKER)
# Below so many definitions a share says nothing.
_ENOUGH: Final = 10
MOST_REMOVED: Final = 0.2
_SMALLEST, _LARGEST = 0.5, 2.0


class RefusedError(SnapshotError):
    """A candidate that was refused as a whole; `reason` is the bounded label of the metric."""

    def __init__(self, reason: str, message: str, version_hash: str) -> None:
        super().__init__(message, hint=f"if it is meant: avapd approve {version_hash}")
        self.reason = reason
        self.version_hash = version_hash


@dataclasses.dataclass(slots=True)
class Switches:
    """What the operator has decided, and what survives a restart.

    `frozen` is the reason why no poll publishes, empty when they do; `denied` are the names that are not served, each
    with what was served under it; `approved` are the hashes that may pass once.
    """

    frozen: str = ""
    frozen_at: float = 0.0
    denied: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    approved: set[str] = dataclasses.field(default_factory=set)

    def facts(self) -> dict[str, Any]:
        """What people are shown."""
        return {
            "frozen": self.frozen or None, "frozen_at": self.frozen_at or None, "denied": sorted(self.denied),
            "approved": sorted(self.approved),
        }  # fmt: skip


def check(before: Content | None, after: Content, difference: Difference, switches: Switches) -> None:
    """Raise RefusedError unless the candidate is plausible, or approved."""
    fault = _fault(before, after, difference)
    if fault is not None and after.version_hash not in switches.approved:
        reason, message = fault
        raise RefusedError(reason, f"{message}; candidate {after.version_hash}", after.version_hash)


def _fault(before: Content | None, after: Content, difference: Difference) -> tuple[str, str] | None:
    """What is wrong, as label and sentence. A denied name does not count as removed: it is not in `before` either."""
    if before is None or not len(before):
        return None
    if not len(after):
        return "empty", f"no definition is left of {len(before)}"
    if len(before) < _ENOUGH:
        return None
    if difference.removed > MOST_REMOVED * len(before):
        return "removed", f"{difference.removed} of {len(before)} definitions would be removed"
    ratio = after.answer_size / before.answer_size
    if not _SMALLEST <= ratio <= _LARGEST:
        return "size", f"the catalog would be {ratio:.2g} times as large ({after.answer_size} bytes)"
    return None
