"""The database fails in every way; serving goes on (reliability.md scenarios 7 and 8, fail open)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.proxy import Proxy, proxied
from support.server import Server, free_port
from support.waiting import stays, wait_until

from avapd.demo.postgres import Postgres

Serve = Callable[..., Server]
FAST = {"AVAPD_REFRESH_SECONDS": "0.1", "AVAPD_DATABASE_SECONDS": "0.5"}
needs_own = pytest.mark.skipif(
    os.environ.get("AVAPD_TEST_POSTGRES") == "docker",
    reason="freezes and kills a PostgreSQL of its own, from the wheel",
)


def get(calls: Calls) -> Outcome:
    return calls.get("addVar", wait=True)


@needs_own
@pytest.mark.parametrize("mode", ["refuse", "reset", "freeze", "slow"])
def test_a_broken_line_changes_no_answer(tcp: tuple[Database, Postgres, int], serve: Serve, mode: str) -> None:
    """Refused, reset, blackholed, one byte in 0.2 s: polls end in time, answers and health stay, it recovers."""
    database, _, port = tcp
    with Proxy(("127.0.0.1", port)) as proxy:
        server = serve(proxied(database, proxy), env=FAST).wait_serving()
        assert server.metric("avap_database_up") == 1
        with Load(server.calls, get, 2) as load:
            proxy.become(mode)
            wait_until(lambda: server.metric("avap_sync_total", result="failed") >= 2)
            assert server.metric("avap_sync_duration_seconds") < 1.0
            assert server.metric("avap_database_up") == 0
            with server.calls() as calls:
                assert calls.health() == calls.health("avap.DefinitionEngine") == "SERVING"
                wait_until(lambda: calls.health("avapd.freshness") == "NOT_SERVING")
                assert server.http("/readyz")[0] == 200
                database.execute("UPDATE obex_dapl_functions SET code = 'x = 2'")
                proxy.become("forward")
                wait_until(lambda: calls.command("addVar").code == b"x = 2")
                wait_until(lambda: calls.health("avapd.freshness") == "SERVING")
        assert not load.failures()
        assert {entry.outcome.payload for entry in load.history} <= _versions(b"x = 1", b"x = 2", load)
        errors = server.events("Refresh Failed")
        assert errors
        assert all(line["reason"] == "unreachable" for line in errors)


def _versions(first: bytes, second: bytes, load: Load) -> set[bytes]:
    """The answers that contain one of two codes; any other would be torn."""
    return {
        entry.outcome.payload
        for entry in load.history
        if first in entry.outcome.payload or second in entry.outcome.payload
    }


@needs_own
def test_the_database_may_die_and_come_back(tcp: tuple[Database, Postgres, int], serve: Serve) -> None:
    """Scenario 7: the postmaster is killed; the catalog stays; after the restart the next poll recovers alone."""
    database, postgres, _ = tcp
    server = serve(database.reader_url, env=FAST).wait_serving()
    with Load(server.calls, get, 2) as load:
        postgres.kill()
        wait_until(lambda: server.metric("avap_sync_total", result="failed") >= 3)
        age = server.metric("avap_catalog_age_seconds")
        wait_until(lambda: server.metric("avap_catalog_age_seconds") > age)
        postgres.start()
        wait_until(lambda: server.metric("avap_database_up") == 1)
    assert not load.failures()
    assert server.metric("avap_cache_size") == 1


@needs_own
def test_a_frozen_database_ends_every_poll_by_its_deadline(tcp: tuple[Database, Postgres, int], serve: Serve) -> None:
    """Scenario 8: SIGSTOP of every backend: attempts end in time, nothing piles up, CONT heals."""
    database, postgres, _ = tcp
    server = serve(database.reader_url, env=FAST).wait_serving()
    frozen = [psutil.Process(postgres.pid), *psutil.Process(postgres.pid).children()]
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        wait_until(lambda: server.metric("avap_sync_total", result="failed") >= 2)
        assert server.metric("avap_sync_duration_seconds") < 1.0
        with server.calls() as calls:
            assert calls.get("addVar").code == 0
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):  # it had ended, and the first CONT let its parent reap it
                process.resume()
    wait_until(lambda: server.metric("avap_database_up") == 1)


SABOTAGE = {
    "table dropped": (
        "ALTER TABLE obex_dapl_functions RENAME TO gone",
        "ALTER TABLE gone RENAME TO obex_dapl_functions",
    ),
    "column missing": (
        "ALTER TABLE obex_dapl_functions RENAME COLUMN code TO source",
        "ALTER TABLE obex_dapl_functions RENAME COLUMN source TO code",
    ),
    "permission revoked": (
        "REVOKE SELECT ON obex_dapl_functions FROM avapd_reader",
        "GRANT SELECT ON obex_dapl_functions TO avapd_reader",
    ),
    "type changed": (
        "ALTER TABLE obex_dapl_functions ALTER code TYPE bytea USING convert_to(code, 'UTF8')",
        "ALTER TABLE obex_dapl_functions ALTER code TYPE text USING convert_from(code, 'UTF8')",
    ),
}  # fmt: skip
REASONS = {"permission revoked": "forbidden"}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_table_that_changes_shape_is_refused_as_a_whole(sample: Database, serve: Serve, what: str) -> None:
    """Between two polls the table goes, loses a column or a right: the last catalog stays until it is mended.

    A table that is rewritten looks empty to a transaction which began before (PostgreSQL's manual, section 13.6): that
    is refused as well, and the next poll sees the shape.
    """
    server = serve(sample.reader_url, env=FAST).wait_serving()
    breaks, mends = SABOTAGE[what]
    sample.execute(breaks)
    reason = REASONS.get(what, "shape")
    wait_until(lambda: reason in {error["reason"] for error in server.events("Refresh Failed")})
    assert {error["reason"] for error in server.events("Refresh Failed")} <= {reason, "empty"}
    with server.calls() as calls:
        assert (calls.get("addVar").code, calls.health()) == (0, "SERVING")
        assert calls.catalog().total_count == 3
        sample.execute(mends)
        wait_until(lambda: server.metric("avap_database_up") == 1)
        assert calls.catalog().total_count == 3


def test_a_backend_ended_in_the_middle_of_a_read_costs_one_poll(sample: Database, serve: Serve) -> None:
    """pg_terminate_backend on avapd's own connections, again and again: every answer stays whole."""
    sample.insert_many(20_000)
    server = serve(sample.reader_url, env=FAST).wait_serving()
    with server.calls() as calls:
        for _ in range(5):
            wait_until(
                lambda: sample.query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'avapd%' AND datname = current_database()"
                )
            )
        wait_until(
            lambda: server.metric("avap_database_up") == 1 and server.metric("avap_sync_total", result="failed") >= 1
        )
        assert calls.catalog().total_count == 20_003


