"""The compressor: the answer of SyncCatalog as gzip, made once for all workers.

The master makes it and not each worker, since a worker's threads share a CPU and an interpreter with the loop that
serves: a thread of low priority that is due to have the interpreter makes that loop wait until the thread is scheduled.
Here nobody who serves waits, the work is done once, and N workers map one copy in sealed memory.

Rules
- Nothing is compressed unless a worker wants it, because a client takes gzip.
- One generation at a time, the one that everyone serves. At the next publication its copy goes, and unfinished work on
  it ends at the next piece.
- Workers send the plain answer until they have this one, and go on with it where there is no memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
import time
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from avapd.control.worker import Worker
from avapd.log import Log
from avapd.shared import memory
from avapd.shared.channel import Compressed
from avapd.shared.patch import Content

# Compressing takes ten times the CPU of verifying: everyone else goes first (sched(7): on Linux a thread has its own).
_NICENESS: Final = 19
# The work can be given up between two pieces; within one, zlib lets go of the interpreter.
_PIECE_BYTES: Final = 1 << 20


class Copy:
    """A generation as gzip. `message` tells workers of it, None while it is not there or when it is of no use."""

    def __init__(self, view: Content) -> None:
        self.generation = view.generation
        self.message: Compressed | None = None
        self.fd = -1
        self._answer = view.answer()  # which keeps the arenas mapped
        self._dropped = False
        self._made = False

    def make(self) -> None:
        """Compress, in a thread. Raises OSError when there is no memory for it."""
        self.fd = memory.create("avapd-compressed")
        digest, size = hashlib.sha256(), 0
        for octets in self._octets():
            memory.write_at(self.fd, octets, size)
            digest.update(octets)
            size += len(octets)
        memory.seal(self.fd)
        if size < sum(map(len, self._answer)):
            self.message = Compressed(generation=self.generation, size=size, checksum=digest.hexdigest())

    def _octets(self) -> Iterator[bytes]:
        deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        for part in self._answer:
            for at in range(0, len(part), _PIECE_BYTES):
                if self._dropped:
                    return
                yield deflate.compress(part[at : at + _PIECE_BYTES])
        yield deflate.flush()

    def end(self) -> None:
        """The thread is done with it, well or not."""
        self._made = True
        self._answer = ()
        if self._dropped:
            self._close()

    def drop(self) -> None:
        """Nobody gets it any more; workers that map it keep their own hold."""
        self._dropped = True
        self.message = None
        if self._made:
            self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Compressor:
    """Holds the copy of the generation that is served, from when a worker wants it. Needs the running loop."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._thread = ThreadPoolExecutor(1, "compressor", _give_way)
        self._copy: Copy | None = None
        self._work: asyncio.Task[None] | None = None

    def serve(self, view: Content, workers: Collection[Worker]) -> None:
        """Everyone serves `view` now: see to those of the workers that want it compressed.

        `workers` is looked at again when the copy is made, for who has come meanwhile.
        """
        if self._copy is not None and self._copy.generation != view.generation:
            self._copy.drop()
            self._copy = None
        if self._copy is not None:
            self._send(self._copy, workers)
        elif any(worker.wants == view.generation for worker in workers):
            self._copy = Copy(view)
            self._work = asyncio.create_task(self._make(self._copy, workers))

    async def _make(self, copy: Copy, workers: Collection[Worker]) -> None:
        began = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, copy.make)
        except OSError as error:
            self._log.warn("Catalog Not Compressed", generation=copy.generation, error=error.strerror)
        finally:
            copy.end()
        if copy is self._copy and copy.message is not None:
            seconds, size = round(time.monotonic() - began, 3), copy.message.size
            self._log.info("Catalog Compressed", generation=copy.generation, bytes=size, seconds=seconds)
            self._send(copy, workers)

    @staticmethod
    def _send(copy: Copy, workers: Collection[Worker]) -> None:
        for worker in workers:
            if copy.message is not None and worker.wants == copy.generation:
                worker.wants = 0
                worker.send(copy.message, copy.fd)

    def stop(self) -> None:
        """Give up what is under way; waits for one piece at most."""
        if self._copy is not None:
            self._copy.drop()
            self._copy = None
        self._thread.shutdown()


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
