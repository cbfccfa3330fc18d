"""What the questions about saturation share: closed loops over contestants, in interleaved rounds.

Each round starts all contestants anew (two processes of one program differ by some percent for as long as they live),
warms them up and then loads them in turn, case by case, so that what else the machine does meets all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from bench.frame import Bar, Column, Run
from bench.loads.drive import Client, Traffic, closed_loop, drive, warm_up
from bench.loads.load import Load
from bench.servers.contestants import SERVING, WIRE, Service, Target, check, present, started

TEN_BY_TEN: Final = Load(10, 10)
SECONDS, QUICK_SECONDS = 1.0, 1.0
COLUMNS: Final = (
    Column(figure="per_second", head="calls", unit="1/s"),
    Column(figure="per_cpu_second", head="calls per CPU second", unit="1/s"),
    Column(figure="mean_ms", head="mean latency", unit="ms", digits=3),
    Column(figure="server_cpu", head="server's CPU", unit="cores", digits=2),
    Column(figure="client_cpu", head="client's CPU", unit="cores", digits=2),
)


class Case(NamedTuple):
    """Who is loaded how, and for how long; `change` makes the target from the one that answers a definition."""

    name: str
    contestants: Sequence[str] = SERVING
    load: Load = TEN_BY_TEN
    client: Client = closed_loop
    change: Callable[[Target], Target] = lambda target: target
    seconds: float | None = None


def saturate(run: Run, served: Service, cases: Iterable[Case], *, full: int = 5, quick: int = 2) -> None:
    """Rounds A B C A B C, each case in every round."""
    cases = list(cases)
    seconds = run.parameters["seconds"] = QUICK_SECONDS if run.quick else SECONDS
    names = present(run, tuple(dict.fromkeys(name for case in cases for name in case.contestants)))
    numbers = run.rounds(full=full, quick=quick)
    run.expect(len(numbers) * sum(name in names for case in cases for name in case.contestants))
    for number in numbers:
        with started(run, names, served) as targets:
            warm_up(run, targets.values())
            for case in cases:
                for name in (name for name in names if name in case.contestants):
                    target = case.change(targets[name])
                    if number == 1:
                        check(target)
                    figures = drive(run, case.name, target, Traffic(case.client, case.load), case.seconds or seconds)
                    run.record(case.name, number, figures, contestant=name)


def ratio(
    case: str, says: str, limit: float | None = None, *, ours: str = WIRE, over: str = "", over_case: str = "",
    figure: str = "per_second",
) -> Bar:  # fmt: skip
    """The bar that ours is so many times the other."""
    return Bar(
        says=says, case=case, figure=figure, contestant=ours, over=over, over_case=over_case, sense="at least",
        limit=limit,
    )  # fmt: skip
