"""Databases for tests: one PostgreSQL per session, from the wheel, or by AVAPD_TEST_POSTGRES=docker in a container."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

import asyncpg
import pytest

from avapd.demo.postgres import Postgres

_NUMBERS = itertools.count(1)
COLUMNS = ("name", "interface", "type", "code")


class Database:
    """A database of its own, with the source tables in it (unless `tables` is off)."""

    def __init__(self, server_url: str, *, tables: bool = True) -> None:
        self.name = f"test_{os.getpid()}_{next(_NUMBERS)}"
        self._server_url = server_url
        self._on_server(f"CREATE DATABASE {self.name}")
        self.url = _with_database(server_url, self.name)
        self.reader_url = self.url.replace("//postgres", "//avapd_reader", 1)
        if tables:
            script = (resources.files("avapd.demo") / "tables.sql").read_text(encoding="utf-8")
            role = "CREATE ROLE avapd_reader LOGIN"
            exists = self.query("SELECT 1 FROM pg_roles WHERE rolname = 'avapd_reader'")
            self.execute(script.replace(role, "SELECT 1") if exists else script)

    def execute(self, sql: str, *arguments: Any) -> None:
        """Run SQL as the owner."""
        self._call(self.url, "execute", sql, *arguments)

    def query(self, sql: str, *arguments: Any) -> list[Any]:
        """Rows of a query, as the owner."""
        return list(self._call(self.url, "fetch", sql, *arguments))

    def insert(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Insert rows of (name, interface, type, code)."""
        self._call(self.url, "copy_records_to_table", "obex_dapl_functions", records=list(rows), columns=COLUMNS)

    def insert_many(self, count: int, code_bytes: int = 1000) -> None:
        """Insert `count` commands `command_000000` …, made by the server itself."""
        self.execute(
            f"""INSERT INTO obex_dapl_functions (name, interface, type, code)
            SELECT 'command_' || lpad(i::text, 6, '0'), '[{{"item": "value", "type": "variable"}}]', 'function',
                   rpad('result = ' || i || chr(10), {code_bytes}, '# padding' || chr(10))
            FROM generate_series(0, {count - 1}) AS i"""
        )

    def drop(self) -> None:
        """Remove the database, whoever is connected."""
        self._on_server(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")

    def _on_server(self, sql: str) -> None:
        self._call(self._server_url, "execute", sql)

    @staticmethod
    def _call(url: str, method: str, *arguments: Any, **named: Any) -> Any:
        async def call() -> Any:
            connection = await asyncpg.connect(url)
            try:
                return await getattr(connection, method)(*arguments, **named)
            finally:
                await connection.close()

        return asyncio.run(call())


def _with_database(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    base = head.rsplit("/", 1)[0]
    return f"{base}/{name}" + (f"?{query}" if query else "")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The connection string of a superuser on a running server, by the provider of AVAPD_TEST_POSTGRES."""
    provider = os.environ.get("AVAPD_TEST_POSTGRES", "wheel")
    if provider == "docker":
        with docker_server() as url:
            yield url
        return
    assert provider == "wheel", "AVAPD_TEST_POSTGRES is wheel or docker"
    with Postgres() as postgres:
        yield postgres.url()


@contextlib.contextmanager
def docker_server() -> Iterator[str]:
    """PostgreSQL in a container; skips, with the reason, where no Docker engine answers."""
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415  # asks for Docker when imported

    try:
        container = PostgresContainer("postgres:17-alpine", username="postgres", password="postgres", dbname="avap")
        container.with_env("POSTGRES_HOST_AUTH_METHOD", "trust").start()
    except Exception as error:  # noqa: BLE001  # whatever docker-py raises without an engine
        pytest.skip(f"no Docker engine: {type(error).__name__}")
    try:
        host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
        yield f"postgresql://postgres@{host}:{port}/avap"
    finally:
        container.stop()
