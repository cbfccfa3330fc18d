"""Statistics over rounds."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from bench.frame import Bar, Result
from bench.pages.stats import Figure, figure, measured, met, percentile

VALUES = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=40)


@given(VALUES, st.floats(1, 100))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    """At least `percent` of the values are at most the percentile, and it is the smallest value of which that is so."""
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values) * (1 - 1e-12)
    smaller = [value for value in values if value < found]
    assert not smaller or sum(value <= max(smaller) for value in values) * 100 < percent * len(values)


def test_a_figure_is_its_statistic_with_smallest_and_largest_round(make: Callable[..., Result]) -> None:
    """The median of 1, 5 and 2 is 2, between 1 and 5; of a figure that nobody recorded there is none."""
    rounds = make({"a": {"wire": {"x": [1, 5, 2]}}}).rounds
    assert figure(rounds, "a", "wire", "x", "median") == Figure(2, 1, 5, 3)
    assert figure(rounds, "a", "wire", "x", "sum") == Figure(8, 1, 5, 3)
    assert figure(rounds, "a", "wire", "y", "median") is None


def test_a_ratio_is_of_the_statistics_and_its_spread_of_the_pairs(make: Callable[..., Result]) -> None:
    """10, 20, 30 over 1, 2, 5 is 20 / 2, and the pairs of rounds range from 6 to 10."""
    rounds = make({"a": {"wire": {"x": [10, 20, 30]}, "peer": {"x": [1, 2, 5]}}}).rounds
    assert measured(Bar(says="", case="a", figure="x", contestant="wire", over="peer"), rounds) == Figure(10, 6, 10, 3)


def test_a_ratio_to_nothing_is_not_measured(make: Callable[..., Result]) -> None:
    """A ratio to a median of 0 is None, also where single rounds are not 0."""
    rounds = make({"a": {"wire": {"x": [1, 1, 1]}, "peer": {"x": [0, 0, 3]}}}).rounds
    assert measured(Bar(says="", case="a", figure="x", contestant="wire", over="peer"), rounds) is None


def test_a_bar_is_met_at_its_limit() -> None:
    """`at most` and `at least` include the limit, and a bar without one is always met."""
    found = Figure(2, 2, 2, 1)
    bar = Bar(says="", case="a", figure="x", limit=2)
    assert met(bar, found)
    assert met(Bar(says="", case="a", figure="x", limit=2, sense="at least"), found)
    assert not met(Bar(says="", case="a", figure="x", limit=1.9), found)
    assert met(Bar(says="", case="a", figure="x"), found)
