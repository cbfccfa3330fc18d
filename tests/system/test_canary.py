"""A catalog that harms who serves it reaches one worker, and is not tried again until it changes (scenario 12).

The harm is done by a `sitecustomize` that only workers act on: what a definition named `poison` says, happens to the
worker that loads it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import stays, wait_until

Serve = Callable[..., Server]
UNKNOWN, UNAVAILABLE = 2, 14
# So many that no worker is left without one: the kernel deals them out by chance.
_CONNECTIONS = 16
POISON = """
import sys
if "avapd.data" in sys.orig_argv:
    import asyncio, os, time
    from avapd.data import verifier
    from avapd.data.service import Service
    from avapd.shared.snapshot import key_of

    check, get = verifier._check, Service.get_command
    failing = []

    def said(view):
        found = view.get(key_of("poison"))
        return b"" if found is None else bytes(found)

    def checked(view, load, current):
        check(view, load, current)
        loop = asyncio.get_running_loop()
        if b"die at once" in said(view):
            os.abort()
        if b"hang at once" in said(view):
            time.sleep(60)
        if b"die later" in said(view):
            loop.call_later(0.3, os.abort)
        if b"hang" in said(view):
            loop.call_later(0.1, time.sleep, 60)
        if b"fail later" in said(view):
            loop.call_later(0.1, failing.append, True)

    def got(self, request):
        if b"fail at once" in said(self.view) or (failing and b"fail later" in said(self.view)):
            raise RuntimeError("poisoned")
        return get(self, request)

    verifier._check, Service.get_command = checked, got
"""


@pytest.fixture
def poison(tmp_path: Path) -> dict[str, str]:
    """Settings under which a definition can harm the worker that loads it."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    env = {"PYTHONPATH": str(tmp_path), "AVAPD_CANARY_SECONDS": "1.2", "AVAPD_REFRESH_SECONDS": "0.1"}
    return {**env, "AVAPD_CODE_GRAMMAR": "off"}


@pytest.fixture
def poisonable(serve: Serve, sample: Database, poison: dict[str, str]) -> Server:
    """A server of two workers that a definition can harm."""
    return serve(sample.reader_url, env=poison).wait_serving()


def refused(server: Server) -> bool:
    return server.metric("avap_candidate_refused", reason="worker") == 1


def get(calls: Calls) -> Outcome:
    return calls.get("si", wait=True)


@pytest.mark.parametrize("harm", ["die at once", "die later", "hang", "fail at once", "fail later"])
def test_a_poisonous_catalog_harms_one_worker_once(poisonable: Server, sample: Database, harm: str) -> None:
    """The other worker never has it; it is refused by hash, named, not tried again; mended, the table is served."""
    server = poisonable
    before = server.status()
    with Load(server.calls, get, _CONNECTIONS) as load:
        sample.insert([("poison", "[]", "function", harm)])
        wait_until(lambda: refused(server), 6.0)
        ended = 0 if harm.startswith("fail") else 1
        wait_until(lambda: server.metric("avap_worker_restarts_total") == ended, 6.0)
        server.wait_served(lambda status: bool(status["version_hash"] == before["version_hash"]))
        after = server.status()
        assert stays(lambda: refused(server), 1.0)
        assert [one["pid"] for one in server.status()["workers"]] == [one["pid"] for one in after["workers"]]
    workers = {one["pid"] for one in before["workers"]} & {one["pid"] for one in after["workers"]}
    assert len(workers) == 2 - ended
    codes = {entry.outcome.code for entry in load.failures()}
    assert codes <= {"fail at once": set(), "fail later": {UNKNOWN}}.get(harm, {UNAVAILABLE})
    if ended:  # a worker that ends takes down what was in flight with it, one call of each connection
        assert len(load.failures()) <= _CONNECTIONS
    with server.calls() as calls:
        assert calls.get("poison").code == 5
    sample.execute("UPDATE obex_dapl_functions SET code = 'mended' WHERE name = 'poison'")
    with server.calls() as calls:
        wait_until(lambda: calls.get("poison").code == 0, 6.0)
    wait_until(lambda: not refused(server), 6.0)
    told = [line for line in server.events("Refresh Failed") if line.get("reason") == "worker"]
    assert told
    assert told[0]["error"].startswith("worker 0: ")


