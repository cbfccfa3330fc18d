"""What HPACK may cost: rows C14, C15 and C21 of the checklist."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from wire.representations import FIRST_ENTRY, INSERT, NEVER, PLAIN, indexed, integer, literal, size_update

from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.hpack import Decoder, Memo


def refused(decoder: Decoder, block: bytes) -> ErrorCode:
    with pytest.raises(ConnectionFault) as caught:
        decoder.decode(block)
    return caught.value.code


# --- C14: lists that are too large -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [INSERT, PLAIN, NEVER, None])
@pytest.mark.parametrize("updates", [b"", size_update(4096), size_update(0) + size_update(4096)])
def test_c14_the_number_of_fields(kind: tuple[int, int] | None, updates: bytes) -> None:
    """512 fields are a list; 513 and ten times as many end the connection, whatever they are made of."""
    field = literal(4, b"", kind) if kind else indexed(2)
    assert len(Decoder().decode(updates + field * 512).fields) == 512
    for number in (513, 514, 515, 5120):
        assert refused(Decoder(), updates + field * number) == ErrorCode.ENHANCE_YOUR_CALM


def test_c14_the_size_of_a_list() -> None:
    """65,536 bytes, 32 of them for each field, are a list; one more and ten times as many end the connection."""
    # 60 fields of 1,024 bytes, and one that is as large as it must be.
    block = literal(b"n", b"v" * (1024 - 33)) + indexed(FIRST_ENTRY) * 59
    rest = 65536 - 60 * 1024 - 33
    decoded = Decoder().decode(block + literal(b"n", b"v" * rest, PLAIN))
    assert decoded.size == 65536 <= decoded.at_most
    for size in (rest + 1, 10 * 65536):
        assert refused(Decoder(), block + literal(b"n", b"v" * size, PLAIN)) == ErrorCode.ENHANCE_YOUR_CALM


def test_c14_the_size_of_a_list_from_replayed_entries() -> None:
    """Entries that came by replay weigh as much as those that were decoded."""
    inserts = Decoder().decode(literal(b"n", b"v" * (2048 - 33))).inserts
    for number in (32, 33):
        decoder = Decoder()
        decoder.replay(inserts)
        if number == 32:
            assert decoder.decode(indexed(FIRST_ENTRY) * number).size == 65536
        else:
            assert refused(decoder, indexed(FIRST_ENTRY) * number) == ErrorCode.ENHANCE_YOUR_CALM


def test_c14_a_bomb_takes_no_room() -> None:
    """64 KiB that stand for 250 MB are refused at the cost of some kilobytes."""
    bomb = literal(b"n", b"v" * (4096 - 33)) + indexed(FIRST_ENTRY) * 61000
    decoder = Decoder()
    tracemalloc.start()
    try:
        assert refused(decoder, bomb) == ErrorCode.ENHANCE_YOUR_CALM
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


# --- C15 and what a connection holds ---------------------------------------------------------------------


def test_c15_a_string_longer_than_its_block() -> None:
    """A length is held against the block before anything is reserved for it."""
    claims = [integer(length, 7, first) for length in (2, 127, 1 << 20, 1 << 28) for first in (0, 0x80)]
    decoder = Decoder()
    tracemalloc.start()
    try:
        for claim in claims:
            assert refused(decoder, b"\0" + claim + b"v") == ErrorCode.COMPRESSION_ERROR
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 1, 2, 30, 1000])
def test_a_table_takes_little_more_than_it_counts(length: int) -> None:
    """The 4,096 bytes of a dynamic table take at most 24 KB of memory, whatever it is filled with."""
    decoder = Decoder()
    for number in range(1000):
        decoder.decode(literal(b"", b"%0*d" % (length, number)))
    entries = decoder._table[FIRST_ENTRY:]
    held = sum(sys.getsizeof(part) for entry in entries for part in (entry, *entry))
    assert held + sys.getsizeof(decoder._table) < 24_000


def test_replays_that_wait_are_few() -> None:
    """However often blocks come that are only replayed, at most 256 of their entries wait to be inserted."""
    decoder = Decoder()
    inserts = Decoder().decode(literal(b"a", b"b") + literal(b"c", b"d") + literal(b"e", b"f")).inserts
    for _ in range(1000):
        decoder.replay(inserts)
        assert sum(map(len, decoder._replays)) < 256
        assert len(decoder._table) <= FIRST_ENTRY + 4096 // 34 + len(inserts)


# --- C21: what is remembered of literals -----------------------------------------------------------------


def key(number: int, length: int = 0) -> bytes:
    return b"%0*d" % (length, number)


def seen_twice(memo: Memo[int], number: int, length: int = 0) -> None:
    for _ in range(2):
        memo.admit(key(number, length), number)


def test_c21_bytes_are_kept_when_seen_twice() -> None:
    """What comes once is not kept; what comes twice is."""
    memo: Memo[int] = Memo(8)
    memo.admit(b"a", 1)
    assert memo.recall(b"a") is None
    memo.admit(b"a", 1)
    assert memo.recall(b"a") == 1


@pytest.mark.parametrize("times", [1, 2, 10])
def test_c21_the_memo_is_bounded_in_entries(times: int) -> None:
    """It holds the newest half of its entries for certain, and never more than all."""
    memo: Memo[int] = Memo(100)
    for number in range(100 * times):
        seen_twice(memo, number)
        assert len(memo.young) + len(memo._old) <= 100
        assert len(memo._seen) <= 50
    for number in range(100 * times - 50, 100 * times):
        assert memo.recall(key(number)) == number


def test_c21_the_memo_is_bounded_in_bytes() -> None:
    """Few large keys push out each other as many small ones do."""
    memo: Memo[int] = Memo(100, size=1000)
    for number in range(100):
        seen_twice(memo, number, 300)
        assert sum(map(len, (*memo.young, *memo._old))) <= 1000
        assert memo.recall(key(number, 300)) == number


@pytest.mark.parametrize("sights", [1, 2])
def test_c21_new_values_do_not_push_out_those_in_use(sights: int) -> None:
    """While 100,000 others come, once or twice each, a key that is used now and then is known at every use."""
    memo: Memo[int] = Memo(100)
    seen_twice(memo, -1)
    for number in range(100_000):
        for _ in range(sights):
            memo.admit(key(number), number)
        if number % 45 == 0:
            assert memo.recall(key(-1)) == -1


def test_c21_a_field_is_the_same_object_each_time() -> None:
    """A literal that comes again makes no new field, on whatever connection, and though others came meanwhile."""
    block = literal(b"x-test", b"the same object", PLAIN) + literal(b"x-test", b"this one as well", coded=True)
    for _ in range(2):
        Decoder().decode(block)
    known = Decoder().decode(block).fields
    for number in range(10_000):
        decoder = Decoder()
        decoder.decode(literal(b"x-test", b"%d" % number, PLAIN))
        if number % 1000 == 0:
            assert all(one is other for one, other in zip(decoder.decode(block).fields, known, strict=True))
