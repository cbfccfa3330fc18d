"""The quarantine: definitions that are not served as the table has them, since they failed validation.

    the whole table ──► messages(): of each, in the order of the names, what is served ──► pack
    a few changes   ──► changes(): what of them is served                              ──► patch

What is served of a definition that fails is the last one that passed, if there is one: everything else that changed is
published all the same. What is served already, or was before a restart, is not checked again. A start that finds much
that nobody knows yet checks for a while, and serves the rest unchecked: see backlog.py.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from avapd.control.catalog import Definition
from avapd.control.encode import message
from avapd.control.packer import Changes
from avapd.control.validator import CHECKER, CODE, INTERFACE, Fault, Validator
from avapd.shared.patch import Content
from avapd.shared.snapshot import key_of

SIZE: Final = "size"
REASONS: Final = (INTERFACE, CODE, SIZE, CHECKER)
_TOO_LARGE: Final = Fault(SIZE, "code or interface are larger than AVAPD_MAX_DEFINITION_BYTES")
# So many are asked about at once, and so many octets held back for it.
_BATCH: Final = 512
_BATCH_OCTETS: Final = 8 << 20
# What workers are told, to be said to clients; it has to fit into one message to them.
_TOLD_OCTETS: Final = 256 << 10

Known = Callable[[bytes], bytes | memoryview | None]


class Held(NamedTuple):
    """A definition in quarantine. `since` is wall clock; `digest` tells this version of it from others."""

    name: str
    reason: str
    error: str
    since: float
    digest: bytes


class Quarantine:
    """What is held, by name."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}

    def counts(self) -> dict[str, int]:
        """How many by reason; every reason is there."""
        return {**dict.fromkeys(REASONS, 0), **Counter(one.reason for one in self.held.values())}

    def replace(self, found: Mapping[str, Held], names: Iterable[str] | None = None) -> list[Held]:
        """Hold what was found among these names, or among all, and nothing else of them; what is new of it."""
        new = [one for name, one in found.items() if self.held.get(name) != one]
        for name in list(self.held if names is None else names):
            if name not in found:
                self.held.pop(name, None)
        self.held |= found
        return new

    def missing(self, served: Content | None) -> dict[str, str]:
        """Why names are not served at all: those of which there is no good version, as far as that can be told."""
        found: dict[str, str] = {}
        octets = 0
        for name in sorted(self.held):
            if served is None or served.get(key_of(name)) is None:
                error = f"{self.held[name].reason}: {self.held[name].error}"
                octets += len(name.encode()) + len(error.encode())
                if octets > _TOLD_OCTETS:
                    break
                found[name] = error
        return found

    def facts(self, served: Content | None, most: int | None = None) -> list[dict[str, Any]]:
        """What people are shown: each, or the first by name, with whether an earlier version is served."""
        shown = sorted(self.held.values()) if most is None else heapq.nsmallest(most, self.held.values())
        return [
            {
                "name": one.name, "reason": one.reason, "error": one.error, "since": one.since,
                "served": served is not None and served.get(key_of(one.name)) is not None,
            }
            for one in shown
        ]  # fmt: skip


