"""Fixtures of the tests of a whole server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.database import Database
from support.server import free_port

from avapd.demo.postgres import Postgres


@pytest.fixture
def tcp(own_postgres: Postgres) -> Iterator[tuple[Database, Postgres, int]]:
    """A database with rows, on a PostgreSQL of its own that listens on a loopback port as well."""
    port = free_port()
    own_postgres.stop()
    with Postgres(port=port) as postgres:
        made = Database(postgres.url())
        made.insert([("addVar", "[]", "function", "x = 1")])
        yield made, postgres, port
