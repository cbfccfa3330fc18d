"""The packer: patches serve exactly what a whole new snapshot would."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stage import files

from avapd.control import packer as module
from avapd.control.catalog import Definition
from avapd.control.difference import Difference, difference
from avapd.control.encode import message
from avapd.control.packer import Changes, Packer, Snapshot, name_of
from avapd.pb.avap_pb2 import CatalogResponse
from avapd.shared.patch import PatchedView
from avapd.shared.snapshot import key_of

# Names of one octet and more in UTF-8, and around the length where a varint takes two.
NAMES = st.sampled_from(["a", "b", "bb", "ñ", "日本", "z" * 126, "z" * 127, "z" * 128, "y" * 300, *map(str, range(8))])
TABLES = st.dictionaries(NAMES, st.text("xy", max_size=3), max_size=8)
EDITS = st.dictionaries(NAMES, st.none() | st.text("xy", max_size=3), max_size=5)


def made(table: dict[str, str]) -> list[Definition]:
    """The definitions of a table, in the order of their names."""
    return [
        Definition(name, "function", "[]", code.encode(), hashlib.sha256(code.encode()).hexdigest())
        for name, code in sorted(table.items(), key=lambda pair: pair[0].encode())
    ]


def packed(packer: Packer, table: dict[str, str]) -> Snapshot:
    """A whole snapshot."""
    definitions = made(table)
    return packer.pack(len(definitions), map(message, definitions))


def changes_of(edits: dict[str, str | None]) -> Changes:
    """Edits as the packer takes them."""
    return {key_of(name): None if code is None else message(made({name: code})[0]) for name, code in edits.items()}


def failing(error: Exception) -> Iterator[bytes]:
    """Messages that end in an error after the first."""
    yield message(made({"a": "1"})[0])
    raise error


def edited(table: dict[str, str], edits: dict[str, str | None]) -> dict[str, str]:
    """The table afterwards."""
    return {name: code for name, code in {**table, **edits}.items() if code is not None}


def same(one: Snapshot, other: Snapshot) -> None:
    """Two snapshots hold, look up and answer the same."""
    assert one.view.version_hash == other.view.version_hash
    assert b"".join(one.view.answer()) == b"".join(other.view.answer())
    assert one.view.answer_size == other.view.answer_size
    assert len(one.view) == len(other.view)
    assert list(one.view.messages()) == list(other.view.messages())
    for key, octets in other.view.messages():
        assert one.view.get(key) == octets


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """At the end as many descriptors are open as at the beginning."""
    before = files()
    yield
    assert files() == before


@given(TABLES, st.lists(EDITS, max_size=4))
@settings(deadline=None)
def test_a_patch_serves_what_a_new_snapshot_would(table: dict[str, str], steps: list[dict[str, str | None]]) -> None:
    """After any edits, one patch on another: same hash, same catalog octet for octet, same look-ups."""
    packer = Packer()
    current = packed(packer, table)
    for edits in steps:
        new = packer.patch(current, changes_of(edits))
        table = edited(table, edits)
        whole = packed(Packer(), table)
        same(new, whole)
        if isinstance(new.view, PatchedView):
            new.view.verify()
        for name in edits.keys() - table.keys():
            assert new.view.get(key_of(name)) is None
        answer = CatalogResponse.FromString(b"".join(new.view.answer()))
        assert [command.name for command in answer.commands] == [one.name for one in made(table)]
        whole.close()
        current.close()
        current = new
    current.close()


@given(TABLES, EDITS)
@settings(deadline=None)
def test_the_difference_undoes_itself(table: dict[str, str], edits: dict[str, str | None]) -> None:
    """The counts are those of two dictionaries compared, and what was there under the keys brings the old hash back."""
    packer = Packer()
    before = packed(packer, table)
    after = packer.patch(before, changes_of(edits))
    new = edited(table, edits)
    found = difference(before.view, after.view)
    common = table.keys() & new.keys()
    assert (found.added, found.removed) == (len(new.keys() - table.keys()), len(table.keys() - new.keys()))
    assert found.changed == sum(table[name] != new[name] for name in common)
    assert difference(None, after.view) == Difference(len(new), 0, 0, [])
    undo = {key: before.view.get(key) for key in found.keys}
    back = packer.patch(after, {key: None if octets is None else bytes(octets) for key, octets in undo.items()})
    assert back.view.version_hash == before.view.version_hash
    for snap in (before, after, back):
        snap.close()


def test_a_patch_is_small_and_shares_its_base(nothing_left: None) -> None:
    """One change among 10,000 definitions takes less than 2 KB, one more descriptor, and the same base."""
    packer = Packer()
    base = packed(packer, {f"command_{number:05}": "x" * 500 for number in range(10_000)})
    open_before = files()
    patched = packer.patch(base, changes_of({"command_05000": "new"}))
    assert patched.base is base.base
    assert patched.size < 2_000
    assert patched.total == patched.size + base.size
    assert files() == open_before + 2  # its own and its mapping's
    base.close()
    assert patched.view.get(key_of("command_00001")) is not None
    patched.close()


def test_a_base_with_too_many_changes_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `_MOST` changes, or more than a sixteenth of the octets, and the next snapshot is a base again."""
    table = {f"command_{number:03}": "x" * 50 for number in range(300)}
    packer = Packer()
    current = packed(packer, table)
    few = packer.patch(current, changes_of({"command_001": "y"}))
    assert isinstance(few.view, PatchedView)
    heavy = packer.patch(few, changes_of({"command_002": "y" * 100_000}))
    assert not isinstance(heavy.view, PatchedView)
    same(heavy, whole := packed(Packer(), {**table, "command_001": "y", "command_002": "y" * 100_000}))
    monkeypatch.setattr(module, "_MOST", 2)
    many = packer.patch(few, changes_of({f"command_{number:03}": "z" for number in range(10, 12)}))
    assert not isinstance(many.view, PatchedView)
    for snap in (current, few, heavy, whole, many):
        snap.close()


def test_generations_rise_with_whatever_is_made() -> None:
    """Each snapshot has the next number, also when the one before came to nothing."""
    packer = Packer(41)
    first = packed(packer, {"a": "1"})
    assert first.view.generation == 42
    with pytest.raises(RuntimeError):
        packer.pack(1, failing(RuntimeError()))
    second = packer.patch(first, {})
    assert second.view.generation == 44
    assert second.view.version_hash == first.view.version_hash
    first.close()
    second.close()


def test_a_snapshot_that_cannot_be_built_leaves_nothing(nothing_left: None) -> None:
    """No descriptor, when its definitions end in an error or the host has no memory."""
    base = packed(Packer(), {"a": "1"})
    open_before = files()
    for _ in range(5):
        with pytest.raises(OSError, match="Cannot allocate"):
            Packer().pack(1, failing(OSError(12, "Cannot allocate memory")))
        with pytest.raises(TypeError):
            Packer().patch(base, {b"\x0a\x01a": 1})  # type: ignore[dict-item]
    assert files() == open_before
    base.close()


def test_the_name_in_a_key_is_what_follows_its_length() -> None:
    """Of any length: one octet of varint or two."""
    for name in ("a", "z" * 127, "z" * 128, "ñ" * 200):
        assert name_of(key_of(name)) == name.encode()
