"""The plots of a result as SVG, for its section of the page.

A picture carries the SHA-256 of what it shows: figures, names, titles. So a stale one is found without drawing it
again, and one that shows what it should is left as it is, whatever version of matplotlib drew it. Only drawing needs
matplotlib.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.frame import Column, Plot, Result
from bench.pages.stats import Figure, figure

FOLDER: Final = "plots"
INSTALL: Final = "pip install '.[bench]'"
# Another number draws every picture anew: to be raised when the drawing changes.
_DRAWING: Final = 1
_DIGEST: Final = re.compile(r"<dc:identifier>sha256:([0-9a-f]{64})</dc:identifier>")


class NoMatplotlibError(Exception):
    """matplotlib, which draws, is not installed."""

    def __init__(self) -> None:
        super().__init__(f"matplotlib is not installed, no picture was drawn: {INSTALL}")


class Series(NamedTuple):
    """What one contestant showed in one figure: a point for each case of the picture, None where there is none."""

    contestant: str
    points: list[Figure | None]


class Panel(NamedTuple):
    """One figure of a plot; `whiskers` where the spread of the rounds lies around the value."""

    column: Column
    series: list[Series]
    whiskers: bool


class Picture(NamedTuple):
    """All that a picture shows."""

    plot: Plot
    cases: list[str]
    panels: list[Panel]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is shown."""
        plot = self.plot
        shown = [plot.title, plot.kind, plot.axis, plot.log, self.cases, _DRAWING]
        panels = [
            [one.column.head, one.column.unit, one.column.digits, one.whiskers, one.series] for one in self.panels
        ]
        return hashlib.sha256(json.dumps([*shown, panels], ensure_ascii=False).encode()).hexdigest()

    @property
    def text(self) -> str:
        """What it shows, in words, for those who do not see it."""
        whose = list(dict.fromkeys(series.contestant for panel in self.panels for series in panel.series))
        return f"{self.plot.title} ({self.plot.axis}): {', '.join(whose)}; {', '.join(self.cases)}"


def picture(result: Result, plot: Plot) -> Picture | None:
    """What a plot shows of a result; None when none of it was measured."""
    cases = plot.cases or tuple(dict.fromkeys(one.case for one in result.rounds))
    contestants = plot.contestants or tuple(dict.fromkeys(one.contestant for one in result.rounds))
    panels = []
    for name in plot.figures:
        column = next((column for column in result.columns if column.figure == name), Column(figure=name, head=name))
        points = {
            whose: [figure(result.rounds, case, whose, name, column.statistic) for case in cases]
            for whose in contestants
        }
        series = [Series(whose, values) for whose, values in points.items() if any(values)]
        if series:
            panels.append(Panel(column, series, column.statistic != "sum"))
    measured = [
        number
        for number in range(len(cases))
        if any(series.points[number] for panel in panels for series in panel.series)
    ]
    if not measured:
        return None
    panels = [
        panel._replace(series=[Series(one.contestant, [one.points[number] for number in measured]) for one in series])
        for panel, series in ((panel, panel.series) for panel in panels)
    ]
    return Picture(plot, [cases[number] for number in measured], panels)


def pictures(results: Sequence[Result]) -> Iterator[tuple[str, Picture]]:
    """File name and content of every picture of a page."""
    for result in results:
        for plot in result.plots:
            if shown := picture(result, plot):
                yield file_name(result, plot), shown


def file_name(result: Result, plot: Plot) -> str:
    """The name of a picture's file in its folder."""
    return f"{result.bench}-{plot.name}.svg"


def faults(folder: Path, results: Sequence[Result]) -> list[str]:
    """What is wrong with the pictures of a folder of results: missing, stale, or of no result; one line each."""
    wanted = dict(pictures(results))
    there = {path.name: path for path in sorted((folder / FOLDER).glob("*.svg"))}
    wrong = [
        f"{name} is {'stale' if name in there else 'missing'}"
        for name, shown in wanted.items()
        if name not in there or _digest_of(there[name]) != shown.digest
    ]
    return wrong + [f"{name} belongs to no result" for name in there if name not in wanted]


def draw(folder: Path, results: Sequence[Result]) -> list[str]:
    """Draw what is missing or stale, remove what belongs to no result; the names of what was drawn.

    Raises NoMatplotlibError.
    """
    wanted = dict(pictures(results))
    place = folder / FOLDER
    for path in place.glob("*.svg"):
        if path.name not in wanted:
            path.unlink()
    drawn = []
    for name, shown in wanted.items():
        path = place / name
        if not path.exists() or _digest_of(path) != shown.digest:
            text = svg(shown)
            place.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            drawn.append(name)
    return drawn


def svg(shown: Picture) -> str:
    """The picture as an SVG document. Raises NoMatplotlibError."""
    try:
        from bench.pages import drawing  # noqa: PLC0415  # matplotlib is for those who draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise NoMatplotlibError from error
    return drawing.svg(shown)


def as_plain(shown: Picture) -> dict[str, Any]:
    """The figures of a picture: figure → contestant → case → (value, smallest, largest)."""
    return {
        panel.column.figure: {
            series.contestant: {
                case: point[:3] for case, point in zip(shown.cases, series.points, strict=True) if point
            }
            for series in panel.series
        }
        for panel in shown.panels
    }


def _digest_of(path: Path) -> str:
    found = _DIGEST.search(path.read_text(encoding="utf-8"))
    return found[1] if found else ""
