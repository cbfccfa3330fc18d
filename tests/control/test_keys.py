"""The file of keys: what it may hold, what is said of one that is wrong, and how names keep their counts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.log import records

from avapd import config
from avapd.config.keys import MOST, Key, load
from avapd.control.keys import KeyFile
from avapd.errors import ConfigError
from avapd.shared import board
from avapd.shared.channel import Keys

SECRET = "s3cr3t-of-enough-length"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of keys as an operator should: a new one in its place."""
    path = tmp_path / "keys.toml"

    def written(text: str) -> Path:
        new = tmp_path / "new"
        new.write_text(text)
        new.chmod(0o600)
        return new.replace(path)

    return written


def test_a_key_has_a_name_a_digest_an_end_and_a_rate(write: Write) -> None:
    """As key or as SHA-256, with a time of TOML or as text, in any zone; those of API_KEY come first."""
    path = write(
        f'[keys.a]\nkey = "{SECRET}"\nexpires = 2027-01-31T00:00:00Z\nrate = 500\n'
        f'[keys."b.2"]\nsha256 = "{"AB" * 32}"\nexpires = "2027-01-31T02:00:00+02:00"\n[keys.c-3]\nkey = "{SECRET}x"\n'
    )
    ends = 1801353600.0
    assert load(str(path), ("first-of-api-key", "second"), short=False) == [
        Key(name="default", digest=hashlib.sha256(b"first-of-api-key").hexdigest()),
        Key(name="default-2", digest=hashlib.sha256(b"second").hexdigest()),
        Key(name="a", digest=DIGEST, expires=ends, rate=500.0),
        Key(name="b.2", digest="ab" * 32, expires=ends),
        Key(name="c-3", digest=hashlib.sha256(f"{SECRET}x".encode()).hexdigest()),
    ]


WRONG = {
    "no TOML": (f'[keys.a]\nkey = "{SECRET}\n', 2, "not valid TOML"),
    "too deep": ("a=" + "[" * 5000, 1, "nested too deeply"),
    "twice": (f'[keys.a]\nkey = "{SECRET}"\n[keys.a]\n', 3, "not valid TOML"),
    "ends early": (f'[keys.a]\nkey = "{SECRET}"\nrate =', 3, "not valid TOML"),
    "other table": (f'["{SECRET}"]\nx = 1\n', 1, "nothing but tables"),
    "a value": (f'keys = "{SECRET}"\n', 1, "nothing but tables"),
    "a value within": (f'[keys]\na = "{SECRET}"\n', 1, "nothing but tables"),
    "bad name": (f'\n[keys."a b"]\nkey = "{SECRET}"\n', 2, "a name is"),
    "reserved name": (f'[keys.default-2]\nkey = "{SECRET}"\n', 1, "a name is"),
    "unknown field": (f'[keys.a]\nkey = "{SECRET}"\n{SECRET} = 1\n', 1, "no others"),
    "neither": ("[keys.a]\nrate = 1\n", 1, "one of `key` and `sha256`"),
    "both": (f'[keys.a]\nkey = "{SECRET}"\nsha256 = "{DIGEST}"\n', 1, "one of `key` and `sha256`"),
    "short": ('# x\n[keys.a]\n\nkey = "s3cr3t"\n', 4, "shorter than 16"),
    "blank": (f'[keys.a]\nkey = "{SECRET} x"\n', 2, "printable ASCII"),
    "number": ("[keys.a]\nkey = 1\n", 2, "printable ASCII"),
    "digest": (f'[keys.a]\nsha256 = "{DIGEST[1:]}"\n', 2, "64 hexadecimal"),
    "no zone": (f'[keys.a]\nkey = "{SECRET}"\nexpires = 2027-01-31T00:00:00\n', 3, "with its zone"),
    "a day": (f'[keys.a]\nkey = "{SECRET}"\nexpires = 2027-01-31\n', 3, "with its zone"),
    "no time": (f'[keys.a]\nkey = "{SECRET}"\nexpires = "s3cr3t"\n', 3, "with its zone"),
    "no rate": (f'[keys.a]\nkey = "{SECRET}"\n\nrate = 0\n', 4, "above 0"),
    "rate is text": (f'[keys.a]\nkey = "{SECRET}"\nrate = "5"\n', 3, "above 0"),
    "not a number": (f'[keys.a]\nkey = "{SECRET}"\nrate = nan\n', 3, "above 0"),
    "same key": (f'[keys.a]\nkey = "{SECRET}"\n[keys.b]\nsha256 = "{DIGEST}"\n', 3, "same key as a"),
    "in API_KEY": ('[keys.a]\nkey = "a-key-of-api-key-"\n', 1, "same key as default"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_by_line_and_without_the_text(write: Write, case: str) -> None:
    """At a start it is a problem of the settings, with line and reason, and no secret in it."""
    text, line, reason = WRONG[case]
    path = write(text)
    environ = {
        "DATABASE_URL": "postgresql://h/d",
        "AVAPD_ENV": "test",
        "API_KEY": "a-key-of-api-key-",
        "AVAPD_API_KEYS_FILE": str(path),
    }
    with pytest.raises(ConfigError) as caught:
        config.load(environ)
    (problem,) = caught.value.problems
    assert problem.startswith(f"AVAPD_API_KEYS_FILE: line {line}: ")
    assert reason in problem
    assert "s3cr3t" not in problem


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_is_keys_or_a_problem(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Nothing else is raised, whatever is in the file."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        keys = load(str(path), ("a",), short=True)
    except ValueError:
        return
    assert keys[0].name == "default"


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "is empty"), (" \n", "is empty"), ("# none\n", "holds no key"), ("\xff" * 300_000, "has more than")],
)
def test_a_file_without_keys_is_not_taken_for_the_end_of_all(write: Write, text: str, problem: str) -> None:
    """An empty one may be about to be written; one of a comment alone is right beside API_KEY."""
    path = str(write(text))
    with pytest.raises(ValueError, match=problem):
        load(path, (), short=False)
    if problem == "holds no key":
        assert len(load(path, ("a-key-of-api-key-",), short=False)) == 1


