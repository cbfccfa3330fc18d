"""The commands that give a running server an order, over its local socket: refresh, wait, approve, history and others.

They need neither key nor network, only to be root or the user that avapd runs as, on the same host and in the same
network namespace.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from avapd.cli.group import cli, echo_facts, echo_json, echo_table
from avapd.errors import AvapdError, Exit


class OrderFailedError(AvapdError):
    """The server could not do it, or there is none."""

    exit_code = Exit.FAILED


def _addressed(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of all orders."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON instead of text."),
        click.option("--socket", "address", envvar="AVAPD_ADMIN_SOCKET", help="Path, or @name for an abstract socket."),
        click.option("--port", envvar="PORT", default=50051, show_default=True, help="gRPC port of the server meant."),
    ):
        command = option(command)
    return command


def _order(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command of its own name."""
    return cli.command()(_addressed(command))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _send(address: str | None, port: int, method: str, path: str, **body: Any) -> dict[str, Any]:
    """What the server says. Raises OrderFailedError."""
    from avapd.control.operator import admin_socket  # noqa: PLC0415  # the other commands start faster without

    return asyncio.run(_ask(admin_socket(address or "", port), method, path, body))


async def _ask(address: str, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    import aiohttp  # noqa: PLC0415

    connector = aiohttp.UnixConnector("\0" + address[1:] if address.startswith("@") else address)
    url = f"http://avapd{path}"
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.get(url, params=body) if method == "GET" else session.post(url, json=body) as answer,
        ):
            said: dict[str, Any] = await answer.json(content_type=None)
    except (aiohttp.ClientError, OSError) as error:
        hint = "is avapd running here, with this PORT? AVAPD_ADMIN_SOCKET names another socket"
        raise OrderFailedError(f"nobody answers at {address}: {type(error).__name__}", hint=hint) from None
    if "error" in said:
        raise OrderFailedError(str(said["error"]), hint=str(said.get("hint") or ""))
    return said


def _show(said: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(said)
        return
    refused = said.get("refused")
    facts = {
        "generation": said["generation"], "version_hash": said["version_hash"], "definitions": said["count"],
        "frozen": said["frozen"] or "no", "denied": ", ".join(said["denied"]) or "nothing",
        "refused": refused["error"] if refused else "nothing",
    }  # fmt: skip
    echo_facts(facts, as_json=False)


@_order
def refresh(port: int, address: str | None, as_json: bool) -> None:
    """Read the table now, and print the hash that is served afterwards."""
    said = _send(address, port, "POST", "/refresh")
    if as_json:
        echo_json(said)
    else:
        click.echo(said["version_hash"])


@click.argument("version_hash", metavar="HASH")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait at most.")
@_order
def wait(version_hash: str, timeout: float, port: int, address: str | None, as_json: bool) -> None:
    """Return when every worker serves HASH (or a hash that begins so)."""
    _show(_send(address, port, "POST", "/wait", hash=version_hash, seconds=timeout), as_json)


@click.argument("version_hash", metavar="HASH")
@_order
def approve(version_hash: str, port: int, address: str | None, as_json: bool) -> None:
    """Let exactly the candidate with this hash through, which was refused as implausible."""
    _show(_send(address, port, "POST", "/approve", hash=version_hash), as_json)


@cli.group()
def quarantine() -> None:
    """What to know of definitions that failed validation."""


@quarantine.command(name="list")
@_addressed
def quarantined(port: int, address: str | None, as_json: bool) -> None:
    """List them: what is wrong with each, since when, and whether an earlier version of it is served."""
    said = _send(address, port, "GET", "/quarantine")
    if as_json:
        echo_json(said)
        return
    rows = [
        (one["name"], one["reason"], one["error"], _utc(one["since"]), "yes" if one["served"] else "no")
        for one in said["quarantine"]
    ]
    echo_table(("name", "fails", "error", "since (UTC)", "served as before"), rows)


@_order
def history(port: int, address: str | None, as_json: bool) -> None:
    """List the generations that can be compared and rolled back to."""
    said = _send(address, port, "GET", "/history")
    if as_json:
        echo_json(said)
        return
    rows = [
        (
            str(one["generation"]), _utc(one["at"]), one["version_hash"][:12], str(one["count"]),
            f"+{one['added']} ~{one['changed']} -{one['removed']}",
            one["origin"],
        )
        for one in said["generations"]
    ]  # fmt: skip
    echo_table(("generation", "published (UTC)", "hash", "count", "change", "from"), rows)


@click.argument("after", metavar="B")
@click.argument("before", metavar="A")
@_order
def diff(before: str, after: str, port: int, address: str | None, as_json: bool) -> None:
    """Show what changed between generations A and B (numbers or hashes), as a unified diff of code and interface."""
    said = _send(address, port, "GET", "/diff", **{"from": before, "to": after})
    if as_json:
        echo_json(said)
    else:
        click.echo(said["diff"], nl=False)


@click.argument("generation", required=False)
@_order
def rollback(generation: str | None, port: int, address: str | None, as_json: bool) -> None:
    """Serve GENERATION (a number or hash, by default the one before) again, as a new one, and freeze updates."""
    _show(_send(address, port, "POST", "/rollback", to=generation or ""), as_json)


@click.option("--reason", default="", help="Shown in logs and status.")
@_order
def freeze(reason: str, port: int, address: str | None, as_json: bool) -> None:
    """Publish nothing of the table until `unfreeze`."""
    reason = reason or f"by {os.environ.get('USER') or 'an operator'}"
    _show(_send(address, port, "POST", "/freeze", reason=reason), as_json)


@_order
def unfreeze(port: int, address: str | None, as_json: bool) -> None:
    """Serve what the table holds again."""
    _show(_send(address, port, "POST", "/unfreeze"), as_json)


@click.argument("name")
@_order
def deny(name: str, port: int, address: str | None, as_json: bool) -> None:
    """Serve the command NAME no more, whatever the table says."""
    _show(_send(address, port, "POST", "/deny", name=name), as_json)


@click.argument("name")
@_order
def allow(name: str, port: int, address: str | None, as_json: bool) -> None:
    """Take a `deny` back."""
    _show(_send(address, port, "POST", "/allow", name=name), as_json)
