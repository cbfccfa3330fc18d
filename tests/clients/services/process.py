"""The test services as child processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[2]


def command(service: str, descriptors: Path) -> list[str]:
    """How a service of this folder is started. It needs the environment `ENVIRONMENT`."""
    return [sys.executable, "-P", "-m", f"clients.services.{service}", str(descriptors)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}


@contextlib.contextmanager
def started(service: str, descriptors: Path) -> Iterator[subprocess.Popen[str]]:
    """A running service; it must have ended in good order when the block ends."""
    process = subprocess.Popen(command(service, descriptors), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
