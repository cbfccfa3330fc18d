"""Who may call and connect: ends, rates over workers, wrong keys by address, connections."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.access import access, key_of

from avapd.data.access import Access
from avapd.data.auth import Key, Keyring
from avapd.data.failures import ADDRESSES, Failures, block_of
from avapd.data.meter import Meter
from avapd.shared.board import CONNECTIONS, Board, create
from avapd.wire.limits import Limits

BEAT = 0.1
RATED = Key("a", "ab" * 32, rate=100.0)


# --- ends ---------------------------------------------------------------------------------------------------------


def test_a_key_ends_when_its_time_comes() -> None:
    """By the worker's own clock, once; the others go on, and so does a key of the past in a new set."""
    now = time.time()
    ring = access(key_of("ends", expires=now + 60), key_of("stays", "b"), key_of("over", "c", expires=now - 1))

    def open_to() -> list[str]:
        return [key for key in ("ends", "stays", "over") if ring.keyring().find(key.encode())]

    assert open_to() == ["ends", "stays"]
    assert not ring.beat(0.0, now + 59)
    assert ring.beat(0.1, now + 60)
    assert open_to() == ["stays"]
    assert not ring.beat(0.2, now - 60), "a clock that goes back brings no key back"
    assert open_to() == ["stays"]


def test_a_key_is_known_again_by_its_digest() -> None:
    """A watch goes on when its key has another name, end or rate; not when the name has another key."""
    assert Keyring([Key("b", "ab" * 32, expires=9e9, rate=1, column=3)]).has(Key("a", "ab" * 32))
    assert not Keyring([Key("a", "cd" * 32)]).has(Key("a", "ab" * 32))


# --- rates --------------------------------------------------------------------------------------------------------


class Workers:
    """The meters of some workers on one board, with one rated key, and a clock."""

    def __init__(self, count: int, key: Key = RATED) -> None:
        fd = create(count)
        board = Board(fd, count)
        os.close(fd)
        self.key, self.rows, self.now = key, board.all(), 0.0
        self.meters = [Meter(row, self.rows) for row in self.rows]
        for meter in self.meters:
            meter.settle(self.now)
            meter.keys_changed([key])

    def run(self, seconds: float, demand: dict[int, float]) -> int:
        """Calls let through while these workers are asked so many a second each; beats come between the calls."""
        before = sum(row.key_rate(0)[0] for row in self.rows)
        owed = dict.fromkeys(demand, 0.0)
        for _ in range(round(seconds / BEAT)):
            for worker, rate in demand.items():
                owed[worker] += rate * BEAT
                while owed[worker] >= 1:
                    owed[worker] -= 1
                    self.meters[worker].admits(self.key)
            self.now += BEAT
            for meter in self.meters:
                meter.settle(self.now)
        return sum(row.key_rate(0)[0] for row in self.rows) - before


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_one_client_on_one_worker_gets_the_whole_rate(workers: int) -> None:
    """However many workers there are: a rate is that of avapd, and not a worker's share of it."""
    rig = Workers(workers)
    rig.run(3, {0: 1000})
    assert rig.run(10, {0: 1000}) == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("workers", [2, 8, 64])
@pytest.mark.parametrize("rate", [5.0, 100.0, 5000.0])
def test_all_workers_together_let_no_more_through(workers: int, rate: float) -> None:
    """What they let through without knowing of each other is owed: over a while the rate holds, busy or not."""
    rig = Workers(workers, RATED._replace(rate=rate))
    demand = {worker: rate * (1 + worker % 3) for worker in range(workers)}
    seconds = 60
    rig.run(30, demand)
    assert rig.run(seconds, demand) == pytest.approx(rate * seconds, rel=0.1, abs=2 * workers)


def test_below_the_rate_nothing_is_refused() -> None:
    """Spread over workers, and in bursts of what a second brings."""
    rig = Workers(4)
    assert rig.run(10, {0: 20, 1: 30, 2: 40}) == pytest.approx(900, abs=3)
    assert sum(row.key_rate(0)[1] for row in rig.rows) == 0
    rig.run(2, {})
    assert sum(rig.meters[3].admits(RATED) for _ in range(150)) == 100


