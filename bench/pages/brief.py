"""The section `In short`: a sentence for each result that has something to say to who reads no further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bench.frame import OURS, Bar, Result
from bench.pages.stats import measured
from bench.pages.text import named, short, value

_WIRE: Final = "wire"


def section(results: Sequence[Result]) -> str:
    """The section; empty when no result has a sentence."""
    lines = []
    for bench, sentence in _SENTENCES.items():
        result = named(results, bench)
        text = sentence(result) if result else ""
        if result and text:
            lines.append(f"- {text}{' (quick run)' if result.quick else ''} (`{bench}`)")
    return "\n".join(["## In short\n", *lines]) + "\n" if lines else ""


def _engine(result: Result) -> str:
    """How many times the calls of each other, most first."""
    others = dict.fromkeys(one.contestant for one in result.rounds if one.contestant != _WIRE)
    ratios = {}
    for other in others:
        bar = Bar(says="", case="10x10", figure="per_cpu_second", contestant=_WIRE, over=other)
        if found := measured(bar, result.rounds):
            ratios[other] = found.value
    if not ratios:
        return ""
    ordered = sorted(ratios.items(), key=lambda pair: -pair[1])
    return "For a second of its CPU, *wire* answers " + ", ".join(
        f"{short(ratio)} times as many calls as *{other}*" if place == 0 else f"{short(ratio)} times *{other}*"
        for place, (other, ratio) in enumerate(ordered)
    )


def _latency(result: Result) -> str:
    p95 = value(result, "35,000/s", _WIRE, "p95_ms")
    lost = value(result, "35,000/s", _WIRE, "lost", "sum")
    if p95 is None:
        return ""
    return f"At 35,000 calls a second on one core P95 of *{_WIRE}* is {short(p95)} ms" + (
        "" if lost is None else f", {lost:,.0f} calls without an answer"
    )


def _overload(result: Result) -> str:
    """Under the heaviest of its loads."""
    case = list(dict.fromkeys(one.case for one in result.rounds))[-1]
    others = dict.fromkeys(one.contestant for one in result.rounds)
    waits = {other: found for other in others if (found := value(result, case, other, "open_p95_ms")) is not None}
    if _WIRE not in waits:
        return ""
    return f"Beside {case} calls under way, P95 of a client that asks little is " + ", ".join(
        f"{short(wait)} ms with *{other}*" for other, wait in waits.items()
    )


def _idle(result: Result) -> str:
    costs = {case: value(result, case, _WIRE, "cpu") for case in ("1,000 connections", "no connection")}
    return ", ".join(
        f"{'With ' if place == 0 else 'with '}{case} *{_WIRE}* takes {short(cost)} % of a core"
        for place, (case, cost) in enumerate((case, cost) for case, cost in costs.items() if cost is not None)
    )


def _memory(result: Result) -> str:
    """Over the medians of all cases with one worker more."""
    cases = dict.fromkeys(one.case for one in result.rounds if "added" in one.figures)
    added = [found for case in cases if (found := value(result, case, OURS, "added")) is not None]
    catalog = next((found for case in cases if (found := value(result, case, OURS, "catalog")) is not None), None)
    if not added:
        return ""
    size = "" if catalog is None else f" to a catalog of {short(catalog)} MB"
    low, high = short(min(added)), short(max(added))
    return f"One worker more adds {low if low == high else f'{low} to {high}'} MB{size}"


def _startup(result: Result) -> str:
    serving = value(result, "100000", OURS, "serving")
    return "" if serving is None else f"100,000 definitions are served {short(serving)} s after the start"


def _propagation(result: Result) -> str:
    case, figure = "100,000 definitions, notified", "served_ms"
    middle, late = (value(result, case, OURS, figure, statistic) for statistic in ("p50", "p99"))
    if middle is None or late is None:
        return ""
    return (
        f"One row in 100,000 changed: every worker serves it {short(middle)} ms after the commit (P99 {short(late)} ms)"
        " when notified, beside the time that one worker has it alone"
    )


_SENTENCES: Final[dict[str, Callable[[Result], str]]] = {
    "engine": _engine, "latency": _latency, "overload": _overload, "idle": _idle, "memory": _memory,
    "startup": _startup, "propagation": _propagation,
}  # fmt: skip
