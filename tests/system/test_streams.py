"""StreamCatalog and WatchCatalog on a real server, on both engines."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from support.database import Database
from support.server import KEY, Server
from support.waiting import wait_until

from avapd.config import ENGINES
from avapd.pb.avap_pb2 import CatalogChunk, CatalogEvent, CatalogRequest, CatalogResponse, CommandResponse

Serve = Callable[..., Server]
SERVICE = "/avap.DefinitionEngine/"
METADATA = (("x-avap-auth", KEY),)
NEW_CODE = "UPDATE obex_dapl_functions SET code = {} WHERE name = '{}'"
WATCHERS = int(os.environ.get("AVAPD_TEST_WATCHERS", "1000"))


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest, serve: Serve, sample: Database) -> Server:
    """A server on each engine, which looks at its table when it is told to."""
    env = {"AVAPD_ENGINE": request.param, "AVAPD_REFRESH_SECONDS": "3600", "AVAPD_NOTIFY_CHANNEL": "off"}
    return serve(sample.reader_url, env=env).wait_serving()


class Copy:
    """What a client holds."""

    def __init__(self) -> None:
        self.commands: dict[str, CommandResponse] = {}
        self.version_hash = ""
        self.events = 0

    def take(self, raw: bytes) -> bool:
        """Apply a message; whether the event is whole."""
        event = CatalogEvent.FromString(raw)
        if event.full:
            self.commands.clear()
        for command in event.commands:
            self.commands[command.name] = command
        for name in event.removed:
            self.commands.pop(name, None)
        if event.more:
            return False
        self.version_hash = event.version_hash
        self.events += 1
        return True

    def computed(self) -> str:
        commands = [self.commands[name] for name in sorted(self.commands)]
        return hashlib.sha256(CatalogResponse(commands=commands).SerializeToString()).hexdigest()


@asynccontextmanager
async def channel(server: Server, **options: int) -> AsyncIterator[Any]:
    """A connection of its own."""
    all_ = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), *options.items()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=all_) as made:
        yield made


def watch(made: Any, has: str = "", metadata: Any = METADATA) -> Any:
    request = CatalogRequest(version_hash=has).SerializeToString()
    return made.unary_stream(SERVICE + "WatchCatalog")(request, metadata=metadata)


async def next_event(call: Any, copy: Copy) -> Copy:
    """Take one whole event."""
    async with asyncio.timeout(10):
        while not copy.take(await call.read()):
            pass
    return copy


def stream(server: Server, request: bytes, metadata: Any = METADATA) -> list[CatalogChunk]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as made:
        answers = made.unary_stream(SERVICE + "StreamCatalog")(request, metadata=metadata, timeout=20)
        return [CatalogChunk.FromString(raw) for raw in answers]


def edit(server: Server, database: Database, sql: str) -> None:
    """Change the table, and have it published."""
    before = server.status()["generation"]
    database.execute(sql)
    server.process.send_signal(signal.SIGHUP)
    server.wait_served(lambda status: status["generation"] > before)


def test_a_stream_is_the_catalog(server: Server, sample: Database) -> None:
    """Sorted, of the hash that SyncCatalog tells; `unchanged` for who has it; of any size for a stock client."""
    with server.calls() as calls:
        catalog = calls.catalog()
    chunks = stream(server, b"")
    assert [command for chunk in chunks for command in chunk.commands] == list(catalog.commands)
    assert (chunks[-1].version_hash, chunks[-1].total_count) == (catalog.version_hash, 3)
    (chunk,) = stream(server, CatalogRequest(version_hash=catalog.version_hash).SerializeToString())
    assert chunk.unchanged
    many = "SELECT 'n' || i, repeat('x', 20000) FROM generate_series(1, 400) i"
    edit(server, sample, f"INSERT INTO obex_dapl_functions (name, code) {many}")
    chunks = stream(server, b"")
    assert sum(len(chunk.commands) for chunk in chunks) == 403
    assert max(chunk.ByteSize() for chunk in chunks) <= 1 << 20
    assert len(chunks) > 7


@pytest.mark.parametrize("method", ["StreamCatalog", "WatchCatalog"])
def test_streams_are_refused_as_calls_are(server: Server, method: str) -> None:
    """Without a key, with a wrong one, with a request that is none; and counted under their names."""

    def status(request: bytes, metadata: Any) -> grpc.StatusCode:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as made, pytest.raises(grpc.RpcError) as caught:
            list(made.unary_stream(SERVICE + method)(request, metadata=metadata, timeout=10))
        code: grpc.StatusCode = caught.value.code()
        return code

    assert status(b"", ()) is grpc.StatusCode.UNAUTHENTICATED
    assert status(b"", (("x-avap-auth", "wrong-key-of-enough-length"),)) is grpc.StatusCode.UNAUTHENTICATED
    assert status(b"\x0a\xff", METADATA) is grpc.StatusCode.INTERNAL
    wait_until(lambda: server.metric("avap_requests_total", method=method, status="401") == 2)


def test_a_watch_follows_the_table(server: Server, sample: Database) -> None:
    """Everything first, then each change alone; after every event the copy has the server's hash."""

    async def run() -> None:
        async with channel(server) as made:
            copy, call = Copy(), watch(made)
            await next_event(call, copy)
            assert sorted(copy.commands) == ["addVar", "getDate", "si"]
            for sql in (
                NEW_CODE.format("'new'", "si"),
                "INSERT INTO obex_dapl_functions (name, code) VALUES ('another', 'x')",
                "DELETE FROM obex_dapl_functions WHERE name = 'addVar'",
            ):
                await asyncio.to_thread(edit, server, sample, sql)
                await next_event(call, copy)
                assert copy.computed() == copy.version_hash == server.status()["version_hash"]
            assert sorted(copy.commands) == ["another", "getDate", "si"]
            assert copy.events == 4
            call.cancel()

    asyncio.run(run())


