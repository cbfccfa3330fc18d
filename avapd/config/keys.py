"""The keys of clients: those of API_KEY, and those of a file that gives each a name, an end and a rate.

The file (AVAPD_API_KEYS_FILE) is TOML, a table for each key:

    [keys.language-server]
    key = "…"                       # or sha256 = "…", the SHA-256 of the key in hex
    expires = 2027-01-31T00:00:00Z  # RFC 3339; left out, it never does
    rate = 500                      # calls a second that avapd answers it, over all workers; left out, any

Names stand in metrics and logs, so they are plain. Keys leave this file as digests: who has a `Key` cannot tell it.
What is wrong with a file is told by line and never by its text, which may be a secret anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
import tomllib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

KEY_BYTES: Final = 16
MOST: Final = 64  # the board (shared/board.py) has so many columns
_BYTES_MOST: Final = 256 << 10
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RESERVED: Final = re.compile(r"default(-[0-9]+)?")
_FIELDS: Final = {"key", "sha256", "expires", "rate"}
_RATE_MOST: Final = 1e9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `expires` is in seconds of the epoch, 0 for never; `rate` in calls a second, 0 for any.

    `column` is its place on the board.
    """

    name: str
    digest: str
    expires: float = 0.0
    rate: float = 0.0
    column: int = 0


def named(api_keys: Iterable[str]) -> list[Key]:
    """The keys of API_KEY: `default`, `default-2` and so on."""
    return [
        Key(name="default" if number == 1 else f"default-{number}", digest=_digest(key))
        for number, key in enumerate(dict.fromkeys(api_keys), 1)
    ]


def load(path: str, api_keys: Iterable[str], *, short: bool) -> list[Key]:
    """All keys: of API_KEY and, unless `path` is empty, of the file. `short` ones may have less than 16 bytes.

    Raises ValueError that names line and problem.
    """
    keys = named(api_keys)
    if path:
        text = _read(path)
        if not text.strip():  # it may be about to be written
            raise ValueError("is empty; a comment alone means that there are no more keys")
        keys += [_Table(text, name, fields).key(short=short) for name, fields in _tables(text)]
        _check_digests(text, keys)
    if not keys:
        raise ValueError("holds no key, and API_KEY is not set")
    if len(keys) > MOST:
        raise ValueError(f"there are {len(keys)} keys; {MOST} is the most")
    return keys


def readable_by_others(path: str) -> bool:
    """Whether every user of this host can read the file."""
    try:
        return bool(Path(path).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_BYTES_MOST + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(text) > _BYTES_MOST:
        raise ValueError(f"has more than {_BYTES_MOST} bytes")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: not UTF-8") from None


def _tables(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and fields. The parser's own message is not passed on: it quotes the file."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError("line 1: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        told = re.search(r"\(at line ([0-9]+)", str(error))
        line = int(told[1]) if told else len(text.splitlines())
        raise ValueError(f"line {line}: not valid TOML") from None
    keys = found.pop("keys", {})
    if found or not isinstance(keys, dict) or not all(isinstance(fields, dict) for fields in keys.values()):
        raise ValueError("line 1: there may be nothing but tables [keys.NAME]")
    return list(keys.items())


class _Table(NamedTuple):
    """The table of one key; each part of it raises ValueError when it is wrong."""

    text: str
    name: str
    fields: dict[str, Any]

    def key(self, *, short: bool) -> Key:
        if not _NAME.fullmatch(self.name) or _RESERVED.fullmatch(self.name):
            raise self._wrong("a name is 1 to 64 letters, digits, and _ . - between; `default` is for API_KEY")
        if self.fields.keys() - _FIELDS:
            raise self._wrong(f"a key has the fields {', '.join(sorted(_FIELDS))} and no others")
        if ("key" in self.fields) == ("sha256" in self.fields):
            raise self._wrong("one of `key` and `sha256` is needed, and only one")
        digest = self._digest(short=short) if "key" in self.fields else self._sha256()
        return Key(name=self.name, digest=digest, expires=self._expires(), rate=self._rate())

    def _digest(self, *, short: bool) -> str:
        key = self.fields["key"]
        if not isinstance(key, str) or not re.fullmatch(r"[!-~]+", key):
            raise self._wrong("`key` must be printable ASCII without blanks: it travels as a request header", "key")
        if len(key) < KEY_BYTES and not short:
            raise self._wrong(f"`key` is shorter than {KEY_BYTES} bytes", "key")
        return _digest(key)

    def _sha256(self) -> str:
        digest = self.fields["sha256"]
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
            raise self._wrong("`sha256` must be 64 hexadecimal digits", "sha256")
        return digest.lower()

    def _expires(self) -> float:
        if "expires" not in self.fields:
            return 0.0
        expires = _epoch(self.fields["expires"])
        if expires is None:
            raise self._wrong("`expires` must be a time with its zone, such as 2027-01-31T00:00:00Z", "expires")
        return expires

    def _rate(self) -> float:
        if "rate" not in self.fields:
            return 0.0
        rate = self.fields["rate"]
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= _RATE_MOST:
            raise self._wrong(f"`rate` must be a number of calls a second above 0, {_RATE_MOST:g} at most", "rate")
        return float(rate)

    def _wrong(self, problem: str, field: str = "") -> ValueError:
        return ValueError(f"line {_line(self.text, self.name, field)}: {problem}")


def _epoch(value: object) -> float | None:
    """A TOML time, or a text of RFC 3339, as seconds of the epoch; None when it is neither."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        return None
    try:
        return max(value.timestamp(), 1.0)
    except (OverflowError, ValueError):
        return None


def _check_digests(text: str, keys: list[Key]) -> None:
    """One key under two names would have two ends and two rates."""
    seen: dict[str, str] = {}
    for key in keys:
        if key.digest in seen:
            raise ValueError(f"line {_line(text, key.name)}: {key.name} is the same key as {seen[key.digest]}")
        seen[key.digest] = key.name


def _line(text: str, name: str, field: str = "") -> int:
    """Where the table of a key, or its field, begins; what is written in an unusual way is found less exactly."""
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*[\"']?keys[\"']?\s*\.\s*[\"']?{re.escape(name)}[\"']?\s*\]")
    start = next((number for number, line in enumerate(lines, 1) if header.match(line)), 0)
    if not start:
        return next((number for number, line in enumerate(lines, 1) if name in line), 1)
    for number, line in enumerate(lines[start:], start + 1):
        if line.lstrip().startswith("["):
            break
        if field and re.match(rf"\s*[\"']?{field}[\"']?\s*=", line):
            return number
    return start
