"""The section `Capacity`: what one core, four cores and fifty pods serve, and where that line stops being straight.

Pure arithmetic over the figures of the results, and two simulations with fixed seeds; each table says which it is.
"""

# ruff: noqa: RUF001, RUF002  # they take the sign of multiplication for a letter

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.frame import OURS, Result
from bench.pages import fleet
from bench.pages.balance import DRAWS, Balance, balance
from bench.pages.text import missing, named, percent, short, table, value

SLA_RATE: Final = 35_000
SLA_P95_MS: Final = 1.0
CORES: Final = 4
PODS: Final = 50
HEADROOM: Final = 0.6  # of a core's time: the rest is for peaks, refreshes and a pod that is gone
NICS: Final = (10, 25)  # Gbit/s
_INPUTS: Final = ("scale", "latency", "clients", "engine", "blocks", "polls", "propagation")
_WIRE: Final = "wire"
_NEVER: Final = "avapd, blocks never repeat"
_RATE: Final = re.compile(r"([\d,]+)/s")


class Basis(NamedTuple):
    """Calls that one second of the server's CPU answers, of a kind of calls; `source` is where it was measured."""

    calls: str
    per_cpu_second: float
    source: str

    def rate(self, cores: float, busy: float = 1.0) -> float:
        """Calls a second on so many cores, each busy for this share of its time."""
        return self.per_cpu_second * cores * busy


def section(results: Sequence[Result]) -> str:
    """The section; empty when there is no result at all."""
    if not results:
        return ""
    return "\n".join(
        [
            "## Capacity\n",
            (
                "*Measured* is what a bench recorded, *computed* is arithmetic on that, *simulated* is drawn with a"
                " fixed seed; each table says which.\n"
            ),
            *_quick(results),
            *_line(results),
            *_sizes(results),
            *_bends(results),
            *fleet.part(results),
        ]
    )


def _quick(results: Sequence[Result]) -> list[str]:
    quick = [f"`{result.bench}`" for result in results if result.quick and result.bench in _INPUTS]
    return [f"Of quick runs, with few rounds and small sizes: {', '.join(quick)}.\n"] if quick else []


def bases(results: Sequence[Result]) -> list[Basis]:
    """The kinds of calls, cheapest first; of `scale` the number of workers at which a call costs most CPU."""
    scale = named(results, "scale")
    found = []
    for calls, contestant, benches, case in (
        ("blocks that repeat", OURS, ("engine",), "10x10"),
        ("blocks that never repeat", _NEVER, ("blocks",), "grpc-go, inherited"),
    ):
        cases = dict.fromkeys(one.case for one in scale.rounds) if scale else {}
        costs = {name: cost for name in cases if (cost := value(scale, name, contestant, "per_cpu_second"))}
        if costs:
            name = min(costs, key=lambda name: costs[name])
            found.append(Basis(calls, costs[name], f"`scale`, {name}, {contestant}"))
            continue
        for bench in benches:
            if rate := value(named(results, bench), case, _WIRE, "per_cpu_second"):
                found.append(Basis(calls, rate, f"`{bench}`, {case}, {_WIRE}"))
                break
    return found


def answer_bytes(results: Sequence[Result]) -> int | None:
    """The octets of an answer in what was measured."""
    for bench in ("engine", "scale"):
        result = named(results, bench)
        if result and isinstance(result.parameters.get("answer_bytes"), int):
            return int(result.parameters["answer_bytes"])
    return None


def gigabits(calls: float, octets: int) -> float:
    """Gbit/s of so many answers a second; frames, TCP and IP come on top."""
    return calls * octets * 8 / 1e9


def nic_calls(nic: float, octets: int) -> float:
    """Answers a second that fill a NIC of so many Gbit/s."""
    return nic * 1e9 / 8 / octets


# --- (a) the line of the project ------------------------------------------------------------------------------------


def _line(results: Sequence[Result]) -> list[str]:
    return [
        f"### More than {SLA_RATE:,} requests a second on four cores, P95 under {SLA_P95_MS:g} ms, no error\n",
        "**Measured**, on the cores that there are:\n",
        *_measured_line(results),
        "**Computed**, from calls per CPU second; it says nothing of latency:\n",
        *_computed_line(results),
        *_per_core(results),
    ]


