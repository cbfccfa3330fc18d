"""The poll: reads the source at every interval, and publishes what is new. The poll is the truth.

A failed read changes nothing but the times and counters below: the workers go on with what they have (fail open). It
is tried again after 1 s, doubling up to the interval. All waits carry ±10 % jitter, so that instances do not move in
step.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from avapd.control.catalog import REASONS, Catalog
from avapd.control.publisher import Publisher, Snapshot, changes
from avapd.control.source import Source
from avapd.errors import AvapdError, SnapshotError, SourceError
from avapd.log import Log, Throttle

RESULTS: Final = ("published", "unchanged", "failed", "rejected")
_RETRY_FIRST: Final = 1.0
_ERROR_EVERY_SECONDS: Final = 5.0
_DUPLICATES_SHOWN: Final = 10


class Times:
    """The four times of a catalog, which are never mixed up: wall clock, seconds since the epoch, 0 for never."""

    def __init__(self) -> None:
        self.attempt = 0.0  # the source was asked
        self.check = 0.0  # the source answered, whole and well
        self.change = 0.0  # the answer differed from what was served
        self.activation = 0.0  # every worker that answers serves it


class Poll:
    """Runs the reads. What it counts is public: the metrics and the status page read it.

    `first` is how the first read ended: its error or None. `loaded` is set once a catalog is served.
    """

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        log: Log,
        *,
        seconds: float,
        signing_key: str | None,
        on_checked: Callable[[], None],
    ) -> None:
        self.times = Times()
        self.results = dict.fromkeys(RESULTS, 0)
        self.duration_sum = 0.0
        self.duration_last = 0.0
        self.source_up = False
        self.last_error = ""
        self.first: asyncio.Future[AvapdError | None] = asyncio.get_running_loop().create_future()
        self.rejected = dict.fromkeys(REASONS, 0)
        self.loaded = asyncio.Event()
        self._source = source
        self._publisher = publisher
        self._log = log
        self._seconds = seconds
        self._signing_key = signing_key
        self._on_checked = on_checked
        self._generation = 0
        self._failures = 0
        self._duplicates: list[str] = []
        self._errors = Throttle(_ERROR_EVERY_SECONDS)
        self._now = asyncio.Event()

    def refresh(self) -> None:
        """Read now instead of at the next interval."""
        self._now.set()

    async def run(self) -> None:
        """Poll for ever; no error of the source ends it."""
        while True:
            self._now.clear()
            error = await self.once()
            if not self.first.done():
                self.first.set_result(error)
            wait = self._seconds
            if self._failures:
                wait = min(wait, _RETRY_FIRST * 2 ** min(self._failures - 1, 16))
            try:
                async with asyncio.timeout(wait * random.uniform(0.9, 1.1)):  # noqa: S311
                    await self._now.wait()
            except TimeoutError:
                continue

    async def once(self) -> AvapdError | None:
        """One read, and what follows from it; the error, when it failed (logged and counted already)."""
        began = time.monotonic()
        self.times.attempt = time.time()
        try:
            result = await self._refresh(began)
        except Exception as error:  # noqa: BLE001  # a bug of ours must not end the service either; it is told and counted
            self._failures += 1
            return self._failed(error)
        finally:
            self.duration_last = time.monotonic() - began
            self.duration_sum += self.duration_last
        self.results[result] += 1
        self._failures = 0
        return None

    async def _refresh(self, began: float) -> str:
        rows = await self._source.read(compiled=self._signing_key is not None)
        if not self.source_up:
            self._log.info("DB OK", rows=len(rows.functions), duration_ms=_ms(began))
        self.source_up = True
        self.last_error = ""
        catalog = Catalog(rows, self._signing_key)
        del rows
        # In a thread, so that heartbeats, signals and probes are answered meanwhile.
        snap = await asyncio.to_thread(Snapshot.build, self._generation + 1, catalog)
        self._account(catalog)
        del catalog
        self.times.check = time.time()
        self._on_checked()
        current = self._publisher.current
        if current is not None and current.view.version_hash == snap.view.version_hash:
            snap.close()
            self._publisher.bring_up_to_date()
            return "unchanged"
        self._generation += 1  # also when it is then refused: no number is ever used twice
        await self._publish(snap, began)
        return "published"

    async def _publish(self, snap: Snapshot, began: float) -> None:
        current = self._publisher.current
        self.times.change = time.time()
        difference = await asyncio.to_thread(changes, current.view if current else None, snap.view)
        if current is None:
            self._log.info("CATALOG OK", count=len(snap.view), bytes=snap.size, duration_ms=_ms(began))
        await self._publisher.publish(snap)
        self.times.activation = time.time()
        self._log.info(
            "Definitions Broadcasted",
            count=len(snap.view),
            generation=snap.view.generation,
            version_hash=snap.view.version_hash,
            **difference._asdict(),
            duration_ms=_ms(began),
            bytes=snap.size,
        )
        self.loaded.set()

    def _account(self, catalog: Catalog) -> None:
        """Keep the counts of rows that are not served, and name the doubled ones once per change."""
        self.rejected = dict(catalog.rejected)
        if catalog.duplicates != self._duplicates:
            self._duplicates = catalog.duplicates
            if self._duplicates:
                self._log.warn(
                    "Duplicate Names, Highest Id Served",
                    names=self._duplicates[:_DUPLICATES_SHOWN],
                    count=len(self._duplicates),
                )

    def _failed(self, error: Exception) -> AvapdError:
        fault = _named(error)
        if isinstance(fault, SourceError):
            self.source_up = False
        self.results["rejected" if isinstance(fault, SnapshotError) else "failed"] += 1
        self.last_error = str(fault)
        held = self._errors.passes(time.monotonic())
        if held is not None:
            fields = {"hint": fault.hint} if fault.hint else {}
            if held:
                fields["suppressed"] = str(held)
            reason = fault.reason if isinstance(fault, SourceError) else type(fault).__name__
            serving = self._publisher.generation
            self._log.error("Refresh Failed", reason=reason, error=str(fault), serving_generation=serving, **fields)
        return fault


def _named(error: Exception) -> AvapdError:
    """The error as one of ours."""
    if isinstance(error, AvapdError):
        return error
    if isinstance(error, OSError):
        return SnapshotError(f"the host refused what a snapshot needs: {error.strerror}")
    return AvapdError(f"internal error: {type(error).__name__}")


def _ms(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)
