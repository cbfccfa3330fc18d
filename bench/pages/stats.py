"""Statistics over the rounds of a result: made when it is rendered, never stored."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from bench.frame import Bar, Round


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


STATISTICS: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "median": statistics.median,
    "p50": lambda values: percentile(values, 50),
    "p99": lambda values: percentile(values, 99),
    "max": max,
    "sum": math.fsum,
}


class Figure(NamedTuple):
    """A statistic of a figure over its rounds, and the smallest and largest round."""

    value: float
    low: float
    high: float
    rounds: int


def figure(rounds: Sequence[Round], case: str, contestant: str, name: str, statistic: str) -> Figure | None:
    """The statistic over the rounds that have this figure; None when there are none."""
    values = list(_by_number(rounds, case, contestant, name).values())
    return Figure(STATISTICS[statistic](values), min(values), max(values), len(values)) if values else None


def measured(bar: Bar, rounds: Sequence[Round]) -> Figure | None:
    """What a bar is held against; a ratio is that of the two statistics, its spread that of the pairs of rounds.

    None when it was not measured, or is a ratio to nothing.
    """
    ours = figure(rounds, bar.case, bar.contestant, bar.figure, bar.statistic)
    if ours is None or not (bar.over or bar.over_case):
        return ours
    case, contestant = bar.over_case or bar.case, bar.over or bar.contestant
    theirs = figure(rounds, case, contestant, bar.figure, bar.statistic)
    other = _by_number(rounds, case, contestant, bar.figure)
    own = _by_number(rounds, bar.case, bar.contestant, bar.figure)
    pairs = [value / other[number] for number, value in own.items() if other.get(number)]
    if theirs is None or not theirs.value or not pairs:
        return None
    return Figure(ours.value / theirs.value, min(pairs), max(pairs), len(pairs))


def met(bar: Bar, found: Figure) -> bool:
    """Whether a bar is met; one without a limit always is."""
    if bar.limit is None:
        return True
    return found.value <= bar.limit if bar.sense == "at most" else found.value >= bar.limit


def _by_number(rounds: Sequence[Round], case: str, contestant: str, name: str) -> dict[int, float]:
    return {
        one.number: one.figures[name]
        for one in rounds
        if one.case == case and one.contestant == contestant and name in one.figures
    }
