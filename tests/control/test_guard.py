"""The guard: a candidate that looks like an accident is refused as a whole, unless it was approved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from avapd.control import guard
from avapd.control.catalog import Definition
from avapd.control.difference import difference
from avapd.control.encode import message
from avapd.control.guard import RefusedError, Switches
from avapd.control.packer import Packer
from avapd.shared.patch import Content


@contextmanager
def content(count: int, code: str = "x" * 100) -> Iterator[Content]:
    """A catalog of so many definitions with this code."""
    definitions = [Definition(f"command_{number:04}", "t", "[]", code.encode(), "") for number in range(count)]
    snap = Packer().pack(count, map(message, definitions))
    yield snap.view
    snap.close()


def refused(before: int, after: int, code: str = "x" * 100) -> str | None:
    """The reason why so many definitions may not follow on so many; None when they may."""
    with content(before) as old, content(after, code) as new:
        found = None
        try:
            guard.check(old, new, difference(old, new), Switches())
        except RefusedError as error:
            found = error
        if found is None:
            return None
        assert new.version_hash in str(found)
        assert found.hint == f"if it is meant: avapd approve {new.version_hash}"
        return found.reason


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (1, 0, "empty"), (100, 0, "empty"), (0, 0, None), (0, 100, None),
        (10, 8, None), (10, 7, "removed"), (100, 80, None), (100, 79, "removed"), (9, 1, None),
        (100, 200, None), (100, 203, "size"), (9, 100, None),
    ],
)  # fmt: skip
def test_what_is_implausible_is_refused(before: int, after: int, reason: str | None) -> None:
    """Nothing left; more than a fifth of at least ten removed; more than twice as large, of at least ten."""
    assert refused(before, after) == reason


def test_a_catalog_of_less_than_half_the_size_is_refused() -> None:
    """Also when no definition is missing."""
    assert refused(20, 20, "x" * 60) is None
    assert refused(20, 20, "") == "size"


def test_the_first_catalog_has_nothing_to_be_compared_with() -> None:
    """Whatever it holds."""
    with content(0) as new:
        guard.check(None, new, difference(None, new), Switches())
        assert len(new) == 0


def test_exactly_the_approved_candidate_passes() -> None:
    """Another one that is as implausible does not."""
    with content(100) as old, content(10) as new, content(11) as other:
        switches = Switches(approved={new.version_hash})
        guard.check(old, new, difference(old, new), switches)
        with pytest.raises(RefusedError, match="89 of 100"):
            guard.check(old, other, difference(old, other), switches)
