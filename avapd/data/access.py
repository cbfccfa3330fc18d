"""Who may call and connect, and how much: keys with their ends and rates, wrong keys, connections.

Both engines ask here. What is shared between workers goes over the board: the calls of keys that have a rate, and how
many connections each worker has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from avapd.data.auth import Anyone, Key, Keyring
from avapd.data.failures import Failures
from avapd.data.meter import Meter
from avapd.shared.board import CONNECTIONS, Row
from avapd.wire.limits import Limits


class Admission(Protocol):
    """Who says which connections stay."""

    def enter(self, address: bytes) -> bool:
        """A connection from an address; whether it may stay, and `leave` must follow."""

    def leave(self, address: bytes) -> None:
        """A connection that had entered has ended."""

    def failed(self, address: bytes, now: float, times: int = 1) -> bool:
        """Wrong keys have come from an address; False when they are too many."""


class Probes:
    """Lets `most` connections in, whoever they are: the health port, where nobody shows a key."""

    def __init__(self, most: int) -> None:
        self._left = most

    def enter(self, _address: bytes) -> bool:
        """Whether there is room for one more."""
        self._left -= 1
        if self._left >= 0:
            return True
        self._left += 1
        return False

    def leave(self, _address: bytes) -> None:
        """One less."""
        self._left += 1

    def failed(self, _address: bytes, _now: float, _times: int = 1) -> bool:
        """There are no keys here."""
        return True


class Access:
    """The state of one worker. `row` is its own, `rows` are those of all; `anonymous` asks nobody for a key."""

    def __init__(
        self, keys: Iterable[dict[str, Any]], row: Row, rows: list[Row], limits: Limits, *, anonymous: bool = False
    ) -> None:
        self.meter = Meter(row, rows)
        self._row = row
        self._rows = rows
        self._limits = limits
        self._failures = Failures(limits.failures, limits.failures_per_second)
        self._addresses: Counter[bytes] = Counter()
        self._keys: list[Key] = []
        self._names: dict[int, str] = {}
        self._anonymous = anonymous
        self._ring = Keyring([])
        self.set_keys(keys)

    # --- keys -------------------------------------------------------------------------------------------------

    def keyring(self) -> Keyring:
        """The keys that are accepted now."""
        return self._ring

    def set_keys(self, keys: Iterable[dict[str, Any]]) -> None:
        """Accept these, as the master tells them, and no others."""
        self._keys = [Key(**key) for key in keys]
        self._names |= {key.column: key.name for key in self._keys}
        self._ring = Anyone() if self._anonymous else Keyring(self._keys, time.time())
        self.meter.keys_changed(self._keys)

    def beat(self, now: float, wall: float) -> bool:
        """Do what is due, some times a second; whether a key has ended since. `wall` is in seconds of the epoch."""
        self.meter.settle(now)
        if self._ring.expires > wall:
            return False
        self._ring = Keyring(self._keys, wall)
        return True

    def name_at(self, column: int) -> str:
        """The name of the key that is counted in this column of the board, or was: its last calls may end after it."""
        return self._names.get(column, "")

    def admits(self, key: Key) -> bool:
        """Whether a call with this key is within its rate, if it has one."""
        return not key.rate or self.meter.admits(key)

    def failed(self, address: bytes, now: float, times: int = 1) -> bool:
        """Wrong keys have come from an address; False when they are too many."""
        right = self._failures.spend(address, now, times)
        if not right:
            self._row.meet("failures")
        return right

    # --- connections ------------------------------------------------------------------------------------------

    def enter(self, address: bytes) -> bool:
        """A connection from an address; whether it may stay, and `leave` must follow."""
        reason = ""
        if self._row[CONNECTIONS] >= self._limits.connections:
            reason = "worker"
        elif self._addresses[address] >= self._limits.address_connections:
            reason = "address"
        elif sum(row[CONNECTIONS] for row in self._rows) >= self._limits.total_connections:
            reason = "total"
        if reason:
            self._row.meet(reason)
            return False
        self._addresses[address] += 1
        self._row[CONNECTIONS] += 1
        return True

    def leave(self, address: bytes) -> None:
        """A connection that had entered has ended."""
        self._row[CONNECTIONS] -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]
