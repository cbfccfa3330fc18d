"""Disk and logs are no condition of serving (reliability.md scenario 18)."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import wait_until

Serve = Callable[..., Server]
EDIT = "UPDATE obex_dapl_functions SET code = '{}' WHERE name = 'si'"
# A user becomes root of a namespace for it; root must not, or he could not open the database's socket.
UNSHARED = ("unshare", "--mount", *(("--map-root-user",) if os.geteuid() else ()))
# `avapd` in this process, with a queue that a test can fill: 10,000 lines take hours of publications.
SHORT_QUEUE = """
import runpy, sys, avapd.log
avapd.log.QUEUE_LINES = 10
at = sys.argv.index("avapd")
sys.argv = sys.argv[at:]
runpy.run_module("avapd", run_name="__main__")
"""


def get(calls: Calls) -> Outcome:
    return calls.get("addVar", wait=True)


def publish(database: Database, calls: Calls, number: int) -> None:
    """Edit a row, and wait until it is served."""
    database.execute(EDIT.format(f"x = {number}"))
    wait_until(lambda: calls.command("si").code == f"x = {number}".encode())


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe."""
    made = tmp_path / "stdout"
    os.mkfifo(made)
    return made


def test_a_reader_of_stdout_that_stops_costs_lines_only(sample: Database, serve: Serve, pipe: Path) -> None:
    """Publications go on with the pipe full, no call fails, no worker dies; how many were lost is told afterwards."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
    command = ("sh", "-c", f'exec "$@" > {pipe}', "sh", sys.executable, "-P", "-c", SHORT_QUEUE)
    server = serve(sample.reader_url, command=command, env={"AVAPD_REFRESH_SECONDS": "0.05"})
    wait_until(lambda: all(worker["state"] == "SERVING" for worker in server.status()["workers"]), 20)
    workers = server.workers()
    with Load(server.calls, get, 2) as load, server.calls() as calls:
        for number in range(20):
            publish(sample, calls, number)
    assert not load.failures()
    assert server.workers() == workers

    os.set_blocking(reader, True)
    lines: list[bytes] = []
    with os.fdopen(reader, "rb") as stdout:
        reading = threading.Thread(target=lambda: lines.extend(stdout))
        reading.start()
        with server.calls() as calls:
            publish(sample, calls, 20)
            publish(sample, calls, 21)
        wait_until(lambda: any(b'"log_lines_dropped":' in line for line in lines))
        assert server.stop() == 0
        reading.join(10)
    assert b'"msg":"STOPPED"' in lines[-1]


def test_a_server_stops_in_time_although_nobody_reads(sample: Database, serve: Serve, pipe: Path) -> None:
    """The last lines are waited for no longer than a second."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
    command = ("sh", "-c", f'exec "$@" > {pipe}', "sh")
    server = serve(sample.reader_url, command=command, env={"AVAPD_REFRESH_SECONDS": "0.05"})
    wait_until(lambda: all(worker["state"] == "SERVING" for worker in server.status()["workers"]), 20)
    with server.calls() as calls:
        for number in range(6):
            publish(sample, calls, number)
    assert server.stop() == 0
    os.close(reader)


def test_a_full_disk_costs_a_warning_only(sample: Database, serve: Serve, tmp_path: Path) -> None:
    """1 MiB of tmpfs for a catalog of 2: it is served, and so are changes; nothing but a WARN tells of it."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not have a mount namespace (unshare --mount)")
    sample.insert_many(2_000)
    mounted = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    env = {"AVAPD_SNAPSHOT_DIR": str(tmp_path / "kept")}
    server = serve(sample.reader_url, command=(*UNSHARED, "sh", "-c", mounted, "sh"), env=env).wait_serving()
    workers = server.workers()
    with Load(server.calls, get, 2) as load, server.calls() as calls:
        for number in range(5):
            publish(sample, calls, number)
    assert not load.failures()
    assert server.workers() == workers
    wait_until(lambda: server.events("Not Kept on Disk"))
    assert server.events("Not Kept on Disk")[0]["error"] == "No space left on device"
    assert not [line for line in server.events() if line["level"] in {"ERROR", "FATAL"}]
    assert server.stop() == 0
