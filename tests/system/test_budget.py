"""A memory cgroup that is nearly full (reliability.md scenario 17)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.calls import Calls, Outcome
from support.cgroup import MemoryCgroup, memory_cgroup
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import stays, wait_until

ROWS = 8_000
NOT_FOUND = 5
TWICE = f"""INSERT INTO obex_dapl_functions (name, type, code)
    SELECT 'more_' || i, 'function', rpad('', 900, 'x') FROM generate_series(1, {ROWS}) i"""


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as made:
        yield made


def test_a_catalog_that_would_not_fit_is_refused_before_it_is_built(cgroup: MemoryCgroup, database: Database) -> None:
    """At 110 % of the steady state twice the rows are refused and told, small changes go on, nobody is killed.

    With room for it the same table is published by the next poll.
    """
    database.insert_many(ROWS, 1_000)
    database.insert([("addVar", "[]", "function", "x = 1")])

    def get(calls: Calls) -> Outcome:
        return calls.get("addVar", wait=True)

    with Server(database.reader_url, command=cgroup.command) as server, server.calls() as calls:
        server.wait_serving()
        # Settled: what was read at the start was given back, and polls come and go.
        wait_until(lambda: server.metric("avap_sync_total", result="unchanged") >= 3)
        cgroup.limit(int(1.1 * cgroup.held()))
        workers = server.workers()
        with Load(server.calls, get, 2) as load:
            database.execute(TWICE)
            wait_until(lambda: server.metric("avap_sync_total", result="rejected") >= 2)
            assert calls.get("more_1").code == NOT_FOUND
            database.execute("DELETE FROM obex_dapl_functions WHERE name LIKE 'more_%'")
            database.execute("UPDATE obex_dapl_functions SET code = 'x = 2' WHERE name = 'addVar'")
            wait_until(lambda: calls.command("addVar").code == b"x = 2")
            database.execute(TWICE)
            assert stays(lambda: calls.get("more_1").code == NOT_FOUND, 1)
            cgroup.limit(1 << 30)
            wait_until(lambda: calls.get("more_1").code == 0)
        assert not load.failures()
        assert (cgroup.kills(), server.workers()) == (0, workers)
        told = server.events("Refresh Failed")
        assert {line["reason"] for line in told} == {"memory"}
        assert "left of the cgroup's limit of" in told[0]["error"]
        assert "raise the memory limit" in told[0]["hint"]
