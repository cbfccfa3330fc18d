"""When the last of 1,000 watchers has a new generation, and what calls beside them notice of it.

1,000 clients watch one worker, which shares the server core with the master, each on a connection of its own; ten of
them asked for the whole catalog and read nothing. One row of 10,000 is edited and committed, and the server told to
look (SIGHUP). The clock starts when PostgreSQL has answered the COMMIT; *first*, *median* and *last* are when that
share of the other 990 had the event, by the clock of their one process on the client core, *after the log line* is
the last since the arrival of "Definitions Broadcasted". Half a second lies between two edits.

*5,000/s* is an open loop as in the bench `latency`, beside the same watchers, with nothing published; with *published*
a row is edited every half second meanwhile, with P95 of all calls over it. The crowd and the open loop share the client
core with PostgreSQL, so what they take from each other is in these figures. Nobody may be lost, stalled or not.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Iterator
from typing import Final

from avapd.demo.postgres import Postgres
from bench.frame import Bar, Bench, Column, Run
from bench.loads.open_loop import CONNECTIONS, Pace, measure, random_calls
from bench.loads.watching import Crowd, Watchers
from bench.pages.stats import percentile
from bench.servers.avapd import Avapd, BenchError, pinned
from bench.servers.build import MissingToolError, go, tool, version_of
from bench.servers.contestants import WIRE, Target, avapd, service
from bench.servers.database import READER, filled, name_of

_DEFINITIONS: Final = 10_000
_DEFINITION_BYTES: Final = 1_200
_WATCHERS, _STALLED = 1_000, 10
_RATE: Final = 5_000
_SECONDS, _QUICK_SECONDS = 5.0, 2.0
_PAUSE_SECONDS: Final = 0.5
_EDITS: Final = 10
_ALONE, _QUIET, _PUBLISHED = "published", f"{_RATE:,}/s", f"{_RATE:,}/s published"
_CASES: Final = (_ALONE, _QUIET, _PUBLISHED)


def run(run: Run) -> None:
    """Edits alone, and open loops with and without them, in every round."""
    run.parameters |= {"watchers": _WATCHERS, "stalled": _STALLED, "connections": CONNECTIONS}
    numbers = run.rounds(full=5, quick=1)
    cases = [case for case in _CASES if run.wants(case, _CASES)]
    try:
        go("replay")
        run.versions["go"] = version_of(tool("go", ""), "version")
    except MissingToolError as error:
        run.skip("replay", str(error))
        cases = [case for case in cases if case == _ALONE]
    run.expect(len(numbers) * len(cases))
    calls = random_calls(_DEFINITIONS, _DEFINITIONS)
    with (
        filled(run, _DEFINITIONS, _DEFINITION_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _DEFINITION_BYTES) as served,
    ):
        edits = itertools.count(1)
        for number in numbers:
            for case in cases:
                with contextlib.ExitStack() as stack:
                    with pinned({run.cores.server}):
                        target = stack.enter_context(avapd(run, WIRE, served))
                    edited = stack.enter_context(_edited(run, target, postgres, edits))
                    if case == _ALONE:
                        figures = edited.publish(_EDITS)
                    else:
                        pace = Pace(_RATE, _QUICK_SECONDS if run.quick else _SECONDS)
                        figures = measure(run, target, calls, pace, edited.until if case == _PUBLISHED else None)
                    run.record(case, number, figures)


class _Edited:
    """A server whose table is edited while a crowd watches."""

    def __init__(self, server: Avapd, watchers: Watchers, postgres: Postgres, edits: Iterator[int]) -> None:
        self._server = server
        self._watchers = watchers
        self._postgres = postgres
        self._edits = edits

    def publish(self, times: int) -> dict[str, float]:
        """The worst of so many edits, in milliseconds; lost are connections."""
        found = [self._one() for _ in range(times)]
        return {name: max(one[name] for one in found) for name in found[0]}

    def until(self, moment: float) -> dict[str, float]:
        """Edit as long as there is time; the worst of it."""
        found = [self._one()]
        while time.perf_counter() < moment - 2 * _PAUSE_SECONDS:
            found.append(self._one())
        return {"edits": len(found), **{name: max(one[name] for one in found) for name in found[0]}}

    def _one(self) -> dict[str, float]:
        time.sleep(_PAUSE_SECONDS)
        published = len(self._server.events("Definitions Broadcasted"))
        edit = f"code = rpad('edit = {next(self._edits)} ', length(code), '#')"
        self._postgres.psql(f"UPDATE obex_dapl_functions SET {edit} WHERE name = '{name_of(_DEFINITIONS // 2)}'")
        committed, at_server = time.perf_counter(), self._server.elapsed()
        self._server.process.send_signal(signal.SIGHUP)
        seen = self._watchers.seen()
        told = self._server.wait("Definitions Broadcasted", published + 1).at - at_server
        times = [(moment - committed) * 1e3 for moment in seen.times]
        if seen.lost:
            raise BenchError(f"{seen.lost} watchers lost their connection")
        return {
            "first_ms": min(times), "median_ms": percentile(times, 50), "last_ms": max(times),
            "after_ms": max(times) - told * 1e3,
        }  # fmt: skip


@contextlib.contextmanager
def _edited(run: Run, target: Target, postgres: Postgres, edits: Iterator[int]) -> Iterator[_Edited]:
    assert target.avapd is not None
    has = target.avapd.status()["version_hash"]
    with Watchers(Crowd(target.port, run.cores.client, _WATCHERS - _STALLED, _STALLED, has)) as watchers:
        yield _Edited(target.avapd, watchers, postgres, edits)


BENCH: Final = Bench(
    name="watch",
    title="a thousand watchers are told of a change",
    method=__doc__,
    cases=_CASES,
    columns=(
        Column(figure="first_ms", head="first", unit="ms"),
        Column(figure="median_ms", head="median", unit="ms"),
        Column(figure="last_ms", head="last", unit="ms"),
        Column(figure="after_ms", head="after the log line", unit="ms"),
        Column(figure="p50_ms", head="calls, P50", unit="ms", digits=3),
        Column(figure="p95_ms", head="P95", unit="ms", digits=3),
        Column(figure="p99_ms", head="P99", unit="ms", digits=3),
        Column(figure="max_ms", head="largest", unit="ms", digits=1, statistic="max"),
        Column(figure="lost", head="without an answer, sum", statistic="sum"),
        Column(figure="server_cpu", head="server's CPU", unit="cores", digits=2),
    ),
    bars=(
        Bar(says="the last of 990 watchers has a change after the commit", case=_ALONE, figure="last_ms",
            statistic="max", limit=500, unit="ms", digits=0),
        Bar(says="also beside 5,000 calls a second", case=_PUBLISHED, figure="last_ms", statistic="max", limit=500,
            unit="ms", digits=0),
        Bar(says="P95 of calls while changes are published, over P95 while not", case=_PUBLISHED, figure="p95_ms",
            over_case=_QUIET, limit=1.25),
        Bar(says="calls without an answer", case=_PUBLISHED, figure="lost", statistic="sum", limit=0, digits=0),
    ),
    run=run,
)  # fmt: skip