def test_who_comes_back_gets_what_it_missed(server: Server, sample: Database) -> None:
    """Named by its hash: the changes alone; d1, d2 and d1 again ends on d1."""

    async def run() -> None:
        async with channel(server) as made:
            copy = await next_event(watch(made), Copy())
            first = copy.version_hash
            await asyncio.to_thread(
                edit, server, sample, "UPDATE obex_dapl_functions SET code = 'd2' WHERE name = 'si'"
            )
            again = await next_event(watch(made, first), Copy())
            assert list(again.commands) == ["si"]
            await asyncio.to_thread(edit, server, sample, NEW_CODE.format("'# ñ, 日本語' || chr(10)", "si"))
            back = await next_event(watch(made, again.version_hash), Copy())
            assert (list(back.commands), back.version_hash) == (["si"], first)
            same = await next_event(watch(made, first), Copy())
            assert (same.commands, same.version_hash) == ({}, first)

    asyncio.run(run())


def test_many_watchers_have_a_new_generation_at_once(server: Server, sample: Database) -> None:
    """Some of them do not read at all: nobody waits for those, and unary calls do not suffer."""
    edit(server, sample, NEW_CODE.format("repeat('x', 100000)", "si"))
    stalled = WATCHERS // 100

    async def watcher(made: Any, ready: asyncio.Semaphore, times: list[float]) -> None:
        call, copy = watch(made), Copy()
        await next_event(call, copy)
        ready.release()
        await next_event(call, copy)
        times.append(time.perf_counter())
        call.cancel()

    async def run() -> list[float]:
        async with channel(server, **{"grpc.http2.lookahead_bytes": 1024}) as slow:
            idle = [watch(slow) for _ in range(stalled)]
            channels = [channel(server) for _ in range(-(-WATCHERS // 80))]
            opened = [await one.__aenter__() for one in channels]
            ready, times = asyncio.Semaphore(0), list[float]()
            tasks = [
                asyncio.create_task(watcher(opened[number % len(opened)], ready, times)) for number in range(WATCHERS)
            ]
            for _ in tasks:
                async with asyncio.timeout(30):
                    await ready.acquire()
            await asyncio.to_thread(
                edit, server, sample, "UPDATE obex_dapl_functions SET code = 'y' WHERE name = 'addVar'"
            )
            published = time.perf_counter()
            async with asyncio.timeout(30):
                await asyncio.gather(*tasks)
            assert not any(call.done() for call in idle)
            for one in channels:
                await one.__aexit__(None, None, None)
        return [moment - published for moment in times]

    late = asyncio.run(run())
    assert len(late) == WATCHERS
    assert max(late) < 5.0  # 0.5 s is the bench's business: here one process is all the clients
    with server.calls() as calls:
        assert calls.get("addVar").code == 0


def test_a_stop_ends_the_watches(server: Server) -> None:
    """With UNAVAILABLE, so that clients go elsewhere; they do not hold the drain up."""

    async def run() -> grpc.StatusCode:
        async with channel(server) as made:
            call = watch(made)
            await next_event(call, Copy())
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                while await call.read() is not grpc.aio.EOF:
                    pass
            code: grpc.StatusCode = await call.code()
            return code

    try:
        assert asyncio.run(run()) is grpc.StatusCode.UNAVAILABLE
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # which of the two is grpcio's choice
    assert server.wait_end() == 0
