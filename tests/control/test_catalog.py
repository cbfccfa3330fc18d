"""The catalog: which rows are served, as what, and an account of the others."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd.control import package
from avapd.control.catalog import REASONS, Catalog, Definition, Plan, _mark
from avapd.control.encode import message
from avapd.control.source import Changed, CompiledRow, Fingerprint, Mark, Rows, SourceRow
from avapd.pb.avap_pb2 import CommandResponse

KEY = "signing key ñ"


def row(id_: int, name: str | None, code: str | None = "x", **more: object) -> SourceRow:
    """A row of the table."""
    fields = {"type": "t", "interface": "[1]", "too_large": False, **more}
    return SourceRow(id=id_, name=name, code=code, **fields)  # type: ignore[arg-type]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Taken(list[Definition]):
    """The definitions of a catalog, with its account of the other rows."""

    def __init__(self, made: Catalog) -> None:
        count = len(made)
        super().__init__(made.take())
        assert len(self) == count
        self.rejected = made.rejected
        self.duplicates = made.duplicates


def catalog(*rows: SourceRow, compiled: tuple[CompiledRow, ...] = (), key: str | None = None) -> Taken:
    return Taken(Catalog(Rows(list(rows), list(compiled)), key))


def rejected(found: Taken) -> dict[str, int]:
    """The reasons that occurred."""
    return {reason: count for reason, count in found.rejected.items() if count}


# --- merging (contract part 2) --------------------------------------------------------------------------------


def test_a_row_is_served_as_it_stands() -> None:
    """Name, type, interface, the source as UTF-8, and the source's SHA-256."""
    (found,) = catalog(row(1, "addVar", "x = 'ñ'", type="function", interface='[{"item": 1}]'))
    assert found == Definition("addVar", "function", '[{"item": 1}]', "x = 'ñ'".encode(), sha("x = 'ñ'"))


@pytest.mark.parametrize("empty", [None, ""])
def test_type_and_interface_have_defaults(empty: str | None) -> None:
    """NULL and empty mean `function` and `[]`."""
    (found,) = catalog(row(1, "a", type=empty, interface=empty))
    assert (found.type, found.interface_json) == ("function", "[]")


def test_rows_without_name_or_code_are_skipped_and_counted() -> None:
    """NULL or empty name, NULL code, too large; an empty source is a source."""
    found = catalog(
        row(1, None), row(2, ""), row(3, None, None), row(4, "a", None), row(5, "b", None, too_large=True),
        row(6, "c", ""),
    )  # fmt: skip
    assert [(definition.name, definition.code, definition.hash) for definition in found] == [("c", b"", sha(""))]
    assert rejected(found) == {"no_name": 3, "no_code": 1, "too_large": 1}
    assert len(found) == 1


def test_of_rows_with_one_name_the_highest_id_wins() -> None:
    """In whatever order they come; every loser is counted, every name told once."""
    rows = [row(number, "a", f"code {number}") for number in range(1, 6)] + [row(9, "b"), row(8, "b"), row(7, "c")]
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        found = catalog(*rows)
        assert {definition.name: definition.code for definition in found}["a"] == b"code 5"
        assert rejected(found) == {"duplicate_name": 5}
        assert found.duplicates == ["a", "b"]


def test_a_row_that_cannot_be_served_never_wins() -> None:
    """The highest id of those that can be served is served, and that is no duplicate."""
    found = catalog(row(1, "a", "old"), row(2, "a", None), row(3, "a", None, too_large=True))
    assert [definition.code for definition in found] == [b"old"]
    assert found.duplicates == []


def test_names_are_exact() -> None:
    """Case, blanks and accents make another name."""
    names = ["a", "A", "a ", " a", "á", "a\u0301", "\0"]
    found = catalog(*(row(number, name) for number, name in enumerate(names)))
    assert sorted(names) == [definition.name for definition in found]
    assert rejected(found) == {}


@given(
    st.lists(st.tuples(st.text(max_size=5) | st.none(), st.text(max_size=5) | st.none(), st.booleans()), max_size=30)
)
@settings(deadline=None)
def test_the_rules_hold_for_any_table(table: list[tuple[str | None, str | None, bool]]) -> None:
    """Against the rules written down plainly; each row is served or counted; names come in the order of their bytes."""
    rows = [row(number, name, code, too_large=large) for number, (name, code, large) in enumerate(table)]
    found = catalog(*rows)
    plain = {name: code for name, code, large in table if name and code is not None and not large}
    definitions = list(found)
    assert {definition.name: definition.code.decode() for definition in definitions} == plain
    assert [definition.name for definition in definitions] == sorted(plain, key=str.encode)
    assert len(definitions) == len(found)
    assert len(found) + sum(found.rejected.values()) == len(rows)
    assert set(found.rejected) == set(REASONS)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=9)), max_size=10))
