"""README.md from the result files alone: nothing is said here that they do not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from bench.frame import Bar, Result
from bench.pages.stats import Figure, figure, measured, met

README: Final = Path(__file__).parents[1] / "README.md"
_HEAD: Final = """# Benches

Rendered by `python -m bench render` from the files in `results/`, which hold every round; do not edit.
A cell is the statistic over the rounds, then (smallest … largest round).
"""


def render(folder: Path) -> str:
    """The page for every result file in `folder`, in the order of their names."""
    results = [Result.load(path) for path in sorted(folder.glob("*.json"))]
    return "\n".join([_HEAD, *map(_section, results)])


def stale(folder: Path) -> bool:
    """Whether README.md is not what `render` makes now."""
    return not README.exists() or README.read_text(encoding="utf-8") != render(folder)


def _section(result: Result) -> str:
    quick = " (quick run: few rounds, small sizes)" if result.quick else ""
    return "\n".join(
        [
            f"## {result.bench}: {result.title}{quick}\n",
            result.method.strip() + "\n",
            _rounds_tables(result),
            _bars_table(result),
            *(f"{name} was left out: {why}\n" for name, why in result.skipped.items()),
            f"`{result.command}`, {result.date}  ",
            f"machine: {_facts(result.machine)}  ",
            f"versions: {_facts(result.versions)}  ",
            f"parameters: {_facts(result.parameters)}\n",
        ]
    )


def _rounds_tables(result: Result) -> str:
    """A line for each case and contestant; lines that have no figure in common with those above begin a new table."""
    tables: list[tuple[set[str], list[tuple[str, str]]]] = []
    for case, contestant in dict.fromkeys((one.case, one.contestant) for one in result.rounds):
        figures = {name for one in result.rounds if one.case == case for name in one.figures}
        if not tables or not figures & tables[-1][0]:
            tables.append((set(), []))
        tables[-1][0].update(figures)
        tables[-1][1].append((case, contestant))
    return "\n".join(_rounds_table(result, figures, lines) for figures, lines in tables)


def _rounds_table(result: Result, figures: set[str], lines: list[tuple[str, str]]) -> str:
    columns = [column for column in result.columns if column.figure in figures]
    heads = [f"{column.head} [{column.unit}]" if column.unit else column.head for column in columns]
    rows = []
    for case, contestant in lines:
        count = sum(one.case == case and one.contestant == contestant for one in result.rounds)
        cells = []
        for column in columns:
            found = figure(result.rounds, case, contestant, column.figure, column.statistic)
            show = _number if column.statistic == "sum" else _cell
            cells.append(show(found, column.digits))
        rows.append([case, contestant, str(count), *cells])
    return _table(["case", "contestant", "rounds", *heads], rows)


def _bars_table(result: Result) -> str:
    rows = []
    for bar in result.bars:
        found = measured(bar, result.rounds)
        verdict = (
            "not measured" if found is None else "" if bar.limit is None else "yes" if met(bar, found) else "**no**"
        )
        limit = "" if bar.limit is None else f"{bar.sense} {bar.limit:,g} {bar.unit}".strip()
        rows.append([bar.says, bar.case, _of(bar), limit, _cell(found, bar.digits), verdict])
    return _table(["bar", "case", "figure", "limit", "measured", "met"], rows)


def _of(bar: Bar) -> str:
    over = bar.over or bar.over_case
    return f"{bar.statistic} of {bar.figure}, {bar.contestant}{f' / {over}' if over else ''}"


def _cell(found: Figure | None, digits: int) -> str:
    if found is None:
        return "-"
    value = _number(found, digits)
    return value if found.rounds == 1 else f"{value} ({found.low:,.{digits}f} … {found.high:,.{digits}f})"


def _number(found: Figure | None, digits: int) -> str:
    return "-" if found is None else f"{found.value:,.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _facts(facts: dict[str, Any] | dict[str, str]) -> str:
    return ", ".join(f"{name} {_fact(value)}" for name, value in facts.items())


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return "(" + _facts(value) + ")"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
