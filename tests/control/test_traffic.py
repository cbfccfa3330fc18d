"""Rates and percentiles: what two readings of the counters tell."""

from __future__ import annotations

import asyncio
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avapd.control import wording
from avapd.control.traffic import NOTHING, Counts, Meter, Traffic, between, counts, percentile
from avapd.shared import board as words
from avapd.shared.board import BUCKETS, METHODS, STATUSES, Board

GET, WATCH = METHODS.index("GetCommand"), METHODS.index("WatchCatalog")


def row() -> tuple[Board, words.Row]:
    board = Board(words.create(2), 2)
    return board, board.row(0)


@given(st.lists(st.floats(1e-6, 2.4), min_size=1, max_size=60))
def test_the_percentile_is_in_the_bucket_of_the_call_it_means(times: list[float]) -> None:
    """Of any calls: the one that nineteen of twenty do not exceed, to the width of its bucket."""
    buckets = [0] * (len(BUCKETS) + 1)
    for seconds in times:
        buckets[bisect_left(BUCKETS, seconds)] += 1
    meant = sorted(times)[-(-95 * len(times) // 100) - 1]
    place = bisect_left(BUCKETS, meant)
    found = percentile(buckets)
    assert found is not None
    assert (BUCKETS[place - 1] if place else 0.0) <= found <= BUCKETS[place]


def test_the_percentile_is_that_of_prometheus() -> None:
    """Calls lie evenly in their bucket; beyond the last bound there is only that bound; of no calls there is none."""
    assert percentile([0, 0, 100, *[0] * 13]) == pytest.approx(0.0001 + 0.95 * 0.00015)
    assert percentile([90, 0, 0, 10, *[0] * 12]) == pytest.approx(0.00025 + 0.5 * 0.00025)
    assert percentile([1, *[0] * 14, 99]) == BUCKETS[-1]
    assert percentile([0] * 16) is None


def test_traffic_is_the_difference_of_two_readings() -> None:
    """Calls and failed ones a second: streams are calls without a percentile, mistakes of clients are no failures."""
    _, one = row()
    one.count(GET, STATUSES.index(200), 80_000, 50)
    before = counts([one])
    one.count(GET, STATUSES.index(200), 2_000_000, 30)
    one.count(GET, STATUSES.index(404), 2_000_000, 6)
    one.count(GET, STATUSES.index(503), 2_000_000, 4)
    one.count(WATCH, STATUSES.index(499), 60_000_000_000, 10)
    traffic = between(before, counts([one]), 2.0)
    assert traffic is not None
    assert (traffic.rate, traffic.error_rate) == (25.0, 2.0)
    assert traffic.p95_seconds == pytest.approx(0.001 + 0.95 * 0.0015)


def test_counters_that_fell_tell_nothing() -> None:
    """A server that began anew has no traffic since before, and no time is no rate."""
    some = Counts(5, 1, (5, *[0] * 15))
    assert between(some, NOTHING, 1.0) is None
    assert between(NOTHING, some, 0.0) is None
    assert between(some, some, 1.0) == Traffic(0.0, 0.0, None)


def test_a_meter_tells_each_slot_and_all() -> None:
    """Both rows of a slot are its traffic, and before the second reading there is none."""
    board = Board(words.create(4), 4)

    async def measure() -> tuple[Traffic, list[Traffic]]:
        meter = Meter(board)
        meter.start()
        assert meter.traffic() == (Traffic(0.0, 0.0, None), [Traffic(0.0, 0.0, None)] * 2)
        board.row(0).count(GET, 0, 80_000, 100)
        board.row(1).count(GET, 0, 80_000, 100)
        board.row(3).count(GET, STATUSES.index(500), 80_000, 100)
        meter.stop()
        meter.start()
        meter.stop()
        assert len(meter.rates) == 1
        return meter.traffic()

    whole, (first, second) = asyncio.run(measure())
    assert whole.rate == pytest.approx(first.rate + second.rate)
    assert first.rate == pytest.approx(2 * second.rate)
    assert (first.error_rate, second.error_rate) == (0.0, second.rate)
    assert 0.00005 < (whole.p95_seconds or 0) <= 0.0001


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (wording.number(None), "-"), (wording.number(0), "0"), (wording.number(0.25), "0.2"),
        (wording.number(12345.6), "12,346"), (wording.number(3), "3"),
        (wording.duration(0.4), "0 s"), (wording.duration(59), "59 s"), (wording.duration(3600), "1 h"),
        (wording.duration(11_580), "3 h 13 min"), (wording.duration(200_000), "2 d 7 h"), (wording.duration(-5), "0 s"),
        (wording.latency(0.000243), "243 µs"), (wording.latency(0.0012), "1.2 ms"), (wording.latency(2.5), "2.5 s"),
        (wording.size(0), "0 B"), (wording.size(1536), "1.5 KiB"), (wording.size(15_309_210), "14.6 MiB"),
        (wording.size(800 << 20), "800 MiB"), (wording.size(3 << 30), "3 GiB"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(made: str, text: str) -> None:
    """Short, with a unit, and no more digits than count."""
    assert made == text
