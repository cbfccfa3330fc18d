"""What the host allows, from the files of both cgroup versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from avapd.control import host


def write(root: Path, **files: str) -> Path:
    """A cgroup folder; `__` in a name is a slash, `_dot_` a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("150000 100000", 1.5),
        ("50000 100000\n", 0.5),
        ("1000 1000000\n", 0.001),
    ],
)
def test_cpu_quota_of_version_2(tmp_path: Path, text: str, quota: float | None) -> None:
    """cpu.max: quota and period in microseconds, or `max`."""
    assert host.cpu_quota(write(tmp_path, cpu_dot_max=text)) == quota


@pytest.mark.parametrize(
    ("us", "period", "quota"),
    [("-1\n", "100000\n", None), ("400000\n", "100000\n", 4.0), ("0", "100000", None), ("50000", "100000", 0.5)],
)
def test_cpu_quota_of_version_1(tmp_path: Path, us: str, period: str, quota: float | None) -> None:
    """cpu/cpu.cfs_quota_us over cpu.cfs_period_us; -1 is no limit."""
    root = write(tmp_path, cpu__cpu_dot_cfs_quota_us=us, cpu__cpu_dot_cfs_period_us=period)
    assert host.cpu_quota(root) == quota


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("536870912\n", 1 << 29), ("9223372036854771712\n", None), ("0\n", 0)]
)
def test_memory_limit_of_version_2(tmp_path: Path, text: str, limit: int | None) -> None:
    """memory.max: bytes, or `max`."""
    assert host.memory_limit(write(tmp_path, memory_dot_max=text)) == limit


@pytest.mark.parametrize(("text", "limit"), [("9223372036854771712\n", None), ("536870912\n", 1 << 29)])
def test_memory_limit_of_version_1(tmp_path: Path, text: str, limit: int | None) -> None:
    """memory/memory.limit_in_bytes: the largest page-aligned number is no limit."""
    assert host.memory_limit(write(tmp_path, memory__memory_dot_limit_in_bytes=text)) == limit


def test_the_lowest_memory_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    """A service's cgroup below a slice's: both are in force, that of a stranger is not."""
    proc = write(tmp_path, proc__self__cgroup="0::/a.slice/b.service\n") / "proc"
    root = write(tmp_path, cgroup__a_dot_slice__b_dot_service__memory_dot_max="max\n") / "cgroup"
    assert host.memory_limit(root, proc) is None
    write(tmp_path, cgroup__a_dot_slice__memory_dot_max="3000", cgroup__other__memory_dot_max="1000")
    assert host.memory_limit(root, proc) == 3000
    write(tmp_path, cgroup__a_dot_slice__b_dot_service__memory_dot_max="2000")
    assert host.memory_limit(root, proc) == 2000


_MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    7000 kB\n"
_VERSION_2 = {
    "proc__self__cgroup": "0::/s\n",
    "s__memory_dot_max": f"{4 << 20}\n",
    "s__memory_dot_current": f"{3 << 20}\n",
    "s__memory_dot_stat": f"anon 5\nfile 9999999\nshmem 7\ninactive_file {1 << 19}\nactive_file 4096\n",
}
_VERSION_1 = {
    "proc__self__cgroup": "5:cpu,cpuacct:/x\n4:memory:/s\n0::/\n",
    "memory__s__memory_dot_limit_in_bytes": f"{4 << 20}\n",
    "memory__s__memory_dot_usage_in_bytes": f"{3 << 20}\n",
    "memory__s__memory_dot_stat": f"cache 9\ninactive_file 3\ntotal_inactive_file {1 << 19}\ntotal_active_file 4096\n",
}


@pytest.mark.parametrize("files", [_VERSION_2, _VERSION_1], ids=["version 2", "version 1"])
def test_the_memory_that_is_left_is_the_limit_less_what_cannot_be_given_up(
    tmp_path: Path, files: dict[str, str]
) -> None:
    """Files that nobody used lately do not count as taken; where the host has less, that is what is left."""
    root = write(tmp_path, proc__meminfo=_MEMINFO, **files)
    assert host.memory_left(root, root / "proc") == ((1 << 20) + (1 << 19), "the cgroup's limit of 4 MiB")
    write(root, proc__meminfo="MemAvailable: 1000 kB\n")
    assert host.memory_left(root, root / "proc") == (1000 << 10, "the host's memory")


