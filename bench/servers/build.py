"""Tools that a bench needs and that may be missing; what is written in Go is built here, by Go itself."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

PEERS: Final = Path(__file__).parents[1] / "peers"


class MissingToolError(Exception):
    """Something is not installed; the text says how to install it."""


def tool(name: str, install: str) -> str:
    """Where a program is. Raises MissingToolError."""
    found = shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is not installed: {install}")
    return found


@functools.cache
def go(name: str) -> Path:
    """The program of the folder `peers/<name>`, built into a cache folder. Raises MissingToolError."""
    compiler = tool("go", "https://go.dev/dl")
    target = _cache() / name
    environment = {**os.environ, "CGO_ENABLED": "0"}
    built = subprocess.run(
        [compiler, "build", "-trimpath", "-o", target, "."],
        cwd=PEERS / name, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if built.returncode:
        why = built.stderr.strip().splitlines()
        raise MissingToolError(f"`go build` in bench/peers/{name} failed: {why[-1] if why else built.returncode}")
    return target


def go_version() -> str:
    """The version of the Go that builds."""
    return subprocess.run(["go", "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()


def locked(name: str, module: str) -> str:
    """The version of a module that the folder `peers/<name>` is locked to."""
    found = re.search(rf"{re.escape(module)} v(\S+)", (PEERS / name / "go.mod").read_text(encoding="utf-8"))
    assert found is not None
    return found.group(1)


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avapd-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
