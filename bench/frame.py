"""The frame: what a bench is, what a run of it records, and the result file that comes of it.

A bench is a module with a `BENCH`; its run calls `Run.record` once for each round. A round belongs to a *case* (a
size, a load, a phase) and a *contestant* (avapd, or a peer beside it). Nothing is averaged before it is written: the
file holds every round, and statistics are made when it is rendered.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

import avapd

RESULTS: Final = Path(__file__).parent / "results"
OURS: Final = "avapd"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure as the rendered table shows it; `statistic` is a name in stats.STATISTICS."""

    figure: str
    head: str
    unit: str = ""
    digits: int = 0
    statistic: str = "median"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a figure is held against. With `over` the figure is the ratio of ours to that contestant's.

    With `over_case` it is the ratio to that case. `limit` None only shows the figure, for information.
    """

    says: str
    case: str
    figure: str
    contestant: str = OURS
    over: str = ""
    over_case: str = ""
    statistic: str = "median"
    sense: str = "at most"
    limit: float | None = None
    unit: str = ""
    digits: int = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture of one figure: `bars` of cases and contestants, or `lines` of contestants over cases.

    `figures` are drawn side by side (or as one line each); `cases` and `contestants` left empty take all there are.
    `log` is for what spans magnitudes.
    """

    name: str
    title: str
    kind: str
    figures: tuple[str, ...]
    axis: str
    cases: tuple[str, ...] = ()
    contestants: tuple[str, ...] = ()
    log: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round measured; `number` counts from 1 within its case and contestant."""

    case: str
    contestant: str
    number: int
    figures: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """CPUs for the server under test and for its clients."""

    server: int
    client: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A bench: `method` tells people what is measured and how, `cases` are the names that `--only` takes."""

    name: str
    title: str
    method: str
    cases: tuple[str, ...]
    columns: tuple[Column, ...]
    bars: tuple[Bar, ...]
    run: Callable[[Run], None]
    contestants: tuple[str, ...] = (OURS,)
    plots: tuple[Plot, ...] = ()


class Run:
    """One run of a bench: what was asked for, and what it has recorded so far.

    `commands` are the exact command lines of servers and clients, by whose they are.
    """

    def __init__(self, *, quick: bool, cores: Cores, only: Sequence[str] = (), rounds: int | None = None) -> None:
        self.quick = quick
        self.cores = cores
        self.rounds_done: list[Round] = []
        self.parameters: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.commands: dict[str, str] = {}
        self._bar = tqdm(unit="rounds", disable=None, bar_format="{l_bar}{bar}| {n}/{total} {elapsed} < {remaining}")
        self._only = only
        self._rounds = rounds

    def rounds(self, full: int, quick: int) -> range:
        """The numbers of the rounds to run."""
        return range(1, 1 + (self._rounds or (quick if self.quick else full)))

    def expect(self, rounds: int) -> None:
        """So many more rounds will be recorded: the progress bar, shown on a terminal, goes by it."""
        self._bar.reset((self._bar.total or 0) + rounds)
        self._bar.update(len(self.rounds_done))

    def wants(self, name: str, among: Sequence[str]) -> bool:
        """Whether `--only` leaves this case or contestant in; naming none of a kind leaves all of it in."""
        named = [other for other in among if other in self._only]
        return not named or name in named

    def skip(self, contestant: str, why: str) -> None:
        """Leave a contestant out, saying why, and what would bring it in."""
        self.skipped[contestant] = why
        self.tell(f"{contestant} left out: {why}")

    def record(self, case: str, number: int, figures: Mapping[str, float], contestant: str = OURS) -> None:
        """Keep a round, and show it."""
        rounded = {name: _significant(value) for name, value in figures.items()}
        self.rounds_done.append(Round(case=case, contestant=contestant, number=number, figures=rounded))
        shown = "  ".join(f"{name}={value:g}" for name, value in rounded.items())
        self.tell(f"{case:<14} {contestant:<10} {number:>4}  {shown}")
        self._bar.update()

    def tell(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._bar.write(f"  {text}", file=sys.stdout)
        sys.stdout.flush()

    def end(self) -> None:
        """Take the progress bar away."""
        self._bar.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A result file."""

    bench: str
    title: str
    method: str
    date: str
    quick: bool
    command: str
    parameters: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    columns: list[Column]
    bars: list[Bar]
    rounds: list[Round]
    plots: list[Plot] = dataclasses.field(default_factory=list)
    commands: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read a result file."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["columns"] = [Column(**column) for column in fields["columns"]]
        fields["bars"] = [Bar(**bar) for bar in fields["bars"]]
        fields["plots"] = [Plot(**_tuples(plot)) for plot in fields.get("plots", [])]
        fields["rounds"] = [Round(**one) for one in fields["rounds"]]
        return cls(**fields)

    def save(self, folder: Path) -> Path:
        """Write `<folder>/<bench>.json`, one round a line, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(self)
        rounds = ",\n".join("    " + json.dumps(one, ensure_ascii=False) for one in fields.pop("rounds"))
        head = json.dumps(fields, indent=2, ensure_ascii=False).removesuffix("\n}")
        path = folder / f"{self.bench}.json"
        draft = path.with_suffix(".draft")
        draft.write_text(f'{head},\n  "rounds": [\n{rounds}\n  ]\n}}\n', encoding="utf-8")
        draft.replace(path)
        return path


def perform(bench: Bench, run: Run, command: str) -> Result:
    """Run a bench."""
    machine = facts_of_machine()
    try:
        bench.run(run)
    finally:
        run.end()
    return Result(
        bench=bench.name,
        title=bench.title,
        method=bench.method,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        quick=run.quick,
        command=command,
        parameters={**run.parameters, "cores": dataclasses.asdict(run.cores)},
        machine=machine,
        versions={**facts_of_versions(), **run.versions},
        columns=list(bench.columns),
        bars=list(bench.bars),
        plots=list(bench.plots),
        commands=run.commands,
        rounds=run.rounds_done,
        skipped=run.skipped,
    )


def facts_of_machine() -> dict[str, Any]:
    """What it runs on, without its name; `load_before` is the load average over 1 minute before the first round."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
    }


def facts_of_versions() -> dict[str, str]:
    """The versions of what runs; a bench adds those of PostgreSQL and of its peers."""
    installed = {name: metadata.version(name) for name in ("grpcio", "uvloop", "protobuf")}
    return {"python": sys.version.split()[0], "avapd": avapd.__version__, **installed}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _significant(value: float) -> float:
    """Six significant digits: more is noise."""
    return float(f"{value:.6g}")
