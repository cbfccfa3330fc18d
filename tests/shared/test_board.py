"""The board: counters that never fall, gauges that are forgotten, rows that never touch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd.shared import board
from avapd.shared.board import BUCKETS, METHODS, ROW_WORDS, STATUS_OF_CODE, STATUSES, Board

ROWS = 4


@pytest.fixture(name="board")
def a_board() -> Iterator[Board]:
    fd = board.create(ROWS)
    yield Board(fd, ROWS)
    os.close(fd)


def test_a_new_board_is_empty(board: Board) -> None:
    """Every word of the master's page and of every row is zero."""
    assert [board[word] for word in range(8)] == [0] * 8
    assert len(board.all()) == ROWS
    assert all(row[word] == 0 for row in board.all() for word in range(ROW_WORDS))


@pytest.mark.parametrize(("bucket", "bound"), list(enumerate(BUCKETS)))
def test_a_bound_belongs_to_its_bucket(board: Board, bucket: int, bound: float) -> None:
    """As Prometheus has it: `le` is inclusive. A nanosecond more is the next bucket's."""
    row = board.row(0)
    edge = round(bound * 1e9)
    row.count(0, 0, edge)
    row.count(0, 0, edge + 1)
    buckets, _ = row.durations(0)
    assert [number for number, count in enumerate(buckets) if count] == [bucket, bucket + 1]


def test_the_first_and_the_last_bucket_are_open() -> None:
    """Nothing is too short or too long to be counted."""
    fd = board.create(1)
    row = Board(fd, 1).row(0)
    row.count(0, 0, 0)
    row.count(0, 0, 10**15)
    buckets, seconds = row.durations(0)
    assert len(buckets) == len(BUCKETS) + 1
    assert (buckets[0], buckets[-1], sum(buckets)) == (1, 1, 2)
    assert seconds == pytest.approx(10**6)
    os.close(fd)


calls = st.lists(
    st.tuples(
        st.integers(0, ROWS - 1),
        st.integers(0, len(METHODS) - 1),
        st.integers(0, len(STATUSES) - 1),
        st.integers(0, 10**10),
    ),
    max_size=50,
)


@given(calls)
@settings(deadline=None)
def test_each_call_is_counted_once_where_it_belongs(made: list[tuple[int, int, int, int]]) -> None:
    """Row, method and status add up to what was counted; a histogram has as many calls as its method's statuses."""
    fd = board.create(ROWS)
    filled = Board(fd, ROWS)
    for place, method, status, nanoseconds in made:
        filled.row(place).count(method, status, nanoseconds)
    for number, row in enumerate(filled.all()):
        for method in range(len(METHODS)):
            mine = [call for call in made if call[:2] == (number, method)]
            assert row.requests(method) == [sum(call[2] == status for call in mine) for status in range(len(STATUSES))]
            buckets, seconds = row.durations(method)
            assert sum(buckets) == len(mine)
            assert seconds == pytest.approx(sum(call[3] for call in mine) / 1e9)
    os.close(fd)


def test_counters_survive_the_gauges(board: Board) -> None:
    """A new process in a row begins with no heartbeat, state or generation, and goes on counting."""
    row = board.row(1)
    row.count(1, 2, 5_000)
    for word in range(8):
        row[word] = word + 1
    counters = [row[word] for word in range(8, ROW_WORDS)]
    row.clear_gauges()
    assert [row[word] for word in range(8)] == [0] * 8
    assert [row[word] for word in range(8, ROW_WORDS)] == counters
    assert sum(row.requests(1)) == 1


def test_rows_do_not_touch_each_other_nor_the_master(board: Board) -> None:
    """Filling one row to its last word changes nothing else."""
    board[0], board[1] = 11, 12
    for number, row in enumerate(board.all()):
        for word in range(ROW_WORDS):
            row[word] = number + 1
    for number, row in enumerate(board.all()):
        assert [row[word] for word in range(ROW_WORDS)] == [number + 1] * ROW_WORDS
    assert (board[0], board[1]) == (11, 12)
    with pytest.raises(IndexError):
        board.row(0)[ROW_WORDS] = 1


def test_a_row_is_no_larger_than_its_page() -> None:
    """Two CPUs never write the same cache line."""
    assert ROW_WORDS * 8 <= 4096
    assert board.size_of(ROWS) == 4096 * (ROWS + 1)


def test_two_processes_see_one_board(board: Board) -> None:
    """What a worker writes through its mapping, the master reads through its own."""
    fd = os.dup(board.fd)
    theirs = Board(fd, ROWS)
    theirs.row(2).count(0, 0, 1)
    theirs[0] = 1 << 63
    assert board.row(2).requests(0)[0] == 1
    assert board[0] == 1 << 63
    os.close(fd)


def test_every_status_of_the_contract_has_a_column() -> None:
    """Contract part 6: the HTTP-like status for each gRPC code that avapd answers with."""
    expected = {0: 200, 16: 401, 5: 404, 8: 429, 1: 499, 13: 500, 12: 501, 14: 503, 4: 504}
    assert expected == STATUS_OF_CODE
    assert set(STATUS_OF_CODE.values()) == set(STATUSES)
