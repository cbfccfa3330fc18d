"""`avapd fleet`: whether all replicas serve the same."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import datetime
from typing import Any

import click

from avapd.cli.group import cli, echo_json, echo_table
from avapd.cli.replicas import statuses
from avapd.errors import Exit


@cli.command()
@click.argument("hosts", nargs=-1, required=True, metavar="HOST[:PORT]...")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for each.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def fleet(hosts: tuple[str, ...], timeout: float, as_json: bool) -> int:
    """List replicas by their admin ports: hash, age, generation. Exit 1 when one is silent or disagrees."""
    answers = asyncio.run(statuses(hosts, timeout))
    found = [_facts(host, status) for host, status in zip(hosts, answers, strict=True)]
    hashes = Counter(one["version_hash"] for one in found if one["version_hash"])
    common = hashes.most_common(1)[0][0] if hashes else None
    for one in found:
        one["agrees"] = one["version_hash"] is not None and one["version_hash"] == common
    if as_json:
        echo_json(found)
    else:
        rows = [
            (
                one["host"], (one["version_hash"] or "-")[:12], str(one["generation"] or "-"), str(one["count"] or "-"),
                "-" if one["age"] is None else f"{one['age']:.0f} s", one["source"] or "-",
                one["error"] or ("" if one["agrees"] else "DISAGREES"),
            )
            for one in found
        ]  # fmt: skip
        echo_table(("replica", "hash", "generation", "count", "age", "source", ""), rows)
    return Exit.OK if all(one["agrees"] for one in found) else Exit.FAILED


def _facts(host: str, status: dict[str, Any] | str) -> dict[str, Any]:
    """What a replica says of itself; `age` is the seconds since it last found its table well."""
    facts = dict.fromkeys(("version_hash", "generation", "count", "age", "source", "error"))
    if isinstance(status, str):
        return {"host": host, **facts, "error": status}
    facts |= {name: status.get(name) for name in ("version_hash", "generation", "count", "source")}
    try:
        checked = status.get("last_check")
        facts["age"] = time.time() - datetime.fromisoformat(checked).timestamp() if checked else None
        bytes.fromhex(facts["version_hash"] or "")
    except (TypeError, ValueError):  # of another service, on that port
        facts |= {"version_hash": None, "error": "no answer: not a status"}
    return {"host": host, **facts}
