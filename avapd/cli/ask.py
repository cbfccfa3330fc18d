"""The commands that ask a running server, over gRPC with a client's key: get, list, sync, health."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import orjson

from avapd import config
from avapd.cli.group import cli, echo_facts, echo_json, echo_table
from avapd.errors import ConfigError, Exit
from avapd.log import printable


class Server(NamedTuple):
    """The server that is asked, as the options name it."""

    target: str
    timeout: float
    tls: bool
    ca: Path | None
    cert: Path | None
    cert_key: Path | None
    server_name: str

    def client(self, *, with_key: bool = True) -> Any:
        """A client of it; any option of TLS means TLS."""
        from avapd.client import Client, Tls  # noqa: PLC0415  # imports grpcio

        secured = self.tls or self.ca or self.cert or self.cert_key or self.server_name
        tls = Tls(ca=self.ca, cert=self.cert, key=self.cert_key, name=self.server_name) if secured else None
        return Client(self.target, _key() if with_key else "", timeout=self.timeout, tls=tls)


_FILE: Final = click.Path(dir_okay=False, path_type=Path)
_OPTIONS: Final = (
    click.option("--json", "as_json", is_flag=True, help="JSON instead of text."),
    click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait for an answer."),
    click.option("--server-name", envvar="AVAPD_TARGET_NAME", default="", help="Name in the server's certificate."),
    click.option("--cert-key", envvar="AVAPD_TARGET_KEY_FILE", type=_FILE, help="PEM file of that certificate's key."),
    click.option("--cert", envvar="AVAPD_TARGET_CERT_FILE", type=_FILE, help="PEM file of our certificate (mTLS)."),
    click.option("--ca", envvar="AVAPD_TARGET_CA_FILE", type=_FILE, help="PEM file of the server's authority."),
    click.option("--tls", envvar="AVAPD_TARGET_TLS", is_flag=True, help="TLS, with the system's authorities."),
    click.option(
        "--target", envvar="AVAPD_TARGET", default="127.0.0.1:50051", show_default=True, help="host:port of the server."
    ),
)


def _asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of a server, which it gets as `server`."""

    @functools.wraps(command)
    def asking(**options: Any) -> Any:
        server = Server(**{name: options.pop(name) for name in Server._fields})
        return command(server=server, **options)

    for option in _OPTIONS:
        asking = option(asking)
    return asking


def _key() -> str:
    """The client's key: the first of API_KEY or API_KEY_FILE, as the server reads them."""
    if os.environ.get("AVAPD_ANONYMOUS") == "on":  # a development server that asks for none
        return ""
    path = os.environ.get("API_KEY_FILE")
    try:
        text = Path(path).read_text(encoding="ascii") if path else os.environ.get("API_KEY", "")
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"API_KEY_FILE names {path}, which cannot be read"]) from None
    if not text.strip():
        raise ConfigError(["API_KEY (or API_KEY_FILE) is not set: the server asks for a key"])
    try:
        return config.parsers.api_keys(text)[0]
    except ValueError as error:
        raise ConfigError([f"API_KEY {error}"]) from None


@cli.command()
@click.argument("name")
@_asks
def get(name: str, server: Server, as_json: bool) -> None:
    """Show one definition: its code on stdout, the rest on stderr."""
    with server.client() as client:
        definition = client.get(name)
    if as_json:
        echo_json(_jsonable(definition))
        return
    click.echo(f"name       {printable(definition.name)}", err=True)
    click.echo(f"type       {printable(definition.type)}", err=True)
    click.echo(f"interface  {printable(definition.interface_json, 4096)}", err=True)
    click.echo(f"hash       {definition.hash}", err=True)
    click.echo(f"code       {len(definition.code)} bytes", err=True)
    sys.stdout.buffer.write(definition.code)
    sys.stdout.flush()


@cli.command(name="list")
@_asks
def list_(server: Server, as_json: bool) -> None:
    """List all definitions."""
    with server.client() as client:
        catalog = client.catalog()
    if as_json:
        echo_json([{"name": d.name, "type": d.type, "bytes": len(d.code), "hash": d.hash} for d in catalog.definitions])
        return
    rows = [(d.name, d.type, str(len(d.code)), d.hash[:12]) for d in catalog.definitions]
    echo_table(("name", "type", "bytes", "hash"), rows)
    click.echo(f"{len(rows)} definitions, version {catalog.version_hash[:12]}", err=True)


@cli.command()
@_asks
def sync(server: Server, as_json: bool) -> None:
    """Fetch the whole catalog once and tell how long it took and how much it was."""
    with server.client() as client:
        client.health("liveness")  # connect first: the time is the answer's
        began = time.perf_counter()
        catalog = client.catalog()
        seconds = time.perf_counter() - began
    facts = {
        "definitions": len(catalog.definitions),
        "version_hash": catalog.version_hash,
        "bytes": catalog.size,
        "milliseconds": round(seconds * 1000, 2),
        "megabytes_per_second": round(catalog.size / seconds / 1e6, 1),
    }
    echo_facts(facts, as_json)


@cli.command()
@click.option("--has", default="", help="Begin with what has changed since the catalog with this hash.")
@click.option("--events", default=0, help="End after so many events.  [default: never]")
@_asks
def watch(has: str, events: int, server: Server, as_json: bool) -> None:
    """Follow the catalog: a line for each new generation, with the names that changed."""
    with server.client() as client:
        for number, event in enumerate(client.watch(has), 1):
            facts = {
                "generation": event[-1].generation,
                "version_hash": event[-1].version_hash,
                "count": event[-1].total_count,
                "full": event[0].full,
                "changed": [command.name for part in event for command in part.commands],
                "removed": [name for part in event for name in part.removed],
            }
            click.echo(orjson.dumps(facts) if as_json else _event_line(facts))
            if number == events:
                return


def _event_line(facts: dict[str, Any]) -> str:
    what = "everything" if facts["full"] else " ".join(printable(name, 100) for name in facts["changed"]) or "nothing"
    gone = " ".join(printable(name, 100) for name in facts["removed"])
    return (
        f"generation {facts['generation']}  {facts['version_hash'][:12]}  {facts['count']} definitions  "
        f"changed: {what}{f'  removed: {gone}' if gone else ''}"
    )


@cli.command()
@click.option(
    "--service", default="", help="Health service name: '', avap.DefinitionEngine, liveness, avapd.freshness."
)
@_asks
def health(service: str, server: Server, as_json: bool) -> int:
    """Ask for the health of a service; exit 0 only when it is SERVING (a container health check)."""
    with server.client(with_key=False) as client:
        status = client.health(service)
    echo_facts({"service": service, "status": status}, as_json)
    return Exit.OK if status == "SERVING" else Exit.FAILED


def _jsonable(definition: Any) -> dict[str, object]:
    """Code that is no UTF-8 (a package) is shown in base64, under another name."""
    fields = definition._asdict()
    code = fields.pop("code")
    try:
        fields["code"] = code.decode()
    except UnicodeDecodeError:
        import base64  # noqa: PLC0415

        fields["code_base64"] = base64.b64encode(code).decode()
    return dict(fields)
