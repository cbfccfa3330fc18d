"""`python -m bench`: run benches, list them, render their results. Run it from the root of the repository."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from bench.frame import RESULTS, Bench, Cores, Result, Run, perform
from bench.pages import render
from bench.pages.plots import NoMatplotlibError
from bench.pages.stats import measured, met
from bench.questions import (
    blocks,
    clients,
    engine,
    idle,
    latency,
    memory,
    miss,
    overload,
    polls,
    propagation,
    scale,
    sizes,
    starts,
    startup,
    swap,
    sync,
    watch,
)
from bench.servers.build import MissingToolError

_MODULES = (
    engine, latency, overload, clients, blocks, miss, sizes, sync, scale, swap, propagation, watch, polls, startup,
    starts, memory, idle,
)  # fmt: skip
BENCHES: dict[str, Bench] = {module.BENCH.name: module.BENCH for module in _MODULES}


def main() -> int:
    """Exit code 1 when a bar is missed (not in a quick run), or README.md is stale."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benches to run (all by default), or `render`")
    parser.add_argument("--list", action="store_true", help="list benches, their cases and contestants")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these benches, cases, contestants")
    parser.add_argument("--quick", action="store_true", help="few rounds and small sizes: to see that it runs")
    parser.add_argument(
        "--cores", type=_cores, default=_default_cores(), metavar="server=0,client=1", help="CPUs to pin to"
    )
    parser.add_argument("--rounds", "--starts", type=int, metavar="N", help="rounds instead of the bench's own number")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where result files are")
    parser.add_argument(
        "--check", action="store_true", help="with `render`: write nothing, exit 1 when README.md is stale"
    )
    options = parser.parse_args()
    if options.list:
        return _list()
    if options.names == ["render"]:
        return _render(options.results, check=options.check)
    names = [name for name in (*options.names, *options.only) if name in BENCHES]
    if "all" in options.names or (not names and not options.names):
        names = list(BENCHES)
    unknown = set(options.names) - {"all", *BENCHES}
    if unknown:
        parser.error(f"no such bench: {', '.join(unknown)}; --list shows them")
    return max([_run(BENCHES[name], options) for name in dict.fromkeys(names)])


def _run(bench: Bench, options: argparse.Namespace) -> int:
    """Run it and keep its result, unless nothing could be measured; 1 when a bar was missed."""
    print(f"{bench.name}: {bench.title}", flush=True)
    run = Run(quick=options.quick, cores=options.cores, only=options.only, rounds=options.rounds)
    try:
        result = perform(bench, run, _command(bench, options))
    except MissingToolError as error:
        print(f"  left out: {error}")
        return 0
    if not result.rounds:
        return 0
    result.save(options.results)
    return _verdict(result)


def _command(bench: Bench, options: argparse.Namespace) -> str:
    only = [name for name in options.only if name not in BENCHES]
    words = ["python -m bench", bench.name, *(["--only", *map(shlex.quote, only)] if only else [])]
    words += ["--quick"] if options.quick else []
    words += ["--rounds", str(options.rounds)] if options.rounds else []
    return " ".join([*words, "--cores", f"server={options.cores.server},client={options.cores.client}"])


def _verdict(result: Result) -> int:
    """Print each bar; 1 when one is missed, which a quick run cannot tell."""
    missed = 0
    for bar in result.bars:
        found = measured(bar, result.rounds)
        if found is None or bar.limit is None:
            continue
        good = met(bar, found)
        missed |= not good
        print(
            f"  {'met   ' if good else 'MISSED'} {bar.says} [{bar.case}]: {found.value:.4g}, {bar.sense} {bar.limit:g}"
        )
    return int(missed and not result.quick)


def _list() -> int:
    for bench in BENCHES.values():
        print(f"{bench.name:<9} {bench.title}\n{'':<9} cases: {', '.join(bench.cases)}")
        print(f"{'':<9} contestants: {', '.join(bench.contestants)}")
    return 0


def _render(folder: Path, *, check: bool) -> int:
    if check:
        faults = render.faults(folder)
        print("\n".join([*faults, "python -m bench render"]) if faults else "bench/README.md is up to date")
        return int(bool(faults))
    try:
        render.write(folder)
    except NoMatplotlibError as error:
        print(error)
        return 1
    return 0


def _cores(text: str) -> Cores:
    try:
        pairs = {name: int(cpu) for name, _, cpu in (part.partition("=") for part in text.split(","))}
        return Cores(**pairs)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError("must look like server=0,client=1") from None


def _default_cores() -> Cores:
    cpus = sorted(os.sched_getaffinity(0))
    return Cores(server=cpus[0], client=cpus[-1])


if __name__ == "__main__":
    sys.exit(main())
