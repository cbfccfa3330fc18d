"""The feed: a client that applies what it is sent holds exactly the catalog of the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd.control.catalog import Definition
from avapd.control.difference import difference
from avapd.control.encode import message
from avapd.control.packer import Packer, Snapshot, name_of
from avapd.data import feed as module
from avapd.data.feed import Feed, Message
from avapd.pb.avap_pb2 import CatalogChunk, CatalogEvent, CatalogResponse, CommandResponse
from avapd.shared.snapshot import key_of

TABLES = st.dictionaries(st.sampled_from(["a", "b", "ñ", "z" * 130]), st.text("xy", max_size=4), max_size=4)


class Publisher:
    """Publishes tables to a feed, as master and worker do."""

    def __init__(self) -> None:
        self.feed = Feed()
        self.packer = Packer()
        self.snaps: list[Snapshot] = []

    def publish(self, table: dict[str, str], *, told: bool = True) -> None:
        """Make a table the current catalog; `told` is off where the master could not tell what changed."""
        definitions = [Definition(name, "t", "[]", code.encode(), "") for name, code in sorted(table.items())]
        before = self.snaps[-1] if self.snaps else None
        if before is None:
            snap = self.packer.pack(len(definitions), map(message, definitions))
        else:
            new = {key_of(one.name): message(one) for one in definitions}
            gone: dict[bytes, bytes | None] = {key: None for key, _ in before.view.messages() if key not in new}
            snap = self.packer.patch(before, {**gone, **new})
        names = [name_of(key).decode() for key in difference(before.view if before else None, snap.view).keys]
        self.feed.advance(snap.view, before.view.version_hash if before else "", names if told else None)
        self.snaps.append(snap)

    @property
    def version_hash(self) -> str:
        return self.snaps[-1].view.version_hash

    def event(self, has: str) -> list[CatalogEvent]:
        return [CatalogEvent.FromString(b"".join(one)) for one in self.feed.event(self.snaps[-1].view, has)]

    def chunks(self, has: str = "") -> list[CatalogChunk]:
        return [CatalogChunk.FromString(b"".join(one)) for one in self.feed.chunks(self.snaps[-1].view, has)]

    def close(self) -> None:
        for snap in self.snaps:
            snap.close()


class Held:
    """The catalog of a client."""

    def __init__(self) -> None:
        self.commands: dict[str, CommandResponse] = {}
        self.version_hash = ""

    def apply(self, events: Iterable[CatalogEvent]) -> None:
        """Take one event in."""
        for event in events:
            if event.full:
                self.commands.clear()
            for command in event.commands:
                self.commands[command.name] = command
            for name in event.removed:
                self.commands.pop(name, None)
        assert not event.more
        self.version_hash = event.version_hash
        assert event.total_count == len(self.commands)

    def computed(self) -> str:
        """The hash of what it holds."""
        commands = [self.commands[name] for name in sorted(self.commands)]
        return hashlib.sha256(CatalogResponse(commands=commands).SerializeToString()).hexdigest()


@given(st.lists(TABLES, min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_events_lead_to_the_catalog(tables: list[dict[str, str]], data: st.DataObject) -> None:
    """Whichever generations a client saw and missed: after the next event its catalog has the server's hash."""
    publisher, held = Publisher(), Held()
    for table in tables:
        publisher.publish(table, told=data.draw(st.booleans()) or len(publisher.snaps) < 2)
        if data.draw(st.booleans()):
            held.apply(publisher.event(held.version_hash))
            assert held.computed() == held.version_hash == publisher.version_hash
    held.apply(publisher.event(held.version_hash))
    assert held.computed() == held.version_hash == publisher.version_hash
    publisher.close()


@given(TABLES)
@settings(deadline=None)
def test_chunks_are_the_catalog(table: dict[str, str]) -> None:
    """Sorted by name, of one generation, with count and hash in the last message alone."""
    publisher = Publisher()
    publisher.publish(table)
    chunks = publisher.chunks()
    commands = [command for chunk in chunks for command in chunk.commands]
    assert [command.name for command in commands] == sorted(table)
    assert (chunks[-1].total_count, chunks[-1].version_hash) == (len(table), publisher.version_hash)
    assert not any(chunk.version_hash or chunk.unchanged for chunk in chunks[:-1])
    publisher.close()


