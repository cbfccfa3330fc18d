"""The catalog: rows, validated and merged into one definition per name (contract part 2).

    all rows ──► Catalog(rows) ──► take(): every definition, sorted by name
                    │ knows from then on, for each row, its id, stamp (xmin), name and whether it can be served
    a few marks ──► plan(): whose content is needed ──► apply(): the definitions that are new, changed or gone

What it knows without their content is enough to merge a change: which of several rows of one name wins, and what of
them must be fetched.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from avapd.control import package
from avapd.control.source import Changed, CompiledRow, Mark, Rows, SourceRow
from avapd.control.source.source import Wanted
from avapd.errors import PackageError

# Why a row is not served, or not as it stands: the bounded label values of `avap_definitions_rejected`.
REASONS = ("no_name", "no_code", "too_large", "duplicate_name", "stale_bytecode", "foreign_bytecode")
_NO_NAME, _TOO_LARGE = "no_name", "too_large"


class Definition(NamedTuple):
    """One command as it is served. `code` is the source or its package, `hash` the SHA-256 (hex) of the source."""

    name: str
    type: str
    interface_json: str
    code: bytes
    hash: str


class Plan(NamedTuple):
    """What `plan` found: rows that are new or changed, ids that are gone, and the names all this concerns."""

    marks: list[Mark]
    gone: list[int]
    compiled: list[Mark]
    compiled_gone: list[int]
    names: frozenset[str]


class Catalog:
    """All rows that can be served, one for each name, and an account of the others.

    `rejected` counts rows by reason; `duplicates` are the names that more than one row has.
    Definitions are taken once, one by one, in ascending order of the UTF-8 bytes of the name (code-point order is the
    same). Each row is let go of when its definition was made, so that rows and snapshot never both exist whole: that is
    what keeps the master's peak below 3.5 catalogs (bench `memory`).
    """

    def __init__(self, rows: Rows, signing_key: str | None) -> None:
        self.fingerprint = rows.fingerprint
        self._key = signing_key.encode() if signing_key is not None else None
        self._rows: dict[int, Mark] = {}
        self._winner: dict[str, int] = {}
        self._sharing: dict[str, set[int]] = {}  # ids of the names that more than one row has
        self._too_large: dict[str, set[int]] = {}  # ids of the rows that were left on the server, by name
        self._packages: dict[int, Mark] = {}
        self._package_faults: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        contents = {row.id: row for row in rows.functions if self._add(_mark(row))}
        self._compiled = {row.command_name: row for row in rows.compiled}
        for row in rows.compiled:
            self._packages[row.id] = Mark(row.id, row.stamp, row.command_name, None)
        self._contents = {name: contents[id_] for name, id_ in self._winner.items()}
        self._names = sorted(self._contents)

    def __len__(self) -> int:
        return len(self._winner)

    def __contains__(self, name: str) -> bool:
        return name in self._winner

    @property
    def rejected(self) -> Counter[str]:
        """Rows that are not served, or not as they stand, by reason; every reason is there."""
        found = Counter(dict.fromkeys(REASONS, 0))
        found.update(self._counts)
        found["duplicate_name"] = sum(len(ids) - 1 for ids in self._sharing.values())
        found.update(self._package_faults.values())
        return found

    @property
    def duplicates(self) -> list[str]:
        """The names that more than one row has."""
        return sorted(self._sharing)

    @property
    def too_large(self) -> set[str]:
        """The names that only rows have which are too large."""
        return self._too_large.keys() - self._winner.keys()

    def take(self) -> Iterator[Definition]:
        """The definitions, once; afterwards the catalog knows no content any more."""
        for name in self._names:
            yield self._definition(self._contents.pop(name), self._compiled.pop(name, None))
        self._names.clear()
        self._compiled.clear()

    # --- changes --------------------------------------------------------------------------------------------

    def plan(
        self, buckets: frozenset[int], marks: list[Mark], compiled_buckets: frozenset[int], compiled: list[Mark]
    ) -> tuple[Plan, Wanted]:
        """What these marks, all there are in these buckets, mean; and whose content it takes. Changes nothing."""
        new, gone = _compare(self._rows, buckets, marks)
        new_packages, gone_packages = _compare(self._packages, compiled_buckets, compiled)
        before = [self._rows[id_] for id_ in (*gone, *(mark.id for mark in new if mark.id in self._rows))]
        of_packages = [self._packages[mark.id] for mark in new_packages if mark.id in self._packages]
        of_packages += [self._packages[id_] for id_ in gone_packages]
        names = frozenset(mark.name for mark in (*new, *before, *new_packages, *of_packages) if mark.name)
        plan = Plan(new, gone, new_packages, gone_packages, names)
        winners = self._winners(plan)
        return plan, Wanted(list(winners.values()), list(winners))

    def apply(self, plan: Plan, changed: Changed) -> dict[str, Definition | None]:
        """Take a plan over, with the content it asked for; the definitions of its names, None for those that go."""
        for id_ in plan.gone:
            self._drop(id_)
        for mark in plan.marks:
            if mark.id in self._rows:
                self._drop(mark.id)
            self._add(mark)
        for id_ in plan.compiled_gone:
            del self._packages[id_]
        self._packages |= {mark.id: mark for mark in plan.compiled}
        contents = {row.id: row for row in changed.functions}
        packages = {row.command_name: row for row in changed.compiled}
        self.fingerprint = changed.fingerprint
        made: dict[str, Definition | None] = {}
        for name in sorted(plan.names):
            self._package_faults.pop(name, None)
            winner = self._winner.get(name)
            made[name] = None if winner is None else self._definition(contents[winner], packages.get(name))
        return made

    def _winners(self, plan: Plan) -> dict[str, int]:
        """The row that each name of a plan will have; names that go are left out."""
        leaving = {*plan.gone, *(mark.id for mark in plan.marks)}
        new: dict[str, list[int]] = {}
        for mark in plan.marks:
            if mark.name and mark.reason is None:
                new.setdefault(mark.name, []).append(mark.id)
        found: dict[str, int] = {}
        for name in plan.names:
            held = self._sharing.get(name) or ({self._winner[name]} if name in self._winner else set())
            ids = [*(id_ for id_ in held if id_ not in leaving), *new.get(name, ())]
            if ids:
                found[name] = max(ids)
        return found

    # --- rows -----------------------------------------------------------------------------------------------

    def _add(self, mark: Mark) -> bool:
        """Take a row in; whether it can be served."""
        self._rows[mark.id] = mark
        reason = _unfit(mark)
        if reason is not None or mark.name is None:
            self._counts[reason or _NO_NAME] += 1
            if reason == _TOO_LARGE and mark.name:
                self._too_large.setdefault(mark.name, set()).add(mark.id)
            return False
        winner = self._winner.get(mark.name)
        if winner is None:
            self._winner[mark.name] = mark.id
        else:
            self._sharing.setdefault(mark.name, {winner}).add(mark.id)
            self._winner[mark.name] = max(winner, mark.id)
        return True

    def _drop(self, id_: int) -> None:
        mark = self._rows.pop(id_)
        reason = _unfit(mark)
        if reason is not None or mark.name is None:
            self._counts[reason or _NO_NAME] -= 1
            self._drop_too_large(mark)
            return
        ids = self._sharing.get(mark.name)
        if ids is None:
            del self._winner[mark.name]
            return
        ids.discard(id_)
        self._winner[mark.name] = max(ids)
        if len(ids) == 1:
            del self._sharing[mark.name]

    def _drop_too_large(self, mark: Mark) -> None:
        ids = self._too_large.get(mark.name or "", set())
        ids.discard(mark.id)
        if not ids:
            self._too_large.pop(mark.name or "", None)

    def _definition(self, row: SourceRow, compiled: CompiledRow | None) -> Definition:
        source = (row.code or "").encode()
        digest = hashlib.sha256(source).hexdigest()
        name = row.name or ""
        code = source
        if self._key is not None:
            code = self._stored(name, digest, self._key, compiled) or package.sign(source, self._key)
        return Definition(name, row.type or "function", row.interface or "[]", code, digest)

    def _stored(self, name: str, digest: str, key: bytes, row: CompiledRow | None) -> bytes | None:
        """The stored package of a command, if it was made from this source with this key."""
        if row is None:
            return None
        if row.source_hash != digest:
            self._package_faults[name] = "stale_bytecode"
            return None
        try:
            package.payload_of(row.bytecode, key)
        except PackageError:
            self._package_faults[name] = "foreign_bytecode"
            return None
        return row.bytecode


def _mark(row: SourceRow) -> Mark:
    reason = _TOO_LARGE if row.too_large else "no_code" if row.code is None else None
    return Mark(row.id, row.stamp, row.name, reason)


def _unfit(mark: Mark) -> str | None:
    """Why a row cannot be served, or None."""
    return mark.reason if mark.name else _NO_NAME


def _compare(known: dict[int, Mark], buckets: frozenset[int], marks: Iterable[Mark]) -> tuple[list[Mark], list[int]]:
    """The marks that are new or of another stamp, and the ids that are no longer in their buckets (tables.BUCKET)."""
    found = {mark.id: mark for mark in marks}
    new = [mark for mark in found.values() if mark.id not in known or known[mark.id].stamp != mark.stamp]
    gone = [id_ for id_ in known if id_ >> 8 & 255 in buckets and id_ not in found] if buckets else []
    return new, gone
