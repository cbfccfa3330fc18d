"""A fleet of pods that poll one database: when their polls fall (simulated), and what that asks of PostgreSQL.

Pods know nothing of each other and a poll is taken to last no time, so each pod is drawn for itself and its polls are
counted by the second. The first read of a pod, which is its start, is no poll.
"""

# ruff: noqa: RUF001  # takes the sign of multiplication for a letter

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.frame import OURS, Result
from bench.pages.text import missing, named, percent, short, table, value

PODS: Final = 10_000
PERIOD: Final = 60.0  # seconds
JITTER: Final = 0.1
PERIODS: Final = 5  # that a window lasts
HOUR: Final = 3_600
REPLICAS: Final = (0, 2, 5, 10)
LAGS: Final = (0.1, 1.0, 10.0)  # seconds
BUSY: Final = 0.5
PROPAGATION: Final = ("100,000 definitions, notified", OURS, "served_ms")
_SEED: Final = 1


class Scenario(NamedTuple):
    """How pods start (evenly drawn over `spread` seconds) and by what share each wait is drawn longer or shorter."""

    name: str
    spread: float
    jitter: float


class Window(NamedTuple):
    """Polls a second over some periods: the mean, and the worst whole second."""

    mean: float
    worst: int


class Load(NamedTuple):
    """The first periods, and as many an hour later."""

    first: Window
    later: Window


SCENARIOS: Final = (
    Scenario("all start at once, no jitter", 0, 0),
    Scenario("all start at once, ±10 %", 0, JITTER),
    Scenario("starts spread over 60 s, no jitter", PERIOD, 0),
    Scenario("starts spread over 60 s, ±10 %", PERIOD, JITTER),
)


def polls(scenario: Scenario, pods: int, until: float, period: float = PERIOD, seed: int = _SEED) -> Counter[int]:
    """Polls in each second from the first start on, up to `until`."""
    draw = random.Random(seed).random
    shortest, width = period * (1 - scenario.jitter), period * 2 * scenario.jitter
    count: Counter[int] = Counter()
    for _ in range(pods):
        at = scenario.spread * draw() + shortest + width * draw()
        seconds = []
        while at < until:
            seconds.append(int(at))
            at += shortest + width * draw()
        count.update(seconds)
    return count


@functools.cache
def load(scenario: Scenario, pods: int = PODS, period: float = PERIOD) -> Load:
    """Windows begin where the last start is half a period back on average, so that no poll is cut off at an edge."""
    begin = (period + scenario.spread) / 2
    length = PERIODS * period
    count = polls(scenario, pods, begin + HOUR + length, period)

    def window(since: float) -> Window:
        there = [count[second] for second in range(int(since), int(since + length))]
        return Window(sum(there) / length, max(there))

    return Load(window(begin), window(begin + HOUR))


def cores(polls_per_second: float, cpu_ms: float) -> float:
    """Cores of PostgreSQL that so many polls keep busy."""
    return polls_per_second * cpu_ms / 1_000


def carried(cpu_ms: float, period: float = PERIOD, busy: float = BUSY) -> float:
    """Pods whose polls keep one core busy for this share of its time, evenly spread."""
    return busy * period / (cpu_ms / 1_000)


# --- the part of the page -------------------------------------------------------------------------------------------


class _Poll(NamedTuple):
    """A poll as measured: CPU of PostgreSQL [ms] and octets over the wire [MB]."""

    case: str
    cpu_ms: float
    mb: float | None


def part(results: Sequence[Result]) -> list[str]:
    """The paragraphs and tables on the fleet."""
    result = named(results, "polls")
    return [
        f"### {PODS:,} pods on one PostgreSQL\n",
        (
            f"**Simulated**: each pod polls {PERIOD:g} s after its last poll, or {PERIOD:g} s ± {percent(JITTER)} drawn"
            f" anew each time, as avapd does. The windows are {PERIODS} periods, from the first polls on and an hour"
            " later. Starts themselves are not in it.\n"
        ),
        _simulated(),
        *(_database(result) if result else [f"Cores of PostgreSQL: {missing('polls')}"]),
        *_lag(results),
    ]


def _simulated() -> str:
    rows = []
    for scenario in SCENARIOS:
        seen = load(scenario)
        rows.append(
            [
                scenario.name, short(seen.first.mean), f"{seen.first.worst:,}", short(seen.later.mean),
                f"{seen.later.worst:,}",
            ]
        )  # fmt: skip
    return table(
        ["starts and waits", "polls, mean [1/s]", "worst second", "an hour later, mean [1/s]", "worst second"], rows
    )


def _database(result: Result) -> list[str]:
    known = [
        _Poll(case, cpu, value(result, case, OURS, "mb"))
        for case in dict.fromkeys(one.case for one in result.rounds)
        if (cpu := value(result, case, OURS, "database_cpu_ms"))
    ]
    quiet = [poll for poll in known if poll.case.endswith("unchanged")]
    changed = [poll for poll in known if not poll.case.endswith("unchanged")]
    return [*_unchanged(quiet), *_changed(changed), *_replicas(quiet, changed)]


