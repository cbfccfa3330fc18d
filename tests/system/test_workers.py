"""Workers die, hang, cannot start, are orphaned, are replaced (reliability.md scenarios 1, 2, 3, 6, 9)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.calls import Outcome
from support.database import Database
from support.load import Load, knock
from support.server import Server
from support.waiting import stays, wait_until

from avapd.control.starter import NICENESS
from avapd.control.worker import environment

Serve = Callable[..., Server]
KILLS = int(os.environ.get("AVAPD_TEST_KILLS", "8"))

FAILPOINT = """
import os, sys
flag = os.path.join(os.path.dirname(__file__), sys.orig_argv[-1])
if os.path.exists(flag):
    with open(flag, "a") as starts:
        starts.write("start\\n")
    os._exit(3)
"""


def get(calls: object) -> Outcome:
    return calls.get("addVar", wait=True)  # type: ignore[attr-defined,no-any-return]


def test_killed_workers_cost_only_what_was_in_flight(sample: Database, serve: Serve) -> None:
    """Scenario 1: kill -9 of random workers: no connection is refused, failures are at most those in flight."""
    server = serve(sample.reader_url).wait_serving()
    stop, cut, refused = threading.Event(), [], []

    def churn() -> None:
        while not stop.is_set():
            try:
                cut.append(not knock(server.port))
            except OSError as error:
                refused.append(error)

    churner = threading.Thread(target=churn, daemon=True)
    threads = 4
    with Load(server.calls, get, threads) as load:
        churner.start()
        for _ in range(KILLS):
            victim = random.choice(server.workers())
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: victim not in server.workers(), what="the victim is gone")  # type: ignore[misc]
            wait_until(server._is_serving, what="a new worker serves")
        stop.set()
        churner.join(10)
    assert not refused
    assert sum(cut) <= KILLS
    assert len(load.failures()) <= KILLS * threads
    assert {entry.outcome.code for entry in load.failures()} <= {14}
    assert len(load.history) > 100 * threads
    assert server.metric("avap_worker_restarts_total") == KILLS


def test_a_stopped_worker_is_replaced_within_three_seconds(sample: Database, serve: Serve) -> None:
    """Scenario 2: SIGSTOP: no heartbeat, SIGABRT, SIGKILL, a new worker; the others never notice."""
    server = serve(sample.reader_url).wait_serving()
    victim, other = server.workers()
    stopped = time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: victim not in server.workers() and server._is_serving(), what="replaced")
    assert time.monotonic() - stopped <= 3.0
    assert other in server.workers()
    assert [line["worker"] for line in server.events("Worker Silent, Killing")] == [0]


def test_a_slow_master_kills_nobody(sample: Database, serve: Serve) -> None:
    """After a pause of its own the master judges heartbeats anew, instead of killing workers that never stopped."""
    server = serve(sample.reader_url).wait_serving()
    workers = server.workers()
    with server.calls() as calls:
        os.kill(server.process.pid, signal.SIGSTOP)
        assert stays(lambda: calls.get("addVar").code == 0, 2.5)
        os.kill(server.process.pid, signal.SIGCONT)
        assert stays(lambda: calls.get("addVar").code == 0, 1.0)
    assert server.workers() == workers


def test_workers_outlive_the_master_for_a_while_and_a_new_one_takes_the_port(sample: Database, serve: Serve) -> None:
    """Scenario 3: kill -9 of the master: no failed call, no orphan after the grace period, the port is free to take."""
    server = serve(sample.reader_url, env={"AVAPD_ORPHAN_SECONDS": "3"}).wait_serving()
    orphans = [psutil.Process(pid) for pid in server.workers()]
    os.kill(server.process.pid, signal.SIGKILL)
    server.wait_end()
    with Load(server.calls, get, 2) as load:
        assert stays(lambda: all(orphan.is_running() for orphan in orphans), 2.0)
    assert not load.failures()
    again = serve(sample.reader_url, env={"PORT": str(server.port)}).wait_serving()
    wait_until(lambda: not any(_alive(orphan) for orphan in orphans), 10, "no orphans")
    with again.calls() as calls:
        assert wait_until(lambda: knock(server.port))
        assert calls.get("addVar", wait=True).code == 0
    assert "Master Lost" in server.log


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def failpoint(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH: a worker whose name stands there as a file exits at its start."""
    (tmp_path / "sitecustomize.py").write_text(FAILPOINT)
    return tmp_path


