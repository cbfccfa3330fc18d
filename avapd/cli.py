"""The commands. Every exit of avapd is here; everything below raises.

Readable on a terminal, JSON with `--json`. Shell completion is click's: `eval "$(_AVAPD_COMPLETE=bash_source avapd)"`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import orjson

from avapd import __version__, config
from avapd.errors import AvapdError, ConfigError, Exit
from avapd.log import Log, printable


def main() -> NoReturn:
    """The console script."""
    try:
        code = cli.main(standalone_mode=False, prog_name="avapd")
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"avapd: {problem}", err=True)
        sys.exit(error.exit_code)
    except AvapdError as error:
        hint = f"\n       {error.hint}" if error.hint else ""
        click.echo(f"avapd: {printable(str(error))}{hint}", err=True)
        sys.exit(Exit.FAILED if error.exit_code is Exit.INTERNAL else error.exit_code)
    sys.exit(code or Exit.OK)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="avapd")
def cli() -> None:
    """The definition server of the AVAP platform."""


def _settings_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for every setting, from its one declaration."""
    for name, setting in reversed(config.settings().items()):
        variable = setting.variables[0]
        text = f"path of a file that holds {variable}" if setting.secret else f"{variable}: {setting.help}"
        if not setting.secret:
            text += f" [{setting.default_text}]"
        metavar = "PATH" if setting.secret else "VALUE"
        command = click.option(setting.flag, name, default=None, help=text.replace("`", ""), metavar=metavar)(command)
    return command


def _load(flags: dict[str, str | None]) -> config.Config:
    return config.load(os.environ, {name: text for name, text in flags.items() if text is not None})


# --- the server ---------------------------------------------------------------------------------------------


@cli.command()
@click.option("--require-database", is_flag=True, help="Exit 69 when the first read fails, instead of waiting.")
@_settings_flags
def serve(require_database: bool, **flags: str | None) -> int:
    """Serve the definitions of DATABASE_URL. Settings come from the environment; flags win."""
    settings = _load(flags)
    return _serve(settings, lambda: _load(flags), require_database=require_database)


def _serve(
    settings: config.Config,
    reload: Callable[[], config.Config],
    *,
    require_database: bool = False,
    on_serving: Callable[[], None] | None = None,
) -> int:
    from avapd.control.master import Master  # noqa: PLC0415  # the other commands start faster without the server

    log = Log("master", level=settings.log_level, readable=settings.development)
    log.info("INIT", version=__version__, environment=settings.environment)
    for warning in (*settings.warnings(), *config.misspelt(os.environ)):
        log.warn("Setting", warning=warning)
    log.info("CONFIG OK", port=settings.port, admin_port=settings.admin_port, refresh_seconds=settings.refresh_seconds)

    async def run() -> Exit:
        master = Master(settings, log, reload=reload, require_database=require_database, on_serving=on_serving)
        return await master.run()

    try:
        return asyncio.run(run())
    except AvapdError as error:
        log.fatal("Cannot Start", error=str(error), hint=error.hint)
        return error.exit_code
    finally:
        log.close()


@cli.command()
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep the database in this directory.")
@click.option("--port", default=50051, show_default=True, help="gRPC port.")
@click.option("--admin-port", default=9464, show_default=True, help="HTTP port of metrics and status.")
@click.option("--workers", default=None, type=click.IntRange(1, 256), help="Worker processes.  [default: usable CPUs]")
@click.option("--signed", is_flag=True, help="Serve signed packages (SIGNING_KEY) instead of plain source.")
def demo(keep: Path | None, port: int, admin_port: int, workers: int | None, signed: bool) -> int:
    """Serve a sample catalog from a real PostgreSQL of its own, and print what to try. Ctrl-C removes everything."""
    from avapd.demo import Demo  # noqa: PLC0415  # needs the extra `demo`

    for number in (signal.SIGTERM, signal.SIGHUP):  # until the server takes them over, they end it as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    with Demo(keep, port=port, admin_port=admin_port, signed=signed) as sample:
        environ = {**sample.environment(), **({"AVAPD_WORKERS": str(workers)} if workers else {})}
        settings = config.load(environ)

        def hang_up() -> config.Config:
            """SIGHUP, which refreshes a server, means here that the terminal was closed."""
            signal.raise_signal(signal.SIGTERM)
            return settings

        return _serve(settings, hang_up, on_serving=lambda: click.echo(sample.introduction()))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@_settings_flags
