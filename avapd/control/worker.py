"""A worker process as the master sees it: how it is started, what it said, what its row tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from avapd.shared import board as words
from avapd.shared.board import Row, State
from avapd.shared.channel import Channel, Message, Start

# What a worker may know of the master's environment: how Python and the libraries run, and nothing of the database.
_KEPT: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_FAILED: Final = words.STATUSES.index(words.STATUS_OF_CODE[13])
_KEPT_PREFIXES: Final = ("LC_", "PYTHON", "GRPC_")


def environment(environ: Mapping[str, str], threadpool: int) -> dict[str, str]:
    """The environment of a worker."""
    kept = {name: value for name, value in environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    # grpcio's own lines are no JSON, and any client can cause them.
    return {"GRPC_VERBOSITY": "NONE", **kept, "UV_THREADPOOL_SIZE": str(threadpool)}


def _waited_for_cpu(pid: int) -> float:
    """Seconds that a process was runnable and did not run (proc(5), /proc/PID/schedstat, second field)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Worker:
    """A process that holds a slot, from its start by exec to its burial.

    `sent` is the newest generation it was given, `generation` the newest it acked, `wants` the one that it would send
    compressed, until it can. `ready` tells that it has booted
    and, when there was something to load, loaded it: whatever it dies of later, it could start.
    """

    def __init__(
        self, start: Start, row: Row, board_fd: int, listener: socket.socket, environ: dict[str, str],
        *, popen: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ) -> None:  # fmt: skip
        """Start the process by `popen`. Raises OSError when the host cannot (processes, memory, descriptors)."""
        self.slot = start.slot
        self.row_number = start.row
        self.generation = 0
        self.sent = 0
        self.wants = 0
        self.ready = False
        self.booted = False
        self.aborted_at: float | None = None
        self.started_at = time.monotonic()
        self._row = row
        self._silent_since = (0, 0.0)  # the heartbeat, and the wait for a CPU up to when it was last seen
        row.clear_gauges()
        self.channel, theirs = Channel.pair()
        with theirs:
            try:
                # -P: a file in the working directory must never be imported by accident.
                self._process = popen(
                    [sys.executable, "-P", "-m", "avapd.data", str(theirs.fileno()), f"worker-{start.slot}"],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=environ,
                    process_group=0,
                )
            except OSError:
                self.channel.close()
                raise
        self.send(start, board_fd, listener.fileno())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def state(self) -> State:
        """What the worker says it is doing."""
        return State(self._row[words.STATE])

    @property
    def serving(self) -> bool:
        """Whether it has a catalog and takes calls."""
        return self.state is State.SERVING

    @property
    def felled(self) -> bool:
        """Whether it has ended by no fault of its own: it was told to go, or killed by somebody else than us."""
        code = self._process.returncode
        return code in {0, -signal.SIGTERM} or (code == -signal.SIGKILL and self.aborted_at is None)

    def answered(self) -> tuple[int, int]:
        """Calls that this row has counted, and how many of them were answered with INTERNAL."""
        rows = [self._row.requests(method) for method in range(len(words.METHODS))]
        return sum(map(sum, rows)), sum(row[_FAILED] for row in rows)

    def silent_for(self, now: float) -> float:
        """Seconds since its event loop last showed that it turns; since the start, before it ever did."""
        heartbeat: float = self._row[words.HEARTBEAT] / 1e9
        return now - max(heartbeat, self.started_at)

    def starved_for(self) -> float:
        """Seconds of its present silence that it spent waiting for a CPU (Linux: schedstat; elsewhere 0).

        A process that hangs or is stopped does not wait for a CPU; one that does is only slow.
        """
        waited = _waited_for_cpu(self.pid)
        heartbeat = self._row[words.HEARTBEAT]
        if heartbeat != self._silent_since[0]:
            self._silent_since = (heartbeat, waited)
        return waited - self._silent_since[1]

    def send(self, message: Message, *descriptors: int) -> bool:
        """Send, never waiting; False when the process is gone, which its burial will tell anyway."""
        try:
            self.channel.send(message, *descriptors)
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; the pid is ours until it is buried."""
        if self._process.returncode is None:
            os.kill(self.pid, number)

    def bury(self, returncode: int) -> None:
        """Forget a process that was reaped."""
        self._process.returncode = returncode
        self.channel.close()
        self._row.clear_gauges()
