"""The backlog: what a start served before it was checked, checked while it is served.

Nobody knows these definitions: no earlier run left a catalog. To check 100,000 takes a core 15 s, and until then there
would be nothing to serve at all. It is done with the least priority. What fails is taken out in one publication, unless
that is more than a fifth of the catalog: then the fault is more likely ours (AVAPD_CODE_GRAMMAR) than the table's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from avapd.control.encode import decoded
from avapd.control.guard import MOST_REMOVED
from avapd.control.publisher import Publisher
from avapd.control.quarantine import Held, Screening, digest_of
from avapd.control.refresh import VALIDATION, Refresh
from avapd.control.validator import Validator
from avapd.errors import AvapdError
from avapd.log import Log
from avapd.shared.snapshot import key_of

_BATCH: Final = 256
_PATIENCE_SECONDS: Final = 1.0


class Backlog:
    """Works off what `refresh.unchecked` has. `validator` is its own, so that a poll never waits for it."""

    def __init__(self, refresh: Refresh, publisher: Publisher, validator: Validator, log: Log) -> None:
        self._refresh = refresh
        self._publisher = publisher
        self._validator = validator
        self._log = log

    async def run(self) -> None:
        """Work it off, once there is a catalog; returns when nothing is left."""
        await self._refresh.loaded.wait()
        keys = list(self._refresh.unchecked)
        if not keys:
            return
        self._log.warn("Served Unchecked", count=len(keys), hint="they are checked now; AVAPD_SNAPSHOT_DIR spares that")
        screening = Screening(self._validator, lambda _key: None, {})
        for at in range(0, len(keys), _BATCH):
            await self._check(screening, keys[at : at + _BATCH])
        self._validator.close()
        await self._conclude(screening.found, len(keys))

    async def _check(self, screening: Screening, keys: Sequence[bytes]) -> None:
        """Check these, as they are served now; when the host does not let us, a little later."""
        while True:
            current = self._publisher.current
            served = [current.view.get(key) for key in keys] if current is not None else []
            definitions = {one.name: one for one in (decoded(octets) for octets in served if octets is not None)}
            try:
                await asyncio.to_thread(screening.changes, definitions, ())
            except OSError as error:
                self._log.warn("Check Put Off", error=error.strerror)
            else:
                return
            await asyncio.sleep(_PATIENCE_SECONDS)

    async def _conclude(self, found: dict[str, Held], count: int) -> None:
        refresh, current = self._refresh, self._publisher.current
        found = {name: held for name, held in found.items() if self._is_served(held)}
        refresh.hold(found, list(found))
        if current is not None and len(found) > MOST_REMOVED * len(current.view):
            hint = "more than a fifth: look at AVAPD_CODE_GRAMMAR and AVAPD_CHECK_INTERFACE first"
            self._log.error("Faulty Definitions Still Served", count=len(found), checked=count, hint=hint)
            return
        refresh.unchecked.clear()
        self._log.info("Backlog Checked", count=count, faulty=len(found))
        if not found:
            refresh.confirm()
            return
        try:
            await refresh.change(
                lambda: {key_of(name): None for name in found if self._is_served(found[name])}, VALIDATION
            )
        except (AvapdError, OSError) as error:
            self._log.error("Faulty Definitions Still Served", count=len(found), error=str(error))

    def _is_served(self, held: Held) -> bool:
        """Whether what was found faulty is still what is served under its name."""
        current = self._publisher.current
        served = current.view.get(key_of(held.name)) if current is not None else None
        return served is not None and digest_of(decoded(served)) == held.digest
