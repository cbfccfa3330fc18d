"""The rates of keys: so many calls a second for all workers together, whichever connections they come on.

Each worker counts on the board what it has let through with a key, and adds up `settle` by `settle`, a heartbeat apart,
what all have. So each knows by itself how much of the allowance is left: it grows by `rate` a second, up to what a
second brings, and what workers let through meanwhile without knowing of each other is owed. Until the next sum a
worker gives out the part of it that it had of the calls in the last: a client that has one connection gets all.

Between two sums a call costs a comparison, and calls with keys that have no rate never come here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from avapd.data.auth import Key
from avapd.shared.board import Row
from avapd.wire.grpc import RESOURCE_EXHAUSTED, Answer

LIMITED: Final = Answer(RESOURCE_EXHAUSTED, "Too many calls a second with this key", b"")


class _Sums(NamedTuple):
    """Calls with a key: those let through, all, and all of this worker's."""

    let: int
    asked: int
    own: int


class _Allowance:
    """What one key has left; `sums` are those of the last time."""

    def __init__(self, key: Key, sums: _Sums) -> None:
        self.key = key
        self.most = max(key.rate, 1.0)
        self.level = self.left = self.most
        self.sums = sums


class Meter:
    """The allowances of this worker's keys. `row` is its own, `rows` are all."""

    def __init__(self, row: Row, rows: Iterable[Row]) -> None:
        self._row = row
        self._rows = list(rows)
        self._allowances: dict[int, _Allowance] = {}
        self._settled = 0.0

    def keys_changed(self, keys: Iterable[Key]) -> None:
        """These are the keys now; those that were here go on with what they had left."""
        before, self._allowances = self._allowances, {}
        for key in keys:
            if key.rate:
                known = before.get(key.column)
                if known is None or (known.key.name, known.key.rate) != (key.name, key.rate):
                    known = _Allowance(key, self._sums(key.column))
                self._allowances[key.column] = known

    def admits(self, key: Key) -> bool:
        """Whether a call with this key, which has a rate, is within it."""
        allowance = self._allowances.get(key.column)
        if allowance is None or allowance.left < 1:
            self._row.count_limited(key.column)
            return False
        allowance.left -= 1
        self._row.count_let(key.column)
        return True

    def settle(self, now: float) -> None:
        """Add up what all workers let through since the last time."""
        passed, self._settled = now - self._settled, now
        for column, allowance in self._allowances.items():
            before, sums = allowance.sums, self._sums(column)
            grown = allowance.level + passed * allowance.key.rate - (sums.let - before.let)
            allowance.level = min(allowance.most, grown)
            own, asked = sums.own - before.own, sums.asked - before.asked
            share = own / asked if own and asked else 1.0
            allowance.left = max(allowance.level * share, 1.0) if allowance.level >= 1 else 0.0
            allowance.sums = sums

    def _sums(self, column: int) -> _Sums:
        rates = [row.key_rate(column) for row in self._rows]
        return _Sums(sum(let for let, _ in rates), sum(map(sum, rates)), sum(self._row.key_rate(column)))