def test_a_client_that_has_the_catalog_is_told_so_in_one_message() -> None:
    """A stream says `unchanged`; a watch gets an event without changes, so that it knows where it stands."""
    publisher = Publisher()
    publisher.publish({"a": "x"})
    (chunk,) = publisher.chunks(publisher.version_hash)
    assert (chunk.unchanged, list(chunk.commands), chunk.version_hash) == (True, [], publisher.version_hash)
    (event,) = publisher.event(publisher.version_hash)
    assert (event.full, list(event.commands), list(event.removed)) == (False, [], [])
    assert (event.version_hash, event.generation) == (publisher.version_hash, 1)
    publisher.close()


def test_only_what_has_changed_is_sent() -> None:
    """Over several generations, each name once, as it is now; what changed and changed back is told as well."""
    publisher = Publisher()
    publisher.publish({"a": "1", "b": "1", "c": "1"})
    begin = publisher.version_hash
    publisher.publish({"a": "2", "b": "1", "d": "1"})
    publisher.publish({"a": "3", "b": "1", "d": "1"})
    (event,) = publisher.event(begin)
    assert [(one.name, one.code) for one in event.commands] == [("a", b"3"), ("d", b"1")]
    assert list(event.removed) == ["c"]
    assert not event.full
    assert publisher.feed.event(publisher.snaps[-1].view, begin) is not None
    publisher.close()


def test_an_unknown_hash_gets_everything() -> None:
    """Also one that is older than the steps that are kept."""
    publisher = Publisher()
    publisher.publish({"a": "0"})
    begin = publisher.version_hash
    for number in range(1, module.STEPS + 1):
        publisher.publish({"a": str(number)})
    assert not publisher.event(begin)[0].full
    publisher.publish({"a": "last"})
    for has in (begin, "", "f" * 64, "\x00"):
        assert publisher.event(has)[0].full
    publisher.close()


@pytest.mark.parametrize("whole", [True, False])
def test_messages_stay_below_the_limit(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """However many definitions: only one that is larger itself makes a larger message; all but the last say `more`."""
    monkeypatch.setattr(module, "MESSAGE_BYTES", 1_000)
    publisher = Publisher()
    table = {f"n{number:03}": "x" * (number % 7) * 40 for number in range(60)}
    publisher.publish(dict.fromkeys(table, ""))
    begin = publisher.version_hash
    publisher.publish({**table, "big": "y" * 5_000})
    view = publisher.snaps[-1].view
    raw = [b"".join(one) for one in publisher.feed.event(view, "" if whole else begin)]
    assert len(raw) > 5
    assert sorted(map(len, raw))[-2] < 1_100
    events = [CatalogEvent.FromString(one) for one in raw]
    assert [event.more for event in events] == [True] * (len(events) - 1) + [False]
    assert [event.full for event in events] == [whole] + [False] * (len(events) - 1)
    chunks = [b"".join(one) for one in publisher.feed.chunks(view, "")]
    assert sorted(map(len, chunks))[-2] < 1_100
    publisher.close()


def test_a_stream_goes_on_after_the_catalog_was_replaced() -> None:
    """What was begun of one generation ends with it, although the arena was let go meanwhile."""
    publisher = Publisher()
    publisher.publish({f"n{number}": "x" * 1000 for number in range(3_000)})
    messages_: list[Message] = []
    stream = publisher.feed.chunks(publisher.snaps[0].view, "")
    messages_.append(next(stream))
    first = publisher.version_hash
    publisher.publish({"a": "1"})
    publisher.snaps[0].close()
    messages_.extend(stream)
    chunks = [CatalogChunk.FromString(b"".join(one)) for one in messages_]
    assert chunks[-1].version_hash == first
    assert sum(len(chunk.commands) for chunk in chunks) == 3_000
    publisher.snaps[1].close()
