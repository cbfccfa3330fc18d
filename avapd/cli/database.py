"""The commands for the database: what its owner may want to put into it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from avapd import config
from avapd.cli.group import cli
from avapd.errors import ConfigError


@cli.group()
def db() -> None:
    """What the owner of the database may do for avapd."""


@db.command(name="install-notify")
@click.option("--apply", is_flag=True, help="Run it, at DATABASE_URL, instead of printing it.")
@click.option("--schema", envvar="AVAPD_DATABASE_SCHEMA", default="public", show_default=True)
@click.option("--channel", envvar="AVAPD_NOTIFY_CHANNEL", default=config.NOTIFY_CHANNEL, show_default=True)
@click.option("--ca-file", envvar="AVAPD_DATABASE_CA_FILE", default="", help="PEM file of the database's authority.")
@click.option("--bytecode", is_flag=True, help="Also on avap_bytecode.")
def install_notify(*, apply: bool, schema: str, channel: str, ca_file: str, bytecode: bool) -> None:
    """Print the triggers that tell avapd of changes at once; they can be installed again. Needs the tables' owner."""
    from avapd.control.source.listener import trigger  # noqa: PLC0415

    sql = trigger(schema, channel, compiled=bytecode)
    if not apply:
        click.echo(sql, nl=False)
        return
    url = os.environ.get("DATABASE_URL", "")
    if not url:
        raise ConfigError(["DATABASE_URL is not set: the owner's connection string"])
    asyncio.run(_execute(url, ca_file, sql))
    click.echo("installed")


async def _execute(url: str, ca_file: str, sql: str) -> None:
    from avapd.control.source.connection import Database  # noqa: PLC0415

    async def work(connection: Any) -> None:
        await connection.execute(sql)

    await Database(url, 30.0, ca_file).run(work)
