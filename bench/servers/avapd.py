"""The server under test: `avapd serve` as a child process, timed by the arrival of its log lines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple, Self

import psutil

from bench.servers.build import shown

KEY: Final = "bench-key-of-enough-length"
CHECKPOINTS: Final = ("INIT", "CONFIG OK", "DB OK", "CATALOG OK", "Definitions Broadcasted", "WORKERS OK", "SERVING")
_STOP_SECONDS: Final = 20.0


class BenchError(Exception):
    """A bench cannot go on: the server did not start, or answered what it should not."""


class Event(NamedTuple):
    """A log line: `at` is its arrival, in seconds since the process was started (perf_counter)."""

    at: float
    fields: dict[str, Any]


@contextlib.contextmanager
def pinned(cpus: AbstractSet[int]) -> Iterator[None]:
    """Run on these CPUs for a while; a child that is started meanwhile stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Avapd:
    """A running `avapd serve`, in production mode and with INFO logs, as an operator has it. Leaving it ends it."""

    def __init__(self, database_url: str, *, workers: int, **settings: str) -> None:
        self.port = free_port()
        self._admin_port = free_port()
        env = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "API_KEY": KEY,
            "AVAPD_INSECURE": "1",
            "PORT": str(self.port),
            "AVAPD_HOST": "127.0.0.1",
            "AVAPD_ADMIN_PORT": str(self._admin_port),
            "AVAPD_WORKERS": str(workers),
            "AVAPD_DATABASE_SECONDS": "300",
            "AVAPD_REFRESH_SECONDS": "86400",
            "AVAPD_CANARY_SECONDS": "0",
            "AVAPD_DRAIN_SECONDS": "2",
            "AVAPD_PRE_DRAIN_SECONDS": "0",
            **settings,
        }
        command = [sys.executable, "-P", "-m", "avapd", "serve"]
        self.command = shown(command, {**env, "DATABASE_URL": "..."})
        self._events: list[Event] = []
        self._other: list[str] = []
        self._arrived = threading.Condition()
        self._began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            at = self.elapsed()
            with self._arrived:
                try:
                    self._events.append(Event(at, json.loads(line)))
                except ValueError:
                    self._other.append(line.decode(errors="replace"))
                self._arrived.notify_all()
        self.process.wait()  # else whoever waits could look a moment too early, and never again
        with self._arrived:
            self._arrived.notify_all()

    # --- what it says --------------------------------------------------------------------------------------

    def events(self, msg: str) -> list[Event]:
        """The lines with this message so far."""
        with self._arrived:
            return [event for event in self._events if event.fields["msg"] == msg]

    def elapsed(self) -> float:
        """Now, on the clock of its events."""
        return time.perf_counter() - self._began

    def troubles(self) -> list[str]:
        """What it said at WARN or above, and what was no log line, so far."""
        with self._arrived:
            told = [event for event in self._events if event.fields["level"] not in {"DEBUG", "INFO"}]
            return [*(f"at {event.at:.2f} s: {json.dumps(event.fields)}" for event in told), *self._other]

    def wait(self, msg: str, count: int = 1, seconds: float = 300.0) -> Event:
        """The `count`-th line with this message, once it is there."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._count(msg) >= count or self.process.poll() is not None, seconds)
            if self._count(msg) < count:
                last = [*self._other[-20:], *(json.dumps(event.fields) for event in self._events[-10:])]
                raise BenchError(f"avapd did not say {msg!r}, its last words:\n" + "\n".join(last))
        return self.events(msg)[count - 1]

    def _count(self, msg: str) -> int:
        return sum(event.fields["msg"] == msg for event in self._events)

    def status(self) -> dict[str, Any]:
        """`/status` of the admin port, parsed."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin_port}/status", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_checked(self, seconds: float = 300.0) -> None:
        """Wait until nothing is served that was not validated: that work takes CPU, if at the least priority."""
        deadline = time.monotonic() + seconds
        while self.status()["unchecked"]:
            if time.monotonic() > deadline:
                raise BenchError("what the start served unchecked is not checked")
            time.sleep(0.1)

    def worker_pids(self) -> list[int]:
        """The pids of the workers, by slot; a slot between two workers is left out."""
        return [worker["pid"] for worker in self.status()["workers"] if worker["pid"]]

    # --- the end -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()
