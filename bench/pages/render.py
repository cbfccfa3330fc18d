"""README.md from the result files alone: nothing is said here that they do not say."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.frame import Bar, Result
from bench.pages import brief, capacity, plots
from bench.pages.stats import Figure, figure, measured, met
from bench.pages.text import table

README: Final = Path(__file__).parents[1] / "README.md"
_HEAD: Final = """# Benches

Rendered by `python -m bench render` from the files in `results/`, which hold every round; do not edit.
A cell is the statistic over the rounds, then (smallest … largest round).
"""
_PAGE: Final = "bench/README.md"


def render(folder: Path, page: Path = README) -> str:
    """The page for every result file in `folder`, in the order of their names; links are as seen from `page`."""
    results = _results(folder)
    parts = [brief.section(results), *(_section(result, folder, page) for result in results), capacity.section(results)]
    sections = [part for part in parts if part]
    return "\n".join([_HEAD, _contents(sections), *sections])


def faults(folder: Path, page: Path = README) -> list[str]:
    """What is not as `write` would leave it: the page, its pictures; one line each. Needs no matplotlib."""
    same = page.exists() and page.read_text(encoding="utf-8") == render(folder, page)
    return ([] if same else [f"{_PAGE} is stale"]) + plots.faults(folder, _results(folder))


def write(folder: Path, page: Path = README) -> None:
    """Write the page, then draw the pictures that are missing or stale. Raises plots.NoMatplotlibError."""
    page.write_text(render(folder, page), encoding="utf-8")
    plots.draw(folder, _results(folder))


def _results(folder: Path) -> list[Result]:
    return [Result.load(path) for path in sorted(folder.glob("*.json"))]


def _contents(sections: Sequence[str]) -> str:
    """Links to the sections, by the anchors that GitHub gives to headings."""
    heads = [section.partition("\n")[0].removeprefix("## ") for section in sections]
    return "\n".join(f"- [{head}](#{anchor(head)})" for head in heads) + "\n"


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading: small letters, no punctuation, a hyphen for each blank."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _section(result: Result, folder: Path, page: Path) -> str:
    quick = " (quick run: few rounds, small sizes)" if result.quick else ""
    return "\n".join(
        [
            f"## {result.bench}: {result.title}{quick}\n",
            result.method.strip() + "\n",
            _rounds_tables(result),
            *_pictures(result, folder, page),
            _bars_table(result),
            *(f"{name} was left out: {why}\n" for name, why in result.skipped.items()),
            f"`{result.command}`, {result.date}  ",
            f"machine: {_facts(result.machine)}  ",
            f"versions: {_facts(result.versions)}  ",
            f"parameters: {_facts(result.parameters)}\n",
            *_commands(result),
        ]
    )


def _pictures(result: Result, folder: Path, page: Path) -> list[str]:
    """A link for each plot that shows something, with what it shows in words."""
    place = Path(os.path.relpath(folder.resolve() / plots.FOLDER, page.resolve().parent)).as_posix()
    return [f"![{_alt(shown)}]({place}/{name})\n" for name, shown in plots.pictures([result])]


def _alt(shown: plots.Picture) -> str:
    return re.sub(r"([\[\]\\])", r"\\\1", shown.text)


def _commands(result: Result) -> list[str]:
    """The exact command lines, folded away."""
    if not result.commands:
        return []
    lines = "\n".join(f"# {name}\n{command}" for name, command in result.commands.items())
    return [f"<details><summary>Exact command lines</summary>\n\n```sh\n{lines}\n```\n\n</details>\n"]


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
    return table(["case", "contestant", "rounds", *heads], rows)


def _bars_table(result: Result) -> str:
    rows = []
    for bar in result.bars:
        found = measured(bar, result.rounds)
        verdict = (
            "not measured" if found is None else "" if bar.limit is None else "yes" if met(bar, found) else "**no**"
        )
        limit = "" if bar.limit is None else f"{bar.sense} {bar.limit:,g} {bar.unit}".strip()
        rows.append([bar.says, bar.case, _of(bar), limit, _cell(found, bar.digits), verdict])
    return table(["bar", "case", "figure", "limit", "measured", "met"], rows)


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


def _facts(facts: dict[str, Any] | dict[str, str]) -> str:
    return ", ".join(f"{name} {_fact(value)}" for name, value in facts.items())


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return "(" + _facts(value) + ")"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
