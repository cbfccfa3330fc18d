"""The store: what it wrote comes back whole, and what is not whole is never served."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lines import Lines

from avapd.control.catalog import Definition
from avapd.control.difference import difference
from avapd.control.encode import message
from avapd.control.guard import Switches
from avapd.control.history import KEPT, Entry, History
from avapd.control.packer import Packer, Snapshot
from avapd.control.store import CATALOGS_KEPT, HEAD, Store, read_catalog
from avapd.errors import SnapshotError
from avapd.log import Log

KEY = "signing key"


class Disk:
    """A store in a folder, with a packer and a history to fill it from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = Lines()
        self.packer = Packer()
        self.history = History()
        self.snap: Snapshot | None = None

    def store(self, key: str | None = None) -> Store:
        return Store(str(self.folder), key, Log("master", sink=self.lines))

    def publish(self, table: dict[str, str], key: str | None = None) -> Snapshot:
        """Publish a table and wait until it is written."""
        definitions = [Definition(name, "t", "[]", code.encode(), "") for name, code in sorted(table.items())]
        snap = self.packer.pack(len(definitions), map(message, definitions))
        before = self.snap.view if self.snap else None
        entry = self.history.add(before, snap.view, difference(before, snap.view), at=1.0, origin="database")

        async def keep() -> None:
            store = self.store(key)
            store.keep_entry(entry)
            store.keep_catalog(snap, entry.generation)
            if self.snap is not None:
                self.snap.close()  # while it is being written, as it happens
            await store.stop()

        asyncio.run(keep())
        self.snap = snap
        return snap

    def serve(self, key: str | None = None) -> list[list[bytes]]:
        """What a start would serve: the messages of each catalog that was loaded."""
        served: list[list[bytes]] = []

        async def load(count: int, octets: Iterator[bytes]) -> Entry | None:
            served.append(list(octets))
            assert len(served[-1]) == count
            return self.history.entries[-1]

        async def run() -> None:
            await self.store(key).serve(load)

        asyncio.run(run())
        return served

    def files(self, pattern: str = "catalog-*.avapd") -> list[Path]:
        return sorted(self.folder.glob(pattern), reverse=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "made" / "when needed")
    yield made
    if made.snap is not None:
        made.snap.close()


def test_the_last_catalog_comes_back(disk: Disk) -> None:
    """All definitions, in their order; three files are kept, readable by the user alone, no draft among them."""
    for number in range(5):
        snap = disk.publish({"a": str(number), "b": "x"})
    assert disk.serve() == [[octets for _, octets in snap.view.messages()]]
    assert len(disk.files()) == CATALOGS_KEPT
    assert {stat.S_IMODE(path.stat().st_mode) for path in disk.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(disk.folder.stat().st_mode) == 0o700
    assert disk.files(".*") == []
    (said,) = disk.lines.said("Serving From Disk")
    assert said["level"] == "WARN"
    assert said["count"] == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _raw: b"", "truncated"),
        (lambda raw: raw[: HEAD.size - 1], "truncated"),
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw + b"\0", "truncated"),
        (lambda raw: raw[:-100] + bytes((raw[-100] ^ 1,)) + raw[-99:], "checksum|truncated"),
        (lambda raw: raw[: HEAD.size + 5] + bytes((raw[HEAD.size + 5] ^ 1,)) + raw[HEAD.size + 6 :], "checksum"),
        (lambda raw: b"AVAPSNAP" + raw[8:], "not a catalog"),
        (lambda raw: raw[:8] + b"\x02\0\0\0" + raw[12:], "format 2"),
        (lambda raw: raw[:20] + bytes((raw[20] ^ 1,)) + raw[21:], "checksum"),
    ],
)  # fmt: skip
def test_a_bad_file_is_set_aside_and_the_one_before_served(disk: Disk, spoil: Any, reason: str) -> None:
    """Truncated, flipped, foreign, newer: an ERROR tells, nothing of it is served, and it is kept to be looked at."""
    older = [octets for _, octets in disk.publish({"a": "1", "b": "2" * 100}).view.messages()]
    disk.publish({"a": "2", "b": "2" * 100})
    newest = disk.files()[0]
    newest.write_bytes(spoil(newest.read_bytes()))
    with pytest.raises(SnapshotError, match=reason):
        read_catalog(newest, None)
    assert disk.serve() == [older]
    (said,) = disk.lines.said("File Set Aside")
    assert said["level"] == "ERROR"
    assert not newest.exists()
    assert newest.with_name(newest.name + ".bad").exists()


