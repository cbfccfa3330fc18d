"""What the host allows: CPUs, memory, files. Read from affinity and cgroups (v2 and v1), not from the host's size."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
# Version 1 writes "no limit" as the largest page-aligned 63-bit number.
_NO_LIMIT: Final = 1 << 60


def usable_cpus() -> list[int]:
    """The CPUs this process may use: those of its affinity, no more of them than the cgroup quota pays for."""
    try:
        cpus = sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cpus = list(range(os.cpu_count() or 1))
    quota = cpu_quota()
    return cpus if quota is None else cpus[: max(1, int(quota))]


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """CPUs' worth of time that the cgroup allows, None for no limit."""
    if text := _read(root / "cpu.max"):
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    quota, period = _read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def memory_limit(root: Path = _CGROUP, proc: Path = _PROC) -> int | None:
    """The memory limit in bytes of this process's cgroup, or of one above it; None for no limit."""
    limits = [limit for folder in _memory_cgroups(root, proc) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def memory_left(root: Path = _CGROUP, proc: Path = _PROC) -> tuple[int, str]:
    """Bytes that may still be taken before the kernel kills for them, and of what: a cgroup's limit, or the host.

    File pages that were not used lately are given up before that, so they do not count as taken (as kubelet counts);
    those in use do, since to read one's own program from disk again and again is no way to serve. A memfd is no file.
    """
    left = [(_available(proc), "the host's memory")]
    for folder in _memory_cgroups(root, proc):
        limit = _limit(folder)
        if limit is not None:
            left.append((max(0, limit - _taken(folder)), f"the cgroup's limit of {limit >> 20} MiB"))
    return min(left)


def memory_used(root: Path = _CGROUP, proc: Path = _PROC) -> int | None:
    """Bytes that this process's cgroup has taken, as `memory_left` counts them; None without a cgroup."""
    folders = _memory_cgroups(root, proc)
    return max(0, _taken(folders[0])) if folders else None


def memory_total() -> int:
    """The host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back() -> None:
    """Return what the C library keeps of freed memory, where it can be told to: 10 ms after 100 MB.

    It keeps more than two catalogs after a large refresh, which else would count as taken for good.
    """
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _memory_cgroups(root: Path, proc: Path) -> list[Path]:
    """The folder of this process's memory cgroup, if it can be seen, and those above it; of one version only.

    In a container the root is the container's own.
    """
    lines = [line.split(":", 2) for line in _read(proc / "self/cgroup").splitlines()]
    paths = {kind: path for _, kinds, path in lines for kind in kinds.split(",")}
    for base, kind, file in ((root, "", "memory.max"), (root / "memory", "memory", "memory.limit_in_bytes")):
        own = base / paths.get(kind, "/").lstrip("/")
        folders = [folder for folder in (own, *own.parents) if folder.is_relative_to(base) and (folder / file).exists()]
        if folders:
            return folders
    return []


def _limit(folder: Path) -> int | None:
    text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    if not text or text == "max" or int(text) >= _NO_LIMIT:
        return None
    return int(text)


def _taken(folder: Path) -> int:
    """Bytes in use, less those of files nobody used lately; version 1 counts those of cgroups below as `total_`."""
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    unused = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return (_number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")) - unused


def _available(proc: Path) -> int:
    """The host's memory that can be had without swapping, as the kernel estimates it; all where it does not."""
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return memory_total()


def _number(path: Path) -> int:
    return int(_read(path) or 0)


def file_limit() -> int:
    """The hard limit of open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def process_status(pid: int) -> str:
    """What the kernel tells of a process (proc(5), /proc/PID/status); empty when it is gone, or on another system."""
    return _read(Path(f"/proc/{pid}/status"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
