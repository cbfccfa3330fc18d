"""Definitions that fail validation, end to end: what is served, and what people are told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.database import Database
from support.server import Server
from support.waiting import stays, wait_until

from avapd.config import ENGINES

Serve = Callable[..., Server]
NOT_FOUND = 5
BAD = "def broken(:\n"


def listed(server: Server) -> dict[str, dict[str, Any]]:
    """`avapd quarantine list --json`, by name."""
    done = server.order("quarantine", "list", "--json")
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["quarantine"]}


def held(server: Server, reason: str = "code") -> float:
    return server.metric("avap_quarantined", reason=reason)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_breaks_goes_on_as_it_was_and_the_rest_is_published(serve: Serve, sample: Database, engine: str) -> None:
    """The last good version is served, a new one is NOT_FOUND with the reason; both are named until they are mended."""
    server = serve(sample.reader_url, env={"AVAPD_ENGINE": engine}).wait_serving()
    with server.calls() as calls:
        good = calls.command("addVar")
        sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'addVar'", BAD)
        sample.execute("UPDATE obex_dapl_functions SET interface = '{\"a\": 1}' WHERE name = 'getDate'")
        sample.insert([("new", "[]", "function", BAD), ("sound", "[]", "function", "x = 1")])
        wait_until(lambda: calls.get("sound").code == 0)
        wait_until(lambda: held(server) == 2 and held(server, "interface") == 1)
        assert calls.command("addVar") == good
        wait_until(lambda: "quarantine" in calls.get("new").message)
        told = calls.get("new")
        assert told.code == NOT_FOUND
        assert told.message == "Command 'new' not found: it is in quarantine, code: line 1: invalid syntax"
        assert calls.get("nobody").message == "Command 'nobody' not found"

        found = listed(server)
        assert {name: (one["reason"], one["served"]) for name, one in found.items()} == {
            "addVar": ("code", True), "getDate": ("interface", True), "new": ("code", False),
        }  # fmt: skip
        assert found["getDate"]["error"] == "a JSON object, not an array of objects"
        logged = [line["definitions"] for line in server.events("Definitions Quarantined")]
        assert {name: error for line in logged for name, error in line.items()}["new"] == "code: line 1: invalid syntax"
        table = server.order("quarantine", "list").stdout
        assert "addVar" in table
        assert "invalid syntax" in table

        sample.execute("UPDATE obex_dapl_functions SET code = 'x = 2', interface = '[]'")
        wait_until(lambda: calls.get("new").code == 0 and held(server) + held(server, "interface") == 0)
        wait_until(lambda: calls.command("addVar").code == b"x = 2")
        assert listed(server) == {}


def test_since_is_when_it_was_first_seen(serve: Serve, sample: Database) -> None:
    """However often everything is read again; another fault of the same name begins anew."""
    server = serve(sample.reader_url).wait_serving()
    sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'addVar'", BAD)
    wait_until(lambda: held(server) == 1)
    since = listed(server)["addVar"]["since"]
    assert server.order("refresh").returncode == 0
    assert listed(server)["addVar"]["since"] == since
    sample.execute("UPDATE obex_dapl_functions SET code = 'y = = 1' WHERE name = 'addVar'")
    wait_until(lambda: listed(server)["addVar"]["since"] > since)


def test_a_held_definition_that_is_deleted_goes(serve: Serve, sample: Database) -> None:
    """The last good version is served for a row that is there, not for one that is not."""
    server = serve(sample.reader_url).wait_serving()
    sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'addVar'", BAD)
    wait_until(lambda: held(server) == 1)
    sample.execute("DELETE FROM obex_dapl_functions WHERE name = 'addVar'")
    with server.calls() as calls:
        wait_until(lambda: calls.get("addVar").code == NOT_FOUND)
        wait_until(lambda: calls.get("addVar").message == "Command 'addVar' not found")
    assert held(server) == 0


def test_a_row_that_grows_too_large_stays_as_it_was(serve: Serve, sample: Database) -> None:
    """AVAPD_MAX_DEFINITION_BYTES is a rule of validation like the others."""
    server = serve(sample.reader_url, env={"AVAPD_MAX_DEFINITION_BYTES": "2000"}).wait_serving()
    sample.execute("UPDATE obex_dapl_functions SET code = repeat('# ', 2000) WHERE name = 'addVar'")
    wait_until(lambda: held(server, "size") == 1)
    with server.calls() as calls:
        assert stays(lambda: calls.get("addVar").code == 0, 0.3)
        sample.execute("UPDATE obex_dapl_functions SET code = 'small = 1' WHERE name = 'addVar'")
        wait_until(lambda: calls.command("addVar").code == b"small = 1")
    assert held(server, "size") == 0


def test_after_a_restart_the_good_version_is_that_on_disk(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """What was served before is served again, though the table has only the broken one."""
    env = {"AVAPD_SNAPSHOT_DIR": str(tmp_path)}
    server = serve(sample.reader_url, env=env).wait_serving()
    with server.calls() as calls:
        good = calls.command("addVar")
    sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'addVar'", BAD)
    wait_until(lambda: held(server) == 1)
    assert server.stop() == 0
    for seconds in ("0.5", "0"):  # with no time at all as well: then the known version is served first
        server = serve(sample.reader_url, env={**env, "AVAPD_START_CHECK_SECONDS": seconds}).wait_serving()
        wait_until(lambda server=server: held(server) == 1)  # type: ignore[misc]
        with server.calls() as calls:
            assert calls.command("addVar") == good
        assert server.metric("avap_definitions_unchecked") == 0
        assert server.stop() == 0


# --- a start that has no time to check everything -------------------------------------------------------------------


def test_what_a_start_served_unchecked_is_checked_and_taken_out(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """With the reason in the answer; only what was checked is kept on disk."""
    sample.insert([(f"sound{number}", "[]", "function", "x = 1") for number in range(600)])
    sample.insert([("faulty", "[]", "function", BAD)])
    env = {"AVAPD_START_CHECK_SECONDS": "0", "AVAPD_SNAPSHOT_DIR": str(tmp_path)}
    server = serve(sample.reader_url, env=env).wait_serving()
    with server.calls() as calls:
        wait_until(lambda: "quarantine" in calls.get("faulty").message)
        assert calls.get("sound599").code == 0
    wait_until(lambda: server.metric("avap_definitions_unchecked") == 0)
    assert server.metric("avap_cache_size") == 603
    (checked,) = server.events("Backlog Checked")
    assert (checked["count"], checked["faulty"]) == (604, 1)
    assert [line["source"] for line in server.events("Definitions Broadcasted")] == ["database", "validation"]
    wait_until(lambda: len(list(tmp_path.glob("catalog-*"))) == 1)
    assert server.stop() == 0
    assert len(list(tmp_path.glob("catalog-*"))) == 1


def test_when_too_much_of_it_fails_it_is_left_as_it_is(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """More than a fifth is more likely a wrong setting than a wrong table: it is told, and nothing is taken away."""
    sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name <> 'si'", BAD)
    env = {"AVAPD_START_CHECK_SECONDS": "0", "AVAPD_SNAPSHOT_DIR": str(tmp_path)}
    server = serve(sample.reader_url, env=env).wait_serving()
    (told,) = wait_until(lambda: server.events("Faulty Definitions Still Served"))
    assert told["count"] == 2
    assert "AVAPD_CODE_GRAMMAR" in told["hint"]
    assert server.order("refresh").returncode == 0
    assert {name: one["served"] for name, one in listed(server).items()} == {"addVar": True, "getDate": True}
    with server.calls() as calls:
        assert calls.command("addVar").code == BAD.encode()
    assert server.stop() == 0
    assert not list(tmp_path.glob("catalog-*"))


def test_a_table_of_which_nothing_passes_is_not_served(serve: Serve, sample: Database) -> None:
    """At a start that checked it: NOT_SERVING with the reason and what to look at, and well as soon as it is mended."""
    sample.execute("UPDATE obex_dapl_functions SET code = $1", BAD)
    server = serve(sample.reader_url, env={"AVAPD_START_CHECK_SECONDS": "60"})
    (failed,) = wait_until(lambda: server.events("Refresh Failed"))
    assert failed["error"].startswith("none of 3 definitions passes validation; addVar: line 1")
    assert "AVAPD_CODE_GRAMMAR" in failed["hint"]
    assert server.http("/readyz")[0] == 503
    sample.execute("UPDATE obex_dapl_functions SET code = 'x = 1'")
    server.wait_serving()


def test_validation_can_be_switched_off(serve: Serve, sample: Database) -> None:
    """Then anything is served, as the table has it."""
    sample.insert([("odd", "no JSON", "function", BAD)])
    env = {"AVAPD_CODE_GRAMMAR": "off", "AVAPD_CHECK_INTERFACE": "off"}
    server = serve(sample.reader_url, env=env).wait_serving()
    with server.calls() as calls:
        assert calls.command("odd").code == BAD.encode()


# --- faults of the checking itself ----------------------------------------------------------------------------------


def checkers(server: Server) -> list[int]:
    return [one.pid for one in server.family() if any("validator" in word for word in one.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_checker_that_is_harmed_changes_no_answer(serve: Serve, sample: Database, number: signal.Signals) -> None:
    """Killed, it is replaced and the change is published; stopped, everything is served until it goes on."""
    server = serve(sample.reader_url).wait_serving()
    (pid,) = wait_until(lambda: checkers(server))
    os.kill(pid, number)
    sample.insert([("late", "[]", "function", "x = 1")])
    with server.calls() as calls:
        if number is signal.SIGSTOP:
            assert stays(lambda: calls.get("addVar").code == 0, 0.5)
            assert server.http("/livez")[0] == 200
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: calls.get("late").code == 0)
    assert held(server) == 0


def test_a_stop_does_not_wait_for_a_check(serve: Serve, sample: Database) -> None:
    """Also while a checker is stopped; and none is left behind."""
    server = serve(sample.reader_url).wait_serving()
    (pid,) = wait_until(lambda: checkers(server))
    os.kill(pid, signal.SIGSTOP)
    sample.insert([("late", "[]", "function", "x = 1")])
    wait_until(lambda: server.status()["last_attempt"] > server.status()["last_check"])
    assert server.stop() == 0
    assert not psutil.pid_exists(pid)