@settings(deadline=None)
def test_a_definition_travels_as_protobuf(table: list[tuple[str, str]]) -> None:
    """`encode.message` keeps every field."""
    found = catalog(*(row(number, name, code) for number, (name, code) in enumerate(table)))
    for definition, octets in zip(found, map(message, found), strict=True):
        decoded = CommandResponse.FromString(octets)
        assert Definition(decoded.name, decoded.type, decoded.interface_json, decoded.code, decoded.hash) == definition


# --- packages (contract part 3) -------------------------------------------------------------------------------


def stored(source: str, *, key: str = KEY, digest: str | None = None, payload: bytes = b"compiled") -> CompiledRow:
    """A stored package of the command `a`, made from a source."""
    return CompiledRow("a", package.sign(payload, key.encode()), sha(source) if digest is None else digest)


def test_without_a_key_the_code_is_the_source() -> None:
    """Stored packages do not count then."""
    found = catalog(row(1, "a", "x"), compiled=(stored("x"),))
    assert [definition.code for definition in found] == [b"x"]
    assert rejected(found) == {}


def test_with_a_key_the_code_is_a_package_of_the_source() -> None:
    """Made at load; the hash is still the source's."""
    (found,) = catalog(row(1, "a", "x = 'ñ'"), key=KEY)
    assert package.payload_of(found.code, KEY.encode()) == "x = 'ñ'".encode()
    assert found.hash == sha("x = 'ñ'")


def test_a_stored_package_of_this_source_is_served() -> None:
    """As it is stored, byte for byte."""
    row_ = stored("x")
    (found,) = catalog(row(1, "a", "x"), compiled=(row_,), key=KEY)
    assert found.code == row_.bytecode
    assert found.hash == sha("x")


@pytest.mark.parametrize("digest", [sha("old source"), sha("x").upper(), "", sha("x")[:-1]])
def test_a_package_of_another_source_is_stale(digest: str) -> None:
    """Ignored and counted; the current source is packed."""
    found = catalog(row(1, "a", "x"), compiled=(stored("x", digest=digest),), key=KEY)
    (definition,) = found
    assert package.payload_of(definition.code, KEY.encode()) == b"x"
    assert rejected(found) == {"stale_bytecode": 1}


def test_a_package_without_a_source_hash_is_stale() -> None:
    """Nobody can say what it was made from."""
    found = catalog(row(1, "a", "x"), compiled=(stored("x")._replace(source_hash=None),), key=KEY)
    assert [package.payload_of(definition.code, KEY.encode()) for definition in found] == [b"x"]
    assert rejected(found) == {"stale_bytecode": 1}


@pytest.mark.parametrize(
    "bytecode",
    [
        b"", b"AVAP", b"\x80\x04pickle", package.sign(b"compiled", b"another key"),
        package.sign(b"compiled", KEY.encode())[:-1],
        package.sign(b"compiled", KEY.encode()) + b"x", package.sign(b"compiled", KEY.encode())[:-1] + b"D",
        b"AVAQ" + package.sign(b"compiled", KEY.encode())[4:],
    ],
)  # fmt: skip
def test_a_foreign_or_tampered_package_is_not_served(bytecode: bytes) -> None:
    """Another key, other bytes, another format: ignored and counted; the current source is packed."""
    found = catalog(row(1, "a", "x"), compiled=(CompiledRow("a", bytecode, sha("x")),), key=KEY)
    (definition,) = found
    assert package.payload_of(definition.code, KEY.encode()) == b"x"
    assert rejected(found) == {"foreign_bytecode": 1}


def test_the_package_that_counts_is_the_winners() -> None:
    """After a doubled name was merged, the source hash is compared with the row that is served."""
    rows = (row(1, "a", "old"), row(2, "a", "new"))
    (found,) = catalog(*rows, compiled=(stored("new"),), key=KEY)
    assert package.payload_of(found.code, KEY.encode()) == b"compiled"
    (found,) = catalog(*rows, compiled=(stored("old"),), key=KEY)
    assert package.payload_of(found.code, KEY.encode()) == b"new"


def test_rows_are_let_go_as_definitions_are_taken() -> None:
    """Rows and snapshot never both exist whole: a second look finds nothing left."""
    made = Catalog(Rows([row(1, "a", "x"), row(2, "b", "y")], []), None)
    definitions = made.take()
    assert next(definitions).name == "a"
    assert list(made._contents) == ["b"]
    assert [definition.name for definition in definitions] == ["b"]
    assert made._contents == {}


# --- changes ----------------------------------------------------------------------------------------------------

_FOUND = Fingerprint(0, 0, {}, None)
_NAMED = st.sampled_from([None, "", "a", "b", "c"])
_TABLE_ROWS = st.dictionaries(
    st.sampled_from([1, 2, 3, 256, 257, 258, 700]),  # some share a bucket
    st.tuples(_NAMED, st.none() | st.sampled_from(["x", "y"]), st.booleans()),
    max_size=6,
)
_PACKAGES = st.dictionaries(
    st.sampled_from([1, 2, 257]), st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y", "other"]))
)


