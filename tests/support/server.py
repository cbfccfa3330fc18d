"""A real `avapd serve` as a child process, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError

import psutil

from support.calls import Calls
from support.waiting import wait_until

KEY = "test-key-of-enough-length"
_PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A loopback port nobody listens on, below those that the kernel gives to outgoing connections.

    One of theirs could be taken by any client before the server that it is meant for has bound it. Test processes that
    run at the same time have ports of their own.
    """
    number, count = (int(os.environ.get(f"PYTEST_XDIST_WORKER{name}", "0").strip("gw")) for name in ("", "_COUNT"))
    while True:
        port = random.choice(_PORTS[number :: max(count, 1)])
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Server:
    """Started at construction. Use as a context manager: the end kills what is left of it."""

    def __init__(
        self, database_url: str, *arguments: str, command: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.admin_port = free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="avapd-test-")
        self.log_file = Path(self.folder.name) / "log"
        self.env = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "API_KEY": KEY,
            "PORT": str(self.port),
            "AVAPD_ADMIN_PORT": str(self.admin_port),
            "AVAPD_ENV": "test",
            "AVAPD_INSECURE": "1",
            "AVAPD_WORKERS": "2",
            "AVAPD_REFRESH_SECONDS": "0.2",
            "AVAPD_CANARY_SECONDS": "0",
            "AVAPD_DRAIN_SECONDS": "3",
            "AVAPD_PRE_DRAIN_SECONDS": "0.1",
            "AVAPD_ORPHAN_SECONDS": "1",
            "AVAPD_LOG_LEVEL": "DEBUG",
            "AVAPD_LIMIT_FAILURES": "1000000",  # all tests come from one address
            **(env or {}),
        }
        self.port, self.admin_port = int(self.env["PORT"]), int(self.env["AVAPD_ADMIN_PORT"])
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, sys.executable, "-P", "-m", "avapd", "serve", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={name: value for name, value in self.env.items() if value}, cwd=self.folder.name,
            )  # fmt: skip

    # --- what it says ------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """Everything on stdout and stderr so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def events(self, msg: str | None = None) -> list[dict[str, Any]]:
        """The log lines with this message, parsed."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if msg is None or line["msg"] == msg]

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of a request to the admin port. OSError while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        """`/status`, parsed."""
        found: dict[str, Any] = json.loads(self.http("/status")[1])
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        total, found = 0.0, False
        for line in self.http("/metrics")[1].splitlines():
            sample = re.fullmatch(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)", line)
            if sample and sample[1] == name:
                pairs = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
                if all(pairs.get(key) == value for key, value in labels.items()):
                    total, found = total + float(sample[3]), True
        assert found, f"no sample of {name} with {labels}"
        return total

    # --- what it does ------------------------------------------------------------------------------------

    def calls(self, key: str = KEY) -> Calls:
        """A client of its own connection."""
        return Calls(f"127.0.0.1:{self.port}", key)

    def wait_serving(self, seconds: float = 20.0) -> Server:
        """Wait until every worker serves."""
        wait_until(self._is_serving, seconds, "every worker serves")
        return self

    def _is_serving(self) -> bool:
        code = self.process.poll()
        if code is not None:
            raise RuntimeError(f"avapd ended with {code}:\n{self.log[-3000:]}")
        return bool(self.events("SERVING")) and all(worker["state"] == "SERVING" for worker in self.status()["workers"])

    def wait_hash(self, version_hash: str, seconds: float = 10.0) -> None:
        """Wait until all serve this version; what is refused as implausible meanwhile is approved."""

        def right(status: dict[str, Any]) -> bool:
            if status["refused"]:
                self.order("approve", status["refused"].rpartition(" ")[2])
            return bool(status["version_hash"] == version_hash)

        self.wait_served(right, seconds)

    def wait_served(self, right: Callable[[dict[str, Any]], bool], seconds: float = 10.0) -> None:
        """Wait for a state of the master that every worker serves: the master knows of a generation a moment before."""

        def served() -> bool:
            status = self.status()
            return right(status) and {one["generation"] for one in status["workers"]} == {status["generation"]}

        wait_until(served, seconds, "every worker serves it")

    def workers(self) -> list[int]:
        """The pids of the workers, by slot."""
        return [worker["pid"] for worker in self.status()["workers"] if worker["pid"]]

    def order(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An order of the operator: `avapd` at this server's socket."""
        command = [sys.executable, "-P", "-m", "avapd", *words]
        env = {"PATH": os.environ["PATH"], "PORT": str(self.port)}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def wait_end(self, seconds: float = 10.0) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(timeout=seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.wait_end(seconds)

    def family(self) -> list[psutil.Process]:
        """The master and all its descendants."""
        try:
            master = psutil.Process(self.process.pid)
            return [master, *master.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        for process in family:
            process.kill()
        self.process.wait()
        for process in family[1:]:  # somebody else's zombies are gone enough
            wait_until(lambda process=process: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)  # type: ignore[misc]
        self.folder.cleanup()
