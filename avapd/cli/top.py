"""`avapd top`: what the replicas do, second by second, in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from avapd.cli.group import cli, echo_json
from avapd.cli.reading import Reading, get
from avapd.cli.replicas import statuses
from avapd.control.traffic import Traffic
from avapd.control.wording import NONE, duration, latency, number, size
from avapd.errors import Exit
from avapd.log import printable

_HOST: Final = "127.0.0.1"
_BOLD, _QUIET, _GOOD, _WARN, _BAD = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m"
_REPLICAS: Final = (
    ("replica", 0), ("state", 0), ("workers", 1), ("calls/s", 1), ("p95", 1), ("err/s", 1), ("conns", 1),
    ("gen", 1), ("hash", 0), ("checked", 1), ("own mem", 1), ("catalog", 1), ("count", 1), ("up", 1),
)  # fmt: skip
_WORKERS: Final = (
    ("worker", 0), ("state", 0), ("calls/s", 1), ("p95", 1), ("err/s", 1), ("conns", 1), ("own mem", 1), ("gen", 1),
    ("restarts", 1), ("up", 1), ("pid", 1),
)  # fmt: skip


Cell = tuple[str, str]


@cli.command()
@click.argument("hosts", nargs=-1, metavar="[HOST[:PORT]]...")
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds between looks."
)
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--once", is_flag=True, help="Look twice, an interval apart, print once and end.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def top(hosts: tuple[str, ...], interval: float, timeout: float, once: bool, as_json: bool) -> int:
    """Watch replicas by their admin ports: rates, P95, workers, memory, database, switches. q or Ctrl-C ends it.

    Rate and P95 are those of the last interval. Without a terminal it prints once; exit 1 if a replica is silent.
    """
    hosts = hosts or (_HOST,)
    if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        before, now = asyncio.run(_twice(hosts, interval, patience=timeout))
        if as_json:
            echo_json([_plain(old, new) for old, new in zip(before, now, strict=True)])
        else:
            for line in frame(before, now, color=False):
                click.echo(line)
        return Exit.FAILED if any(one.error for one in now) else Exit.OK
    asyncio.run(_watch(hosts, interval, patience=timeout))
    return Exit.OK


async def _twice(hosts: tuple[str, ...], interval: float, *, patience: float) -> tuple[list[Reading], list[Reading]]:
    before = await _read(hosts, patience)
    await asyncio.sleep(interval)
    return before, await _read(hosts, patience)


async def _read(hosts: tuple[str, ...], patience: float) -> list[Reading]:
    answers = await statuses(hosts, patience, "?buckets")
    at = time.monotonic()
    return [
        Reading(host, at, {}, answer) if isinstance(answer, str) else Reading(host, at, answer)
        for host, answer in zip(hosts, answers, strict=True)
    ]


async def _watch(hosts: tuple[str, ...], interval: float, *, patience: float) -> None:
    from avapd.cli.screen import Screen  # noqa: PLC0415  # only where there are terminals

    seen: list[list[Reading]] = []
    with Screen() as screen:

        async def look() -> None:
            while True:
                began = time.monotonic()
                seen[:] = [*seen[-1:], await _read(hosts, patience)]
                screen.changed.set()
                await asyncio.sleep(began + interval - time.monotonic())

        looking = asyncio.create_task(look())
        looking.add_done_callback(lambda _: screen.changed.set())
        while not screen.over and not looking.done():
            screen.changed.clear()
            lines = frame(seen[0], seen[-1], screen.size[0]) if seen else ["asking …"]
            screen.draw([f"avapd top   {time.strftime('%H:%M:%S')}   q ends it", *lines])
            await screen.changed.wait()
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


def _plain(before: Reading, now: Reading) -> dict[str, Any]:
    """What `--json` tells of a replica: its status, with the traffic of the interval."""
    if now.error:
        return {"replica": now.replica, "error": now.error}
    mine, theirs = now.since(before)
    told: dict[str, Any] = {key: value for key, value in now.status.items() if key not in {"buckets", "bounds_seconds"}}
    told["workers"] = [
        {**{key: value for key, value in worker.items() if key != "buckets"}, **_traffic(one)}
        for worker, one in zip(now.workers, theirs, strict=True)
    ]
    return {"replica": now.replica, "error": None, **told, **_traffic(mine)}


def _traffic(one: Traffic | None) -> dict[str, float | None]:
    return dict.fromkeys(Traffic._fields) if one is None else one._asdict()


# --- drawing ----------------------------------------------------------------------------------------------------


def frame(before: Sequence[Reading], now: Sequence[Reading], width: int = 0, *, color: bool = True) -> Iterator[str]:
    """The lines: a table of replicas, what is out of order, and a table of their workers.

    Sentences are broken to fit a width, if there is one; of tables what comes last is cut off by the terminal.
    """
    paint = _painted if color else _plainly
    pairs = list(zip(before, now, strict=True))
    yield from _drawn(_REPLICAS, [_replica(old, new) for old, new in pairs], paint)
    notes = [(one, note) for one in now for note in _notes(one)]
    if notes:
        yield ""
    for one, (text, kind) in notes:
        whole = f"{printable(one.replica, 80)}: {text}" if len(now) > 1 else text
        yield from (paint(line, kind) for line in (textwrap.wrap(whole, width) if width else [whole]))
    for old, new in pairs:
        if new.workers:
            yield ""
            yield from [paint(printable(new.replica, 80), _BOLD)] if len(now) > 1 else ()
            yield from _drawn(_WORKERS, list(_workers(old, new)), paint)


def _drawn(head: Sequence[tuple[str, int]], rows: Sequence[Sequence[Cell]], paint: Any) -> Iterator[str]:
    """A table: names and sides of the columns, and rows of texts with their colours."""
    names = [(name, _QUIET) for name, _ in head]
    widths = [max(len(row[column][0]) for row in (names, *rows)) for column in range(len(head))]
    for row in (names, *rows):
        cells = (
            paint(text.rjust(width) if right else text.ljust(width), kind)
            for (text, kind), width, (_, right) in zip(row, widths, head, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _replica(before: Reading, now: Reading) -> list[Cell]:
    if now.error:
        return [(printable(now.replica, 60), _BOLD), ("SILENT", _BAD), *[(NONE, "")] * (len(_REPLICAS) - 2)]
    status, traffic = now.status, now.since(before)[0]
    workers = now.workers
    serving = sum(worker.get("state") == "SERVING" for worker in workers)
    private = [_private(one) for one in (status, *workers)]
    word, kind = ("ready", _GOOD) if get(status, "ready", bool) else ("NOT READY", _BAD)
    if get(status, "draining", bool):
        word, kind = "DRAINING", _WARN
    age = status.get("catalog_age_seconds")
    return [
        (printable(now.replica, 60), _BOLD), (word, kind),
        (f"{serving}/{len(workers)}", "" if serving == len(workers) else _WARN), *_rates(traffic),
        (number(get(status, "connections", int)), ""), (str(get(status, "generation", int)), ""),
        (printable(get(status, "version_hash", str), 80)[:8] or NONE, ""),
        (NONE if age is None else duration(get(status, "catalog_age_seconds", float)), ""), (size(sum(private)), ""),
        (size(get(status, "snapshot_bytes", int)), ""), (number(get(status, "count", int)), ""),
        (duration(get(status, "uptime_seconds", float)), ""),
    ]  # fmt: skip


def _workers(before: Reading, now: Reading) -> Iterator[list[Cell]]:
    for worker, traffic in zip(now.workers, now.since(before)[1], strict=True):
        state, generation = printable(get(worker, "state", str), 12), get(worker, "generation", int)
        behind = generation != get(now.status, "generation", int)
        yield [
            (str(get(worker, "worker", int)), _BOLD), (state, _GOOD if state == "SERVING" else _BAD), *_rates(traffic),
            (number(get(worker, "connections", int)), ""), (size(_private(worker)), ""),
            (str(generation), _WARN if behind else ""), (str(get(worker, "restarts", int)), ""),
            (duration(get(worker, "uptime_seconds", float)), ""), (str(get(worker, "pid", int) or NONE), ""),
        ]  # fmt: skip


def _rates(traffic: Traffic | None) -> list[Cell]:
    if traffic is None:
        return [(NONE, "")] * 3
    wrong = _BAD if traffic.error_rate else ""
    return [(number(traffic.rate), ""), (latency(traffic.p95_seconds), ""), (number(traffic.error_rate), wrong)]


def _private(facts: dict[str, Any]) -> int:
    return get(get(facts, "memory", dict), "private_bytes", int)


def _notes(one: Reading) -> Iterator[Cell]:
    """What is out of order at a replica, and what an operator ordered there."""
    if one.error:
        yield one.error, _BAD
        return
    status = one.status
    database = get(status, "database", dict)
    if not get(database, "up", bool):
        yield f"database does not answer: {printable(get(database, 'last_error', str) or 'not asked yet', 300)}", _WARN
    for name in ("frozen", "refused"):
        if text := get(status, name, str):
            yield f"{name}: {printable(text, 300)}", _WARN
    if denied := get(status, "denied", list):
        names = ", ".join(printable(str(name), 60) for name in denied[:10])
        yield f"denied: {names}{f' and {len(denied) - 10} more' if len(denied) > 10 else ''}", _WARN
    if held := sum(one for one in get(status, "quarantined", dict).values() if isinstance(one, int)):
        yield f"in quarantine: {number(held)}", _WARN
    if get(status, "canary", bool):
        yield "canary: one worker serves the next generation alone", _WARN


def _painted(text: str, kind: str) -> str:
    return f"{kind}{text}\x1b[0m" if kind else text


def _plainly(text: str, _kind: str) -> str:
    return text
