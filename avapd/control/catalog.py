"""The catalog: rows, validated and merged into one definition per name (contract part 2)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from avapd.control import package
from avapd.control.source import CompiledRow, Rows, SourceRow
from avapd.errors import PackageError

# Why a row is not served, or not as it stands: the bounded label values of `avap_definitions_rejected`.
REASONS = ("no_name", "no_code", "too_large", "duplicate_name", "stale_bytecode", "foreign_bytecode")


class Definition(NamedTuple):
    """One command as it is served. `code` is the source or its package, `hash` the SHA-256 (hex) of the source."""

    name: str
    type: str
    interface_json: str
    code: bytes
    hash: str


class Catalog:
    """All rows that can be served, one for each name, and an account of the others.

    `rejected` counts rows by reason; `duplicates` are the names that more than one row has.
    Definitions are taken once, one by one, in ascending order of the UTF-8 bytes of the name (code-point order is the
    same). Each row is let go of when its definition was made, so that rows and snapshot never both exist whole: that is
    what keeps the master's peak below 3.5 catalogs (bench `memory`).
    """

    def __init__(self, rows: Rows, signing_key: str | None) -> None:
        self.rejected: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.duplicates: list[str] = []
        self._key = signing_key.encode() if signing_key is not None else None
        self._compiled = {row.command_name: row for row in rows.compiled}
        self._winners = self._merge(rows.functions)
        self._names = sorted(self._winners)

    def __len__(self) -> int:
        return len(self._names)

    def take(self) -> Iterator[Definition]:
        """The definitions, once; afterwards the catalog only knows its counts."""
        for name in self._names:
            yield self._definition(self._winners.pop(name))

    def _merge(self, rows: Iterable[SourceRow]) -> dict[str, SourceRow]:
        winners: dict[str, SourceRow] = {}
        twice: set[str] = set()
        for row in rows:
            if (reason := _unfit(row)) is not None:
                self.rejected[reason] += 1
                continue
            name = row.name or ""
            other = winners.get(name)
            if other is not None:
                twice.add(name)
                self.rejected["duplicate_name"] += 1
            if other is None or row.id > other.id:
                winners[name] = row
        self.duplicates = sorted(twice)
        return winners

    def _definition(self, row: SourceRow) -> Definition:
        source = (row.code or "").encode()
        digest = hashlib.sha256(source).hexdigest()
        name = row.name or ""
        code = source
        if self._key is not None:
            code = self._stored(name, digest, self._key) or package.sign(source, self._key)
        return Definition(name, row.type or "function", row.interface or "[]", code, digest)

    def _stored(self, name: str, digest: str, key: bytes) -> bytes | None:
        """The stored package of a command, if it was made from this source with this key."""
        row: CompiledRow | None = self._compiled.pop(name, None)
        if row is None:
            return None
        if row.source_hash != digest:
            self.rejected["stale_bytecode"] += 1
            return None
        try:
            package.payload_of(row.bytecode, key)
        except PackageError:
            self.rejected["foreign_bytecode"] += 1
            return None
        return row.bytecode


def _unfit(row: SourceRow) -> str | None:
    """Why a row cannot be served, or None."""
    if not row.name:
        return "no_name"
    if row.too_large:
        return "too_large"
    return "no_code" if row.code is None else None
