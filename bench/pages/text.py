"""Tables, numbers and look-ups that the sections of the page share."""

from __future__ import annotations

from collections.abc import Sequence

from bench.frame import Result
from bench.pages.stats import figure


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell stays a bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines) + "\n"


def short(value: float) -> str:
    """Three significant digits, thousands apart: 0.0123, 4.57, 12.3, 35,000."""
    if value == 0:
        return "0"
    digits = next((digits for bound, digits in ((100, 0), (10, 1), (1, 2)) if abs(value) >= bound), None)
    return f"{value:.3g}" if digits is None else f"{float(f'{value:.3g}'):,.{digits}f}"


def named(results: Sequence[Result], bench: str) -> Result | None:
    """The result of a bench, if there is one."""
    return next((result for result in results if result.bench == bench), None)


def value(result: Result | None, case: str, contestant: str, name: str, statistic: str = "median") -> float | None:
    """A statistic of a figure; None when it was not measured."""
    found = figure(result.rounds, case, contestant, name, statistic) if result else None
    return found.value if found else None


def percent(share: float) -> str:
    """A share of 1 as a percentage."""
    return f"{100 * share:.3g} %" if abs(share) < 1 else f"{short(100 * share)} %"


def missing(bench: str) -> str:
    """What stands where a result is missing."""
    return f"not measured yet: `python -m bench {bench}`\n"
