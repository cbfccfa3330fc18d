"""What a worker asks of its host: a CPU of its own, descriptors, no core dumps, quiet sockets."""

from __future__ import annotations

import gc
import os
import resource
import socket
from typing import Final

from avapd.log import Log

SPARE_NICENESS: Final = 10
ENOUGH_FILES: Final = 65_536
_RECEIVE_BYTES: Final = 64 << 10  # the kernel takes twice as much, and fills half of it with octets


def pin(cpu: int, log: Log) -> None:
    """Keep this process on one CPU. Where that is not allowed (a smaller cpuset, macOS) it only gives a WARN."""
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not supported here"
        log.warn("Worker not pinned", cpu=cpu, error=reason)


def raise_limits() -> int:
    """Open files up to the hard limit, which is returned; no core dumps, which would hold the catalog."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def open_files() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208  # twice as fast as pathlib, once a second


def tune(listener: socket.socket) -> None:
    """Options that accepted connections inherit: no Nagle delay, dead peers noticed within about 30 s, small reads.

    uvloop reads up to 256 KB at once, and what one turn cannot answer has to be kept: requests are small, so the
    kernel's buffer may be, and a flood stays there.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def freeze_heap() -> None:
    """Take everything that start-up made out of the collector's sight: it will live as long as the process.

    What calls make is freed by reference counts; the collector then only looks for rare cycles, so it may look less.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