def _unchanged(quiet: Sequence[_Poll]) -> list[str]:
    if not quiet:
        return []
    rows = []
    for poll in quiet:
        for scenario in SCENARIOS:
            seen = load(scenario)
            rates = (seen.first.mean, seen.first.worst, seen.later.worst)
            rows.append([poll.case, short(poll.cpu_ms), scenario.name, *(short(cores(r, poll.cpu_ms)) for r in rates)])
    head = [
        "poll", "CPU of PostgreSQL, measured [ms]", "starts and waits", "cores, mean", "cores, worst second",
        "an hour later, worst second",
    ]  # fmt: skip
    fits = "; ".join(
        f"{poll.case}: {BUSY:g} × {PERIOD:g} s ÷ {short(poll.cpu_ms)} ms = {short(carried(poll.cpu_ms))} pods"
        for poll in quiet
    )
    return [
        (
            "Nothing has changed. **Computed**: simulated polls a second × measured CPU of a poll. More cores than"
            " there are means that polls wait, and fail after their deadline:\n"
        ),
        table(head, rows),
        f"One core of PostgreSQL that is to be {percent(BUSY)} busy carries, evenly spread (**computed**): {fits}.\n",
    ]


def _changed(changed: Sequence[_Poll]) -> list[str]:
    if not changed:
        return []
    rows = []
    for poll in changed:
        work = PODS * poll.cpu_ms / 1_000
        sent = ["-", "-", "-"]
        if poll.mb is not None:
            sent = [short(poll.mb), short(PODS * poll.mb / 1_000), short(PODS * poll.mb * 8 / 1_000 / PERIOD)]
        rows.append([poll.case, short(poll.cpu_ms), short(work), short(work / PERIOD), *sent])
    head = [
        "poll", "CPU of PostgreSQL, measured [ms]", f"× {PODS:,} pods [CPU s]", f"cores, over {PERIOD:g} s",
        "octets, measured [MB]", f"× {PODS:,} pods [GB]", f"Gbit/s, over {PERIOD:g} s",
    ]  # fmt: skip
    return [
        (
            f"Something has changed, and every pod reads it within one period of {PERIOD:g} s. **Computed** from"
            " measured polls:\n"
        ),
        table(head, rows),
        "A pod that starts reads the whole table: all at once are taken to cost what they do when all has changed.\n",
    ]


def _replicas(quiet: Sequence[_Poll], changed: Sequence[_Poll]) -> list[str]:
    """What each of so many servers has to do, in the last scenario: what avapd does when starts are not at once."""
    seen = load(SCENARIOS[-1])
    rows = []
    for poll in quiet:
        for replicas in REPLICAS:
            servers = max(1, replicas)
            rates = (seen.first.mean, max(seen.first.worst, seen.later.worst))
            whose = "the primary" if not replicas else f"each of {replicas}"
            rows.append([poll.case, f"{replicas}", whose, *(short(cores(r, poll.cpu_ms) / servers) for r in rates)])
    for poll in changed:
        for replicas in REPLICAS:
            whose = "the primary" if not replicas else f"each of {replicas}"
            over = cores(PODS / PERIOD, poll.cpu_ms) / max(1, replicas)
            rows.append([poll.case, f"{replicas}", whose, short(over), "-"])
    if not rows:
        return []
    return [
        (
            f"With read replicas, which then do all the reading ({SCENARIOS[-1].name}; a change is read within"
            f" {PERIOD:g} s). What a replica needs to follow the primary is not in it. **Computed**:\n"
        ),
        table(["poll", "replicas", "load of", "cores, mean", "cores, worst second"], rows),
    ]


def _lag(results: Sequence[Result]) -> list[str]:
    found = value(named(results, "propagation"), *PROPAGATION, "p99")
    road = (found or 0) / 1_000
    mean = (
        PERIOD / 2 * (1 + JITTER**2 / 3)
    )  # of what is left of a wait at a random moment: long waits are met more often
    longest = PERIOD * (1 + JITTER)
    rows = [[f"{lag:g}", f"{mean + lag + road:.1f}", f"{longest + lag + road:.1f}"] for lag in (0.0, *LAGS)]
    case, _, figure = PROPAGATION
    told = f"{short(found)} ms, measured" if found is not None else missing("propagation").strip()
    return [
        (
            f"From the commit until all serve. **Computed**: a pod that polled just before waits for its next poll,"
            f" {longest:g} s at most; a replica shows the change later by its lag; reading and publishing come on top"
            f" (`propagation`, {case}, P99 of {figure}: {told}).\n"
        ),
        table(["lag [s]", "pods, on average [s]", "last pod, at most [s]"], rows),
    ]
