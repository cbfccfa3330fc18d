"""The table of a bench as somebody who edits all of it at once."""

from __future__ import annotations

import signal
import sys

from avapd.demo.postgres import Postgres
from bench.servers.avapd import Avapd


class Source:
    """Every row of the table has one generation number in its code; `fill` makes generation 0.

    With `cycle` that number comes back to 0, for clients that need answers of one length.
    """

    def __init__(self, postgres: Postgres, cycle: int = sys.maxsize) -> None:
        self._postgres = postgres
        self._cycle = cycle
        self._generation = 0

    def swap(self, server: Avapd, *, hurry: bool = False) -> None:
        """Write the next generation number into every row, and wait until every worker of the server serves it.

        `hurry` tells the server to look at once, for one that seldom polls.
        """
        published = len(server.events("Definitions Broadcasted"))
        self.edit()
        if hurry:
            server.process.send_signal(signal.SIGHUP)
        server.wait("Definitions Broadcasted", published + 1)

    def edit(self) -> None:
        """Write the next generation number into every row."""
        self._write((self._generation + 1) % self._cycle)

    def rewind(self) -> None:
        """Write 0 into every row: what sees numbers rise must not see them come back to it."""
        self._write(0)

    def _write(self, generation: int) -> None:
        last, self._generation = self._generation, generation
        edit = f"regexp_replace(code, '^generation = {last}', 'generation = {self._generation}')"
        self._postgres.psql(f"UPDATE obex_dapl_functions SET code = {edit}")
        self._postgres.psql("VACUUM obex_dapl_functions")  # autovacuum is off: the table must not grow with each edit