def test_there_are_as_many_keys_as_columns(write: Write) -> None:
    """64, and one more is refused, those of API_KEY counted."""
    assert MOST == board.KEYS
    tables = [f'[keys.k{number}]\nkey = "{SECRET}{number}"\n' for number in range(MOST)]
    assert len(load(str(write("".join(tables[1:]))), ("a-key-of-api-key-",), short=False)) == MOST
    with pytest.raises(ValueError, match="65 keys; 64 is the most"):
        load(str(write("".join(tables))), ("a-key-of-api-key-",), short=False)


def test_api_key_is_not_required_beside_a_file(write: Write) -> None:
    """The file alone is enough, by variable or flag; without both the start is refused by the name of API_KEY."""
    path = str(write(f'[keys.a]\nkey = "{SECRET}"\n'))
    environ = {"DATABASE_URL": "postgresql://h/d", "AVAPD_ENV": "test"}
    assert config.load({**environ, "AVAPD_API_KEYS_FILE": path}).api_keys == ()
    assert config.load(environ, {"api_keys_file": path}).api_keys_file == path
    with pytest.raises(ConfigError, match=r"API_KEY.*is required"):
        config.load(environ)


# --- in the master ------------------------------------------------------------------------------------------------


class Rig:
    """The keys of a master, with everything that workers are told."""

    def __init__(self, path: Path) -> None:
        environ = {"DATABASE_URL": "postgresql://h/d", "AVAPD_ENV": "test", "AVAPD_API_KEYS_FILE": str(path)}
        self.board = board.Board(board.create(2), 2)
        self.told: list[Keys] = []
        self.log, self.lines = records()
        self.config = config.load(environ)
        self.keys = KeyFile(self.config, self.board, self.log, self.told.append)

    def names(self) -> list[str]:
        return [key.name for key in self.keys.keys]

    def counts(self) -> dict[str, float]:
        """`avap_key_requests_total` by key."""
        (calls, _, _) = self.keys.collect()
        return {sample.labels["key"]: sample.value for sample in calls.samples}

    def count(self, name: str, times: int) -> None:
        (column,) = [key.column for key in self.keys.keys if key.name == name]
        self.board.row(1).count_key(column, times)


