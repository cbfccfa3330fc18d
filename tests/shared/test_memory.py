"""Shared memory: what is sealed cannot change, and what is not sealed is not mapped."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stage import files

from avapd.errors import SnapshotError
from avapd.shared import memory

ALL = memory.ARENA_SEALS


def sealed(data: bytes, seals: int = ALL) -> int:
    """A descriptor of an arena with these bytes."""
    fd = memory.create("test")
    memory.write_at(fd, data, 0)
    memory.seal(fd, seals)
    return fd


def test_new_memory_is_zero_and_of_its_size() -> None:
    """`create` gives as many zero bytes as asked for, and none by default."""
    for size in (0, 1, 4096, 100_001):
        fd = memory.create("test", size)
        try:
            assert os.pread(fd, size + 1, 0) == bytes(size)
        finally:
            os.close(fd)


def test_memory_that_cannot_be_had_leaves_no_descriptor() -> None:
    """A size the kernel refuses is an OSError, and nothing stays open."""
    before = files()
    for _ in range(10):
        with pytest.raises(OSError, match="Invalid argument"):
            memory.create("test", -1)
    assert files() == before


def test_an_arena_is_mapped_only_with_its_own_checksum() -> None:
    """`map_checked` refuses other octets, and octets that can still change."""
    fd, right = sealed(b"octets"), hashlib.sha256(b"octets").hexdigest()
    assert memory.map_checked(fd, 6, right)[:] == b"octets"
    with pytest.raises(SnapshotError, match="checksum"):
        memory.map_checked(fd, 6, hashlib.sha256(b"others").hexdigest())
    os.close(fd)
    fd = sealed(b"octets", memory.BOARD_SEALS)
    with pytest.raises(SnapshotError, match="not sealed"):
        memory.map_checked(fd, 6, right)
    os.close(fd)


@given(st.binary(max_size=300), st.integers(0, 5000))
@settings(deadline=None)
def test_what_is_written_at_an_offset_is_read_there(data: bytes, offset: int) -> None:
    """`write_at` writes all of it and nothing beside it."""
    fd = memory.create("test", 6000)
    try:
        memory.write_at(fd, memoryview(data), offset)
        assert os.pread(fd, 6000, 0) == bytes(offset) + data + bytes(6000 - offset - len(data))
    finally:
        os.close(fd)


def test_a_sealed_arena_is_mapped_read_only_without_its_descriptor() -> None:
    """The mapping shows the bytes, cannot be written, and outlives the descriptor."""
    fd = sealed(b"abc")
    mapped = memory.map_sealed(fd, 3)
    os.close(fd)
    with mapped:
        assert mapped[:] == b"abc"
        with pytest.raises(TypeError):
            mapped[0] = 0


def test_a_sealed_arena_cannot_change() -> None:
    """The kernel refuses to write, grow or shrink it, and to unseal it."""
    fd = sealed(b"abc")
    try:
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 4),
            lambda: os.ftruncate(fd, 2),
            lambda: memory.seal(fd, 0x10),
            lambda: memory.map_shared(fd, 3),
        ):
            with pytest.raises(PermissionError):
                change()
        assert os.pread(fd, 9, 0) == b"abc"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "missing", [memory.F_SEAL_SEAL, memory.F_SEAL_SHRINK, memory.F_SEAL_GROW, memory.F_SEAL_WRITE, ALL]
)
def test_an_arena_without_one_of_the_four_seals_is_refused(missing: int) -> None:
    """Its writer could still change it under our feet."""
    fd = sealed(b"abc", ALL & ~missing)
    try:
        with pytest.raises(SnapshotError, match="not sealed"):
            memory.map_sealed(fd, 3)
    finally:
        os.close(fd)


@pytest.mark.parametrize("announced", [0, 1, 2, 4, 1 << 40, -1])
def test_an_arena_of_another_size_is_refused(announced: int) -> None:
    """Beyond its end there would be SIGBUS."""
    fd = sealed(b"abc")
    try:
        with pytest.raises(SnapshotError, match=f"3 bytes long, {announced} were announced"):
            memory.map_sealed(fd, announced)
    finally:
        os.close(fd)


def test_an_empty_arena_is_refused() -> None:
    """It cannot be mapped, and it is an error of ours, not a crash of mmap."""
    fd = sealed(b"")
    try:
        with pytest.raises(SnapshotError):
            memory.map_sealed(fd, 0)
    finally:
        os.close(fd)


def test_a_descriptor_that_is_no_memory_is_refused() -> None:
    """A pipe or an ordinary file carries no seals."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            memory.map_sealed(reader, 3)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_board_is_shared_and_keeps_its_size() -> None:
    """Two mappings see each other's writes; nobody can make it shorter or longer."""
    fd = memory.create("test", 4096)
    memory.seal(fd, memory.BOARD_SEALS)
    with memory.map_shared(fd, 4096) as one, memory.map_shared(fd, 4096) as two:
        one[7] = 42
        assert two[7] == 42
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    os.close(fd)
