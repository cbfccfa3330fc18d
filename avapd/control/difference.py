"""The difference between two generations: what a publication changes."""

from __future__ import annotations

from typing import NamedTuple

from avapd.shared.patch import Content, PatchedView
from avapd.shared.snapshot import View


class Difference(NamedTuple):
    """How many definitions were added, changed, removed; `keys` are those of all three. None of them: no change."""

    added: int
    changed: int
    removed: int
    keys: list[bytes]

    def counts(self) -> dict[str, int]:
        """The three numbers by name, as they are logged."""
        return {"added": self.added, "changed": self.changed, "removed": self.removed}


def difference(before: Content | None, after: Content) -> Difference:
    """Compare two generations; nothing before means that everything is added, and no key is told.

    Where both stand on one base only what their patches hold is looked at.
    """
    if before is None:
        return Difference(len(after), 0, 0, [])
    keys: list[bytes] = []
    added = changed = removed = 0
    for key in _keys(before, after):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        keys.append(key)
        added += old is None
        removed += new is None
        changed += old is not None and new is not None
    return Difference(added, changed, removed, keys)


def _keys(before: Content, after: Content) -> set[bytes]:
    """Every key that may differ."""
    if _base(before) is _base(after):
        return {key for view in (before, after) if isinstance(view, PatchedView) for key, _ in view.changed()}
    found = {key for key, message in after.messages() if before.get(key) != message}
    return found | {key for key, _ in before.messages() if after.get(key) is None}


def _base(view: Content) -> View:
    return view.base if isinstance(view, PatchedView) else view
