"""The source of every bench: a real PostgreSQL from the wheel, with catalogs that the server itself makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import resources
from typing import Final

from avapd.demo.postgres import Postgres
from bench.frame import Run

READER: Final = "avapd_reader"
# What a definition of `fill` holds beside its code when serialized: name, type, interface, hash, tags and lengths.
_BESIDE_CODE: Final = 137
_PADDING: Final = b"# padding\n"


@contextlib.contextmanager
def database() -> Iterator[Postgres]:
    """A server with the empty source tables; fsync and autovacuum are off, as they would disturb."""
    with Postgres(options=("-c", "autovacuum=off", "-c", "max_wal_size=8GB")) as postgres:
        postgres.psql((resources.files("avapd.demo") / "tables.sql").read_text(encoding="utf-8"))
        yield postgres


@contextlib.contextmanager
def filled(run: Run, definitions: int, definition_bytes: int) -> Iterator[Postgres]:
    """A server whose table holds so many definitions; the run tells so."""
    run.parameters |= {"definitions": definitions, "definition_bytes": definition_bytes}
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        fill(postgres, definitions, definition_bytes)
        yield postgres


def version(postgres: Postgres) -> str:
    """The version of the server."""
    return postgres.psql("SHOW server_version").strip()


def name_of(number: int) -> str:
    """The name of a definition that `fill` makes."""
    return f"command_{number:07}"


def code_of(number: int, generation: int, definition_bytes: int) -> bytes:
    """The code of a definition that `fill` made and that was edited to this generation; `fill` makes generation 0."""
    head, first = (f"generation = {one}\ncommand = {number}\n".encode() for one in (generation, 0))
    size = definition_bytes - _BESIDE_CODE - len(first)
    return head + (_PADDING * (size // len(_PADDING) + 1))[:size]


def fill(postgres: Postgres, count: int, definition_bytes: int) -> None:
    """Replace all rows by `count` definitions that take `definition_bytes` each as a serialized CommandResponse."""
    head = r"E'generation = 0\ncommand = ' || i || E'\n'"
    postgres.psql(
        f"""TRUNCATE obex_dapl_functions RESTART IDENTITY;
        INSERT INTO obex_dapl_functions (name, interface, type, code)
        SELECT 'command_' || lpad(i::text, 7, '0'), '[{{"item": "value", "type": "variable"}}]', 'function',
               rpad({head}, {definition_bytes - _BESIDE_CODE}, E'# padding\\n')
        FROM generate_series(0, {count - 1}) AS i;
        VACUUM (FREEZE, ANALYZE) obex_dapl_functions;
        CHECKPOINT"""
    )


def add(postgres: Postgres, name: str, definition_bytes: int) -> None:
    """One more definition, of about this size as a serialized CommandResponse."""
    postgres.psql(
        f"""INSERT INTO obex_dapl_functions (name, interface, type, code)
        VALUES ('{name}', '[{{"item": "value", "type": "variable"}}]', 'function',
                rpad('# {name}', {definition_bytes - _BESIDE_CODE}, E'\\n# padding'))"""
    )
