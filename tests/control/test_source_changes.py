"""What has changed: a look at a real table fetches that, and nothing when nothing has."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from support.database import Database

from avapd.control.catalog import Catalog, Plan
from avapd.control.source import Changed, Source
from avapd.control.source.source import Wanted
from avapd.errors import CatalogTooLargeError, SourceShapeError


class Follower:
    """Follows a table as the master does, and knows what is served."""

    def __init__(self, url: str, *, key: str | None = None, **limits: int) -> None:
        options: dict[str, Any] = {"max_definition_bytes": 1 << 20, "max_bytes": 1 << 30, **limits}
        self.source = Source(url, schema="public", seconds=10, **options)
        self._key = key
        self.read()

    def read(self) -> None:
        self.catalog = Catalog(asyncio.run(self.source.read(compiled=self._key is not None)), self._key)
        self.served = {definition.name: definition for definition in self.catalog.take()}

    def look(self) -> Changed | None:
        """One look, and what it fetched."""
        plans: list[Plan] = []

        def choose(*found: Any) -> Wanted:
            plan, wanted = self.catalog.plan(*found)
            plans.append(plan)
            return wanted

        assert self.catalog.fingerprint is not None
        found = asyncio.run(self.source.changes(self.catalog.fingerprint, choose, compiled=self._key is not None))
        if found is not None:
            for name, definition in self.catalog.apply(plans[0], found).items():
                self.served.pop(name, None)
                if definition is not None:
                    self.served[name] = definition
        return found

    def same_as_table(self) -> bool:
        """Whether what is served is what reading everything gives."""
        whole = Catalog(asyncio.run(self.source.read(compiled=self._key is not None)), self._key)
        definitions = list(whole.take())
        assert self.catalog.rejected == whole.rejected
        return [self.served[name] for name in sorted(self.served)] == definitions


def test_nothing_travels_when_nothing_has_changed(sample: Database) -> None:
    """Also after a VACUUM FREEZE, which touches rows but not what they hold."""
    follower = Follower(sample.reader_url)
    assert follower.look() is None
    sample.execute("VACUUM FREEZE obex_dapl_functions")
    assert follower.look() is None


def test_of_many_rows_only_the_changed_ones_travel(database: Database) -> None:
    """One edited, one new, one gone among 5,000: the content of the two that are there."""
    database.insert_many(5_000, 50)
    follower = Follower(database.reader_url)
    database.execute("UPDATE obex_dapl_functions SET code = 'edited' WHERE name = 'command_002500'")
    database.execute("DELETE FROM obex_dapl_functions WHERE name = 'command_000007'")
    database.insert([("new", None, None, "x")])
    found = follower.look()
    assert found is not None
    assert sorted(row.name or "" for row in found.functions) == ["command_002500", "new"]
    assert len(found.marks) < 4 * 256
    assert follower.served["command_002500"].code == b"edited"
    assert "command_000007" not in follower.served
    assert follower.same_as_table()
    assert follower.look() is None


def test_ids_may_lie_anywhere(database: Database) -> None:
    """Below zero, far apart, at both ends of a bucket and of the type: each edit and each loss is found."""
    ids = [-(2**31), -257, -256, -1, 0, 255, 256, 65_535, 65_536, 70_000, 2**31 - 257, 2**31 - 1]
    insert = "INSERT INTO obex_dapl_functions (id, name, code) VALUES ($1, $2, 'x = 1')"
    for id_ in ids[::2]:
        database.execute(insert, id_, f"c{id_}")
    follower = Follower(database.reader_url)
    for id_ in ids[1::2]:
        database.execute(insert, id_, f"c{id_}")
        assert follower.look() is not None
        assert follower.same_as_table()
    for id_ in ids:
        database.execute("UPDATE obex_dapl_functions SET code = 'x = 2' WHERE id = $1", id_)
        assert follower.look() is not None
        assert follower.served[f"c{id_}"].code == b"x = 2"
        database.execute("DELETE FROM obex_dapl_functions WHERE id = $1", id_)
        assert follower.look() is not None
        assert f"c{id_}" not in follower.served
    assert follower.look() is None


def test_an_edit_that_changes_nothing_is_seen_and_harmless(sample: Database) -> None:
    """The row has another xmin, the definition is the same."""
    follower = Follower(sample.reader_url)
    before = dict(follower.served)
    sample.execute("UPDATE obex_dapl_functions SET code = code")
    assert follower.look() is not None
    assert follower.served == before


def test_what_is_not_committed_is_not_seen(sample: Database) -> None:
    """A transaction that is rolled back leaves no trace in the fingerprint."""
    follower = Follower(sample.reader_url)
    undone = "UPDATE obex_dapl_functions SET code = 'x'; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL"
    sample.execute(f"DO $$ BEGIN {undone}; END $$")
    assert follower.look() is None


def test_random_edits_lead_where_the_table_is(database: Database) -> None:
    """Inserts, doubled names, renames, NULLs, oversized and deleted rows, packages old and new, 40 steps."""
    draw = random.Random(1)
    database.insert_many(300, 30)
    follower = Follower(database.reader_url, key="signing key", max_definition_bytes=1_000)
    some = "WHERE id IN (SELECT id FROM obex_dapl_functions ORDER BY random() LIMIT 3)"
    edits = (
        f"UPDATE obex_dapl_functions SET code = 'v' || random() {some}",
        f"UPDATE obex_dapl_functions SET name = 'same' {some}",
        f"UPDATE obex_dapl_functions SET name = NULL {some}",
        f"UPDATE obex_dapl_functions SET code = NULL {some}",
        f"UPDATE obex_dapl_functions SET code = repeat('x', 2000) {some}",
        f"DELETE FROM obex_dapl_functions {some}",
        "INSERT INTO obex_dapl_functions (name, code) SELECT 'new' || i, 'c' || i FROM generate_series(1, 3) i",
        """INSERT INTO avap_bytecode (command_name, bytecode, source_hash)
           SELECT name, 'AVAP', encode(sha256(code::bytea), 'hex') FROM obex_dapl_functions
           WHERE name IS NOT NULL AND code IS NOT NULL ORDER BY random() LIMIT 2 ON CONFLICT DO NOTHING""",
        "DELETE FROM avap_bytecode WHERE id IN (SELECT id FROM avap_bytecode LIMIT 1)",
    )
    for _ in range(40):
        database.execute(draw.choice(edits))
        follower.look()
    assert follower.same_as_table()
    assert follower.catalog.rejected["duplicate_name"] > 0


def test_a_view_is_read_as_a_whole(sample: Database) -> None:
    """It has no xmin: there is no fingerprint, and reading everything works as ever."""
    sample.execute("ALTER TABLE obex_dapl_functions RENAME TO kept")
    sample.execute("CREATE VIEW obex_dapl_functions AS SELECT * FROM kept")
    sample.execute("GRANT SELECT ON obex_dapl_functions TO avapd_reader")
    follower = Follower(sample.reader_url)
    assert len(follower.served) == 3
    assert follower.catalog.fingerprint is None
    assert asyncio.run(follower.source.fingerprint(compiled=False)) is None


def test_rows_are_counted_before_they_are_fetched(sample: Database) -> None:
    """More than the maximum is refused by a whole read and by a look."""
    with pytest.raises(CatalogTooLargeError, match="3 rows, the maximum is 2"):
        Follower(sample.reader_url, max_rows=2)
    follower = Follower(sample.reader_url, max_rows=3)
    sample.insert([("more", None, None, "x")])
    with pytest.raises(CatalogTooLargeError, match="4 rows"):
        follower.look()


def test_a_column_that_becomes_another_type_is_told(sample: Database) -> None:
    """In a look as in a whole read; what is served stays."""
    follower = Follower(sample.reader_url)
    sample.execute("ALTER TABLE obex_dapl_functions ALTER COLUMN code TYPE bytea USING convert_to(code, 'UTF8')")
    with pytest.raises(SourceShapeError):
        follower.look()
    assert len(follower.served) == 3
