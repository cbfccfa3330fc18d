"""What /proc tells of a process: memory by who owns it, and CPU time. Sizes in bytes; Linux only."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Final, NamedTuple, Self

import psutil

MB: Final = 1e6
_SNAPSHOT: Final = "/memfd:avapd-snapshot"


class Memory(NamedTuple):
    """A process in smaps_rollup. `own` is PSS without shared memory: heap, stacks, its part of libraries.

    `private` and `shared` count pages by how many processes map them: an arena that only one worker maps is private.
    """

    pss: int
    own: int
    private: int
    shared: int


def memory(pid: int) -> Memory:
    """Memory of a process now."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = 1024 * int(value.split()[0])
    return Memory(
        pss=fields["Pss"],
        own=fields["Pss"] - fields["Pss_Shmem"],
        private=fields["Private_Clean"] + fields["Private_Dirty"],
        shared=fields["Shared_Clean"] + fields["Shared_Dirty"],
    )


def arenas(pid: int) -> int:
    """Memory of the snapshots whose descriptors a process holds, mapped or not."""
    found: dict[int, int] = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(path.readlink()).startswith(_SNAPSHOT):
                facts = path.stat()
                found[facts.st_ino] = 512 * facts.st_blocks
        except FileNotFoundError:  # closed since the listing
            continue
    return sum(found.values())


def high_water(pid: int) -> int:
    """VmHWM: the largest resident set since the start or the last `reset_high_water`."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise ProcessLookupError(pid)


def reset_high_water(pid: int) -> None:
    """Begin VmHWM anew (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def cpu_seconds(pid: int) -> float:
    """Time on a CPU of all threads there are now, by the scheduler's own clock, which counts nanoseconds.

    /proc/PID/task/TID/schedstat; a thread that ended meanwhile takes its time with it.
    """
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text(encoding="ascii").split()[0]) for path in threads) / 1e9


def family_seconds(pid: int) -> float:
    """User and system time of a process, its children, and of children that have ended, in steps of 10 ms."""
    parent = psutil.Process(pid)
    spent = parent.cpu_times()
    living = 0.0
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended since: it counts among those from the next look on
            times = child.cpu_times()
            living += times.user + times.system
    return float(spent.user + spent.system + spent.children_user + spent.children_system + living)


def wakeups(pid: int) -> int:
    """How often its threads went on after they had waited for something: voluntary context switches."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text(encoding="utf-8").splitlines()
        if line.startswith("voluntary_ctxt_switches:")
    )


class Peak:
    """Samples a process while it is entered: the largest PSS, and the largest own memory plus arenas."""

    def __init__(self, pid: int, every_seconds: float = 0.03) -> None:
        self.pss = 0
        self.held = 0
        self.samples = 0
        self._pid = pid
        self._every = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(self._every):
            try:
                now = memory(self._pid)
                self.held = max(self.held, now.own + arenas(self._pid))
            except (ProcessLookupError, FileNotFoundError):
                return
            self.pss = max(self.pss, now.pss)
            self.samples += 1