class Table:
    """Both tables as a database holds them: every write of a row gives it a new stamp."""

    def __init__(self) -> None:
        self.rows: dict[int, SourceRow] = {}
        self.packages: dict[int, CompiledRow] = {}
        self._stamp = 0

    def become(
        self, rows: dict[int, tuple[str | None, str | None, bool]], packages: dict[int, tuple[str, str]]
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Hold these rows, and packages of these sources, each name once; the buckets in which something changed."""
        self._stamp += 1
        new = {
            id_: SourceRow(id_, name, "t", "[1]", None if large else code, large, self._stamp)
            for id_, (name, code, large) in rows.items()
        }
        by_name = {name: (id_, code) for id_, (name, code) in packages.items()}
        compiled = {
            id_: CompiledRow(
                name, package.sign(b"compiled " + code.encode(), KEY.encode()), sha(code), id_, self._stamp
            )
            for name, (id_, code) in by_name.items()
        }
        touched = self._take(self.rows, new), self._take(self.packages, compiled)
        return touched[0], touched[1]

    @staticmethod
    def _take(old: dict[int, Any], new: dict[int, Any]) -> frozenset[int]:
        touched = set()
        for id_ in {*old, *new}:
            if id_ in old and id_ in new and old[id_]._replace(stamp=0) == new[id_]._replace(stamp=0):
                continue
            touched.add(id_ >> 8 & 255)
            old.pop(id_, None)
            if id_ in new:
                old[id_] = new[id_]
        return frozenset(touched)

    def whole(self) -> Rows:
        return Rows(list(self.rows.values()), list(self.packages.values()), _FOUND)

    def changed(self, made: Catalog, buckets: frozenset[int], compiled: frozenset[int]) -> tuple[Plan, Changed]:
        """What the source would fetch for this catalog."""
        marks = [_mark(one) for one in self.rows.values() if one.id >> 8 & 255 in buckets]
        packages = [
            Mark(one.id, one.stamp, one.command_name, None)
            for one in self.packages.values()
            if one.id >> 8 & 255 in compiled
        ]
        plan, wanted = made.plan(buckets, marks, compiled, packages)
        rows = [self.rows[id_] for id_ in wanted.ids]
        stored = [one for one in self.packages.values() if one.command_name in set(wanted.names)]
        return plan, Changed(_FOUND, buckets, marks, compiled, packages, rows, stored)


@given(st.lists(st.tuples(_TABLE_ROWS, _PACKAGES), min_size=1, max_size=5), st.sampled_from([None, KEY]))
@settings(deadline=None)
def test_changes_lead_where_reading_everything_leads(
    states: list[tuple[dict[int, Any], dict[int, tuple[str, str]]]], key: str | None
) -> None:
    """However the tables change, step by step: same definitions, same counts, same duplicates."""
    table = Table()
    table.become(*states[0])
    made = Catalog(table.whole(), key)
    served = {definition.name: definition for definition in made.take()}
    for state in states[1:]:
        plan, changed = table.changed(made, *table.become(*state))
        for name, definition in made.apply(plan, changed).items():
            served.pop(name, None)
            if definition is not None:
                served[name] = definition
        whole = Catalog(table.whole(), key)
        assert [served[name] for name in sorted(served)] == list(whole.take())
        assert made.rejected == whole.rejected
        assert made.duplicates == whole.duplicates
        assert len(made) == len(served)


def test_a_plan_asks_for_no_more_than_it_needs() -> None:
    """One changed row among many: its content alone, although the marks of its whole bucket were seen."""
    table = Table()
    table.become({id_: (f"n{id_}", "x", False) for id_ in range(1, 1000)}, {})
    made = Catalog(table.whole(), None)
    list(made.take())
    buckets, _ = table.become({id_: (f"n{id_}", "y" if id_ == 300 else "x", False) for id_ in range(1, 1000)}, {})
    plan, changed = table.changed(made, buckets, frozenset())
    assert len(changed.marks) > 1
    assert [one.id for one in changed.functions] == [300]
    assert plan.names == {"n300"}


def test_a_plan_changes_nothing() -> None:
    """Only `apply` does: what failed between the two is as if it had not been."""
    table = Table()
    table.become({1: ("a", "x", False), 2: ("a", "y", False)}, {})
    made = Catalog(table.whole(), None)
    list(made.take())
    buckets, _ = table.become({1: ("a", "x", False)}, {})
    table.changed(made, buckets, frozenset())
    assert made.duplicates == ["a"]
    plan, changed = table.changed(made, buckets, frozenset())
    assert made.apply(plan, changed)["a"] == Definition("a", "t", "[1]", b"x", sha("x"))
    assert made.duplicates == []


def test_a_plan_takes_time_in_proportion_to_the_changes() -> None:
    """A table that changed as a whole is planned well within the deadline of a poll (it once was quadratic: 30 s)."""
    count = 30_000
    made = Catalog(Rows([row(id_, f"name {id_}") for id_ in range(count)], []), None)
    marks = [Mark(id_, 1, f"name {id_}", None) for id_ in range(count)]
    began = time.process_time()
    _, wanted = made.plan(frozenset(range(256)), marks, frozenset(), [])
    assert time.process_time() - began < 3
    assert sorted(wanted.ids) == list(range(count))
