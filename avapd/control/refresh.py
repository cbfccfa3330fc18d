"""A refresh: one look at the source, and what follows from it.

    look ── frozen ──────► only whether the source is there and well
      │ ── first, after ten intervals, after any error ──► everything is read: a new base
      │ ── else ─► fingerprint ── as before ──► nothing
      │                         └ differs ──► what has changed: a patch
      ▼
    validation ──► quarantine: what fails is left as it is served
      ▼
    snapshot ──► same hash as what is served: nothing ──► guard: refused as a whole, or ──► publish ──► history

Whatever publishes (a look, an operator's command, the catalog from disk) does it here, one at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from avapd.control import guard, host
from avapd.control.budget import Budget, NoRoomError
from avapd.control.canary import RollOutError
from avapd.control.catalog import REASONS, Catalog, Definition, Plan
from avapd.control.difference import difference
from avapd.control.guard import RefusedError, Switches
from avapd.control.history import Entry, History
from avapd.control.packer import Changes, Packer, Snapshot, name_of, octets_of
from avapd.control.publisher import Publisher
from avapd.control.quarantine import Held, Known, Quarantine, Screening
from avapd.control.source import Fingerprint, Mark, Size, Source
from avapd.control.source.source import Wanted
from avapd.control.telemetry import Span, no_span
from avapd.control.validator import Validator
from avapd.errors import SnapshotError
from avapd.log import Log, printable

# Every so many intervals everything is read, so that no mistake in what was merged can last. Looks that were hurried do
# not count: else many notifications would cause many readings.
FULL_EVERY: Final = 10
_NAMES_SHOWN: Final = 10
# Beyond so many changes who watches is sent the whole catalog: their names would not fit into a message to the workers.
_WATCHED_MOST, _WATCHED_OCTETS = 2_048, 128 << 10
DATABASE, DISK, ROLLBACK, OPERATOR, VALIDATION = "database", "disk", "rollback", "operator", "validation"


class Times:
    """The four times of a catalog, which are never mixed up: wall clock, seconds since the epoch, 0 for never."""

    def __init__(self) -> None:
        self.attempt = 0.0  # the source was asked
        self.check = 0.0  # the source answered, whole and well
        self.change = 0.0  # the answer differed from what was served
        self.activation = 0.0  # every worker that answers serves it


class Refused:
    """A candidate that was refused, and the state of the tables it was made from: not to be tried again."""

    def __init__(self, error: RefusedError, fingerprint: Fingerprint | None) -> None:
        self.error = error
        self.fingerprint = fingerprint
        self.since = time.time()


class Refresh:
    """Turns what the source holds into what is served.

    `loaded` is set once a catalog is served; `on_checked` is called whenever the source was found well, `on_published`
    with each new entry of the history. `note` is told what is to be audited, `span` traces. `recall` gives what an
    earlier run is known to have served, by key; only what is new beside it has to be validated at the start, for
    `start_seconds`: the rest is `unchecked`, by key, until the backlog was worked off.
    """

    def __init__(
        self, source: Source, publisher: Publisher, validator: Validator, log: Log, *, signing_key: str | None,
        seconds: float, on_checked: Callable[[], None], start_seconds: float = 0.0,
        on_published: Callable[[Snapshot, Entry], None] = lambda _snap, _entry: None,
        recall: Callable[[], Mapping[bytes, bytes]] = dict, budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.times = Times()
        self.loaded = asyncio.Event()
        self.history = History()
        self.switches = Switches()
        self.quarantine = Quarantine()
        self.unchecked: list[bytes] = []
        self.progressed_at = 0.0
        self.packer = Packer()
        self.rejected = dict.fromkeys(REASONS, 0)
        self.refused: Refused | None = None
        self.origin = ""
        self.source_up = False
        self.note: Callable[..., None] = lambda *_, **__: None
        self.span: Span = no_span
        self._source = source
        self._budget = budget or Budget()
        self._publisher = publisher
        self._validator = validator
        self._start_seconds = start_seconds
        self._recall = recall
        self._log = log
        self._signing_key = signing_key
        self._compiled = signing_key is not None
        self._on_checked = on_checked
        self._on_published = on_published
        self._catalog: Catalog | None = None
        self._full_seconds = FULL_EVERY * seconds
        self._full_at = 0.0
        self._duplicates: list[str] = []
        self._publishing = asyncio.Lock()

    def reconcile(self) -> None:
        """Read everything with the next look."""
        self._catalog = None

    async def look(self) -> str:
        """One look; how it ended: `published`, `unchanged` or `frozen`. Raises AvapdError when it failed."""
        with self.span("refresh") as tell:
            result = await self._look_once()
            tell(**{"avapd.result": result})
        return result

    async def _look_once(self) -> str:
        async with self._publishing:
            began = time.monotonic()
            self.times.attempt = time.time()
            if self.switches.frozen and self._publisher.current is not None:
                await self._source.fingerprint(compiled=self._compiled)
                self._checked()
                return "frozen"
            try:
                return await self._look(began)
            except NoRoomError:  # nothing was taken in yet: what is small can be followed meanwhile
                self._full_at = began + self._full_seconds
                await asyncio.to_thread(host.give_back)
                raise
            except BaseException:
                self._catalog = None
                raise

    async def _look(self, began: float) -> str:
        await self._still_refused()
        catalog, known = self._catalog, self._catalog.fingerprint if self._catalog is not None else None
        if catalog is None or known is None or began >= self._full_at:
            snap: Snapshot | None = await self._everything(began)
        else:
            snap = await self._what_changed(catalog, known)
        self._checked()
        current = self._publisher.current
        same = snap is None or (current is not None and current.view.version_hash == snap.view.version_hash)
        if snap is not None and not same:
            await self._publish(snap, DATABASE, began)
            if snap.patch_fd is None:  # a whole catalog went through the heap
                await asyncio.to_thread(host.give_back)
        elif snap is not None:
            snap.close()
        self.refused = None
        self.origin = DATABASE
        self._tell_missing()
        if not same:
            return "published"
        self._publisher.bring_up_to_date()
        return "unchanged"

    def _tell_missing(self) -> None:
        current = self._publisher.current
        self._publisher.tell_missing(self.quarantine.missing(current.view if current is not None else None))

    async def _still_refused(self) -> None:
        """Raise what was raised before, as long as the tables hold what was refused and nobody approved it."""
        refused = self.refused
        if refused is None or refused.fingerprint is None or refused.error.version_hash in self.switches.approved:
            return
        if await self._source.fingerprint(compiled=self._compiled) == refused.fingerprint:
            self._checked()
            raise refused.error

    async def _everything(self, began: float) -> Snapshot:
        rows = await self._source.read(compiled=self._compiled, afford=lambda whole, _: self._budget.read(whole))
        if not self.source_up:
            self._log.info("DB OK", rows=len(rows.functions), duration_ms=ms_since(began))
        catalog = Catalog(rows, self._signing_key)
        del rows
        current = self._publisher.current
        first = current is None
        known = current.view.get if current is not None else (await asyncio.to_thread(self._recall)).get
        screening = self._screening(known, self._start_seconds if first else None)
        too_large = catalog.too_large - self.switches.denied.keys()
        kept = screening.messages(self._allowed(catalog.take()), too_large)
        # In a thread, so that heartbeats, signals and probes are answered meanwhile.
        snap = await asyncio.to_thread(self.packer.pack, len(catalog) + len(too_large), kept)
        if first and not len(snap.view) and screening.found:
            raise self._all_faulty(snap, screening)
        self.unchecked = screening.unchecked if first else self.unchecked
        self._catalog = None if screening.put_off else catalog
        self._full_at = time.monotonic() + self._full_seconds
        self._account(catalog)
        self.hold(screening.found)
        return snap

    async def _what_changed(self, catalog: Catalog, known: Fingerprint) -> Snapshot | None:
        """A snapshot of what is served and the changes since; None when there are none."""
        current, plans = self._publisher.current, list[Plan]()

        def choose(
            buckets: frozenset[int], marks: list[Mark], compiled_buckets: frozenset[int], compiled: list[Mark]
        ) -> Wanted:
            plan, wanted = catalog.plan(buckets, marks, compiled_buckets, compiled)
            plans.append(plan)
            return wanted

        changed = await self._source.changes(known, choose, compiled=self._compiled, afford=self._afford)
        self.source_up = True
        if changed is None or current is None:
            return None
        definitions = catalog.apply(plans[0], changed)
        self._account(catalog)
        allowed = {name: one for name, one in definitions.items() if name not in self.switches.denied}
        screening = self._screening(current.view.get)
        sound = await asyncio.to_thread(screening.changes, allowed, catalog.too_large)
        self.hold(screening.found, definitions)
        changes = {key: new for key, new in sound.items() if current.view.get(key) != new}
        if not changes:
            return None
        return await asyncio.to_thread(self.packer.patch, current, changes)

    def _screening(self, known: Known, seconds: float | None = None) -> Screening:
        return Screening(self._validator, known, self.quarantine.held, seconds=seconds, on_progress=self._progressed)

    def _progressed(self) -> None:
        self.progressed_at = time.monotonic()

    def _all_faulty(self, snap: Snapshot, screening: Screening) -> SnapshotError:
        """The error of a first catalog of which nothing is left."""
        snap.close()
        one = min(screening.found.values())
        return SnapshotError(
            f"none of {len(screening.found)} definitions passes validation; {printable(one.name, 100)}: {one.error}",
            hint="look at AVAPD_CODE_GRAMMAR and AVAPD_CHECK_INTERFACE; `avapd check` lists what fails",
        )

    def hold(self, found: Mapping[str, Held], names: Iterable[str] | None = None) -> None:
        """Put what was found into quarantine, and let out what else is held of these names, or of all."""
        new = self.quarantine.replace(found, names)
        if new:
            shown = {printable(one.name, 100): f"{one.reason}: {one.error}" for one in new[:_NAMES_SHOWN]}
            held = len(self.quarantine.held)
            self._log.error("Definitions Quarantined", count=len(new), held=held, definitions=shown)
            self.note("quarantined", count=len(new), held=held, definitions=shown)

    def _afford(self, part: Size, whole: Size | None) -> None:
        """Raise NoRoomError unless there is room for so many changes of the whole."""
        current = self._publisher.current
        patched = whole is None or (current is not None and not self.packer.rebuilds(current, *part))
        self._budget.change(part, None if patched else whole)

    def _allowed(self, definitions: Iterator[Definition]) -> Iterator[Definition]:
        denied = self.switches.denied
        return (one for one in definitions if one.name not in denied) if denied else definitions

    def _checked(self) -> None:
        self.source_up = True
        self.times.check = time.time()
        self._on_checked()

    def _account(self, catalog: Catalog) -> None:
        """Keep the counts of rows that are not served, and name the doubled ones once per change."""
        self.rejected = dict(catalog.rejected)
        duplicates = catalog.duplicates
        if duplicates != self._duplicates:
            self._duplicates = duplicates
            if duplicates:
                names = duplicates[:_NAMES_SHOWN]
                self._log.warn("Duplicate Names, Highest Id Served", names=names, count=len(duplicates))

    # --- publishing -----------------------------------------------------------------------------------------

    async def change(self, make: Callable[[], Changes], origin: str) -> Entry:
        """Publish what is served with the changes that `make` tells then; the database is not asked.

        It does not wait for a canary: that roll-out is stopped. Raises AvapdError, OSError.
        """
        self._publisher.withdraw()
        async with self._publishing:
            began = time.monotonic()
            current = self._publisher.current
            if current is None:
                raise SnapshotError("no catalog is served yet")
            changes = make()
            rows, octets = len(changes), octets_of(changes)
            self._afford(Size(rows, octets), Size(rows + len(current.view), octets + current.view.answer_size))
            snap = await asyncio.to_thread(self.packer.patch, current, changes)
            return await self._publish(snap, origin, began)

    async def load(self, count: int, read: Iterator[bytes]) -> Entry | None:
        """Publish a catalog from elsewhere (the disk) if none is served yet. Raises SnapshotError, OSError."""
        async with self._publishing:
            if self._publisher.current is not None:
                return None
            began = time.monotonic()
            snap = await asyncio.to_thread(self.packer.pack, count, read)
            return await self._publish(snap, DISK, began)

    async def _publish(self, snap: Snapshot, origin: str, began: float) -> Entry:
        attributes = {"avapd.generation": snap.view.generation, "avapd.source": origin}
        with self.span("publish", **attributes, **{"avapd.definitions": len(snap.view)}):
            return await self._roll_out(snap, origin, began)

    async def _roll_out(self, snap: Snapshot, origin: str, began: float) -> Entry:
        before = self._publisher.current.view if self._publisher.current else None
        held = before.answer() if before is not None else ()  # keeps its memory mapped until the history is written
        self.times.change = time.time()
        made = await asyncio.to_thread(difference, before, snap.view)
        if origin == DATABASE:
            try:
                guard.check(before, snap.view, made, self.switches)
            except RefusedError as error:
                self._refuse(error)
                snap.close()
                raise
        version_hash = snap.view.version_hash
        if before is None:
            self._log.info(
                "CATALOG OK", count=len(snap.view), bytes=snap.size, duration_ms=ms_since(began), source=origin
            )
        few = len(made.keys) <= _WATCHED_MOST and sum(map(len, made.keys)) <= _WATCHED_OCTETS
        names = [name_of(key).decode() for key in made.keys] if few else None
        try:
            await self._publisher.publish(snap, names, soak=origin == DATABASE)
        except RollOutError as error:
            await self._take_back()
            if not error.content or origin != DATABASE:
                raise
            self.switches.approved.discard(version_hash)
            refused = RefusedError(guard.WORKER, f"{error}; candidate {version_hash}", version_hash)
            self._refuse(refused)
            raise refused from None
        self.times.activation = time.time()
        self.origin = origin
        self.switches.approved.discard(version_hash)
        facts = {"generation": snap.view.generation, "version_hash": version_hash, **made.counts(), "source": origin}
        duration, count = ms_since(began), len(snap.view)
        self._log.info("Definitions Broadcasted", count=count, duration_ms=duration, bytes=snap.size, **facts)
        self.note("published", count=count, **facts)
        self._tell_missing()
        self.loaded.set()
        entry = await asyncio.to_thread(
            self.history.add, before, snap.view, made, at=self.times.activation, origin=origin
        )
        del held
        self._on_published(snap, entry)
        return entry

    def confirm(self) -> None:
        """What is served has been checked as a whole: it may be kept."""
        if self._publisher.current is not None and self.history.entries:
            self._on_published(self._publisher.current, self.history.entries[-1])

    def _refuse(self, error: RefusedError) -> None:
        self.refused = Refused(error, self._catalog.fingerprint if self._catalog is not None else None)
        self.note("refused", str(error), reason=error.reason, version_hash=error.version_hash)

    async def _take_back(self) -> None:
        """Publish what is served again, under a new generation, for a canary that serves what was stopped."""
        current = self._publisher.current
        if current is None or self._publisher.canary is None:
            return
        try:
            again = await asyncio.to_thread(self.packer.patch, current, {})
            await self._publisher.publish(again, [])
        except (SnapshotError, OSError):
            self._publisher.end_canary()
        else:
            self.history.renumber(again.view.generation)
            self._log.warn("Canary Brought Back", generation=again.view.generation)


def ms_since(began: float) -> float:
    """Milliseconds since a moment of the monotonic clock, to a tenth."""
    return round((time.monotonic() - began) * 1000, 1)