def test_every_flipped_octet_is_noticed(disk: Disk) -> None:
    """Of header and definitions alike."""
    disk.publish({"a": "1", "b": "2"}, KEY)
    raw = disk.files()[0].read_bytes()
    other = disk.folder / "other"
    for at in range(len(raw)):
        other.write_bytes(raw[:at] + bytes((raw[at] ^ 0x10,)) + raw[at + 1 :])
        with pytest.raises(SnapshotError):
            read_catalog(other, KEY.encode())


@pytest.mark.parametrize(("wrote", "reads"), [(KEY, "another key"), (KEY, None), (None, KEY)])
def test_a_file_under_another_key_is_foreign(disk: Disk, wrote: str | None, reads: str | None) -> None:
    """Signed with another key, or not signed where it should be: never served."""
    disk.publish({"a": "1"}, wrote)
    assert disk.serve(reads) == []
    assert "another key" in disk.lines.said("File Set Aside")[0]["reason"]


def test_a_file_that_two_starts_died_on_is_passed_over(disk: Disk) -> None:
    """The one before is served then; a start that proved itself clears the count."""
    older = [octets for _, octets in disk.publish({"a": "1"}).view.messages()]
    newer = [octets for _, octets in disk.publish({"a": "2"}).view.messages()]
    assert disk.serve() == [newer]
    disk.store().settled()
    assert disk.serve() == [newer]
    assert disk.serve() == [newer]
    assert disk.serve() == [older]
    assert disk.lines.said("Catalog on Disk Passed Over")[0]["level"] == "ERROR"


def test_the_history_comes_back(disk: Disk) -> None:
    """The entries that follow on each other; a hole or a spoilt one ends what was before it."""
    for number in range(KEPT + 3):
        disk.publish({"a": str(number)})
    found = disk.store().history()
    assert found == disk.history.entries
    middle = disk.files("undo-*.avapd")[3]
    middle.write_bytes(middle.read_bytes()[:-1])
    assert disk.store().history() == found[-3:]


def test_decisions_come_back(disk: Disk) -> None:
    """Frozen, denied with what was served, approved; nothing decided is nothing."""
    assert disk.store().switches() == Switches()
    decided = Switches(frozen="why", frozen_at=12.5, denied={"a": b"\x0a\x01a", "b": None}, approved={"00ff"})
    disk.store().keep_switches(decided)
    assert disk.store().switches() == decided


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"frozen": 1, "approved": 3}', b"\xff"])
def test_spoilt_decisions_are_set_aside(disk: Disk, raw: bytes) -> None:
    """They must not stop a start."""
    disk.folder.mkdir(parents=True)
    (disk.folder / "switches.json").write_bytes(raw)
    assert disk.store().switches() == Switches()
    assert disk.lines.said("File Set Aside")


def test_a_full_disk_costs_a_warning_and_a_count(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised, no half a file stays, and the next catalog is written again."""
    disk.publish({"a": "1"})

    def full(_fd: int, _octets: object) -> int:
        raise OSError(28, "No space left on device")

    async def keep() -> Store:
        store = disk.store()
        assert disk.snap is not None
        store.keep_entry(disk.history.entries[-1])
        store.keep_catalog(disk.snap, disk.history.entries[-1].generation)
        await store.stop()
        return store

    before = sorted(path.name for path in disk.folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        store = asyncio.run(keep())
    assert [sample.value for metric in store.collect() for sample in metric.samples] == [2]
    assert disk.lines.said("Not Kept on Disk")[0]["error"] == "No space left on device"
    assert sorted(path.name for path in disk.folder.iterdir()) == before
    assert asyncio.run(keep()).failures == 0


def test_a_folder_that_cannot_be_written_costs_the_same(disk: Disk, tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = Store(str(blocked / "folder"), None, Log("master", sink=disk.lines))
    store.keep_switches(Switches(frozen="x"))
    assert store.failures == 1
    assert os.fspath(blocked) not in disk.lines.buffer.getvalue().decode()
