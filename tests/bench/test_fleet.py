"""The simulated fleet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.frame import Result
from bench.pages import fleet
from bench.pages.fleet import JITTER, PERIOD, SCENARIOS, Scenario

Make = Callable[..., Result]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_mean_is_pods_by_period(scenario: Scenario) -> None:
    """10,000 pods that poll every 60 s are 166.7 polls a second, at first and after an hour, within 1 %."""
    seen = fleet.load(scenario)
    assert seen.first.mean == pytest.approx(10_000 / 60, rel=0.01)
    assert seen.later.mean == pytest.approx(10_000 / 60, rel=0.01)


def test_without_jitter_a_herd_stays_together() -> None:
    """Pods that start at once and never drift poll all in the same second, for ever."""
    seen = fleet.load(SCENARIOS[0])
    assert (seen.first.worst, seen.later.worst) == (10_000, 10_000)


def test_jitter_dissolves_a_herd() -> None:
    """With ±10 % the first polls spread over 12 s; after an hour the worst second is within half of an even one."""
    seen = fleet.load(SCENARIOS[1])
    assert 10_000 / 12 <= seen.first.worst < 10_000 / 9
    assert seen.later.worst < 1.5 * 10_000 / 60


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.floats(0, 60), st.floats(0, 0.5), st.integers(0, 9))
def test_every_pod_polls_as_often_as_its_waits_allow(pods: int, spread: float, jitter: float, seed: int) -> None:
    """Up to a moment each pod has polled between (t - spread) / longest wait and t / shortest wait times."""
    until = 600.0
    total = sum(fleet.polls(Scenario("", spread, jitter), pods, until, seed=seed).values())
    longest, shortest = PERIOD * (1 + jitter), PERIOD * (1 - jitter)
    assert pods * ((until - spread) // longest - 1) <= total <= pods * (until // shortest)


def test_a_simulation_gives_the_same_again() -> None:
    """The seed is fixed: the page does not change by itself."""
    scenario = Scenario("", 60, JITTER)
    assert fleet.polls(scenario, 100, 1_000) == fleet.polls(scenario, 100, 1_000)


@given(st.floats(0.1, 1_000))
def test_so_many_pods_keep_a_core_half_busy(cpu_ms: float) -> None:
    """The pods that one core carries, polling evenly, take half of its time."""
    assert fleet.cores(fleet.carried(cpu_ms) / PERIOD, cpu_ms) == pytest.approx(0.5)


def test_the_database_is_reckoned_from_the_polls(make: Make) -> None:
    """6 ms of CPU and 1.5 MB: a core when all is even, 60 CPU seconds and 15 GB for a change, half of it on two."""
    figures = {"database_cpu_ms": [6.0], "mb": [1.5]}
    result = make({f"1,000 {how}": {"avapd": figures} for how in ("unchanged", "all changed")}, bench="polls")
    text = "\n".join(fleet.part([result]))
    assert "| 1,000 unchanged | 6.00 | all start at once, no jitter | 1.00 | 60.0 | 60.0 |" in text
    assert "| 1,000 all changed | 6.00 | 60.0 | 1.00 | 1.50 | 15.0 | 2.00 |" in text
    assert "| 1,000 all changed | 2 | each of 2 | 0.5 | - |" in text
    assert "1,000 unchanged: 0.5 × 60 s ÷ 6.00 ms = 5,000 pods" in text  # noqa: RUF001  # the sign of multiplication


def test_a_lag_comes_on_top(make: Make) -> None:
    """The last pod is a longest wait, the lag, and what was measured of propagation after the commit."""
    case, whose, figure = fleet.PROPAGATION
    text = "\n".join(fleet.part([make({case: {whose: {figure: [500.0]}}}, bench="propagation")]))
    assert "| 10 | 40.6 | 76.5 |" in text