def _measured_line(results: Sequence[Result]) -> list[str]:
    latency, scale = named(results, "latency"), named(results, "scale")
    case, rows = f"{SLA_RATE:,}/s", []
    p95, lost = value(latency, case, _WIRE, "p95_ms"), value(latency, case, _WIRE, "lost", "sum")
    if p95 is not None:
        busy = value(latency, case, _WIRE, "server_cpu")
        rows.append([f"`latency`, {case}, {_WIRE}", f"{SLA_RATE:,}", short(p95), _shown(lost), _shown(busy)])
    if scale:
        for name, contestant in dict.fromkeys((one.case, one.contestant) for one in scale.rounds):
            rate = value(scale, name, contestant, "per_second")
            if rate is not None:
                p95_there, lost_there = (
                    value(scale, name, contestant, "p95_ms"), value(scale, name, contestant, "lost", "sum")
                )  # fmt: skip
                busy = value(scale, name, contestant, "server_cpu")
                rows.append(
                    [
                        f"`scale`, {name}, {contestant}", short(rate), _shown(p95_there), _shown(lost_there),
                        _shown(busy),
                    ]
                )  # fmt: skip
    head = ["measured", "requests [1/s]", "P95 [ms]", "without an answer, sum", "server's CPU [cores]"]
    parts = [table(head, rows)] if rows else []
    if p95 is not None and lost is not None:
        good = p95 < SLA_P95_MS and lost == 0
        parts.append(f"At exactly {SLA_RATE:,} a second the line {'is' if good else 'is **not**'} kept on one core.\n")
    cores = {f"`{one.bench}` {one.machine['cores']}" for one in (latency, scale) if one and "cores" in one.machine}
    parts += [f"CPUs of the machine, clients and all: {', '.join(sorted(cores))}.\n"] if cores else []
    return parts + [f"`{name}`: {missing(name)}" for name, one in (("latency", latency), ("scale", scale)) if not one]


def _computed_line(results: Sequence[Result]) -> list[str]:
    rows = [
        [
            one.calls, one.source, short(one.per_cpu_second), short(one.rate(CORES)), short(one.rate(CORES, HEADROOM)),
            short(one.rate(CORES, HEADROOM) / SLA_RATE), percent(SLA_RATE / one.rate(CORES)),
        ]
        for one in bases(results)
    ]  # fmt: skip
    head = [
        "calls", "measured as", "calls per CPU second [1/s]", f"× {CORES} cores [1/s]",
        f"× {percent(HEADROOM)} busy [1/s]", f"÷ {SLA_RATE:,}", f"busy share of {CORES} cores at {SLA_RATE:,}/s",
    ]  # fmt: skip
    return [table(head, rows)] if rows else [missing("scale")]


def _per_core(results: Sequence[Result]) -> list[str]:
    """The latency measured on one core at no less than what the busiest of four gets of the line."""
    latency = named(results, "latency")
    even = balance(100, CORES)
    share = SLA_RATE / CORES * even.p99
    rates = {}
    for case in dict.fromkeys(one.case for one in latency.rounds) if latency else ():
        if (found := _RATE.fullmatch(case)) and value(latency, case, _WIRE, "p95_ms") is not None:
            rates[int(found[1].replace(",", ""))] = case
    enough = min((rate for rate in rates if rate >= share), default=None)
    if enough is None:
        return []
    p95 = value(latency, rates[enough], _WIRE, "p95_ms")
    return [
        (
            f"Of {SLA_RATE:,}/s each of {CORES} workers gets {SLA_RATE / CORES:,.0f}/s, the busiest at 100 connections"
            f" up to {short(share)}/s (× {short(even.p99)}, see below); one core was measured at {enough:,}/s, which is"
            f" more: P95 {_shown(p95)} ms.\n"
        )
    ]


def _shown(number: float | None) -> str:
    return "-" if number is None else short(number)


# --- (b) one core, four cores, fifty pods ---------------------------------------------------------------------------


def _sizes(results: Sequence[Result]) -> list[str]:
    """Calls per CPU second × cores × headroom, and what that is on the wire."""
    parts = ["### One core, four cores, fifty pods\n"]
    known, octets = bases(results), answer_bytes(results)
    if not known:
        return [*parts, missing("scale")]
    head = ["calls", "on", "calls [1/s]"]
    if octets:
        head += ["answers [Gbit/s]", *(f"of a NIC of {nic} Gbit/s in each pod" for nic in NICS)]
    rows = []
    for one in known:
        for name, pods, cores in (("1 core", 1, 1), (f"{CORES} cores", 1, CORES), (f"{PODS} pods", PODS, CORES)):
            rate = one.rate(pods * cores, HEADROOM)
            row = [one.calls, name if pods == 1 else f"{name} of {cores} cores", short(rate)]
            if octets:
                sent = gigabits(rate, octets)
                row += [short(sent), *(percent(sent / pods / nic) for nic in NICS)]
            rows.append(row)
    each = "; ".join(f"{one.calls} {short(one.per_cpu_second)}" for one in known)
    parts.append(
        f"**Computed**: calls per CPU second ({each}) × cores × {percent(HEADROOM)}, so that a core has the rest of its"
        f" time for peaks, refreshes and the pod that is gone.\n"
    )
    if octets:
        full = ", ".join(f"one of {nic} Gbit/s at {short(nic_calls(nic, octets))} calls/s" for nic in NICS)
        parts.append(
            f"Answers have {octets:,} octets, × 8 bits × calls; frames, TCP and IP come on top. A NIC is full, {full}:"
            f" above 100 % it is the NIC that ends the line.\n"
        )
    else:
        parts.append(f"octets of an answer: {missing('engine')}")
    return [*parts, table(head, rows)]


