"""What an operator may order: each takes effect at once, without the database, and outlives a restart."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.database import Database
from support.proxy import Proxy, proxied
from support.server import Server
from support.waiting import stays, wait_until

from avapd.demo.postgres import Postgres
from avapd.pb.avap_pb2 import CommandResponse

Serve = Callable[..., Server]
NOT_FOUND = 5
needs_own = pytest.mark.skipif(
    os.environ.get("AVAPD_TEST_POSTGRES") == "docker", reason="cuts the line to a PostgreSQL of its own, from the wheel"
)


class Order:
    """`avapd` at a server's socket."""

    def __init__(self, server: Server) -> None:
        self.run = server.order

    def json(self, *words: str) -> dict[str, Any]:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def fails(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 1, done.stdout
        return done.stderr


def code(server: Server, name: str) -> bytes | int:
    """The code that is served under a name, or the gRPC status."""
    with server.calls() as calls:
        outcome = calls.get(name)
    return outcome.code or bytes(CommandResponse.FromString(outcome.payload).code)


@pytest.fixture
def calm(serve: Serve, sample: Database, tmp_path: Path) -> Server:
    """A server that does not poll by itself, with a folder."""
    env = {"AVAPD_REFRESH_SECONDS": "3600", "AVAPD_SNAPSHOT_DIR": str(tmp_path / "store")}
    return serve(sample.reader_url, env=env).wait_serving()


def test_refresh_prints_the_hash_that_is_served_afterwards(calm: Server, sample: Database) -> None:
    """And `wait` returns once every worker serves it; for another hash it gives up in time."""
    order = Order(calm)
    before = order.run("refresh").stdout.strip()
    assert before == calm.status()["version_hash"]
    sample.execute("UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'addVar'")
    after = order.run("refresh").stdout.strip()
    assert after != before
    assert order.json("wait", after[:12])["version_hash"] == after
    assert code(calm, "addVar") == b"new"
    assert "not served by every worker" in order.fails("wait", before, "--timeout", "0.1")


def test_an_order_to_nobody_says_so(sample: Database) -> None:
    """Exit 1 and what to look at."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "avapd", "history", "--socket", "@avapd-nobody"],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nobody answers at @avapd-nobody" in done.stderr
    assert "PORT" in done.stderr


def test_history_diff_and_rollback(calm: Server, sample: Database) -> None:
    """Three generations are listed, compared, and the first is served again: a new generation with the old hash."""
    order = Order(calm)
    first = calm.status()["version_hash"]
    for text in ("second\n", "third\n"):
        sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'addVar'", text)
        order.run("refresh")
    listed = order.json("history")["generations"]
    assert [(one["added"], one["changed"], one["removed"]) for one in listed] == [(3, 0, 0), (0, 1, 0), (0, 1, 0)]
    diff = order.run("diff", str(listed[0]["generation"]), str(listed[2]["generation"])).stdout
    assert "--- a/addVar/code\n+++ b/addVar/code\n" in diff
    assert "-    return 1\n" in diff
    assert "+third\n" in diff
    said = order.json("rollback", first[:10])
    assert said["version_hash"] == first
    assert said["generation"] > listed[2]["generation"]
    assert "rolled back" in said["frozen"]
    wait_until(lambda: code(calm, "addVar") == b"def run(task, context):\n    return 1\n")
    order.run("refresh")
    assert calm.status()["version_hash"] == first  # frozen: the table must wait
    assert order.json("unfreeze")["version_hash"] == listed[2]["version_hash"]


def test_rollback_without_a_number_goes_one_back_and_knows_its_end(calm: Server, sample: Database) -> None:
    """A generation that is not kept is refused by name."""
    order = Order(calm)
    assert "no generation before" in order.fails("rollback")
    assert "99 is not kept" in order.fails("rollback", "99")
    first = calm.status()["version_hash"]
    sample.execute("DELETE FROM obex_dapl_functions WHERE name = 'si'")
    order.run("refresh")
    assert order.json("rollback")["version_hash"] == first
    assert calm.metric("avap_updates_frozen") == 1


def test_what_is_frozen_follows_no_table_but_stays_fresh(serve: Serve, sample: Database) -> None:
    """The source is still checked; nothing of it is published until `unfreeze`."""
    server = serve(sample.reader_url).wait_serving()
    order = Order(server)
    before = order.json("freeze", "--reason", "release night")
    assert before["frozen"] == "release night"
    checked = server.metric("avap_last_check_timestamp_seconds")
    sample.execute("UPDATE obex_dapl_functions SET code = 'new'")
    wait_until(lambda: server.metric("avap_last_check_timestamp_seconds") > checked)
    assert stays(lambda: server.status()["version_hash"] == before["version_hash"], 0.6)
    order.run("unfreeze")
    assert code(server, "addVar") == b"new"


def test_a_restart_keeps_what_was_rolled_back_to(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """Although the database is there and holds something else: frozen is frozen."""
    env = {"AVAPD_SNAPSHOT_DIR": str(tmp_path / "store")}
    server = serve(sample.reader_url, env=env).wait_serving()
    first = server.status()["version_hash"]
    sample.execute("UPDATE obex_dapl_functions SET code = 'bad' WHERE name = 'si'")
    server.wait_served(lambda status: status["version_hash"] != first)
    Order(server).json("rollback")
    server.stop()
    again = serve(sample.reader_url, env=env).wait_serving()
    assert stays(lambda: again.status()["version_hash"] == first, 0.6)
    assert Order(again).json("unfreeze")["version_hash"] != first
    assert code(again, "si") == b"bad"


def test_a_denied_command_is_not_found_until_it_is_allowed(calm: Server, sample: Database) -> None:
    """Whatever the table says meanwhile; others are served."""
    order = Order(calm)
    assert order.json("deny", "addVar")["denied"] == ["addVar"]
    wait_until(lambda: code(calm, "addVar") == NOT_FOUND)
    assert code(calm, "getDate") == b"import datetime\n"
    assert calm.metric("avap_commands_denied") == 1
    sample.execute("UPDATE obex_dapl_functions SET code = code || 'x'")
    order.run("refresh")
    assert code(calm, "addVar") == NOT_FOUND
    assert code(calm, "getDate") == b"import datetime\nx"
    order.json("allow", "addVar")
    wait_until(lambda: code(calm, "addVar") == b"def run(task, context):\n    return 1\nx")
    assert "not denied" in order.fails("allow", "addVar")


@needs_own
def test_orders_work_without_the_database_and_outlive_a_restart(
    serve: Serve, tcp: tuple[Database, Postgres, int], tmp_path: Path
) -> None:
    """Gone is the database, gone the master: the decisions and the catalog are there again, from disk."""
    database, _, port = tcp
    database.insert([("getDate", None, None, "import datetime\n"), ("si", None, None, "first")])
    with Proxy(("127.0.0.1", port)) as proxy:
        env = {"AVAPD_REFRESH_SECONDS": "3600", "AVAPD_SNAPSHOT_DIR": str(tmp_path / "store")}
        server = serve(proxied(database, proxy), env=env).wait_serving()
        order = Order(server)
        database.execute("UPDATE obex_dapl_functions SET code = 'second' WHERE name = 'si'")
        order.run("refresh")
        proxy.become("refuse")
        said = order.json("rollback")
        order.json("deny", "getDate")
        wait_until(lambda: code(server, "getDate") == NOT_FOUND)
        final = server.status()["version_hash"]
        assert final != said["version_hash"]
        assert server.stop() == 0
        again = serve(proxied(database, proxy), env=env).wait_serving()
        status = again.status()
        assert (status["version_hash"], status["source"]) == (final, "disk")
        assert status["generation"] > said["generation"]
        assert "rolled back" in status["frozen"]
        assert status["denied"] == ["getDate"]
        assert Order(again).json("allow", "getDate")["version_hash"] == said["version_hash"]
        wait_until(lambda: code(again, "getDate") == b"import datetime\n")


def test_an_implausible_table_is_refused_until_it_is_approved(serve: Serve, database: Database) -> None:
    """Half of the commands are gone: everything keeps serving, the candidate is named, and only that one may pass."""
    database.insert_many(40, 50)
    server = serve(database.reader_url).wait_serving()
    before = server.status()["version_hash"]
    database.execute("DELETE FROM obex_dapl_functions WHERE id % 2 = 0")
    wait_until(lambda: server.metric("avap_candidate_refused", reason="removed") == 1)
    assert stays(lambda: server.status()["version_hash"] == before, 0.6)
    assert isinstance(code(server, "command_000001"), bytes)
    refused = server.status()["refused"]
    assert "20 of 40 definitions would be removed" in refused
    candidate = refused.rpartition(" ")[2]
    order = Order(server)
    assert "no candidate" in order.fails("approve", "0" * 64)
    assert order.json("approve", candidate)["version_hash"] == candidate
    assert server.metric("avap_candidate_refused", reason="removed") == 0
    assert server.metric("avap_cache_size") == 20


def test_an_emptied_table_changes_nothing(serve: Serve, sample: Database) -> None:
    """Also of three commands; when they come back, nothing has to be approved."""
    server = serve(sample.reader_url).wait_serving()
    before = server.status()["version_hash"]
    sample.execute("CREATE TABLE kept AS SELECT * FROM obex_dapl_functions")
    sample.execute("DELETE FROM obex_dapl_functions")
    wait_until(lambda: server.metric("avap_candidate_refused", reason="empty") == 1)
    assert isinstance(code(server, "addVar"), bytes)
    sample.execute("INSERT INTO obex_dapl_functions SELECT * FROM kept")
    wait_until(lambda: server.metric("avap_candidate_refused", reason="empty") == 0)
    assert server.status()["version_hash"] == before


@needs_own
def test_the_disk_serves_within_two_seconds_when_the_database_is_gone(
    serve: Serve, tcp: tuple[Database, Postgres, int], tmp_path: Path
) -> None:
    """Marked as such; once the database answers, the table is served, and both are in the history."""
    database, _, port = tcp
    with Proxy(("127.0.0.1", port)) as proxy:
        env = {"AVAPD_SNAPSHOT_DIR": str(tmp_path / "store"), "AVAPD_DATABASE_SECONDS": "2"}
        first = serve(proxied(database, proxy), env=env).wait_serving()
        served = first.status()["version_hash"]
        wait_until(lambda: list((tmp_path / "store").glob("catalog-*")))
        first.stop()
        proxy.become("freeze")
        second = serve(proxied(database, proxy), env=env).wait_serving(6.0)  # 2 s, on a machine that does other things
        assert second.status()["version_hash"] == served
        assert second.events("Serving From Disk")[0]["level"] == "WARN"
        assert second.status()["source"] == "disk"
        database.execute("UPDATE obex_dapl_functions SET code = 'new'")
        proxy.become("forward")
        wait_until(lambda: second.status()["source"] == "database", 20)
        assert code(second, "addVar") == b"new"
        assert [one["origin"] for one in Order(second).json("history")["generations"]][-2:] == ["disk", "database"]


def test_changes_between_polls_come_by_notification(serve: Serve, sample: Database) -> None:
    """With the trigger in the database, an edit is served although the next poll is an hour away."""
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": sample.url}
    command = [sys.executable, "-P", "-m", "avapd", "db", "install-notify"]
    printed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "CREATE TRIGGER avapd_notify" in printed
    for _ in range(2):  # it can be repeated
        subprocess.run([*command, "--apply", "--bytecode"], env=env, capture_output=True, timeout=60, check=True)
    server = serve(sample.reader_url, env={"AVAPD_REFRESH_SECONDS": "3600"}).wait_serving()
    wait_until(lambda: server.status()["listening"])
    for text in ("one", "two", "three"):
        sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'si'", text)
        wait_until(lambda text=text: code(server, "si") == text.encode(), 5)  # type: ignore[misc]


def test_a_burst_of_notifications_causes_few_looks(serve: Serve, sample: Database) -> None:
    """One hundred within a moment: two at most."""
    server = serve(sample.reader_url, env={"AVAPD_REFRESH_SECONDS": "3600"}).wait_serving()
    wait_until(lambda: server.status()["listening"])
    assert stays(lambda: True, 0.6)  # the look that follows the connection is over

    def looks() -> float:
        return sum(server.metric("avap_sync_total", result=result) for result in ("published", "unchanged"))

    before = looks()
    sample.execute("DO $$ BEGIN FOR i IN 1..100 LOOP PERFORM pg_notify('avapd_changed', i::text); END LOOP; END $$")
    wait_until(lambda: looks() > before)
    assert stays(lambda: looks() <= before + 2, 1.0)


def test_strangers_may_not_order(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """Neither by another user nor in words that make no sense; the server goes on."""
    server = serve(sample.reader_url).wait_serving()
    order = Order(server)
    if os.geteuid() == 0:
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, f"avapd-admin-{server.port}"], capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
        assert "403" in done.stdout, done.stderr
    assert "not kept" in order.fails("rollback", "x" * 5000)
    assert server.status()["generation"] == 1


def test_a_hash_is_the_hash_of_the_table(calm: Server, sample: Database) -> None:
    """What `refresh` prints can be computed from the catalog that is served, after patches too."""
    sample.execute("UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'getDate'")
    sample.insert([("another", None, None, "x")])
    printed = Order(calm).run("refresh").stdout.strip()
    with calm.calls() as calls:
        catalog = calls.catalog()
    catalog.ClearField("version_hash")
    catalog.ClearField("total_count")
    assert hashlib.sha256(catalog.SerializeToString()).hexdigest() == printed


_AS_NOBODY = """
import os, socket, sys
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
sock.sendall(b"GET /history HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(sock.recv(65536).decode())
"""
