"""`python -m bench.compare OLD NEW [--worse 10]`: what has become worse between two results, or two folders of them.

Only ratios are compared, never absolute numbers: both sides of a ratio ran on the same machine in the same minutes, so
another machine, or a busier one, moves them little. They are those of every bar that has `over` or `over_case`, and of
*wire* to every other contestant in each case, in calls per second and per CPU second.

The rule. A ratio counts as changed when both hold:

1. Its value (the ratio of the two medians, as on the page) moved by more than `--worse` percent.
2. It left the noise: even the best of NEW's pairs of rounds lies beyond the worst of OLD's (for better: the other way
   round). Nothing is assumed about the noise; if nothing had changed, n and m rounds would lie so apart, in this
   direction, once in (n + m over n) times. With 3 rounds each that is once in 20, with 5 once in 252. Where it is more
   often than once in 20, lying apart alone says little, and the gap between them must itself exceed `--worse` percent;
   where a side has a single round, which tells nothing of its noise, twice that.

A result that moved but did not leave the noise is "worse, within the noise": run it again with more rounds. Each ratio
is judged by itself, and among a hundred some look worse by chance where noise is large: five rounds and more are what
makes 2. strict. Where a smaller value is better (bars of the sense "at most") a ratio is worse when it rises.

Exit code 0: nothing is worse. 1: something is. 2: there is nothing to compare, or what was measured differs
(parameters, a quick run); `--anyway` compares all the same.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.frame import Bar, Result
from bench.pages.stats import Figure, measured

WORSE, NOISE, SAME, BETTER = "worse", "worse, within the noise", "same", "better"
_FIGURES: Final = ("per_second", "per_cpu_second")
_OURS: Final = "wire"
_SMALLER: Final = "at most"
_RARE: Final = 20  # one in so many is rare enough


class Ratio(NamedTuple):
    """What is compared: a figure of one case and contestant over that of another."""

    figure: str
    case: str
    contestant: str
    over: str
    over_case: str
    statistic: str
    sense: str

    @property
    def bar(self) -> Bar:
        """The same as a bar, which is how it is measured."""
        return Bar(says="", **self._asdict())

    def __str__(self) -> str:
        statistic = "" if self.statistic == "median" else f"{self.statistic} of "
        other = " ".join(filter(None, (self.over or (self.over_case and self.contestant), self.over_case)))
        return f"{self.case}: {statistic}{self.figure}, {self.contestant} / {other}"


class Judged(NamedTuple):
    """A ratio in both results; `change` is that of its value, 0.1 for 10 % more."""

    ratio: Ratio
    old: Figure
    new: Figure
    change: float
    verdict: str


def ratios(result: Result) -> list[Ratio]:
    """All that can be compared in a result, each once; a bar knows its sense and comes first."""
    found: dict[tuple[str, ...], Ratio] = {}
    for one in (*_of_bars(result), *_of_contestants(result)):
        found.setdefault(one[:-1], one)
    return list(found.values())


def _of_bars(result: Result) -> Iterator[Ratio]:
    for bar in result.bars:
        if bar.over or bar.over_case:
            yield Ratio(bar.figure, bar.case, bar.contestant, bar.over, bar.over_case, bar.statistic, bar.sense)


def _of_contestants(result: Result) -> Iterator[Ratio]:
    for case, contestant in dict.fromkeys((one.case, one.contestant) for one in result.rounds):
        if contestant != _OURS:
            for figure in _FIGURES:
                yield Ratio(figure, case, _OURS, contestant, "", "median", "at least")


def compare(old: Result, new: Result, worse: float) -> list[Judged]:
    """The ratios that both results have, judged; `worse` is a share, 0.1 for 10 %."""
    judged = []
    for ratio in dict.fromkeys((*ratios(new), *ratios(old))):
        before, after = measured(ratio.bar, old.rounds), measured(ratio.bar, new.rounds)
        if before and after and before.value and before.low > 0:
            change = after.value / before.value - 1
            judged.append(Judged(ratio, before, after, change, verdict(before, after, worse, ratio.sense)))
    return judged


def verdict(old: Figure, new: Figure, worse: float, sense: str = "at least") -> str:
    """Judge by the rule at the head of this file."""
    if sense == _SMALLER:
        old, new = _inverse(old), _inverse(new)
    if new.value < old.value * (1 - worse):
        return WORSE if _apart(below=new, above=old, worse=worse) else NOISE
    if old.value < new.value * (1 - worse) and _apart(below=old, above=new, worse=worse):
        return BETTER
    return SAME


def _inverse(one: Figure) -> Figure:
    """The same with larger values the better ones."""
    high = 1 / one.low if one.low else math.inf
    return Figure(1 / one.value if one.value else math.inf, 1 / one.high if one.high else math.inf, high, one.rounds)


def _apart(*, below: Figure, above: Figure, worse: float) -> bool:
    fewest = min(below.rounds, above.rounds)
    by_chance = math.comb(below.rounds + above.rounds, below.rounds)
    margin = 2 * worse if fewest == 1 else worse if by_chance < _RARE else 0.0
    return below.high < above.low * (1 - margin)


def differences(old: Result, new: Result) -> list[str]:
    """What makes figures incomparable, by name: another bench, quick or not, other parameters."""
    before, after = _measured_how(old), _measured_how(new)
    return [
        f"{name}: {before.get(name, 'not there')} and {after.get(name, 'not there')}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name) or (name in before) != (name in after)
    ]


def _measured_how(result: Result) -> dict[str, Any]:
    """Of the cores only whether server and clients shared one: which ones they were does not matter."""
    cores = result.parameters.get("cores")
    shared = {"one core for all": len(set(cores.values())) == 1} if isinstance(cores, dict) else {}
    parameters = {name: value for name, value in result.parameters.items() if name != "cores"}
    return {"bench": result.bench, "quick": result.quick, **parameters, **shared}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="result file, or folder of them")
    parser.add_argument("new", type=Path, help="the same, measured later")
    parser.add_argument("--worse", type=_percent, default=0.1, metavar="PERCENT", help="what is too much (default 10)")
    parser.add_argument("--anyway", action="store_true", help="compare although what was measured differs")
    options = parser.parse_args(arguments)
    pairs = _pairs(options.old, options.new)
    if not pairs:
        print("there is nothing to compare: no result file of the same name in both")
        return 2
    return max([_report(Result.load(old), Result.load(new), options.worse, options.anyway) for old, new in pairs])


def _pairs(old: Path, new: Path) -> list[tuple[Path, Path]]:
    """The files to compare; what has no counterpart is said."""
    if not (old.is_dir() and new.is_dir()):
        return [(old, new)]
    names = {folder: {path.name for path in folder.glob("*.json")} for folder in (old, new)}
    for name in sorted(names[old] ^ names[new]):
        print(f"{name} is only in {old if name in names[old] else new}")
    return [(old / name, new / name) for name in sorted(names[old] & names[new])]


def _report(old: Result, new: Result, worse: float, anyway: bool) -> int:
    print(f"{new.bench}: {old.date} and {new.date}")
    unlike = differences(old, new)
    for text in unlike:
        print(f"  differs: {text}")
    for name in (name for name in {**old.versions, **new.versions} if old.versions.get(name) != new.versions.get(name)):
        print(f"  version of {name}: {old.versions.get(name, 'none')} and {new.versions.get(name, 'none')}")
    if unlike and not anyway:
        print("  not compared; --anyway does it all the same")
        return 2
    judged = compare(old, new, worse)
    for one in judged:
        spread = " ".join(f"{_shown(figure):>28}" for figure in (one.old, one.new))
        print(f"  {one.ratio!s:<64} {spread} {one.change:>+8.1%}  {one.verdict}")
    if not judged:
        print("  no ratio is in both")
    return int(any(one.verdict == WORSE for one in judged))


def _shown(one: Figure) -> str:
    return f"{one.value:.3g} ({one.low:.3g} … {one.high:.3g}) of {one.rounds}"


def _percent(text: str) -> float:
    share = float(text) / 100
    if not 0 < share < 0.5:
        raise argparse.ArgumentTypeError("must be more than 0 and less than 50")
    return share


if __name__ == "__main__":
    sys.exit(main())
