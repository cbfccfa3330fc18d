"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.database import Database, server
from support.server import Server

from avapd.demo.postgres import Postgres

SAMPLE = [
    ("addVar", '[{"item": "name", "type": "variable"}]', "function", "def run(task, context):\n    return 1\n"),
    ("getDate", "[]", "function", "import datetime\n"),
    ("si", None, None, "# ñ, 日本語\n"),
]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A superuser's connection string on a PostgreSQL shared by the session."""
    with server() as url:
        yield url


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """An own database with empty source tables."""
    made = Database(postgres_url)
    yield made
    made.drop()


@pytest.fixture
def sample(database: Database) -> Database:
    """A database with the three rows of SAMPLE."""
    database.insert(SAMPLE)
    return database


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, to be killed or frozen."""
    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers and kills what is left of them at the end."""
    started: list[Server] = []

    def start(url: str, *arguments: str, **options: object) -> Server:
        made = Server(url, *arguments, **options)  # type: ignore[arg-type]
        started.append(made)
        return made

    yield start
    for made in started:
        made.__exit__()
