"""The group of all commands, and how they print. Every exit of avapd is here; everything below raises.

Readable on a terminal, JSON with `--json`. Shell completion is click's: `eval "$(_AVAPD_COMPLETE=bash_source avapd)"`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click
import orjson

from avapd import __version__
from avapd.errors import AvapdError, ConfigError, Exit
from avapd.log import printable


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


# --- output -----------------------------------------------------------------------------------------------------


def echo_json(value: object) -> None:
    """Print JSON."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def echo_facts(facts: dict[str, object], as_json: bool) -> None:
    """Print names and values, one a line, or as JSON."""
    if as_json:
        echo_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


def echo_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head, in columns."""
    shown = [tuple(printable(cell, 160) for cell in row) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    for row in shown:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
