"""Publishing under stress: flips, stopped workers, a host that refuses memory, swaps under load (14, 15, 16)."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import stays, wait_until

from avapd.pb import avap_pb2

Serve = Callable[..., Server]
FAST = {"AVAPD_REFRESH_SECONDS": "0.05"}
REFUSALS = ("memfd_create:error=ENFILE", "pwrite64:error=ENOSPC", "fcntl:error=ENOMEM", "mmap:error=ENOMEM")
FLIPS = int(os.environ.get("AVAPD_TEST_FLIPS", "60"))


def put(database: Database, generation: int) -> None:
    """Write one number into the code of every row."""
    database.execute(
        "UPDATE obex_dapl_functions SET code = 'generation = ' || $1::int || '; name = ' || name", generation
    )


def number_in(code: bytes) -> int:
    found = re.match(rb"generation = (\d+); name = ", code)
    assert found, code[:80]
    return int(found[1])


def snapshots_held(process: psutil.Process) -> int:
    """How many different snapshots a process maps or holds open."""
    base = Path(f"/proc/{process.pid}")
    inodes = {line.split()[4] for line in (base / "maps").read_text().splitlines() if "memfd:avapd-snapshot" in line}
    for link in (base / "fd").iterdir():
        try:
            if "memfd:avapd-snapshot" in str(link.readlink()):
                inodes.add(str(link.stat().st_ino))
        except OSError:
            continue
    return len(inodes)


def test_many_flips_keep_generations_rising_and_memory_flat(sample: Database, serve: Serve) -> None:
    """Scenario 14: A → B → A … as fast as polls go: generations rise, hashes return, at most two snapshots live."""
    server = serve(sample.reader_url, env=FAST).wait_serving()
    family = [process for process in server.family() if snapshots_held(process)]
    hashes = set()
    put(sample, 0)
    wait_until(lambda: len(server.events("Definitions Broadcasted")) == 2)
    files = [process.num_fds() for process in family]
    for flip in range(1, FLIPS + 1):
        put(sample, flip % 2)
        published = wait_until(lambda flip=flip: server.events("Definitions Broadcasted")[flip + 1 :])  # type: ignore[misc]
        hashes.add(published[0]["version_hash"])
        assert all(snapshots_held(process) <= 2 for process in family)
    generations = [line["generation"] for line in server.events("Definitions Broadcasted")]
    assert all(later > earlier for earlier, later in pairwise(generations))
    assert len(hashes) == 2
    wait_until(lambda: all(snapshots_held(process) == 1 for process in family), what="old snapshots are freed")
    wait_until(lambda: all(now <= then + 2 for now, then in zip((p.num_fds() for p in family), files, strict=True)))
    assert {process.pid for process in family} <= {process.pid for process in server.family()}


def test_a_stopped_worker_delays_nobody_and_never_goes_back(sample: Database, serve: Serve) -> None:
    """Scenario 15: SIGSTOP during two broadcasts: the others have each within 1 s, the late one only the newest."""
    server = serve(sample.reader_url, env={**FAST, "AVAPD_SILENCE_SECONDS": "20"}).wait_serving()
    put(sample, 1)
    with_both = [_calls_to(server, worker) for worker in (0, 1)]
    wait_until(lambda: all(number_in(calls.command("si").code) == 1 for calls in with_both))
    late, other = with_both
    os.kill(server.workers()[0], signal.SIGSTOP)
    for generation in (2, 3):
        put(sample, generation)
        began = time.monotonic()
        wait_until(lambda generation=generation: number_in(other.command("si").code) == generation)  # type: ignore[misc]
        assert time.monotonic() - began <= 1.0
    seen: list[int] = []
    os.kill(server.workers()[0], signal.SIGCONT)

    def caught_up() -> bool:
        seen.append(number_in(late.command("si").code))
        return seen[-1] == 3

    wait_until(caught_up, 1.0)
    assert seen == sorted(seen)
    assert not server.events("Worker Silent, Killing")
    for calls in with_both:
        calls.close()


def _calls_to(server: Server, worker: int) -> Calls:
    """A connection that the kernel gave to this worker."""
    for _ in range(200):
        before = server.metric("avap_connections", worker=str(worker))
        calls = server.calls()
        assert calls.get("si").code == 0
        try:
            wait_until(lambda before=before: server.metric("avap_connections", worker=str(worker)) > before, 1.5)  # type: ignore[misc]
        except AssertionError:
            calls.close()
            continue
        return calls
    raise AssertionError(f"no connection came to worker {worker}")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", REFUSALS)
def test_a_host_that_refuses_keeps_the_old_snapshot(sample: Database, serve: Serve, call: str) -> None:
    """Scenario 16: memfd_create, write, seal or mmap fail in the master: the old one stays, the next poll heals."""
    server = serve(sample.reader_url, env={**FAST, "AVAPD_WORKERS": "1"}).wait_serving()
    put(sample, 1)
    wait_until(lambda: len(server.events("Definitions Broadcasted")) == 2)
    tracer = subprocess.Popen(
        ["strace", "-f", "-q", "-o", "/dev/null", "-p", str(server.process.pid),
         "-e", f"trace={call.partition(':')[0]}", "-e", f"inject={call}"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        put(sample, 2)
        with server.calls() as calls:
            wait_until(lambda: server.events("Refresh Failed"))
            assert number_in(calls.command("si").code) == 1
            assert stays(lambda: calls.get("si").code == 0, 0.3)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
    with server.calls() as calls:
        wait_until(lambda: number_in(calls.command("si").code) == 2, 15)
    assert server.process.poll() is None


def test_a_file_size_limit_keeps_the_old_snapshot(sample: Database, serve: Serve) -> None:
    """Scenario 16: RLIMIT_FSIZE stops the arena from being written: SIGXFSZ kills nobody, the old generation stays."""
    sample.insert_many(2000, 40)  # as large as what `put` writes: another size would be implausible
    server = serve(sample.reader_url, env=FAST).wait_serving()
    put(sample, 1)
    wait_until(lambda: len(server.events("Definitions Broadcasted")) == 2)
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    put(sample, 2)
    wait_until(lambda: server.metric("avap_sync_total", result="rejected") >= 1)
    with server.calls() as calls:
        assert number_in(calls.command("si").code) == 1
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        wait_until(lambda: number_in(calls.command("si").code) == 2, 15)


def test_a_swap_under_load_tears_nothing(sample: Database, serve: Serve) -> None:
    """Every answer belongs to one generation, and per connection generations never fall; no call fails."""
    sample.insert_many(5000, 40)  # as above
    server = serve(sample.reader_url, env=FAST).wait_serving()
    put(sample, 1)
    with server.calls() as calls:
        wait_until(lambda: number_in(calls.command("si").code) == 1)

    def mixed(calls: Calls) -> Outcome:
        return calls.sync(wait=True) if time.monotonic_ns() % 10 == 0 else calls.get("command_000007", wait=True)

    with Load(server.calls, mixed, 4) as load, server.calls() as calls:
        for generation in range(2, 8):
            put(sample, generation)
            wait_until(lambda generation=generation: number_in(calls.command("si").code) == generation)  # type: ignore[misc]
    assert not load.failures()
    per_thread: dict[int, list[int]] = {}
    catalogs = 0
    for entry in load.history:
        if len(entry.outcome.payload) > 10_000:
            catalogs += 1
            generation = _whole(entry.outcome.payload)
        else:
            command = avap_pb2.CommandResponse.FromString(entry.outcome.payload)
            assert command.hash == hashlib.sha256(command.code).hexdigest()
            generation = number_in(command.code)
        per_thread.setdefault(entry.thread, []).append(generation)
    assert all(generations == sorted(generations) for generations in per_thread.values())
    assert catalogs > 5
    assert {generation for generations in per_thread.values() for generation in generations} >= {2, 3, 4, 5, 6}


def _whole(payload: bytes) -> int:
    """The one generation of a SyncCatalog answer."""
    catalog = avap_pb2.CatalogResponse.FromString(payload)
    content = avap_pb2.CatalogResponse(commands=catalog.commands).SerializeToString()
    assert catalog.version_hash == hashlib.sha256(content).hexdigest()
    assert catalog.total_count == len(catalog.commands) == 5003
    numbers = {number_in(command.code) for command in catalog.commands}
    assert len(numbers) == 1
    return numbers.pop()


def test_the_interpreter_that_runs_the_workers_is_the_masters(sample: Database, serve: Serve) -> None:
    """Workers run the same Python, by exec: their command line says which slot they hold."""
    server = serve(sample.reader_url).wait_serving()
    lines = [psutil.Process(pid).cmdline() for pid in server.workers()]
    assert [line[0] for line in lines] == [sys.executable, sys.executable]
    assert [line[-1] for line in lines] == ["worker-0", "worker-1"]
