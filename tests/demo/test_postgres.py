"""The PostgreSQL of demo and tests: a child process that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import asyncpg
import psutil
import pytest
from support.server import free_port

from avapd.demo.postgres import Postgres, PostgresError


def test_it_leaves_neither_process_nor_folder() -> None:
    """After `with` the postmaster, its children and the temporary folder are gone; a second stop does nothing."""
    with Postgres() as postgres:
        master = psutil.Process(postgres.pid)
        family = [master, *master.children(recursive=True)]
        assert postgres.psql("SELECT 1 + 1").strip() == "2"
        assert postgres.folder.exists()
    assert not any(process.is_running() for process in family)
    assert not postgres.folder.exists()
    postgres.stop()


def test_it_comes_back_after_a_crash() -> None:
    """`kill` ends it without a clean shutdown, `start` recovers what was committed."""
    with Postgres() as postgres:
        postgres.psql("CREATE TABLE kept AS SELECT 7 AS number")
        pid = postgres.pid
        postgres.kill()
        assert not psutil.pid_exists(pid)
        postgres.start()
        assert postgres.pid != pid
        assert postgres.psql("SELECT number FROM kept").strip() == "7"


def test_it_listens_on_no_port_unless_asked() -> None:
    """By default a Unix socket in a folder that others cannot enter; with `port` on loopback too."""

    async def answer(port: int) -> int:
        connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}/avap")
        try:
            return int(await connection.fetchval("SELECT 42"))
        finally:
            await connection.close()

    with Postgres() as postgres:
        listening = psutil.Process(postgres.pid).net_connections("tcp")
        assert [connection for connection in listening if connection.status == psutil.CONN_LISTEN] == []
        assert stat.S_IMODE(postgres.folder.stat().st_mode) == 0o700
    port = free_port()
    with Postgres(port=port):
        assert asyncio.run(answer(port)) == 42


def test_an_error_of_psql_is_raised_with_its_words() -> None:
    """PostgresError, not a silent empty answer; also when the server is not running."""
    with Postgres() as postgres:
        with pytest.raises(PostgresError, match='relation "nothing" does not exist'):
            postgres.psql("SELECT * FROM nothing")
        postgres.kill()
        with pytest.raises(PostgresError, match="psql failed"):
            postgres.psql("SELECT 1")


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    """The end of its log is in the error; the folder is removed."""
    postgres = Postgres(options=("-c", "shared_buffers=nonsense"))
    with pytest.raises(PostgresError, match="shared_buffers"):
        postgres.__enter__()
    assert not postgres.folder.exists()


def test_kept_data_are_only_the_owner_s() -> None:
    """Others cannot read them, `stop` leaves them there, and the next start finds them."""
    with Postgres() as outer:  # its folder can be reached by the user that PostgreSQL runs as
        data = outer.folder / "kept"
        with Postgres(data) as postgres:
            assert postgres.fresh
            postgres.psql("CREATE TABLE kept AS SELECT 7 AS number")
            assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert (data / "PG_VERSION").exists()
        with Postgres(data) as postgres:
            assert not postgres.fresh
            assert postgres.psql("SELECT number FROM kept").strip() == "7"


def test_root_does_not_run_it() -> None:
    """PostgreSQL refuses root, so as root it runs as nobody."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    with Postgres() as postgres:
        assert psutil.Process(postgres.pid).uids().real != 0
        assert Path(f"/proc/{postgres.pid}").stat().st_uid != 0
