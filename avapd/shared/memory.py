"""Memory that two processes share by handing over a file descriptor.

An *arena* is written once, sealed, and then immutable: the kernel refuses every write, growth and shrink
(memfd_create(2), F_ADD_SEALS in fcntl(2)), so a worker that maps it can neither see it change nor get SIGBUS from a
truncation. A *board* stays writable but cannot change its size. memfd does not live in /dev/shm, so the
64 MB that containers give that directory do not matter; its pages count against the memory cgroup.

Where memfd is missing (macOS), an unlinked temporary file takes its place, without seals.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from avapd.errors import SnapshotError

HAVE_MEMFD: Final = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
# Typeshed and macOS know none of these names; the numbers are Linux's (include/uapi/linux/fcntl.h).
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x1
F_SEAL_SHRINK: Final = 0x2
F_SEAL_GROW: Final = 0x4
F_SEAL_WRITE: Final = 0x8
ARENA_SEALS: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
BOARD_SEALS: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW


def create(name: str, size: int = 0) -> int:
    """A descriptor of new, zeroed memory of `size` bytes. Raises OSError when the host has none left."""
    if HAVE_MEMFD:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        fd, path = tempfile.mkstemp(prefix=name)
        Path(path).unlink()
    try:
        if size:
            os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data`; pwrite may take less than it is given."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def seal(fd: int, seals: int = ARENA_SEALS) -> None:
    """Make the memory immutable (or, with BOARD_SEALS, its size)."""
    if HAVE_MEMFD:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)


def path_of(fd: int) -> str:
    """A path of memory in this process, for those who only read files; each opening reads from its beginning."""
    return f"/proc/self/fd/{fd}" if sys.platform == "linux" else f"/dev/fd/{fd}"


def map_sealed(fd: int, size: int) -> mmap.mmap:
    """Map an arena that was handed over, read-only.

    Raises SnapshotError unless it carries all four seals and is exactly `size` bytes long, and OSError when
    the kernel has no room for the mapping. The descriptor may be closed afterwards.
    """
    if HAVE_MEMFD and fcntl.fcntl(fd, F_GET_SEALS) & ARENA_SEALS != ARENA_SEALS:
        raise SnapshotError("the arena is not sealed")
    real = os.fstat(fd).st_size
    if real != size or size == 0:
        raise SnapshotError(f"the arena is {real} bytes long, {size} were announced")
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def map_checked(fd: int, size: int, checksum: str) -> mmap.mmap:
    """Map an arena whose SHA-256 (hex) is this one. Raises as `map_sealed` does, SnapshotError also for another."""
    arena = map_sealed(fd, size)
    if hashlib.sha256(arena).hexdigest() != checksum:
        arena.close()
        raise SnapshotError("checksum does not match")
    return arena


def map_shared(fd: int, size: int) -> mmap.mmap:
    """Map a board, readable and writable by everyone who holds its descriptor."""
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