def check(as_json: bool, **flags: str | None) -> int:
    """Look at settings, database, table, memory and files before a start; exit 1 when something would fail."""
    from avapd.control.check import FAIL, check  # noqa: PLC0415
    from avapd.control.master import source_of  # noqa: PLC0415

    settings = _load(flags)
    findings = asyncio.run(check(settings, source_of(settings)))
    if as_json:
        _echo_json([finding._asdict() for finding in findings])
    else:
        marks = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}
        _echo_table(("check", "", "found"), [(found.check, marks[found.status], found.found) for found in findings])
    return Exit.FAILED if any(finding.status == FAIL for finding in findings) else Exit.OK


@cli.command()
@click.option("--limits", is_flag=True, help="Print the limits of the wire engine instead.")
def settings(*, limits: bool) -> None:
    """Print every setting as a Markdown table: the one in the README."""
    click.echo(config.table(limits=limits))


# --- asking a running server ----------------------------------------------------------------------------------


def _target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON instead of text."),
        click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait for an answer."),
        click.option(
            "--target",
            envvar="AVAPD_TARGET",
            default="127.0.0.1:50051",
            show_default=True,
            help="host:port of the server.",
        ),
    ):
        command = option(command)
    return command


def _client(target: str, timeout: float, *, with_key: bool = True) -> Any:
    from avapd.client import Client  # noqa: PLC0415  # imports grpcio

    return Client(target, _key() if with_key else "", timeout=timeout)


def _key() -> str:
    """The client's key: the first of API_KEY or API_KEY_FILE, as the server reads them."""
    path = os.environ.get("API_KEY_FILE")
    try:
        text = Path(path).read_text(encoding="ascii") if path else os.environ.get("API_KEY", "")
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"API_KEY_FILE names {path}, which cannot be read"]) from None
    if not text.strip():
        raise ConfigError(["API_KEY (or API_KEY_FILE) is not set: the server asks for a key"])
    try:
        return config.api_keys(text)[0]
    except ValueError as error:
        raise ConfigError([f"API_KEY {error}"]) from None


@cli.command()
@click.argument("name")
@_target_options
def get(name: str, target: str, timeout: float, as_json: bool) -> None:
    """Show one definition: its code on stdout, the rest on stderr."""
    with _client(target, timeout) as client:
        definition = client.get(name)
    if as_json:
        _echo_json(_jsonable(definition))
        return
    click.echo(f"name       {printable(definition.name)}", err=True)
    click.echo(f"type       {printable(definition.type)}", err=True)
    click.echo(f"interface  {printable(definition.interface_json, 4096)}", err=True)
    click.echo(f"hash       {definition.hash}", err=True)
    click.echo(f"code       {len(definition.code)} bytes", err=True)
    sys.stdout.buffer.write(definition.code)
    sys.stdout.flush()


@cli.command(name="list")
@_target_options
def list_(target: str, timeout: float, as_json: bool) -> None:
    """List all definitions."""
    with _client(target, timeout) as client:
        catalog = client.catalog()
    if as_json:
        _echo_json(
            [{"name": d.name, "type": d.type, "bytes": len(d.code), "hash": d.hash} for d in catalog.definitions]
        )
        return
    rows = [(d.name, d.type, str(len(d.code)), d.hash[:12]) for d in catalog.definitions]
    _echo_table(("name", "type", "bytes", "hash"), rows)
    click.echo(f"{len(rows)} definitions, version {catalog.version_hash[:12]}", err=True)


@cli.command()
@_target_options
def sync(target: str, timeout: float, as_json: bool) -> None:
    """Fetch the whole catalog once and tell how long it took and how much it was."""
    with _client(target, timeout) as client:
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
    _echo_facts(facts, as_json)


@cli.command()
@click.option(
    "--service", default="", help="Health service name: '', avap.DefinitionEngine, liveness, avapd.freshness."
)
@_target_options
def health(service: str, target: str, timeout: float, as_json: bool) -> int:
    """Ask for the health of a service; exit 0 only when it is SERVING (a container health check)."""
    with _client(target, timeout, with_key=False) as client:
        status = client.health(service)
    _echo_facts({"service": service, "status": status}, as_json)
    return Exit.OK if status == "SERVING" else Exit.FAILED


# --- output -----------------------------------------------------------------------------------------------------


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


def _echo_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _echo_facts(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        _echo_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


def _echo_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = [tuple(printable(cell, 160) for cell in row) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    for row in shown:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
