"""How a picture is drawn: matplotlib, without its global state. The same figures give the same octets.

Text stays text, in the reader's own sans serif; room is made for DejaVu Sans, which is wider than most. The ground is
white, so that a picture is as readable on a dark page.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bench.pages.plots import Panel, Picture, Series
from bench.pages.stats import Figure

_SETTINGS: Final[Any] = {
    "svg.hashsalt": "avapd", "svg.fonttype": "none", "font.family": ["DejaVu Sans"], "font.size": 8.5,
    "text.color": "#1f2328", "axes.edgecolor": "#8c959f", "axes.labelcolor": "#57606a", "axes.linewidth": 0.8,
    "xtick.color": "#57606a", "ytick.color": "#57606a", "axes.formatter.use_mathtext": False,
}  # fmt: skip
_FONT: Final = re.compile(r"(font: [^;\"]*?px )'DejaVu Sans'[^;\"]*|font-family: *'DejaVu Sans'[^;\"]*")
_FONTS: Final = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
_INK, _QUIET, _GRID = "#1f2328", "#57606a", "#d8dee4"

# Ours are strong; families of others share a hue: Python brown and ochre, JavaScript olive, compiled ones grey-blue.
_COLOURS: Final = {
    "wire": "#0b57d0", "grpcio": "#e8590c", "avapd": "#00796b",
    "bare_aio": "#c9a66b", "constant_aio": "#c9a66b", "grpc_aio": "#b08d57", "grpc_sync": "#94714a",
    "grpclib": "#d8bd8a", "grpc_js": "#a3ad6b", "grpc_js_cluster": "#7f8a4b", "grpc_go": "#79a7b8", "tonic": "#b58aa5",
    "nghttpd": "#8c97a8", "grpc-js": "#a3ad6b", "grpc-go": "#79a7b8", "ghz": "#5e8a9c",
}  # fmt: skip
_OTHERS: Final = ("#9aa5b1", "#b7a6c9", "#a8b8a0", "#c7a9a0", "#8fb0a9", "#b9b38e")
_WIDTH: Final = 10.0  # inches: 960 CSS pixels, the width of a page on GitHub
_ROW, _GAP, _HEAD = 0.215, 0.16, 0.25  # inches of a bar, between groups, of a group's name
_TOP, _BOTTOM = 0.72, 0.62
_STYLES: Final = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


def svg(shown: Picture) -> str:
    """The picture as an SVG document, its digest in the metadata."""
    with mpl.rc_context(_SETTINGS):
        canvas = _bars(shown) if shown.plot.kind == "bars" else _lines(shown)
        out = io.BytesIO()
        metadata = {"Date": None, "Creator": None, "Title": shown.plot.title, "Identifier": f"sha256:{shown.digest}"}
        canvas.savefig(out, format="svg", metadata=metadata)
    text = _FONT.sub(lambda found: f"{found[1] or 'font-family: '}{_FONTS}", out.getvalue().decode())
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def colour(contestant: str) -> str:
    """The colour (#rrggbb) of a contestant, in every picture; a variant ("avapd, ...") is a lighter one of its own."""
    if contestant in _COLOURS:
        return _COLOURS[contestant]
    whose, comma, _ = contestant.partition(",")
    if comma and whose in _COLOURS:
        return _lighter(_COLOURS[whose])
    return _OTHERS[sum(contestant.encode()) % len(_OTHERS)]


def _lighter(base: str) -> str:
    parts = (int(base[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * 0.45):02x}" for part in parts)


# --- bars -----------------------------------------------------------------------------------------------------------


def _bars(shown: Picture) -> Canvas:
    """Groups are cases, bars are contestants, each with its name; the figures stand side by side."""
    names = list(dict.fromkeys(series.contestant for panel in shown.panels for series in panel.series))
    grouped = len(names) > 1
    rows, heads, depth = _rows(shown, names)
    bottom = _BOTTOM if len(shown.panels) > 1 else _BOTTOM - 0.2
    height = _TOP + depth + bottom
    canvas = Canvas(figsize=(_WIDTH, height), facecolor="white")
    labels = names if grouped else shown.cases
    left = min(2.6, 0.35 + 0.075 * max([*map(len, labels), *(0.9 * len(case) for case in shown.cases if grouped)]))
    count = len(shown.panels)
    room = (_WIDTH - left - 0.25) / count
    for number, panel in enumerate(shown.panels):
        axes = canvas.add_axes(
            ((left + number * room) / _WIDTH, bottom / height, (room - 0.2) / _WIDTH, depth / height)
        )
        axes.set_ylim(depth, 0)
        _bars_of(axes, shown, panel, rows)
        _across(axes, shown, panel)
        axes.set_yticks([])
        if number == 0:
            for (case, name), y in rows.items():
                ours = name in {"wire", "grpcio", "avapd"}
                axes.annotate(
                    name if grouped else case, (0, y), xycoords=("axes fraction", "data"), xytext=(-5, 0),
                    textcoords="offset points", ha="right", va="center", color=_INK if ours else _QUIET,
                    fontsize=8.5, fontweight="bold" if ours and grouped else "normal",
                )  # fmt: skip
            for case, y in heads.items():
                canvas.text(
                    0.012, 1 - (_TOP + y) / height, case, ha="left", va="center", fontsize=9, fontweight="bold",
                    color=_INK,
                )  # fmt: skip
    _titles(canvas, shown, height)
    return canvas


def _rows(shown: Picture, names: Sequence[str]) -> tuple[dict[tuple[str, str], float], dict[str, float], float]:
    """Where the bar of each case and contestant lies, and the name of each case; inches from the top, and all of it."""
    rows: dict[tuple[str, str], float] = {}
    heads: dict[str, float] = {}
    depth = _GAP / 2
    for number, case in enumerate(shown.cases):
        there = [
            name
            for name in names
            if any(one.contestant == name and one.points[number] for panel in shown.panels for one in panel.series)
        ]
        if len(names) > 1:
            heads[case] = depth + _HEAD / 2
            depth += _HEAD
        for name in there:
            rows[case, name] = depth + _ROW / 2
            depth += _ROW
        depth += _GAP if len(names) > 1 else 0.05
    return rows, heads, depth


def _bars_of(axes: Axes, shown: Picture, panel: Panel, rows: dict[tuple[str, str], float]) -> None:
    for series in panel.series:
        for case, point in zip(shown.cases, series.points, strict=True):
            if point is None:
                continue
            y = rows[case, series.contestant]
            axes.barh(y, point.value, height=_ROW * 0.78, color=colour(series.contestant), zorder=2)
            end = point.value
            if panel.whiskers and point.rounds > 1:
                axes.plot([point.low, point.high], [y, y], color=_INK, lw=0.9, solid_capstyle="butt", zorder=3)
                end = max(point.high, end)
            axes.annotate(
                f"{point.value:,.{panel.column.digits}f}", (end, y), xytext=(4, 0), textcoords="offset points",
                va="center", ha="left", fontsize=8, color=_INK, zorder=4,
            )  # fmt: skip


def _across(axes: Axes, shown: Picture, panel: Panel) -> None:
    """The axis of the figure: from 0, or from a power of ten below all of them; with room for the printed values."""
    ends = [max(point.value, point.high) if panel.whiskers else point.value for point in _points(panel.series)]
    least = [min(point.value, point.low) for point in _points(panel.series) if point.low > 0]
    text = 0.075 * max(len(f"{end:,.{panel.column.digits}f}") for end in ends) + 0.1
    share = min(0.45, text / (axes.get_position().width * _WIDTH))
    if shown.plot.log and least:
        low = 10.0 ** math.floor(math.log10(min(least) / 1.3))
        axes.set_xscale("log")
        axes.set_xlim(low, low * (max(ends) / low) ** (1 / (1 - share)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, max(ends, default=1) / (1 - share) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(visible=True, axis="x", color=_GRID, lw=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="x", length=0, labelsize=8)
    if len(shown.panels) > 1:
        axes.set_xlabel(_headed(panel), fontsize=8.5)


# --- lines ----------------------------------------------------------------------------------------------------------


def _lines(shown: Picture) -> Canvas:
    """The cases in their order from left to right, one line for each contestant and figure."""
    height = 4.2
    canvas = Canvas(figsize=(_WIDTH, height), facecolor="white")
    labels = [_label(shown, panel, series) for panel in shown.panels for series in panel.series]
    legend = min(3.4, 0.6 + 0.073 * max(map(len, labels)))
    axes = canvas.add_axes((0.7 / _WIDTH, 0.5 / height, (_WIDTH - 0.9 - legend) / _WIDTH, (height - 1.3) / height))
    places = range(len(shown.cases))
    for number, panel in enumerate(shown.panels):
        for series in panel.series:
            _line(axes, panel, series, _label(shown, panel, series), _STYLES[number % len(_STYLES)])
    if shown.plot.log and any(point.value > 0 for panel in shown.panels for point in _points(panel.series)):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(-0.15, len(shown.cases) - 0.85)
    wide = max(8, int(90 / max(1, len(shown.cases))))
    axes.set_xticks(list(places), [textwrap.fill(case, wide) for case in shown.cases])
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(visible=True, axis="y", color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="both", length=0, labelsize=8.5)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8.5, handlelength=2.8, borderaxespad=0
    )
    _titles(canvas, shown, height)
    return canvas


def _line(axes: Axes, panel: Panel, series: Series, label: str, style: tuple[str, str]) -> None:
    known = [(place, point) for place, point in enumerate(series.points) if point]
    at = [place for place, _ in known]
    values = [point.value for _, point in known]
    spread = [[max(0.0, p.value - p.low) for _, p in known], [max(0.0, p.high - p.value) for _, p in known]]
    axes.errorbar(
        at, values, yerr=spread if panel.whiskers else None, color=colour(series.contestant), label=label,
        linestyle=style[0], marker=style[1], markersize=4.5, lw=1.9, elinewidth=0.9, capsize=2,
    )  # fmt: skip


def _label(shown: Picture, panel: Panel, series: Series) -> str:
    several = len({one.contestant for other in shown.panels for one in other.series}) > 1
    if len(shown.panels) == 1:
        return series.contestant
    return f"{series.contestant}, {panel.column.head}" if several else panel.column.head


# --- both -----------------------------------------------------------------------------------------------------------


def _titles(canvas: Canvas, shown: Picture, height: float) -> None:
    spread = any(point.rounds > 1 for panel in shown.panels if panel.whiskers for point in _points(panel.series))
    about = shown.plot.axis + (", logarithmic" if shown.plot.log else "")
    about += "; thin lines: smallest to largest round" if spread else ""
    canvas.text(0.012, 1 - 0.24 / height, shown.plot.title, ha="left", va="center", fontsize=12, fontweight="bold")
    canvas.text(0.012, 1 - 0.48 / height, about, ha="left", va="center", fontsize=8.5, color=_QUIET)


def _headed(panel: Panel) -> str:
    return f"{panel.column.head} [{panel.column.unit}]" if panel.column.unit else panel.column.head


def _points(series: Sequence[Series]) -> list[Figure]:
    return [point for one in series for point in one.points if point]


def _tick(value: float, _: int | None = None) -> str:
    return f"{value:,.10g}" if abs(value) < 1_000_000 else f"{value / 1_000_000:,.4g} M"