@pytest.mark.parametrize("harm", ["die at once", "hang at once"])
def test_with_one_worker_a_throw_away_one_is_harmed(
    serve: Serve, sample: Database, poison: dict[str, str], harm: str
) -> None:
    """The worker that serves never has it: it does not even restart, and no call fails."""
    server = serve(sample.reader_url, env={**poison, "AVAPD_WORKERS": "1"}).wait_serving()
    before = server.status()
    with Load(server.calls, get, 2) as load:
        sample.insert([("poison", "[]", "function", harm)])
        wait_until(lambda: refused(server), 20.0)
    after = server.status()
    assert load.failures() == []
    for name in ("pid", "state", "generation", "restarts"):
        assert after["workers"][0][name] == before["workers"][0][name]
    assert len(server.family()) <= 3  # the master, its worker, who checks definitions
    sample.execute("UPDATE obex_dapl_functions SET code = 'mended' WHERE name = 'poison'")
    with server.calls() as calls:
        wait_until(lambda: calls.get("poison").code == 0)


def test_what_a_worker_refused_can_be_approved(poisonable: Server, sample: Database) -> None:
    """`avapd approve HASH` tries it once more; when it does harm again, it is refused again."""
    sample.insert([("poison", "[]", "function", "die at once")])
    wait_until(lambda: refused(poisonable), 6.0)
    candidate = poisonable.status()["refused"].rpartition(" ")[2]
    poisonable.wait_serving()  # else a spare worker goes first
    restarts = poisonable.metric("avap_worker_restarts_total")
    done = poisonable.order("approve", candidate)
    assert done.returncode == 1
    assert "the worker died on it" in done.stderr
    assert poisonable.metric("avap_worker_restarts_total") == restarts + 1
    assert refused(poisonable)


def test_a_change_is_served_by_one_worker_before_the_rest(poisonable: Server, sample: Database) -> None:
    """For the time that is set, one worker has the new generation and the other the old one; then both the new one."""
    sample.insert([("late", "[]", "function", "x = 1")])
    old = poisonable.status()["generation"]

    def generations() -> list[int]:
        return sorted(one["generation"] for one in poisonable.status()["workers"])

    wait_until(lambda: generations() == [old, old + 1])
    assert stays(lambda: generations() == [old, old + 1], 0.6)
    wait_until(lambda: generations() == [old + 1, old + 1])


@pytest.mark.parametrize("words", [("rollback",), ("freeze",), ("deny", "si")])
def test_an_order_does_not_wait_for_the_canary(
    serve: Serve, sample: Database, poison: dict[str, str], words: tuple[str, ...]
) -> None:
    """What only one worker serves yet is taken back; to roll back is to go back to what all others serve."""
    server = serve(sample.reader_url, env={**poison, "AVAPD_CANARY_SECONDS": "5"}).wait_serving()
    before = server.status()["version_hash"]
    old = server.status()["generation"]
    sample.insert([("late", "[]", "function", "x = 1")])
    wait_until(lambda: any(one["generation"] > old for one in server.status()["workers"]))
    assert server.order(*words).returncode == 0
    assert server.events("Canary Brought Back") or words == ("freeze",)
    wait_until(lambda: server.events("Canary Brought Back"))
    wait_until(lambda: len({one["generation"] for one in server.status()["workers"]}) == 1)
    if words != ("deny", "si"):
        assert stays(lambda: server.status()["version_hash"] == before, 0.5)
        with server.calls() as calls:
            assert calls.get("late").code == 5
    else:
        with server.calls() as calls:
            assert calls.get("si").code == 5
            wait_until(lambda: calls.get("late").code == 0, 20.0)


def test_a_canary_that_was_killed_proves_nothing(poisonable: Server, sample: Database) -> None:
    """A kill -9 from outside ends the roll-out but not the candidate: it is tried again, and served."""
    old = poisonable.status()["generation"]
    sample.insert([("late", "[]", "function", "x = 1")])
    wait_until(lambda: any(one["generation"] > old for one in poisonable.status()["workers"]))
    canary = next(one["pid"] for one in poisonable.status()["workers"] if one["generation"] > old)
    os.kill(canary, signal.SIGKILL)
    with poisonable.calls() as calls:
        wait_until(lambda: calls.get("late", wait=True).code == 0 and not poisonable.status()["refused"], 8.0)
    wait_until(lambda: len({one["generation"] for one in poisonable.status()["workers"]}) == 1)
    assert len(poisonable.events("Definitions Broadcasted")) == 2
