"""The compressor: one copy for all who want it, of what everyone serves, and nothing for nobody.

The workers here only record what they are sent; real ones are in tests/system.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from collections.abc import Awaitable, Callable

import pytest
from support.lines import Lines
from support.stage import files, snapshot

from avapd.control import compressor as module
from avapd.control.compressor import Compressor
from avapd.control.packer import Packer, Snapshot
from avapd.log import Log
from avapd.shared import memory
from avapd.shared.channel import Compressed


class Wanter:
    """A worker as the compressor sees it; `got` is what it was sent, decompressed."""

    def __init__(self, wants: int = 0) -> None:
        self.wants = wants
        self.got: list[tuple[int, bytes]] = []
        self.sizes: list[int] = []

    def send(self, message: Compressed, fd: int) -> bool:
        with memory.map_checked(fd, message.size, message.checksum) as arena:
            self.got.append((message.generation, gzip.decompress(arena)))
        self.sizes.append(message.size)
        return True


class Play:
    """A compressor with workers."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.compressor = Compressor(Log("master", sink=self.lines, level="DEBUG"))
        self.workers: list[Wanter] = []

    def serve(self, snap: Snapshot) -> None:
        self.compressor.serve(snap.view, self.workers)  # type: ignore[arg-type]  # as much of a worker as it needs

    async def done(self) -> None:
        """Wait until nothing is under way."""
        if self.compressor._work is not None:
            await asyncio.wait({self.compressor._work})

    def said(self) -> list[int]:
        return [line["generation"] for line in self.lines.said("Catalog Compressed")]


def play(test: Callable[[Play], Awaitable[None]]) -> None:
    """Run a test with a compressor of its own, of which no descriptor is left."""

    async def run() -> None:
        made = Play()
        try:
            async with asyncio.timeout(30):
                await test(made)
        finally:
            made.compressor.stop()
            await made.done()

    before = files()
    asyncio.run(run())
    assert files() == before


def answer(snap: Snapshot) -> bytes:
    return b"".join(snap.view.answer())


def test_who_wants_it_gets_one_copy_and_who_does_not_gets_none() -> None:
    """Of a whole snapshot and of a patched one: the octets of SyncCatalog, in fewer, made once."""

    async def test(play: Play) -> None:
        packer = Packer()
        one = snapshot({f"command {number}": "x = 1\n" * 100 for number in range(100)})
        packer.generation = 1
        two = packer.patch(one, {b"\x0a\x01z": b"\x0a\x01z"})
        play.workers = [Wanter(1), Wanter(), Wanter(1)]
        for generation, snap in enumerate((one, two), 1):
            for worker in play.workers[::2]:
                worker.wants = generation
            play.serve(snap)
            await play.done()
            expected = [(number, answer(made)) for number, made in ((1, one), (2, two))][:generation]
            assert [worker.got for worker in play.workers] == [expected, [], expected]
            assert all(size < len(answer(snap)) / 5 for size in play.workers[0].sizes)
        assert play.said() == [1, 2]
        play.workers[1].wants = 2
        play.serve(two)
        assert play.workers[1].got == [(2, answer(two))]
        assert play.said() == [1, 2]
        two.close()
        one.close()

    play(test)


def test_nothing_is_compressed_for_nobody() -> None:
    """Without a worker that wants this very generation no memory is taken and no thread is started."""

    async def test(play: Play) -> None:
        threads = threading.active_count()
        snap = snapshot({"a": "x" * 1000}, 3)
        play.workers = [Wanter(), Wanter(2), Wanter(4)]
        play.serve(snap)
        await play.done()
        assert play.compressor._copy is None
        assert threading.active_count() == threads
        snap.close()

    play(test)


def test_a_publication_ends_the_work_on_what_was_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets the old one, though it was wanted; the new one is made as soon as a piece of the old one is done."""
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    began, create = threading.Event(), memory.create

    def created(name: str) -> int:
        began.set()
        return create(name)

    monkeypatch.setattr(memory, "create", created)

    async def test(play: Play) -> None:
        one, two = snapshot({"a": "x" * 3_000_000}, 1), snapshot({"a": "y" * 1000}, 2)
        began.clear()
        play.workers = [Wanter(1), Wanter(1)]
        play.serve(one)
        old = play.compressor._work
        assert old is not None
        await asyncio.to_thread(began.wait, 10)
        play.workers[0].wants = 2
        play.serve(two)
        expected = answer(two)
        one.close()
        await play.done()
        assert old.done()
        assert [worker.got for worker in play.workers] == [[(2, expected)], []]
        assert play.said() == [2]
        two.close()

    play(test)


def test_what_gzip_does_not_make_smaller_is_not_sent() -> None:
    """Octets without a pattern stay plain, and are not tried again."""

    async def test(play: Play) -> None:
        snap = Packer().pack(1, [b"\x0a\x01a" + b"\x22\xa0\x8d\x06" + os.urandom(100_000)])
        play.workers = [Wanter(1)]
        for _ in range(2):
            play.serve(snap)
            await play.done()
        assert play.workers[0].got == []
        assert play.said() == []
        snap.close()

    play(test)


def test_without_memory_it_is_said_once_and_the_next_generation_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while it is written: a WARN, no copy, no descriptor left."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def test(play: Play) -> None:
        one, two = snapshot({"a": "x" * 1000}, 1), snapshot({"a": "x" * 1000}, 2)
        play.workers = [Wanter(1)]
        with monkeypatch.context() as patch:
            patch.setattr(memory, "write_at", refuse)
            for _ in range(2):
                play.serve(one)
                await play.done()
        assert [line["error"] for line in play.lines.said("Catalog Not Compressed")] == ["No space left on device"]
        assert play.workers[0].got == []
        play.workers[0].wants = 2
        play.serve(two)
        await play.done()
        assert [generation for generation, _ in play.workers[0].got] == [2]
        one.close()
        two.close()

    play(test)


def test_the_thread_lets_everyone_else_go_first() -> None:
    """It alone has the lowest priority; the loop of the master keeps its own."""

    async def test(play: Play) -> None:
        snap = snapshot({"a": "x" * 1000}, 1)
        play.workers = [Wanter(1)]
        play.serve(snap)
        await play.done()
        (thread,) = play.compressor._thread._threads
        assert os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) == 19
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19
        snap.close()

    play(test)
