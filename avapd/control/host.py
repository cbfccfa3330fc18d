"""What the host allows: CPUs, memory, files. Read from affinity and cgroups (v2 and v1), not from the host's size."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")
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


def memory_limit(root: Path = _CGROUP) -> int | None:
    """The cgroup's memory limit in bytes, None for no limit."""
    text = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes")
    if not text or text == "max" or int(text) >= _NO_LIMIT:
        return None
    return int(text)


def memory_used(root: Path = _CGROUP) -> int | None:
    """Bytes in use as the kubelet counts them: without the file pages that can be dropped. None without a cgroup."""
    text, idle = _read(root / "memory.current"), "inactive_file "
    stat = root / "memory.stat"
    if not text:
        text, idle = _read(root / "memory/memory.usage_in_bytes"), "total_inactive_file "
        stat = root / "memory/memory.stat"
    if not text:
        return None
    dropped = (line.removeprefix(idle) for line in _read(stat).splitlines() if line.startswith(idle))
    return max(0, int(text) - int(next(dropped, "0")))


def memory_total() -> int:
    """The host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def file_limit() -> int:
    """The hard limit of open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
