"""A crowd that watches: each client holds one WatchCatalog call on a connection of its own, all in one process.

A client is 40 lines of HTTP/2, so that a thousand of them are no load to speak of: what comes is cut into frames and
messages, and an event is looked up by its octets, which are the same for all. Who *stalls* asks for a whole catalog
and never reads.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Final, NamedTuple, Self, cast

import uvloop

from avapd.pb import avap_pb2
from avapd.wire import frames
from avapd.wire.hpack import encode
from bench.loads.knocking import HELLO
from bench.servers.avapd import KEY, BenchError

_SPAWN: Final = multiprocessing.get_context("spawn")
_PREFIX_BYTES: Final = 5
_READY_SECONDS: Final = 60.0


class Crowd(NamedTuple):
    """Whom they watch, from which CPU; `has` is the hash that those who read name."""

    port: int
    cpu: int
    reading: int
    stalling: int
    has: str


class Seen(NamedTuple):
    """When a generation had come to each client that reads (perf_counter), and how many connections were lost."""

    generation: int
    times: list[float]
    lost: int


class Watchers:
    """A running crowd, ready when it is made: everybody has had a first event. Leaving it ends it."""

    def __init__(self, crowd: Crowd) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(theirs, crowd), daemon=True)
        self._process.start()
        theirs.close()
        self.seen(_READY_SECONDS)

    def seen(self, seconds: float = 30.0) -> Seen:
        """The next generation that all have. Raises BenchError when it does not come."""
        if not self._pipe.poll(seconds):
            raise BenchError("not every watcher has the new generation")
        seen: Seen = self._pipe.recv()
        return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _run(pipe: Connection, crowd: Crowd) -> None:
    os.sched_setaffinity(0, {crowd.cpu})
    uvloop.run(_Audience(pipe, crowd).watch())


class _Audience:
    """All of the clients."""

    def __init__(self, pipe: Connection, crowd: Crowd) -> None:
        self._pipe = pipe
        self._crowd = crowd
        self._generations: dict[bytes, int] = {}
        self._times: dict[int, list[float]] = {}
        self.lost = 0

    async def watch(self) -> None:
        """Connect all, and be told."""
        loop, crowd = asyncio.get_running_loop(), self._crowd
        for stalls, clients in ((True, crowd.stalling), (False, crowd.reading)):
            make = functools.partial(_Client, self, crowd, stalls=stalls)
            for _ in range(clients):
                await loop.create_connection(make, "127.0.0.1", crowd.port)
        await loop.create_future()

    def take(self, message: bytes, now: float) -> None:
        """A client has this message."""
        generation = self._generations.get(message)
        if generation is None:
            event = avap_pb2.CatalogEvent.FromString(message)
            generation = self._generations[message] = 0 if event.more else event.generation
        times = self._times.setdefault(generation, [])
        times.append(now)
        if generation and len(times) == self._crowd.reading:
            self._pipe.send(Seen(generation, times, self.lost))


class _Client(asyncio.Protocol):
    def __init__(self, audience: _Audience, crowd: Crowd, *, stalls: bool) -> None:
        self._audience = audience
        self._stalls = stalls
        self._has = "" if stalls else crowd.has
        self._octets = bytearray()
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by type
        if self._stalls:
            transport.pause_reading()
        request = avap_pb2.CatalogRequest(version_hash=self._has).SerializeToString()
        block = encode([
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/avap.DefinitionEngine/WatchCatalog"),
            (b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
            (b"x-avap-auth", KEY.encode()),
        ])  # fmt: skip
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        message = b"\0" + len(request).to_bytes(4, "big") + request
        transport.write(HELLO + head + frames.frame(frames.DATA, frames.END_STREAM, 1, message))

    def data_received(self, data: bytes) -> None:
        now, octets = time.perf_counter(), self._octets
        octets += data
        while len(octets) >= frames.HEAD_BYTES:
            end = frames.HEAD_BYTES + int.from_bytes(octets[:3], "big")
            if len(octets) < end:
                break
            if octets[3] == frames.DATA:
                self._data += octets[frames.HEAD_BYTES : end]
            del octets[:end]
        while len(self._data) >= _PREFIX_BYTES:
            end = _PREFIX_BYTES + int.from_bytes(self._data[1:_PREFIX_BYTES], "big")
            if len(self._data) < end:
                break
            self._audience.take(bytes(self._data[_PREFIX_BYTES:end]), now)
            del self._data[:end]

    def connection_lost(self, _error: Exception | None) -> None:
        self._audience.lost += 1