def test_a_slot_that_cannot_start_costs_nothing_but_its_cpu(sample: Database, serve: Serve, failpoint: Path) -> None:
    """Scenario 6: back-off, the other worker adopts the idle socket, no connection hangs; it heals by itself."""
    server = serve(sample.reader_url, env={"PYTHONPATH": str(failpoint)}).wait_serving()
    victim = server.workers()[1]
    (failpoint / "worker-1").touch()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: server.events("Worker Cannot Start"))
    master = psutil.Process(server.process.pid)
    before, began = sum(master.cpu_times()[:2]), time.monotonic()
    assert all(knock(server.port, 1.0) for _ in range(100))
    assert stays(lambda: knock(server.port, 1.0), 3.0)
    used = (sum(master.cpu_times()[:2]) - before) / (time.monotonic() - began)
    assert used < 0.25, "the master is busy"
    starts = (failpoint / "worker-1").read_text().count("start")
    assert 1 <= starts <= 4, "0.5 s, 1 s, 2 s, 4 s apart"
    (failpoint / "worker-1").unlink()
    server.wait_serving()
    assert all(knock(server.port, 1.0) for _ in range(50))


def test_a_crash_loop_ends_with_70(sample: Database, serve: Serve, failpoint: Path) -> None:
    """When no worker can ever start, avapd says so and ends, instead of pretending for ever."""
    (failpoint / "worker-0").touch()
    server = serve(sample.reader_url, env={"PYTHONPATH": str(failpoint), "AVAPD_WORKERS": "1"})
    assert server.wait_end(40) == 70
    assert server.events("Crash Loop")[0]["level"] == "FATAL"


def test_usr2_replaces_every_worker_without_a_lost_call(sample: Database, serve: Serve) -> None:
    """SIGUSR2: new processes in every slot; calls and new connections go on without an error."""
    server = serve(sample.reader_url).wait_serving()
    before = server.workers()
    with Load(server.calls, get, 4) as load:
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.events("Workers Replaced") or not knock(server.port), 15)
    assert not set(before) & set(server.workers())
    assert not load.failures()
    assert server.metric("avap_worker_restarts_total") == 0


def test_a_replacement_that_cannot_start_leaves_the_old_worker(sample: Database, serve: Serve, failpoint: Path) -> None:
    """SIGUSR2 with a broken installation changes nothing."""
    server = serve(sample.reader_url, env={"PYTHONPATH": str(failpoint)}).wait_serving()
    before = server.workers()
    (failpoint / "worker-0").touch()
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: server.events("Replacement Stopped"))
    assert server.workers() == before
    with server.calls() as calls:
        assert calls.get("addVar").code == 0


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a PID namespace needs root and unshare")
def test_as_pid_1_it_reaps_strangers_and_honours_term(sample: Database, serve: Serve) -> None:
    """Scenario 9: in a PID namespace of its own: orphans are collected, strange exits ignored, TERM ends it."""
    server = serve(sample.reader_url, command=("unshare", "-fp", "--mount-proc", "--kill-child"))
    server.wait_serving()
    master = psutil.Process(server.process.pid).children()[0]
    enter = ["nsenter", "-t", str(master.pid), "-p", "-m"]
    for code in (0, 1, 3):
        subprocess.run([*enter, "sh", "-c", f"(exit {code}) & (sh -c 'exit {code}' &) ; exit 0"], check=True)

    def zombies() -> list[psutil.Process]:
        return [child for child in master.children() if child.status() == psutil.STATUS_ZOMBIE]

    wait_until(lambda: not zombies(), 1.0, "no zombies")
    with server.calls() as calls:
        assert calls.get("addVar").code == 0
    began = time.monotonic()
    master.terminate()
    assert server.wait_end() == 0
    assert time.monotonic() - began < 5


def test_a_worker_knows_nothing_of_the_database() -> None:
    """The environment handed to workers is a short list; nothing of the database or the keys is in it."""
    given = {
        "PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "x", "GRPC_VERBOSITY": "debug", "DATABASE_URL": "secret",
        "PGPASSWORD": "secret", "API_KEY": "secret", "SIGNING_KEY_FILE": "secret", "AVAPD_PORT": "1",
    }  # fmt: skip
    kept = environment(given, 64)
    assert kept == {
        "PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "x", "GRPC_VERBOSITY": "debug", "UV_THREADPOOL_SIZE": "64",
    }  # fmt: skip


def test_calls_go_first(sample: Database, serve: Serve) -> None:
    """The master goes behind the workers, also behind those that it starts later, and their verifiers behind calls."""
    server = serve(sample.reader_url).wait_serving()
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_until(lambda: server.metric("avap_worker_restarts_total") == 1 and server.metric("avap_worker_up") == 2)
    base = os.getpriority(os.PRIO_PROCESS, 0)

    def priorities(pid: int) -> dict[int, int]:
        """Of the threads of a process."""
        threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
        return {thread: os.getpriority(os.PRIO_PROCESS, thread) - base for thread in threads}

    master = priorities(server.process.pid)
    assert master[server.process.pid] == NICENESS
    assert set(master.values()) == {0, NICENESS}  # who starts workers and who writes the log were there before
    for pid in server.workers():
        assert priorities(pid)[pid] == 0
        assert NICENESS in priorities(pid).values()