class Screening:
    """The validation of one look.

    `known` gives what is served under a key, or was before; `held` what is in quarantine so far. `found` is what has to
    be held. With `seconds`, what is new after so long is not checked: the version that is known is served (`put_off`),
    and where there is none the new one (`unchecked` has their keys).
    """

    def __init__(
        self, validator: Validator, known: Known, held: Mapping[str, Held], *, seconds: float | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.found: dict[str, Held] = {}
        self.unchecked: list[bytes] = []
        self.put_off = False
        self._validator = validator
        self._known = known
        self._held = held
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._on_progress = on_progress

    def messages(self, definitions: Iterator[Definition], too_large: Collection[str]) -> Iterator[bytes]:
        """What is served of a whole table: serialized CommandResponses, in the order of the names. Raises OSError."""
        pairs: Iterable[tuple[str, Definition | None]] = ((one.name, one) for one in definitions)
        if too_large:  # seldom; a merge costs as much as the rest of this loop
            pairs = heapq.merge(pairs, ((name, None) for name in sorted(too_large)), key=_name)
        waiting: list[tuple[bytes, bytes, Definition | None]] = []
        octets = 0
        for name, definition in pairs:
            key = key_of(name)
            if definition is None:
                self._hold(name, _TOO_LARGE, b"")
                new = bytes(self._known(key) or b"")
            else:
                new = message(definition)
                definition = definition if self._is_new(key, new, definition) else None  # noqa: PLW2901
            waiting.append((key, new, definition))
            octets += len(new)
            if len(waiting) >= _BATCH or octets > _BATCH_OCTETS:
                yield from self._settled(waiting)
                octets = 0
                waiting.clear()
        yield from self._settled(waiting)

    def changes(self, definitions: Mapping[str, Definition | None], too_large: Container[str]) -> Changes:
        """What is to be served of these names, None for those that go; names that stay as they are left out.

        Raises OSError.
        """
        made: dict[bytes, bytes | None] = {}
        for name, definition in definitions.items():
            if definition is not None:
                made[key_of(name)] = message(definition)
            elif name in too_large:
                self._hold(name, _TOO_LARGE, b"")
            else:
                made[key_of(name)] = None
        there = [(key_of(name), one) for name, one in definitions.items() if one is not None]
        new = [one for key, one in there if self._is_new(key, made[key], one)]
        for one, fault in zip(new, self._faults(new), strict=True):
            if fault is not None:
                del made[key_of(one.name)]
        return made

    def _is_new(self, key: bytes, new: bytes | None, definition: Definition) -> bool:
        """Whether a definition has to be asked about: not when it is served, unless it is known to be faulty."""
        return self._known(key) != new or definition.name in self._held

    def _settled(self, waiting: list[tuple[bytes, bytes, Definition | None]]) -> Iterator[bytes]:
        new = [definition for _, _, definition in waiting if definition is not None]
        late = self._deadline is not None and time.monotonic() > self._deadline
        faults = iter([None] * len(new) if late else self._faults(new))
        for key, made, definition in waiting:
            served: bytes | memoryview | None = made
            if definition is not None and (next(faults) is not None or late):
                good = self._known(key)
                if late and good is None:
                    self.unchecked.append(key)
                else:
                    served = good
                    self.put_off = self.put_off or late
            if served:
                yield bytes(served)

    def _faults(self, definitions: list[Definition]) -> list[Fault | None]:
        """What is wrong with each. A version that is held already is not asked about again."""
        digests = [digest_of(one) for one in definitions]
        held = [self._held.get(one.name) for one in definitions]
        again = [one is not None and one.digest == digest for one, digest in zip(held, digests, strict=True)]
        asked = iter(self._validator.faults([one for one, known in zip(definitions, again, strict=True) if not known]))
        self._on_progress()
        faults: list[Fault | None] = []
        for one, before, known, digest in zip(definitions, held, again, digests, strict=True):
            fault = Fault(before.reason, before.error) if known and before is not None else next(asked)
            if fault is not None:
                self._hold(one.name, fault, digest)
            faults.append(fault)
        return faults

    def _hold(self, name: str, fault: Fault, digest: bytes) -> None:
        before = self._held.get(name)
        since = before.since if before is not None and before.digest == digest else time.time()
        self.found[name] = Held(name, fault.reason, fault.error, since, digest)


def digest_of(definition: Definition) -> bytes:
    """What tells one version of a definition from another, as far as validation goes."""
    made = hashlib.blake2b(definition.interface_json.encode(), digest_size=16)
    made.update(b"\0" + definition.code)
    return made.digest()


def _name(pair: tuple[str, Any]) -> str:
    return pair[0]