def test_other_keys_do_not_change_what_a_key_has_left() -> None:
    """A new set of keys with the same one in it is no new allowance; another rate is."""
    rig = Workers(1)
    assert sum(rig.meters[0].admits(RATED) for _ in range(500)) == 100
    rig.meters[0].keys_changed([RATED, Key("b", "cd" * 32, column=1)])
    assert not rig.meters[0].admits(RATED)
    rig.meters[0].keys_changed([RATED._replace(rate=50.0)])
    assert sum(rig.meters[0].admits(RATED) for _ in range(500)) == 50


# --- wrong keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("2001:db8::1", "2001:db8::2:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "::2", True),
        ("/a/path", "", True),
    ],
)
def test_an_address_is_one_of_ipv4_or_a_64_of_ipv6(one: str, other: str, same: bool) -> None:
    """Also when IPv4 comes through the IPv6 socket, where all of it would be one /64."""
    assert (block_of(one) == block_of(other)) is same


def test_an_address_may_fail_so_often_and_then_so_fast() -> None:
    """The allowance is each address's own; it grows again with time."""
    failures = Failures(5, 2.0)
    assert [failures.spend(b"a", 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert failures.spend(b"b", 0.0, 5)
    assert not failures.spend(b"b", 0.0)
    assert not failures.spend(b"c", 0.0, 1000)
    assert [failures.spend(b"a", 1.0) for _ in range(3)] == [True, True, False]


@given(st.lists(st.integers(0, 3 * ADDRESSES), max_size=50))
@settings(deadline=None, max_examples=20)
def test_the_table_is_bounded_and_forgets_who_failed_longest_ago(known: list[int]) -> None:
    """Whoever sends from many addresses pushes others out, and never those that fail now."""
    failures = Failures(2, 0.01)
    for number in range(ADDRESSES + 10):
        failures.spend(b"%d" % number, 0.0)
    for number in known:
        failures.spend(b"%d" % number, 0.0, 9)
        assert not failures.spend(b"%d" % number, 0.0)
        assert len(failures) == ADDRESSES


# --- connections --------------------------------------------------------------------------------------------------


def of_two(**limits: int) -> tuple[Access, Access]:
    """Two workers on one board."""
    fd = create(2)
    board = Board(fd, 2)
    os.close(fd)
    first, second = (Access([], row, board.all(), Limits(**limits)) for row in board.all())
    return first, second


@pytest.mark.parametrize("limit", ["connections", "total_connections", "address_connections"])
def test_a_connection_beyond_a_limit_is_refused_until_another_ends(limit: str) -> None:
    """At N it enters, at N + 1 it does not and is counted by the limit; one that leaves makes room."""
    one, other = of_two(**{limit: 3})
    counted = {"connections": "worker", "total_connections": "total", "address_connections": "address"}[limit]
    assert [one.enter(b"a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert one._row.met(counted) == 2
    assert other.enter(b"a") is (limit != "total_connections")
    one.leave(b"a")
    assert one.enter(b"a") is (limit != "total_connections" or not other._row[CONNECTIONS])


def test_another_address_has_room_of_its_own() -> None:
    """The limit of an address is no other's."""
    one, _ = of_two(address_connections=2)
    assert [one.enter(b"a"), one.enter(b"a"), one.enter(b"a"), one.enter(b"b")] == [True, True, False, True]


def test_a_column_has_the_name_of_its_last_key() -> None:
    """Also when that key is gone: its watches end after it, and the audit names it."""
    one, _ = of_two()
    one.set_keys([{"name": "a", "digest": "00" * 32, "column": 3}])
    one.set_keys([{"name": "b", "digest": "11" * 32, "column": 4}])
    assert [one.name_at(column) for column in (3, 4, 5)] == ["a", "b", ""]
    one.set_keys([{"name": "c", "digest": "22" * 32, "column": 3}])
    assert one.name_at(3) == "c"
