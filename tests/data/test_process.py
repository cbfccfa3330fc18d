"""What a worker asks of its host, in processes of their own: limits cannot be taken back."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from avapd.data import process

PROLOGUE = """
import json, os, resource, sys
from avapd.data import process
from avapd.log import Log, Sink
log = Log("worker", sink=Sink(2))
"""


def run(code: str, *, files: int = 4096) -> tuple[Any, list[dict[str, Any]]]:
    """What `code` prints as JSON in a process with this hard limit of files, and what it logs."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (min({files}, 256), {files}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", limited + PROLOGUE + code + "\nlog.close()"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines()]


def test_a_worker_stays_on_its_cpu() -> None:
    """The affinity is the one CPU it was given."""
    cpu = max(os.sched_getaffinity(0))
    found, logged = run(f"process.pin({cpu}, log); print(json.dumps(sorted(os.sched_getaffinity(0))))")
    assert found == [cpu]
    assert logged == []


@pytest.mark.parametrize("cpu", [1023, 5000])
def test_a_cpu_that_is_not_ours_costs_the_pinning_only(cpu: int) -> None:
    """It runs anywhere and says so, once."""
    found, logged = run(f"process.pin({cpu}, log); print(json.dumps(sorted(os.sched_getaffinity(0))))")
    assert found == sorted(os.sched_getaffinity(0))
    assert [(line["level"], line["cpu"], line["error"]) for line in logged] == [("WARN", cpu, "Invalid argument")]


@pytest.mark.parametrize("hard", [256, 300, 4096])
def test_open_files_are_raised_as_far_as_allowed(hard: int) -> None:
    """Up to the hard limit, which is told; no core dump ever holds the catalog."""
    limits = "[resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]"
    found, logged = run(f"told = process.raise_limits()\nprint(json.dumps([told, *{limits}]))", files=hard)
    assert found == [hard, [hard, hard], [0, 0]]
    assert logged == []


def test_open_files_are_counted() -> None:
    """One more for each that is opened; the count does not count itself."""
    before = process.open_files()
    made = [os.memfd_create("test") for _ in range(5)]
    assert process.open_files() == before + 5
    for fd in made:
        os.close(fd)
    assert process.open_files() == before


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_connections_inherit_the_options(host: str) -> None:
    """No Nagle delay, and a dead peer is noticed within about 30 s."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        process.tune(listener)
        with socket.create_connection(listener.getsockname()[:2]), listener.accept()[0] as accepted:
            tcp = socket.IPPROTO_TCP
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(tcp, socket.TCP_NODELAY) == 1
            idle, pause, count, dead = (
                accepted.getsockopt(tcp, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            )
            assert idle + pause * count <= 30
            assert dead == 30_000


def test_the_heap_of_the_start_is_frozen() -> None:
    """The collector no longer walks what start-up made."""
    try:
        process.freeze_heap()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
