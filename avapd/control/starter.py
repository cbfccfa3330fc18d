"""Who goes first where master and workers share a CPU: the workers, since calls wait for them.

    workers                   as the service was started
    master, all its threads   NICENESS behind: reading, comparing, packing, metrics
    validators                behind both, see validator/

A process inherits the priority of the thread that starts it, and may not raise it again. So workers are started by a
thread that was there before the master stepped back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

NICENESS: Final = 5
_POPEN: Final[Callable[..., subprocess.Popen[bytes]]] = subprocess.Popen


class Starter:
    """Starts processes with the priority that this thread has now."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "starter")
        self._thread.submit(os.getpid).result()  # it begins with its first work

    def start(self, *command: Any, **options: Any) -> subprocess.Popen[bytes]:
        """What subprocess.Popen does. Raises OSError."""
        return self._thread.submit(_POPEN, *command, **options).result()


def step_back() -> None:
    """Let this thread, and those that it will make, go behind what was started before."""
    os.nice(NICENESS)
