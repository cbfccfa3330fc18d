"""The arithmetic of the budget, and what a refresh does with its verdict."""

from __future__ import annotations

import asyncio

import pytest
from support.database import Database
from support.lines import Lines

from avapd.control.budget import Budget, NoRoomError
from avapd.control.poll import Poll
from avapd.control.publisher import Publisher
from avapd.control.refresh import Refresh
from avapd.control.source import Size, Source
from avapd.control.validator import Validator
from avapd.log import Log

MIB = 1 << 20
EDIT = "UPDATE obex_dapl_functions SET code = code || ' ' WHERE name LIKE '{}'"


def budget(octets: int, workers: int = 2) -> Budget:
    """With so much memory left."""
    return Budget(workers, lambda: (octets, "the cgroup's limit of 512 MiB"))


def fits(octets: int, size: Size, base: Size | None = None, workers: int = 2) -> bool:
    """Whether a change finds room."""
    try:
        budget(octets, workers).change(size, base)
    except NoRoomError:
        return False
    return True


def test_a_small_change_takes_little_whatever_the_catalog() -> None:
    """A patch needs no room for the base it stands on; a base made anew does."""
    assert fits(100_000, Size(1, 10_000))
    assert not fits(100_000, Size(1, 10_000), Size(50_000, 64 * MIB))
    assert fits(200 * MIB, Size(1, 10_000), Size(50_000, 64 * MIB))


def test_each_worker_that_verifies_counts() -> None:
    """Many small rows are an index that every worker looks through at once."""
    rows = Size(1_000_000, 100 * MIB)
    assert fits(2_000 * MIB, rows, rows, workers=2)
    assert not fits(2_000 * MIB, rows, rows, workers=16)


@pytest.mark.parametrize(
    ("rows", "octets", "peak"),
    # The highest of all processes together in MiB, less what they held before: measured with two workers.
    [(50_000, 50.6, 262.7), (300_000, 46.1, 465.1), (20_000, 138.2, 625.0)],
)
def test_what_was_measured_is_covered_and_not_much_more(rows: int, octets: float, peak: float) -> None:
    """Every row rewritten, of 1 kB, 100 B and 4 kB not all ASCII."""
    size = Size(rows, int(octets * MIB))
    assert not fits(int(peak * MIB), size, size)
    assert fits(int(1.3 * peak * MIB), size, size)


def test_a_refusal_tells_both_numbers_and_what_to_do() -> None:
    """Needed, left, of what; it is counted as a snapshot that was refused."""
    with pytest.raises(
        NoRoomError, match=r"takes [\d.]+ MiB more at its peak, 1\.0 MiB are left of the cgroup's limit"
    ) as caught:
        budget(MIB).read(Size(1000, 10 * MIB))
    assert "raise the memory limit" in caught.value.hint


def test_a_refused_reading_keeps_what_can_still_be_followed(database: Database) -> None:
    """No room for everything: a look that is due to read it is refused, the next takes a small change alone."""
    database.insert_many(1000)
    left = [1 << 40]

    async def run() -> None:
        lines = Lines()
        log = Log("master", sink=lines)
        source = Source(database.reader_url, schema="public", seconds=30, max_definition_bytes=MIB, max_bytes=MIB << 10)
        publisher, anything = Publisher(log), Validator(grammar=0, interfaces=False)
        refresh = Refresh(
            source, publisher, anything, log, signing_key=None, seconds=3600, on_checked=lambda: None,
            budget=Budget(2, lambda: (left[0], "the cgroup's limit")),
        )  # fmt: skip
        poll = Poll(refresh, publisher, log, seconds=3600)
        assert await poll.once() is None
        first = publisher.current
        left[0] = 400_000
        refresh._full_at = 0.0
        assert isinstance(await poll.once(), NoRoomError)
        assert publisher.current is first
        await asyncio.to_thread(database.execute, EDIT.format("command_000001"))
        assert await poll.once() is None
        assert publisher.generation == 2
        await asyncio.to_thread(database.execute, EDIT.format("%"))
        assert isinstance(await poll.once(), NoRoomError)
        assert poll.results == {"published": 2, "unchanged": 0, "failed": 0, "rejected": 2, "frozen": 0}
        assert [line["reason"] for line in lines.said("Refresh Failed")] == ["memory"]
        assert refresh.source_up
        left[0] = 1 << 40
        assert await poll.once() is None
        assert publisher.generation == 3

    asyncio.run(run())