# --- (c) where the line bends ---------------------------------------------------------------------------------------


def _bends(results: Sequence[Result]) -> list[str]:
    return ["### Where the line bends\n", *_workers(results), *_uneven(), *_nics(results), *_clients(results)]


def _workers(results: Sequence[Result]) -> list[str]:
    """What a call costs with more workers, against one."""
    scale = named(results, "scale")
    if scale is None:
        return [f"**The workers.** {missing('scale')}"]
    rows = []
    for case, contestant in dict.fromkeys((one.case, one.contestant) for one in scale.rounds):
        alone = value(scale, "1 worker", contestant, "per_cpu_second")
        rate = value(scale, case, contestant, "per_cpu_second")
        if alone and rate is not None:
            rows.append([case, contestant, short(rate), short(rate / alone)])
    return [
        "**The workers.** **Measured** in `scale`, all workers on one core: whether they get into each other's way.\n",
        table(["workers", "calls", "calls per CPU second [1/s]", "÷ those of 1 worker"], rows),
    ]


def _uneven() -> list[str]:
    rows = []
    for workers in (CORES, PODS * CORES):
        for connections in (10, 100, 1_000, 10_000):
            even: Balance = balance(connections, workers)
            shares = map(percent, (even.usable, even.usable_p99))
            rows.append([f"{workers:,}", f"{connections:,}", short(even.median), short(even.p99), *shares])
    head = [
        "workers", "connections", "busiest ÷ mean, median", "P99", "usable before the busiest is full, median", "P99"
    ]  # fmt: skip
    return [
        (
            "**Connections are uneven.** **Simulated**: each connection goes to a worker that a hash names"
            " (SO_REUSEPORT; a Service in front of the pods is as blind), all of them ask for as much;"
            f" {DRAWS} draws. Usable is mean ÷ busiest.\n"
        ),
        table(head, rows),
    ]


def _nics(results: Sequence[Result]) -> list[str]:
    """How many cores fill a NIC."""
    known, octets = bases(results), answer_bytes(results)
    if not known or not octets:
        return [f"**The NIC.** {missing('engine')}"]
    rows = [
        [one.calls, f"{nic}", short(nic_calls(nic, octets)), short(nic_calls(nic, octets) / one.rate(1, HEADROOM))]
        for one in known
        for nic in NICS
    ]
    head = ["calls", "NIC [Gbit/s]", "full at [calls/s]", f"that is so many cores, {percent(HEADROOM)} busy"]
    return [f"**The NIC.** **Computed** for answers of {octets:,} octets:\n", table(head, rows)]


def _clients(results: Sequence[Result]) -> list[str]:
    """Cores that clients need to ask for what four cores answer."""
    clients, known = named(results, "clients"), bases(results)
    if clients is None or not known:
        return [f"**The clients.** {missing('clients' if clients is None else 'scale')}"]
    wanted = known[-1].rate(CORES, HEADROOM)
    rows = []
    for case in dict.fromkeys(one.case for one in clients.rounds):
        rate, busy = (value(clients, case, _WIRE, name) for name in ("per_second", "client_cpu"))
        if rate and busy is not None:
            rows.append([case, short(rate), short(busy), short(1e6 * busy / rate), short(wanted * busy / rate)])
    head = [
        "client", "calls [1/s]", "client's CPU [cores]", "CPU of a call at the client [µs]",
        f"cores of clients for {short(wanted)} calls/s",
    ]  # fmt: skip
    return [
        (
            f"**The clients.** The first columns are measured against *{_WIRE}*; **computed**: client's CPU ÷ calls, ×"
            f" what {CORES} cores answer at {percent(HEADROOM)} ({known[-1].calls}).\n"
        ),
        table(head, rows),
    ]
