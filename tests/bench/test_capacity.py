"""The section `Capacity`: arithmetic over figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.frame import Result
from bench.pages import capacity
from bench.pages.balance import balance
from bench.pages.text import percent, short

Make = Callable[..., Result]
NEVER = "avapd, blocks never repeat"


@pytest.fixture
def scale(make: Make) -> Result:
    """Calls that repeat cost 10 µs with one worker, 12.5 with four; others 20."""
    return make(
        {
            "1 worker": {"avapd": {"per_cpu_second": [1e5]}, NEVER: {"per_cpu_second": [5e4]}},
            "4 workers": {"avapd": {"per_cpu_second": [8e4]}, NEVER: {"per_cpu_second": [5e4]}},
        },
        bench="scale",
        parameters={"answer_bytes": 1_000},
    )


def row(text: str, *begin: str) -> list[str]:
    """The cells of the first table row that begins with these."""
    lines = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return next(cells for cells in lines if tuple(cells[: len(begin)]) == begin)


def test_the_dearest_number_of_workers_is_the_basis(scale: Result) -> None:
    """Of the numbers of workers measured, the one at which a call costs most is reckoned with."""
    steady, never = capacity.bases([scale])
    assert (steady.per_cpu_second, never.per_cpu_second) == (8e4, 5e4)
    assert "4 workers" in steady.source


def test_the_engine_bench_stands_in_for_scale(make: Make) -> None:
    """Without `scale` the bases are those of `engine`, and the text says so."""
    found = capacity.bases([make({"10x10": {"wire": {"per_cpu_second": [7.0]}}})])
    assert [(one.per_cpu_second, one.source) for one in found] == [(7.0, "`engine`, 10x10, wire")]


def test_cores_are_multiplied_and_headroom_taken_off(scale: Result) -> None:
    """80,000 calls per CPU second are 48,000 on one core, 192,000 on four, 9.6 million in fifty pods at 60 %."""
    text = capacity.section([scale])
    assert row(text, "blocks that repeat", "1 core")[2] == "48,000"
    assert row(text, "blocks that repeat", "4 cores")[2] == "192,000"
    assert row(text, "blocks that repeat", "50 pods of 4 cores")[2] == "9,600,000"


def test_answers_are_held_against_the_nic_of_each_pod(scale: Result) -> None:
    """192,000 answers of 1,000 octets are 1.54 Gbit/s, 15.4 % of 10, in each of fifty pods too."""
    text = capacity.section([scale])
    assert row(text, "blocks that repeat", "4 cores")[3:] == ["1.54", "15.4 %", "6.14 %"]
    assert row(text, "blocks that repeat", "50 pods of 4 cores")[4:] == ["15.4 %", "6.14 %"]


@given(st.floats(1, 100), st.integers(1, 10**6))
def test_a_full_nic_is_full(nic: float, octets: int) -> None:
    """The answers that fill a NIC are as many Gbit/s as it has."""
    assert capacity.gigabits(capacity.nic_calls(nic, octets), octets) == pytest.approx(nic)


@pytest.mark.parametrize(("p95", "lost", "kept"), [(0.9, 0.0, True), (1.0, 0.0, False), (0.5, 1.0, False)])
def test_the_line_is_kept_only_below_1_ms_and_without_a_loss(make: Make, p95: float, lost: float, kept: bool) -> None:
    """P95 of 1 ms or one call without an answer is said to miss the line."""
    latency = make({"35,000/s": {"wire": {"p95_ms": [p95], "lost": [lost]}}}, bench="latency")
    assert ("the line is kept on one core" in capacity.section([latency])) == kept
    assert ("the line is **not** kept" in capacity.section([latency])) != kept


def test_what_clients_cost_is_their_cpu_by_their_calls(make: Make, scale: Result) -> None:
    """A client that needs a core for 10,000 calls a second takes 12 cores for 120,000."""
    clients = make({"ghz": {"wire": {"per_second": [1e4], "client_cpu": [1.0]}}}, bench="clients")
    assert row(capacity.section([scale, clients]), "ghz")[3:] == ["100", "12.0"]


def test_what_is_not_measured_is_said_to_be(make: Make) -> None:
    """Every missing input is named with the command that makes it."""
    text = capacity.section([make({}, bench="swap")])
    for bench in ("scale", "latency", "clients", "engine", "polls", "propagation"):
        assert f"not measured yet: `python -m bench {bench}`" in text
    assert capacity.section([]) == ""


def test_quick_runs_are_told(make: Make) -> None:
    """Inputs of a quick run are named as such."""
    quick = make({"10x10": {"wire": {"per_cpu_second": [7.0]}}}, quick=True)
    assert "Of quick runs, with few rounds and small sizes: `engine`." in capacity.section([quick])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500), st.integers(1, 200))
def test_the_busiest_worker_has_at_least_the_mean(connections: int, workers: int) -> None:
    """Busiest over mean is from 1 to the number of workers, its P99 no less than its median."""
    even = balance(connections, workers, draws=20)
    assert 1 - 1e-9 <= even.median <= even.p99 <= workers + 1e-9
    assert even.usable == pytest.approx(1 / even.median)


def test_one_connection_is_one_worker_and_one_worker_is_even() -> None:
    """A single connection uses 1 of 200 workers; one worker alone always has the mean."""
    assert balance(1, 200, draws=20).usable == pytest.approx(1 / 200)
    assert balance(1_000, 1, draws=20).p99 == 1


def test_more_connections_are_more_even() -> None:
    """Over 4 and over 200 workers, ten times the connections leave more of the capacity usable."""
    for workers in (4, 200):
        shares = [balance(connections, workers).usable for connections in (10, 100, 1_000, 10_000)]
        assert shares == sorted(shares)


def test_two_connections_on_four_workers_meet_now_and_then() -> None:
    """The draw is even: apart they make the busiest twice the mean, which is the median, together four times, P99."""
    even = balance(2, 4, draws=2_000)
    assert (even.median, even.p99) == (2, 4)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.01234, "0.0123"), (4.567, "4.57"), (12.34, "12.3"), (999.9, "1,000"), (35_123, "35,100")],
)
def test_numbers_have_three_significant_digits(number: float, text: str) -> None:
    """Thousands are set apart, and nothing pretends to be more exact than it is."""
    assert short(number) == text
    assert percent(0.5) == "50 %"
