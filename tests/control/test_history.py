"""The history: what is kept leads back, exactly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avapd.control import history as module
from avapd.control.catalog import Definition
from avapd.control.difference import difference
from avapd.control.encode import message
from avapd.control.history import KEPT, History, TooMuchError, UnknownGenerationError, packed, unpacked
from avapd.control.packer import Packer, Snapshot
from avapd.shared.snapshot import key_of


def published(history: History, packer: Packer, before: Snapshot | None, table: dict[str, str]) -> Snapshot:
    """Publish a table as the master does, and keep it in the history."""
    definitions = [Definition(name, "t", "[]", code.encode(), "") for name, code in sorted(table.items())]
    if before is None:
        snap = packer.pack(len(definitions), map(message, definitions))
    else:
        new = {key_of(one.name): message(one) for one in definitions}
        gone: dict[bytes, bytes | None] = {key: None for key, _ in before.view.messages() if key not in new}
        snap = packer.patch(before, {**gone, **new})
    made = difference(before.view if before else None, snap.view)
    history.add(before.view if before else None, snap.view, made, at=1.0, origin="database")
    return snap


def test_every_kept_generation_can_be_made_again() -> None:
    """After random changes, what leads back to a generation gives its hash."""
    draw, history, packer = random.Random(1), History(), Packer()
    snap, snaps = None, []
    for _ in range(KEPT + 4):
        table = {name: str(draw.randrange(3)) for name in "abcdef" if draw.random() < 0.7}
        snap = published(history, packer, snap, table)
        snaps.append(snap)
    assert len(history.entries) == KEPT
    assert snap is not None
    for entry in history.entries:
        again = packer.patch(snap, history.back_to(entry.generation))
        assert again.view.version_hash == entry.version_hash
        again.close()
    for one in snaps:
        one.close()


@given(st.dictionaries(st.binary(min_size=1, max_size=5), st.none() | st.binary(max_size=300)))
def test_changes_come_out_as_they_went_in(changes: dict[bytes, bytes | None]) -> None:
    """Also empty messages, which are not the same as none."""
    assert unpacked(packed(changes.items())) == changes


def test_more_than_the_asker_is_ready_for_is_not_unpacked() -> None:
    """Whatever it was compressed to: one octet more than allowed is too much."""
    changes: dict[bytes, bytes | None] = {b"key": bytes(100_000)}
    size = 9 + 3 + 100_000
    raw = packed(changes.items())
    assert len(raw) < 1000
    assert unpacked(raw, size + 1) == changes
    with pytest.raises(TooMuchError, match="too much"):
        unpacked(raw, size - 1)


def test_generations_are_found_by_number_and_by_hash() -> None:
    """The beginning of a hash is enough; of equal ones the latest; what is not kept says so."""
    history, packer = History(), Packer()
    first = published(history, packer, None, {"a": "1"})
    second = published(history, packer, first, {"a": "2"})
    third = published(history, packer, second, {"a": "1"})
    assert history.find(2).version_hash == second.view.version_hash
    assert history.find(version_hash=first.view.version_hash[:8]).generation == 3
    assert history.previous().generation == 2
    for wrong in (lambda: history.find(9), lambda: history.find(version_hash="f00"), lambda: history.back_to(0)):
        with pytest.raises(UnknownGenerationError, match="not kept"):
            wrong()
    with pytest.raises(UnknownGenerationError):
        History().previous()
    for snap in (first, second, third):
        snap.close()


def test_a_start_goes_on_only_with_the_same_content() -> None:
    """What an earlier run left leads nowhere when something else is served first."""
    history, packer = History(), Packer()
    first = published(history, packer, None, {"a": "1"})
    second = published(history, packer, first, {"a": "2"})
    same = published(history, packer, None, {"a": "2"})
    assert [entry.generation for entry in history.entries] == [1, 2, 3]
    again = packer.patch(same, history.back_to(1))
    assert again.view.version_hash == first.view.version_hash
    again.close()
    other = published(history, packer, None, {"a": "3"})
    assert [entry.generation for entry in history.entries] == [other.view.generation]
    for snap in (first, second, same, other):
        snap.close()


def test_what_is_kept_is_bounded_in_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first; a publication that replaced too much ends what was before it."""
    monkeypatch.setattr(module, "_MOST_OCTETS", 400)
    draw, history, packer = random.Random(1), History(), Packer()
    snap, snaps = None, []
    for size in (10, 150, 150, 150, 150):
        snap = published(history, packer, snap, {"a": "".join(chr(draw.randrange(33, 127)) for _ in range(size))})
        snaps.append(snap)
    assert [entry.generation for entry in history.entries] == [3, 4, 5]
    huge = "".join(chr(draw.randrange(33, 127)) for _ in range(5000))
    for text in (huge, "b"):
        snap = published(history, packer, snap, {"a": text})
        snaps.append(snap)
    assert [entry.generation for entry in history.entries] == [7]
    for one in snaps:
        one.close()
