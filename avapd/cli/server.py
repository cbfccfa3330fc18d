"""The commands that run or examine a server: serve, demo, check, settings."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from avapd import __version__, config
from avapd.cli.group import cli, echo_json, echo_table
from avapd.errors import AvapdError, Exit
from avapd.log import Log


def settings_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for every setting, from its one declaration."""
    for name, setting in reversed(config.settings().items()):
        variable = setting.variables[0]
        text = f"path of a file that holds {variable}" if setting.secret else f"{variable}: {setting.help}"
        if not setting.secret:
            text += f" [{setting.default_text}]"
        metavar = "PATH" if setting.secret else "VALUE"
        command = click.option(setting.flag, name, default=None, help=text.replace("`", ""), metavar=metavar)(command)
    return command


def load_settings(flags: dict[str, str | None]) -> config.Config:
    """The settings from environment and flags. Raises ConfigError."""
    return config.load(os.environ, {name: text for name, text in flags.items() if text is not None})


@cli.command()
@click.option("--require-database", is_flag=True, help="Exit 69 when the first read fails, instead of waiting.")
@settings_flags
def serve(require_database: bool, **flags: str | None) -> int:
    """Serve the definitions of DATABASE_URL. Settings come from the environment; flags win."""
    settings = load_settings(flags)
    return _serve(settings, lambda: load_settings(flags), require_database=require_database)


def _serve(
    settings: config.Config,
    reload: Callable[[], config.Config],
    *,
    require_database: bool = False,
    on_serving: Callable[[], None] | None = None,
) -> int:
    from avapd.control.master import Master  # noqa: PLC0415  # the other commands start faster without the server

    if settings.environment == "test":
        random.seed(settings.seed)
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
@settings_flags
def check(as_json: bool, **flags: str | None) -> int:
    """Look at settings, database, table, memory and files before a start; exit 1 when something would fail."""
    from avapd.control.check import FAIL, check  # noqa: PLC0415
    from avapd.control.master import source_of  # noqa: PLC0415

    settings = load_settings(flags)
    findings = asyncio.run(check(settings, source_of(settings)))
    if as_json:
        echo_json([finding._asdict() for finding in findings])
    else:
        marks = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}
        echo_table(("check", "", "found"), [(found.check, marks[found.status], found.found) for found in findings])
    return Exit.FAILED if any(finding.status == FAIL for finding in findings) else Exit.OK


@cli.command()
@click.option("--limits", is_flag=True, help="Print the limits of the wire engine instead.")
def settings(*, limits: bool) -> None:
    """Print every setting as a Markdown table: the one in the README."""
    click.echo(config.table(limits=limits))
