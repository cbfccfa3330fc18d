"""The sample catalog: from commands/*.toml (commands/README.md tells their format) into the source tables."""

from __future__ import annotations

import hashlib
import tomllib
from importlib import resources
from typing import Any, Final

from avapd.control import package
from avapd.demo.postgres import Postgres

_COLUMNS: Final = ("name", "interface", "description", "type", "logic", "componenttype", "service", "command", "code")


def commands() -> list[dict[str, Any]]:
    """The sample commands, file by file; a column that is left out is absent."""
    files = sorted(resources.files("avapd.demo.commands").iterdir(), key=lambda file: file.name)
    texts = [file.read_text(encoding="utf-8") for file in files if file.name.endswith(".toml")]
    return [_stripped(command) for text in texts for command in tomllib.loads(text)["command"]]


def _stripped(command: dict[str, Any]) -> dict[str, Any]:
    return {key: value.strip("\n") + ("\n" if key == "code" else "") if isinstance(value, str) else value
            for key, value in command.items()}  # fmt: skip


def fill(postgres: Postgres, signing_key: bytes) -> int:
    """Create and fill the tables, unless they are there; packages are signed anew each time. The number of rows."""
    sample = commands()
    if postgres.psql("SELECT to_regclass('obex_dapl_functions')").strip() == "":
        postgres.psql((resources.files("avapd.demo") / "tables.sql").read_text(encoding="utf-8"))
        rows = [tuple(command.get(column) for column in _COLUMNS) for command in sample]
        copy(postgres, "obex_dapl_functions", _COLUMNS, rows)
    compiled = []
    for command in sample:
        if command.get("compiled"):
            source = command["code"].encode()
            stored = "\\x" + package.sign(source, signing_key).hex()
            compiled.append((command["name"], stored, hashlib.sha256(source).hexdigest(), "t"))
    postgres.psql("TRUNCATE avap_bytecode")
    copy(postgres, "avap_bytecode", ("command_name", "bytecode", "source_hash", "is_verified"), compiled)
    return int(postgres.psql("SELECT count(*) FROM obex_dapl_functions"))


def copy(postgres: Postgres, table: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """COPY rows into a table (text format: https://www.postgresql.org/docs/current/sql-copy.html)."""
    lines = ["\t".join(map(_field, row)) for row in rows]
    postgres.psql(f"COPY {table} ({', '.join(columns)}) FROM STDIN;", data="\n".join([*lines, "\\.", ""]))


_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _field(value: object) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value).translate(_ESCAPES)
