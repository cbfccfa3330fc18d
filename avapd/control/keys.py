"""The keys of the clients in the master: read again when their file changes, told to the workers, counted by name.

    API_KEY, AVAPD_API_KEYS_FILE ──config/keys.py──► keys ──Keys──► every worker, also those to come
            └─ looked at every second, by what stat(2) tells, and at SIGHUP

Nothing of a file that is wrong is taken: the keys of before stay. Workers see to the ends by themselves. A name keeps
its column on the board, and with it its count, until another name needs the column.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from avapd.config import Config
from avapd.config.keys import Key, load, readable_by_others
from avapd.control.aside import aside
from avapd.log import Log
from avapd.shared.board import KEYS, Board
from avapd.shared.channel import Keys

LOOK_SECONDS: Final = 1.0
_State = tuple[int, ...]


class KeyFile(Collector):
    """The keys of one avapd. `tell` brings them to the workers."""

    def __init__(self, config: Config, board: Board, log: Log, tell: Callable[[Keys], None]) -> None:
        """Read them. Raises ValueError, which the settings had found already unless the file changed since."""
        self._config = config
        self._board = board
        self._log = log
        self._tell = tell
        self.note: Callable[..., None] = lambda *_, **__: None
        self._columns: dict[str, int] = {}
        self._before: dict[int, tuple[int, int]] = {}  # what a column had counted for the name it had before
        self._state = self._look()
        self.keys = self._placed(self._load())
        self._ended = {key.name for key in self.keys if 0 < key.expires <= time.time()}

    def message(self) -> Keys:
        """What a worker is told."""
        return Keys(keys=[dataclasses.asdict(key) for key in self.keys])

    def _load(self) -> list[Key]:
        config = self._config
        if config.anonymous and not (config.api_keys_file or config.api_keys):
            return []
        return load(config.api_keys_file, config.api_keys, short=config.development)

    # --- changes ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look whether the file has changed, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            state = await aside(self._look)
            if state != self._state:
                self._state = state
                self.reload(self._config)
            self._tell_ended()

    def _look(self) -> _State:
        """What changes when the file does, or another takes its place behind a link."""
        try:
            found = Path(self._config.api_keys_file).stat() if self._config.api_keys_file else None
        except OSError as error:
            return (error.errno or 0,)
        if found is None:
            return ()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def reload(self, config: Config) -> None:
        """Read the keys anew, with these settings; what is wrong changes nothing."""
        before, self._config = self._config, config
        try:
            keys = self._placed(self._load())
        except ValueError as error:
            self._config = before
            self._log.error("Keys Not Reloaded", file=config.api_keys_file, problem=str(error))
            return
        if config.api_keys_file and readable_by_others(config.api_keys_file):
            self._log.warn("Keys Readable By Others", file=config.api_keys_file, hint="chmod o-r")
        was, now = {key.name for key in self.keys}, {key.name for key in keys}
        if keys != self.keys:
            self.keys = keys
            self._tell(self.message())
            self.note("keys_changed", keys=len(keys), added=sorted(now - was), removed=sorted(was - now))
        self._log.info("Keys Reloaded", keys=len(keys), added=sorted(now - was), removed=sorted(was - now))

    def _tell_ended(self) -> None:
        ended = {key.name for key in self.keys if 0 < key.expires <= time.time()}
        for name in sorted(ended - self._ended):
            self._log.warn("Key Expired", key=name)
        self._ended = ended

    # --- counting -----------------------------------------------------------------------------------------------

    def _placed(self, keys: list[Key]) -> list[Key]:
        """The same keys with their columns."""
        wanted = [key.name for key in keys]
        for name in wanted:
            if name in self._columns:
                continue
            column = next((free for free in range(KEYS) if free not in self._columns.values()), None)
            if column is None:  # the name that has been out of use longest gives its column away
                column = self._columns.pop(next(name for name in self._columns if name not in wanted))
            self._before[column] = self._sums(column)
            self._columns[name] = column
        return [dataclasses.replace(key, column=self._columns[key.name]) for key in keys]

    def _sums(self, column: int) -> tuple[int, int]:
        rows = self._board.all()
        return sum(row.key_calls(column) for row in rows), sum(row.key_rate(column)[1] for row in rows)

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance; the registry then asks `collect` only when it is scraped."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The calls of each key by its name, which is the operator's; there are never more than 64."""
        calls = CounterMetricFamily("avap_key_requests", "Finished calls, by the name of their key", labels=("key",))
        limited = CounterMetricFamily(
            "avap_key_limited", "Calls refused since they were beyond the rate of their key", labels=("key",)
        )
        expires = GaugeMetricFamily(
            "avap_key_expires_timestamp_seconds", "When a key ends; keys that do not are left out", labels=("key",)
        )
        for key in self.keys:
            counted, before = self._sums(key.column), self._before[key.column]
            calls.add_metric((key.name,), counted[0] - before[0])
            limited.add_metric((key.name,), counted[1] - before[1])
            if key.expires:
                expires.add_metric((key.name,), key.expires)
        yield from (calls, limited, expires)