def test_a_lock_ends_by_the_deadline_and_leaks_nothing(sample: Database, serve: Serve) -> None:
    """Scenario 8: 30 polls against an ACCESS EXCLUSIVE lock: the master keeps its number of descriptors and threads."""
    server = serve(sample.reader_url, env={**FAST, "AVAPD_DATABASE_SECONDS": "0.1"}).wait_serving()
    master = psutil.Process(server.process.pid)
    wait_until(lambda: server.metric("avap_sync_total", result="unchanged") >= 3)
    files, threads = master.num_fds(), master.num_threads()
    locker = subprocess.Popen(
        [sys.executable, "-c", LOCKER, sample.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    try:
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"
        wait_until(lambda: server.metric("avap_sync_total", result="failed") >= 30, 20)
        assert master.num_fds() <= files + 2
        assert master.num_threads() <= threads + 1
        with server.calls() as calls:
            assert calls.get("addVar").code == 0
    finally:
        locker.communicate()
    wait_until(lambda: server.metric("avap_database_up") == 1)


LOCKER = """
import asyncio, asyncpg, sys
async def main():
    connection = await asyncpg.connect(sys.argv[1])
    async with connection.transaction():
        await connection.execute("LOCK TABLE obex_dapl_functions IN ACCESS EXCLUSIVE MODE")
        print("locked", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""


def test_before_the_first_load_it_waits_and_says_so(sample: Database, serve: Serve) -> None:
    """Cold start without a database: NOT_SERVING but alive, UNAVAILABLE, a rate-limited ERROR line per failed poll."""
    with Proxy(_no_target()) as proxy:
        proxy.become("refuse")
        server = serve(proxied(sample, proxy), env=FAST)
        with server.calls() as calls:
            wait_until(lambda: calls.health("liveness") == "SERVING")
            assert calls.health() == calls.health("avap.DefinitionEngine") == "NOT_SERVING"
            assert calls.health("avapd.freshness") == "NOT_SERVING"
            outcome = calls.get("addVar")
            assert (outcome.code, outcome.message) == (14, "No catalog loaded yet")
            assert calls.sync().code == 14
            assert server.http("/livez")[0] == 200
            assert server.http("/readyz")[0] == 503
            wait_until(lambda: server.metric("avap_sync_total", result="failed") >= 3)
            assert len(server.events("Refresh Failed")) <= 1 + 3, "rate-limited"


def test_a_database_that_comes_late_is_found(sample: Database, serve: Serve) -> None:
    """The table appears after the start: the next try serves it, on the connections that already exist."""
    sample.execute("ALTER TABLE obex_dapl_functions RENAME TO later")
    server = serve(sample.reader_url, env=FAST)
    with server.calls() as calls:
        wait_until(lambda: calls.health("liveness") == "SERVING")
        assert stays(lambda: calls.health() == "NOT_SERVING", 0.5)
        sample.execute("ALTER TABLE later RENAME TO obex_dapl_functions")
        wait_until(lambda: calls.health() == "SERVING")
        assert calls.get("addVar").code == 0


def test_require_database_ends_with_69(serve: Serve) -> None:
    """--require-database turns the waiting off."""
    server = serve(f"postgresql://nobody@127.0.0.1:{free_port()}/none", "--require-database")
    assert server.wait_end() == 69
    assert "check that PostgreSQL runs" in server.log


def _no_target() -> tuple[str, int]:
    return ("127.0.0.1", free_port())


PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@needs_own
@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (Debian package pgbouncer)")
def test_pgbouncer_in_transaction_mode(tcp: tuple[Database, Postgres, int], serve: Serve, tmp_path: Path) -> None:
    """Polls work through PgBouncer in transaction mode: no named statement, no start-up parameter it refuses."""
    database, _, port = tcp
    listen = free_port()
    tmp_path.chmod(0o777)
    (tmp_path / "users").write_text('"avapd_reader" ""\n')
    (tmp_path / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={port}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={listen}\n"
        f"auth_type=trust\nauth_file={tmp_path}/users\npool_mode=transaction\nunix_socket_dir=\n"
    )
    user = ("-u", "nobody") if os.geteuid() == 0 else ()
    assert PGBOUNCER is not None
    bouncer = subprocess.Popen([PGBOUNCER, *user, str(tmp_path / "ini")], stderr=subprocess.DEVNULL)
    try:
        url = f"postgresql://avapd_reader@127.0.0.1:{listen}/{database.name}"
        server = serve(url, env=FAST).wait_serving()
        wait_until(lambda: server.metric("avap_sync_total", result="unchanged") >= 10)
        assert server.metric("avap_sync_total", result="failed") == 0
    finally:
        bouncer.send_signal(signal.SIGTERM)
        bouncer.wait(10)


def test_staleness_shows_and_every_time_is_kept_apart(sample: Database, serve: Serve) -> None:
    """The four times of contract part 6: attempt goes on, check stops with the database, change and activation stay."""
    server = serve(sample.reader_url, env=FAST).wait_serving()
    names = ("attempt", "check", "change", "activation")

    def times() -> dict[str, float]:
        return {name: server.metric(f"avap_last_{name}_timestamp_seconds") for name in names}

    first = times()
    assert all(abs(value - time.time()) < 60 for value in first.values())
    wait_until(lambda: times()["check"] > first["check"])
    assert times()["change"] == first["change"]
    sample.execute("REVOKE SELECT ON obex_dapl_functions FROM avapd_reader")
    wait_until(lambda: server.metric("avap_database_up") == 0)
    stale = times()
    wait_until(lambda: times()["attempt"] > stale["attempt"])
    assert times() == {**stale, "attempt": times()["attempt"]}
