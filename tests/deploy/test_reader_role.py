"""deploy/postgres/reader.sql: the role it makes can read the two tables, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.server import KEY

from avapd.demo.postgres import DATABASE, Postgres

SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres" / "reader.sql"
TABLES = ("obex_dapl_functions", "avap_bytecode")
WRITES = (
    "INSERT INTO {table} (id) VALUES (2)",
    "UPDATE {table} SET id = 1",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
    "DROP TABLE {table}",
    "ALTER TABLE {table} ADD COLUMN more int",
    "SELECT nextval('{table}_id_seq')",
    "CREATE TABLE mine (id int)",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
)


@pytest.fixture
def postgres(own_postgres: Postgres) -> Postgres:
    """A server with both tables, a row in each, and without the role; nothing is open to everyone."""
    tables = (resources.files("avapd.demo") / "tables.sql").read_text(encoding="utf-8")
    own_postgres.psql(tables)
    own_postgres.psql("DROP OWNED BY avapd_reader; DROP ROLE avapd_reader")
    own_postgres.psql(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    own_postgres.psql("INSERT INTO obex_dapl_functions (name, code) VALUES ('si', 'x = 1')")
    own_postgres.psql("INSERT INTO avap_bytecode (command_name) VALUES ('si')")
    return own_postgres


def run_script(postgres: Postgres, **variables: str) -> None:
    """psql, as the head of the script tells the operator to call it."""
    flags = [flag for name, value in variables.items() for flag in ("-v", f"{name}={value}")]
    done = subprocess.run(
        [postgres.bin / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *flags, "-f", SCRIPT, postgres.url()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def run_as(postgres: Postgres, role: str, *statements: str) -> Any:
    """The value of the last statement, on a connection of the role."""

    async def call() -> Any:
        connection = await asyncpg.connect(postgres.url(role))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(call())


def privileges(postgres: Postgres) -> str:
    """Every grant on tables, schemas and the database, and every role with its settings, as psql prints them."""
    return postgres.psql(
        f"""SELECT oid::regclass, relacl FROM pg_class WHERE relacl IS NOT NULL AND oid > 16383 ORDER BY 1;
        SELECT nspname, nspacl FROM pg_namespace ORDER BY 1;
        SELECT datacl FROM pg_database WHERE datname = '{DATABASE}';
        SELECT * FROM pg_db_role_setting ORDER BY 1, 2; SELECT rolname, oid FROM pg_roles ORDER BY 1"""
    )


def test_the_role_reads_both_tables(postgres: Postgres) -> None:
    """SELECT works on both, by the names that the script takes by default."""
    run_script(postgres)
    for table in TABLES:
        assert run_as(postgres, "avapd_reader", f"SELECT count(*) FROM public.{table}") == 1


def test_the_role_writes_nothing(postgres: Postgres) -> None:
    """No right to write, make, change or remove anything: not even after it has switched read-only off."""
    run_script(postgres)
    for statement in [write.format(table=table) for table in TABLES for write in WRITES]:
        try:
            run_as(postgres, "avapd_reader", "SET default_transaction_read_only = off", statement)
        except asyncpg.InsufficientPrivilegeError:
            continue
        pytest.fail(f"{statement} was allowed")


def test_the_role_is_read_only_by_default(postgres: Postgres) -> None:
    """Its transactions are read-only when it sets nothing, so even a right granted by mistake is of no use."""
    run_script(postgres)
    postgres.psql("GRANT DELETE ON obex_dapl_functions TO avapd_reader")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        run_as(postgres, "avapd_reader", "DELETE FROM obex_dapl_functions")


def test_a_second_run_changes_nothing(postgres: Postgres) -> None:
    """The script can be run again; what a role was granted on the tables beyond SELECT is taken back."""
    run_script(postgres)
    once = privileges(postgres)
    run_script(postgres)
    assert privileges(postgres) == once
    postgres.psql("GRANT INSERT, DELETE ON obex_dapl_functions TO avapd_reader")
    run_script(postgres)
    assert privileges(postgres) == once


def test_role_and_schema_can_be_named(postgres: Postgres) -> None:
    """Names that need quoting are quoted; the other schema stays closed."""
    role, schema = "catalog-reader", "Defs"
    postgres.psql(f'CREATE SCHEMA "{schema}"; CREATE TABLE other (id int)')
    postgres.psql("".join(f'ALTER TABLE {table} SET SCHEMA "{schema}";' for table in TABLES))
    run_script(postgres, role=role, schema=schema)
    for table in TABLES:
        assert run_as(postgres, role, f'SELECT count(*) FROM "{schema}".{table}') == 1
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        run_as(postgres, role, "SELECT count(*) FROM public.other")


def test_the_second_table_may_be_missing(postgres: Postgres) -> None:
    """Without avap_bytecode the script grants what there is."""
    postgres.psql("DROP TABLE avap_bytecode")
    run_script(postgres)
    assert run_as(postgres, "avapd_reader", "SELECT count(*) FROM obex_dapl_functions") == 1


def test_nothing_is_left_of_a_run_that_fails(postgres: Postgres) -> None:
    """Without the first table the script fails as a whole: no role stays behind."""
    postgres.psql("DROP TABLE obex_dapl_functions")
    with pytest.raises(AssertionError, match="obex_dapl_functions"):
        run_script(postgres)
    assert postgres.psql("SELECT count(*) FROM pg_roles WHERE rolname = 'avapd_reader'").strip() == "0"


def test_check_reports_the_role_as_read_only(postgres: Postgres) -> None:
    """`avapd check --json` finds what it needs, for plain source and for packages, and calls the role read-only."""
    run_script(postgres)
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": postgres.url("avapd_reader"), "API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "avapd", "check", "--json"],
        capture_output=True,
        check=False,
        env={**environ, "SIGNING_KEY": KEY, "AVAPD_WORKERS": "1", "AVAPD_ENV": "test"},
    )
    assert done.stderr == b""
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert findings["role"] == {"check": "role", "status": "ok", "found": "avapd_reader is read-only"}
    assert findings["avap_bytecode"]["found"] == "is read"
    assert findings["rows"]["found"].startswith("1 rows, 1 definitions")
    assert done.returncode == 0, findings
