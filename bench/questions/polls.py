"""What a poll costs PostgreSQL and the master, by size of the table: the figures a fleet is reckoned from.

One avapd, told to look at its table again and again (SIGHUP), on a connection of its own each time as always.
*database* is the CPU time of PostgreSQL for one poll, all its processes, the start of the connection's process
included; *poll* is how long it takes; *master* the CPU time of avapd's master; *over the wire* what PostgreSQL sent
meanwhile, counted by a relay between the two. *unchanged* polls a table as it was, *all changed* one whose every row
was edited before, *one changed* one with a single edit.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final

from avapd.demo.postgres import Postgres
from bench.frame import Bench, Column, Run
from bench.servers import proc
from bench.servers.avapd import Avapd
from bench.servers.database import READER, database, fill, version
from bench.servers.relay import Relay
from bench.servers.source import Source

_SIZES: Final = {"1,000": 1_000, "10,000": 10_000, "100,000": 100_000}
_UNCHANGED, _ONE, _ALL = "unchanged", "one changed", "all changed"
_CASES: Final = tuple(f"{size} {how}" for size in _SIZES for how in (_UNCHANGED, _ONE, _ALL))
_DEFINITION_BYTES: Final = 1_200
# The kernel counts CPU time in steps of 10 ms: what is cheap is done often enough for a round to take some of them.
_ASK_SECONDS: Final = 0.02
_ASKED: Final = 20
_POLLS: Final = {"1,000": 20, "10,000": 10, "100,000": 3}


def run(run: Run) -> None:
    """Each size, each kind of change, in every round."""
    run.parameters |= {"workers": 1, "definition_bytes": _DEFINITION_BYTES, "polls": _POLLS}
    numbers = run.rounds(full=5, quick=1)
    cases = [case for case in _CASES if run.wants(case, _CASES)]
    run.expect(len(numbers) * len(cases))
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        for size, count in _SIZES.items():
            fill(postgres, count, _DEFINITION_BYTES)
            source = Source(postgres, cycle=10)
            with Relay(postgres.url(READER)) as relay, Avapd(relay.url, workers=1) as server:
                server.wait("SERVING")
                run.commands.setdefault("avapd", server.command)
                edits: dict[str, Callable[[], None]] = {
                    _UNCHANGED: lambda: None, _ONE: lambda: _edit_one(postgres), _ALL: source.edit
                }  # fmt: skip
                account = _Account(postgres, server, relay)
                for number in numbers:
                    for how, edit in edits.items():
                        if f"{size} {how}" in cases:
                            run.record(f"{size} {how}", number, _polls(account, edit, _POLLS[size]))


class _Account:
    """What both sides have used so far: seconds of CPU, and bytes that the database sent."""

    def __init__(self, postgres: Postgres, server: Avapd, relay: Relay) -> None:
        self.server = server
        self._postgres = postgres
        self._relay = relay

    def now(self) -> tuple[float, float, int]:
        """Of the database, of the master, over the wire."""
        master = proc.cpu_seconds(self.server.process.pid)
        return proc.family_seconds(self._postgres.pid), master, self._relay.received


def _polls(account: _Account, edit: Callable[[], None], times: int) -> dict[str, float]:
    """The mean of so many polls; what it costs the master to be asked whether a poll has ended is taken off again."""
    server, asking = account.server, _cost_of_asking(account.server)
    figures = dict.fromkeys(("database_cpu_ms", "database_ms", "master_cpu_ms", "mb"), 0.0)
    for _ in range(times):
        edit()
        polls, before, asked = _done(server), account.now(), 0
        server.process.send_signal(signal.SIGHUP)
        while _done(server) == polls:
            asked += 1
            time.sleep(_ASK_SECONDS)
        database, master, received = (now - then for now, then in zip(account.now(), before, strict=True))
        figures["database_ms"] += server.status()["polls"]["last_seconds"] * 1e3
        figures["database_cpu_ms"] += database * 1e3
        figures["master_cpu_ms"] += master * 1e3 - asking * (asked + 1)
        figures["mb"] += received / proc.MB
    return {name: max(0.0, value) / times for name, value in figures.items()}


def _done(server: Avapd) -> int:
    """How many polls have ended."""
    polls = server.status()["polls"]
    return sum(count for name, count in polls.items() if name != "last_seconds")


def _cost_of_asking(server: Avapd) -> float:
    """Milliseconds of the master's CPU time for one look at /status."""
    before = proc.cpu_seconds(server.process.pid)
    for _ in range(_ASKED):
        _done(server)
    return (proc.cpu_seconds(server.process.pid) - before) / _ASKED * 1e3


def _edit_one(postgres: Postgres) -> None:
    postgres.psql("UPDATE obex_dapl_functions SET code = code || ' ' WHERE id = 1")


BENCH: Final = Bench(
    name="polls",
    title="what a poll costs PostgreSQL",
    method=__doc__,
    cases=_CASES,
    columns=(
        Column(figure="database_cpu_ms", head="database, CPU", unit="ms", digits=2),
        Column(figure="database_ms", head="poll", unit="ms", digits=1),
        Column(figure="master_cpu_ms", head="master, CPU", unit="ms", digits=2),
        Column(figure="mb", head="over the wire", unit="MB", digits=3),
    ),
    bars=(),
    run=run,
)
