"""The budget: whether the host has the memory that a refresh takes at its peak, asked before any of it is taken.

A snapshot is memory of the cgroup like any other, and where the cgroup is full the kernel kills whom it likes, a worker
or the master. So a refresh that would not fit is refused while it is still a number: everything keeps serving, and the
next poll asks again.

Measured, with all processes counted (the peak less what was held before; rows of 100 B, 1 kB and 4 kB): reading
everything holds the rows, their definitions and the new arena; a change is held as rows, definitions and messages; a
worker that verifies an arena holds lists of its index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from avapd.control import host
from avapd.control.source import Size
from avapd.errors import SnapshotError

# Octets for an octet of the table, beside the arena; octets for a row, in the master, the arena and each worker.
_READ: Final = 2.5
_CHANGED: Final = 3.5
_ROW_BYTES: Final = 512
_RECORD_BYTES: Final = 192
_VERIFIED_BYTES: Final = 256
# As much again as a refresh takes, but no more than this, stays free for who serves meanwhile: what is left to the last
# page is no place to answer calls in.
_SPARE_BYTES: Final = 16 << 20


class NoRoomError(SnapshotError):
    """A refresh was not begun since its peak would be beyond the memory that is left."""

    reason = "memory"
    hint = "raise the memory limit (`avapd check` does the arithmetic) or lower AVAPD_WORKERS"


class Budget:
    """Knows how many `workers` verify what is published; `left` tells the octets that are left, and of what."""

    def __init__(self, workers: int = 1, left: Callable[[], tuple[int, str]] = host.memory_left) -> None:
        self._workers = workers
        self._left = left

    def read(self, whole: Size) -> None:
        """A table of this size is to be read and packed. Raises NoRoomError."""
        self._ask(_READ * whole.octets + _ROW_BYTES * whole.rows + self._base(whole))

    def change(self, changed: Size, base: Size | None = None) -> None:
        """So much has changed; with `base`, a new one of that size is to be made. Raises NoRoomError."""
        needed = _CHANGED * changed.octets + _ROW_BYTES * changed.rows
        self._ask(needed + (self._base(base) if base is not None else 0))

    def _base(self, size: Size) -> int:
        """Octets of an arena, and of those who verify it."""
        return size.octets + (_RECORD_BYTES + _VERIFIED_BYTES * self._workers) * size.rows

    def _ask(self, needed: float) -> None:
        left, whose = self._left()
        if needed + min(needed, _SPARE_BYTES) > left:
            raise NoRoomError(f"a refresh takes {_mib(needed)} more at its peak, {_mib(left)} are left of {whose}")


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"