def test_a_cgroup_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    """Never less: a limit may be lowered below what is held."""
    root = write(tmp_path, **{**_VERSION_2, "s__memory_dot_current": f"{9 << 20}"})
    assert host.memory_left(root, root / "proc")[0] == 0


def test_without_a_limit_the_host_tells_what_is_left(tmp_path: Path) -> None:
    """No cgroup at all, or one of version 1 or 2 that allows everything."""
    root = write(tmp_path, proc__meminfo=_MEMINFO)
    assert host.memory_left(root, root / "proc") == (7000 << 10, "the host's memory")
    write(root, memory_dot_max="max\n", memory_dot_current="123")
    assert host.memory_left(root, root / "proc")[1] == "the host's memory"
    (root / "memory.max").unlink()
    write(root, memory__memory_dot_limit_in_bytes="9223372036854771712")
    assert host.memory_left(root, root / "proc")[1] == "the host's memory"


def test_memory_in_use_of_version_2(tmp_path: Path) -> None:
    """memory.current less the inactive_file of memory.stat, and never below nothing."""
    root = write(
        tmp_path,
        memory_dot_max="max",
        memory_dot_current="5000\n",
        memory_dot_stat="file 9\ninactive_file 1000\nactive_file 2\n",
    )
    assert host.memory_used(root, root) == 4000
    assert host.memory_used(write(root, memory_dot_current="900\n"), root) == 0
    assert host.memory_used(write(root, memory_dot_stat="file 9\n"), root) == 900


def test_memory_in_use_of_version_1(tmp_path: Path) -> None:
    """memory/memory.usage_in_bytes less total_inactive_file, which is with that of the children."""
    stat = "inactive_file 1\ntotal_inactive_file 1000\n"
    more = {"memory__memory_dot_limit_in_bytes": "9000", "memory__memory_dot_usage_in_bytes": "5000\n"}
    root = write(tmp_path, memory__memory_dot_stat=stat, **more)
    assert host.memory_used(root, root) == 4000


def test_no_cgroup_is_no_limit(tmp_path: Path) -> None:
    """A host without cgroup files, or with a folder in their place."""
    assert host.cpu_quota(tmp_path) is host.memory_limit(tmp_path) is host.memory_used(tmp_path) is None
    (tmp_path / "cpu.max").mkdir()
    (tmp_path / "memory.max").mkdir()
    assert host.cpu_quota(tmp_path) is host.memory_limit(tmp_path) is None


def test_version_2_counts_where_both_are(tmp_path: Path) -> None:
    """A hybrid host: the unified file is the one that is in force."""
    root = write(
        tmp_path, cpu_dot_max="100000 100000", cpu__cpu_dot_cfs_quota_us="800000", cpu__cpu_dot_cfs_period_us="100000"
    )
    assert host.cpu_quota(root) == 1.0
    root = write(root, memory_dot_max="max", memory__memory_dot_limit_in_bytes="1000")
    assert host.memory_limit(root) is None


@pytest.mark.parametrize(("quota", "count"), [(None, 8), (0.1, 1), (1.0, 1), (1.9, 1), (2.0, 2), (7.99, 7), (100.0, 8)])
def test_workers_are_as_many_as_affinity_and_quota_pay_for(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int
) -> None:
    """Whole CPUs only, at least one, and never one outside the affinity."""
    cpus = {9, 3, 5, 7, 11, 13, 15, 17}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cpus)
    monkeypatch.setattr(host, "cpu_quota", lambda: quota)
    assert host.usable_cpus() == sorted(cpus)[:count]


def test_this_host_can_be_read() -> None:
    """Whatever it is, the numbers make sense."""
    assert 1 <= len(host.usable_cpus()) <= len(os.sched_getaffinity(0))
    assert set(host.usable_cpus()) <= os.sched_getaffinity(0)
    assert host.memory_total() > 1 << 26
    assert 0 < host.memory_left()[0] < host.memory_total()
    host.give_back()
    assert host.file_limit() == -1 or host.file_limit() > 100
