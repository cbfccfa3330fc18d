"""The quarantine: what is served of definitions that fail, and what is asked about at all."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd.control.catalog import Definition
from avapd.control.encode import decoded, message
from avapd.control.quarantine import SIZE, Held, Quarantine, Screening, digest_of
from avapd.control.validator import CODE, Validator
from avapd.shared.snapshot import key_of

BAD = "x ="


def definition(name: str, code: str = "x = 1") -> Definition:
    return Definition(name, "function", "[]", code.encode(), hashlib.sha256(code.encode()).hexdigest())


@pytest.fixture(scope="module")
def validator() -> Iterator[Validator]:
    with contextlib.closing(Validator(grammar=sys.version_info.minor, interfaces=True)) as made:
        yield made


@pytest.fixture
def nobody() -> Validator:
    """A validator that must not be asked."""
    made = Validator(grammar=sys.version_info.minor, interfaces=True)
    made.close()
    return made


def known(**codes: str) -> dict[bytes, bytes]:
    """What is served: name → code."""
    return {key_of(name): message(definition(name, code)) for name, code in codes.items()}


def codes(octets: Iterator[bytes]) -> dict[str, str]:
    return {one.name: one.code.decode() for one in map(decoded, octets)}


# --- whole tables -----------------------------------------------------------------------------------------------


def test_what_fails_stays_as_it_is_served_and_the_rest_is_published(validator: Validator) -> None:
    """A new one that fails is left out; every other change is there."""
    screening = Screening(validator, known(a="old_a", b="old_b").get, {})
    table = [definition("a", BAD), definition("b", "new_b"), definition("c", BAD), definition("d", "new_d")]
    assert codes(screening.messages(iter(table), ())) == {"a": "old_a", "b": "new_b", "d": "new_d"}
    assert {name: (one.reason, one.error) for name, one in screening.found.items()} == dict.fromkeys(
        ("a", "c"), (CODE, "line 1: invalid syntax")
    )


def test_what_is_served_already_is_not_asked_about(nobody: Validator) -> None:
    """A look that reads everything costs no compiling when nothing changed."""
    served = known(a="x = 1", b="y = 2")
    screening = Screening(nobody, served.get, {})
    table = [definition("a", "x = 1"), definition("b", "y = 2")]
    assert codes(screening.messages(iter(table), ())) == {"a": "x = 1", "b": "y = 2"}
    assert not screening.found


def test_what_is_held_already_is_not_asked_about_again(nobody: Validator) -> None:
    """The same version fails for the same reason, since the same moment."""
    held = {"a": Held("a", CODE, "why", 7.0, digest_of(definition("a", BAD)))}
    screening = Screening(nobody, known(a="old").get, held)
    assert codes(screening.messages(iter([definition("a", BAD)]), ())) == {"a": "old"}
    assert screening.found == held
    assert screening.changes({"a": definition("a", BAD)}, ()) == {}


def test_another_version_of_what_is_held_is_asked_about(validator: Validator) -> None:
    """Mended, it is served; broken in another way, it is held since now."""
    held = {name: Held(name, CODE, "why", 7.0, b"another") for name in ("a", "b")}
    screening = Screening(validator, dict[bytes, bytes]().get, held)
    assert codes(screening.messages(iter([definition("a", "x = 1"), definition("b", BAD)]), ())) == {"a": "x = 1"}
    assert screening.found["b"].since > 7.0
    assert list(screening.found) == ["b"]


def test_a_row_that_is_too_large_leaves_what_is_served(nobody: Validator) -> None:
    """In its place among the names; and nothing of one that never was smaller."""
    screening = Screening(nobody, known(a="a", b="old", c="c").get, {})
    table = [definition("a", "a"), definition("c", "c")]
    assert list(codes(screening.messages(iter(table), ["never", "b"]))) == ["a", "b", "c"]
    assert {name: one.reason for name, one in screening.found.items()} == {"b": SIZE, "never": SIZE}


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.sampled_from(["x = 1", "x = 2", BAD, "y ="]), max_size=40),
    st.dictionaries(st.text(min_size=1, max_size=3), st.sampled_from(["x = 1", "x = 2"]), max_size=40),
    st.sets(st.text(min_size=1, max_size=3), max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_whole_tables_and_changes_come_to_the_same(
    validator: Validator, table: dict[str, str], served: dict[str, str], large: set[str]
) -> None:
    """For any table and anything served before, against the rule written down plainly; in the order of the names."""
    large -= table.keys()
    sound = {name: code for name, code in table.items() if code.startswith("x = ")}
    kept = {name: served[name] for name in (large | (table.keys() - sound.keys())) & served.keys()}
    expected = sound | kept

    before = known() | {key_of(name): message(definition(name, code)) for name, code in served.items()}
    whole = Screening(validator, before.get, {})
    rows = [definition(name, table[name]) for name in sorted(table)]
    found = codes(whole.messages(iter(rows), large))
    assert found == expected
    assert list(found) == sorted(expected)

    some = Screening(validator, before.get, {})
    asked = {name: definition(name, table[name]) if name in table else None for name in {*table, *served, *large}}
    changed = {**before, **some.changes(asked, large)}
    assert {decoded(one).name: decoded(one).code.decode() for one in changed.values() if one} == expected
    assert {name: one[:3] for name, one in some.found.items()} == {name: one[:3] for name, one in whole.found.items()}
    assert some.found.keys() == large | (table.keys() - sound.keys())


# --- a start that has no time ---------------------------------------------------------------------------------------


def test_after_its_time_a_start_serves_what_is_new_unchecked(nobody: Validator) -> None:
    """And tells of which; of what was known before, the known version."""
    screening = Screening(nobody, known(a="old").get, {}, seconds=0.0)
    table = [definition("a", BAD), definition("b", BAD)]
    assert codes(screening.messages(iter(table), ())) == {"a": "old", "b": BAD}
    assert screening.unchecked == [key_of("b")]
    assert screening.put_off
    assert not screening.found


def test_a_start_in_time_leaves_nothing_unchecked(validator: Validator) -> None:
    """What it has checked is what it serves."""
    screening = Screening(validator, dict[bytes, bytes]().get, {}, seconds=60.0)
    assert codes(screening.messages(iter([definition("a"), definition("b", BAD)]), ())) == {"a": "x = 1"}
    assert not screening.unchecked
    assert not screening.put_off


# --- the account ----------------------------------------------------------------------------------------------------


def held(name: str, error: str = "why") -> Held:
    return Held(name, CODE, error, 1.0, b"")


def test_a_look_at_some_names_lets_out_only_those() -> None:
    """A look at all lets out whatever it did not find."""
    account = Quarantine()
    assert account.replace({"a": held("a"), "b": held("b")}) == [held("a"), held("b")]
    assert account.replace({}, ["a", "c"]) == []
    assert list(account.held) == ["b"]
    assert account.replace({"b": held("b"), "d": held("d")}, ["b", "d"]) == [held("d")]
    assert account.counts() == {"interface": 0, "code": 2, "size": 0, "checker": 0}
    assert account.replace({}) == []
    assert not account.held


def test_clients_are_told_why_only_of_names_that_are_not_served() -> None:
    """Within bounds: what is said has to fit into a message to the workers."""
    account = Quarantine()
    account.replace({f"n{number:05}": held(f"n{number:05}", "e" * 300) for number in range(3000)})
    missing = account.missing(None)
    assert missing["n00000"] == "code: " + "e" * 300
    assert 500 < len(missing) < 1000
