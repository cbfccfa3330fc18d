"""The cache: current while the server is there, stale but there while it is not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from support.database import Database
from support.server import KEY, Server, free_port
from support.waiting import wait_until

from avapd.client import AsyncCache, AsyncClient, Cache, CallError, Client, State

Serve = Callable[..., Server]
CALM = {"AVAPD_REFRESH_SECONDS": "0.1"}


def test_a_cache_follows_the_table(serve: Serve, sample: Database) -> None:
    """Each change is here soon, its name is told, and look-ups are answered as the server answers them."""
    server = serve(sample.reader_url, env=CALM).wait_serving()
    told: list[frozenset[str]] = []
    with Cache(f"127.0.0.1:{server.port}", KEY, on_change=told.append) as cache:
        assert cache.wait_ready(10)
        assert (cache.names(), len(cache), cache.state) == (["addVar", "getDate", "si"], 3, State.READY)
        sample.execute("UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'si'")
        wait_until(lambda: cache.get("si").code == b"new")
        assert told == [frozenset({"addVar", "getDate", "si"}), frozenset({"si"})]
        with Client(f"127.0.0.1:{server.port}", KEY) as client:
            assert client.get("si") == cache.get("si")
            assert client.catalog().version_hash == cache.version_hash
        with pytest.raises(CallError, match="NOT_FOUND: Command 'nobody' not found"):
            cache.get("nobody")


def test_it_goes_on_without_the_server(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """STALE with all it had; a new process has it from disk; when the server is back it is READY again."""
    path = tmp_path / "catalog"
    port = free_port()
    env = {**CALM, "PORT": str(port)}
    server = serve(sample.reader_url, env=env).wait_serving()
    with Cache(f"127.0.0.1:{port}", KEY, path=path) as cache:
        assert cache.wait_ready(10)
        server.stop()
        wait_until(lambda: cache.state is State.STALE)
        assert cache.get("getDate").code == b"import datetime\n"
        with Cache(f"127.0.0.1:{port}", KEY, path=path) as cold:
            assert cold.state is State.STALE
            assert cold.version_hash == cache.version_hash
        sample.execute("UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'si'")
        serve(sample.reader_url, env=env).wait_serving()
        wait_until(lambda: cache.state is State.READY and cache.get("si").code == b"new", 20)


def test_without_anything_it_says_why() -> None:
    """ERROR, and UNAVAILABLE for every look-up."""
    with Cache(f"127.0.0.1:{free_port()}", KEY) as cache:
        assert not cache.wait_ready(0.3)
        assert cache.state is State.ERROR
        with pytest.raises(CallError, match="UNAVAILABLE: no catalog"):
            cache.get("addVar")


def test_a_wrong_key_is_an_error(serve: Serve, sample: Database) -> None:
    """It is tried again, in case the key is accepted later."""
    server = serve(sample.reader_url).wait_serving()
    with Cache(f"127.0.0.1:{server.port}", "wrong-key-of-enough-length") as cache:
        wait_until(lambda: "UNAUTHENTICATED" in cache.error)
        assert cache.state is State.ERROR


def test_unsigned_definitions_are_not_served_under_a_key(serve: Serve, sample: Database) -> None:
    """Who has the signing key takes only what is signed with it."""
    plain = serve(sample.reader_url).wait_serving()
    signed = serve(sample.reader_url, env={"SIGNING_KEY": "a-signing-key-of-ours"}).wait_serving()
    with Cache(f"127.0.0.1:{plain.port}", KEY, signing_key="a-signing-key-of-ours") as cache:
        wait_until(lambda: "not signed" in cache.error)
        assert cache.state is State.ERROR
    with Cache(f"127.0.0.1:{signed.port}", KEY, signing_key="a-signing-key-of-ours") as cache:
        assert cache.wait_ready(10)


def test_asyncio_has_the_same(serve: Serve, sample: Database) -> None:
    """Client and cache on an event loop."""
    server = serve(sample.reader_url, env=CALM).wait_serving()
    target = f"127.0.0.1:{server.port}"

    async def run() -> None:
        async with AsyncClient(target, KEY) as client, AsyncCache(target, KEY) as cache:
            assert await cache.wait_ready(10)
            assert await client.health() == "SERVING"
            assert await client.get("si") == cache.get("si")
            assert (await client.catalog()).version_hash == cache.version_hash
            with pytest.raises(CallError, match="NOT_FOUND"):
                await client.get("nobody")
            await asyncio.to_thread(sample.execute, "UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'si'")
            async with asyncio.timeout(10):
                while cache.get("si").code != b"new":  # noqa: ASYNC110  # what is awaited is the cache's own work
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_server_without_watches_is_polled(serve: Serve, sample: Database) -> None:
    """One that knows the original unary rpcs alone: a proxy in front of ours passes only those."""
    server = serve(sample.reader_url, env=CALM).wait_serving()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as behind:

        class Old(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
            def service(self, details: object) -> object:
                if not details.method.endswith("/SyncCatalog"):  # type: ignore[attr-defined]
                    return None
                call = behind.unary_unary("/avap.DefinitionEngine/SyncCatalog")

                def passed_on(request: bytes, context: grpc.ServicerContext) -> bytes:
                    key = [pair for pair in context.invocation_metadata() if pair[0] == "x-avap-auth"]
                    answer: bytes = call(request, metadata=key)
                    return answer

                return grpc.unary_unary_rpc_method_handler(passed_on)

        old = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Old(),))
        port = old.add_insecure_port("127.0.0.1:0")
        old.start()
        with Cache(f"127.0.0.1:{port}", KEY, poll_seconds=0.1) as cache:
            assert cache.wait_ready(10)
            sample.execute("UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'si'")
            wait_until(lambda: cache.get("si").code == b"new")
        old.stop(None).wait()


def test_a_child_of_a_fork_watches_anew(serve: Serve, sample: Database) -> None:
    """What it inherits can be looked up, and it follows the table by itself."""
    server = serve(sample.reader_url, env=CALM).wait_serving()
    program = _FORKING.format(port=server.port, key=KEY)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "child has 3\n"
        sample.execute("UPDATE obex_dapl_functions SET code = 'new' WHERE name = 'si'")
        assert process.stdout.readline() == "child follows\n"
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


_FORKING = """
import os, sys, time
from avapd.client import Cache
cache = Cache("127.0.0.1:{port}", "{key}")
assert cache.wait_ready(10)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
cache.get("si")
print("child has", len(cache), flush=True)
deadline = time.monotonic() + 20
while cache.get("si").code != b"new":
    if time.monotonic() > deadline:
        os._exit(1)
    time.sleep(0.01)
print("child follows", flush=True)
os._exit(0)
"""