def table(name: str, number: int = 0) -> str:
    return f'[keys.{name}]\nkey = "{SECRET}-{name}-{number}"\n'


def test_what_is_wrong_keeps_the_keys_of_before(write: Write) -> None:
    """Malformed, empty, gone, unreadable: an ERROR with line and problem, and nobody is told anything."""
    path = write(table("a"))
    rig = Rig(path)
    write('[keys.a]\nkey = "s3cr3t"\n')
    rig.keys.reload(rig.config)
    write("")
    rig.keys.reload(rig.config)
    path.unlink()
    rig.keys.reload(rig.config)
    assert rig.names() == ["a"]
    assert rig.told == []
    problems = [line["problem"] for line in rig.lines() if line["msg"] == "Keys Not Reloaded"]
    assert problems[0] == "line 2: `key` is shorter than 16 bytes"
    assert [problem.partition(";")[0] for problem in problems[1:]] == [
        "is empty", "cannot be read: No such file or directory",
    ]  # fmt: skip
    assert "s3cr3t" not in str(rig.lines())


def test_only_a_change_is_told(write: Write) -> None:
    """Workers hear of other keys, ends and rates, and not of another text that means the same."""
    rig = Rig(write(table("a")))
    write(f"# the same\n{table('a')}")
    rig.keys.reload(rig.config)
    assert rig.told == []
    write(f"{table('a')}rate = 5\n")
    rig.keys.reload(rig.config)
    (message,) = rig.told
    assert message == rig.keys.message()
    assert message.keys == [dataclasses.asdict(key) for key in rig.keys.keys]
    assert SECRET not in str(message)


def test_a_file_that_all_can_read_is_a_warning(write: Write) -> None:
    """Told with every change, by name."""
    path = write(table("a"))
    rig = Rig(path)
    assert rig.config.warnings() == []
    path.chmod(0o644)
    rig.keys.reload(rig.config)
    assert [line["level"] for line in rig.lines() if line["msg"] == "Keys Readable By Others"] == ["WARN"]
    assert any("AVAPD_API_KEYS_FILE" in warning for warning in rig.config.warnings())


def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes swaps secrets: the link's own name and the file's size stay the same."""
    for folder, number in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys.toml").write_text(table("a", number))
    (tmp_path / "data").symlink_to("one")
    rig = Rig(tmp_path / "data" / "keys.toml")
    before = rig.keys._look()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "data")
    assert rig.keys._look() != before


def test_a_name_keeps_its_count_and_never_gets_that_of_another(write: Write) -> None:
    """Through changes of its key, its absence, and more names in turn than there are columns."""
    rig = Rig(write(table("a") + table("b")))
    rig.count("a", 5)
    rig.count("b", 7)
    assert rig.counts() == {"a": 5, "b": 7}
    write(table("a", 1))
    rig.keys.reload(rig.config)
    assert rig.counts() == {"a": 5}
    write(table("a", 1) + table("b"))
    rig.keys.reload(rig.config)
    assert rig.counts() == {"a": 5, "b": 7}
    for number in range(2 * MOST):
        write(table("a", 1) + table(f"k{number}"))
        rig.keys.reload(rig.config)
        assert rig.counts() == {"a": 5, f"k{number}": 0}
        rig.count(f"k{number}", 3)
    assert rig.counts() == {"a": 5, f"k{2 * MOST - 1}": 3}


def test_an_end_is_logged_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the key's name, when it comes; workers see to it by themselves."""
    rig = Rig(write(table("a") + "expires = 2100-01-01T00:00:00Z\n"))

    async def looked() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(rig.keys.run(), 0.3)

    monkeypatch.setattr("avapd.control.keys.LOOK_SECONDS", 0.001)
    monkeypatch.setattr("avapd.control.keys.time.time", lambda: 4_102_444_801.0)
    asyncio.run(looked())
    assert [line["key"] for line in rig.lines() if line["msg"] == "Key Expired"] == ["a"]
