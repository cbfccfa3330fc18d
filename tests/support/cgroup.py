"""A memory cgroup of its own, where the machine lets one be made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.waiting import wait_until

_ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """What a version 1 or 2 cgroup tells and is told. `command` starts a program in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first = not (folder / "memory.max").exists()
        self.command = ("sh", "-c", f'echo 0 > {folder}/cgroup.procs && exec "$@"', "sh")

    def held(self) -> int:
        """Bytes that are charged to it, without files that nobody used lately."""
        stat = self._pairs("memory.stat")
        name = "memory.usage_in_bytes" if self._first else "memory.current"
        unused = stat["total_inactive_file" if self._first else "inactive_file"]
        return int((self._folder / name).read_text(encoding="ascii")) - unused

    def limit(self, octets: int) -> None:
        """Allow so many bytes, no swap."""
        name = "memory.limit_in_bytes" if self._first else "memory.max"
        (self._folder / name).write_text(str(octets), encoding="ascii")

    def kills(self) -> int:
        """How many processes the kernel has killed for its sake."""
        return self._pairs("memory.oom_control" if self._first else "memory.events")["oom_kill"]

    def _pairs(self, name: str) -> dict[str, int]:
        lines = (self._folder / name).read_text(encoding="ascii").splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """A new one below this process's own (version 1) or the root (version 2); skips where that is not allowed."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()]
    above = next((_ROOT / "memory" / path[1:] for _, kinds, path in own if "memory" in kinds.split(",")), _ROOT)
    folder = above / f"avapd-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error.strerror}")
    try:
        if not (folder / "memory.stat").exists():
            pytest.skip("no memory cgroup can be made here: the controller is not switched on")
        yield MemoryCgroup(folder)
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(encoding="ascii"))
        folder.rmdir()
