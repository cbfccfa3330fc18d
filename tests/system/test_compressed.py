"""SyncCatalog in gzip on a real server: fewer octets, the same catalog of one generation, and nobody waits for it."""

from __future__ import annotations

import gzip
import hashlib
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.database import Database
from support.load import Load
from support.raw import RIGHT_KEY, Raw, Reply, framed
from support.server import Server
from support.waiting import stays, wait_until

from avapd.pb import avap_pb2

Serve = Callable[..., Server]
SYNC = b"/avap.DefinitionEngine/SyncCatalog"
TAKES = (*RIGHT_KEY, (b"grpc-accept-encoding", b"identity, deflate, gzip"))
SLOW = {"AVAPD_REFRESH_SECONDS": "60"}
# So many connections reach every one of two workers, but once in a million times.
MANY = 20


def sync(raw: Raw, metadata: tuple[tuple[bytes, bytes], ...] = TAKES) -> Reply:
    reply = raw.call(SYNC, framed(b""), metadata)
    assert reply.code == 0
    assert reply.data[0] == (reply.headers.get(b"grpc-encoding") == b"gzip")
    return reply


def catalog(reply: Reply) -> bytes:
    """The CatalogResponse that came, as serialized; it must be whole."""
    payload = gzip.decompress(reply.data[5:]) if reply.data[0] else reply.data[5:]
    assert int.from_bytes(reply.data[1:5], "big") == len(reply.data) - 5
    found = avap_pb2.CatalogResponse.FromString(payload)
    content = avap_pb2.CatalogResponse(commands=found.commands).SerializeToString()
    assert found.version_hash == hashlib.sha256(content).hexdigest()
    return payload


def wait_compressed(server: Server) -> None:
    """Wait until every worker answers in gzip."""
    for _ in range(MANY):
        with Raw(server.port) as raw:
            wait_until(lambda raw=raw: sync(raw).data[0] == 1, 30)  # type: ignore[misc]


def put(database: Database, number: int) -> None:
    """Make this number the code of every row."""
    database.execute(f"UPDATE obex_dapl_functions SET code = '# {number:01000}'")


def copies(pid: int) -> int:
    """How many compressed catalogs a process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines()
    return len({line.split()[4] for line in lines if "memfd:avapd-compressed" in line})


def test_who_takes_gzip_is_sent_fewer_octets_of_the_same_catalog(sample: Database, serve: Serve) -> None:
    """At most a fifth of them, on every worker; who does not take it is sent what was sent before."""
    sample.insert_many(500)
    server = serve(sample.reader_url, env=SLOW).wait_serving()
    wait_compressed(server)
    with Raw(server.port) as raw:
        small = sync(raw)
        for others in ((), ((b"grpc-accept-encoding", b"identity"),), ((b"grpc-accept-encoding", b"deflate,br"),)):
            large = sync(raw, RIGHT_KEY + others)
            assert large.data[0] == 0
            assert catalog(large) == catalog(small)
            assert len(small.data) < len(large.data) / 5
        got = raw.call(body=framed(avap_pb2.CommandRequest(name="command_000001").SerializeToString()), metadata=TAKES)
        assert got.data[0] == 0
        assert b"grpc-encoding" not in got.headers


def test_it_is_made_once_for_all_workers_and_for_nobody_not_at_all(sample: Database, serve: Serve) -> None:
    """One line in the log for a generation that was wanted, also by a new worker; one copy a worker, none after it."""
    sample.insert_many(500)
    server = serve(sample.reader_url).wait_serving()
    first = server.status()["generation"]
    with Raw(server.port) as raw:
        assert sync(raw, RIGHT_KEY).data[0] == 0
        assert stays(lambda: not server.events("Catalog Compressed"), 0.2)
    wait_compressed(server)
    assert [copies(pid) for pid in server.workers()] == [1, 1]
    old = server.workers()
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: server.events("Workers Replaced"), 40)
    assert not {*old} & {*server.workers()}
    wait_compressed(server)
    assert [line["generation"] for line in server.events("Catalog Compressed")] == [first]
    sample.execute("UPDATE obex_dapl_functions SET code = 'another' WHERE name = 'command_000001'")
    server.wait_served(lambda status: bool(status["generation"] > first), 30)
    wait_until(lambda: [copies(pid) for pid in server.workers()] == [0, 0], 30)
    assert stays(lambda: len(server.events("Catalog Compressed")) == 1, 0.2)
    wait_compressed(server)
    second = server.status()["generation"]
    assert [line["generation"] for line in server.events("Catalog Compressed")] == [first, second]


def test_swaps_under_concurrent_calls_mix_nothing(sample: Database, serve: Serve) -> None:
    """Every answer, plain or in gzip, is one published catalog; on a connection they never go back."""
    sample.insert_many(500)
    put(sample, 0)
    server = serve(sample.reader_url, env={"AVAPD_REFRESH_SECONDS": "0.05"}).wait_serving()
    stop = threading.Event()

    def ask(_: int) -> list[tuple[int, int]]:
        """The number in the catalog and the flag, of each answer on one connection."""
        found: list[tuple[int, int]] = []
        with Raw(server.port) as raw:
            while not stop.is_set():
                for metadata in (TAKES, RIGHT_KEY, TAKES):
                    reply = sync(raw, metadata)
                    answer = avap_pb2.CatalogResponse.FromString(catalog(reply))
                    (code,) = {one.code for one in answer.commands}
                    found.append((int(code.removeprefix(b"# ")), reply.data[0]))
        return found

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, number) for number in range(3)]
        try:
            for number in range(1, 6):
                done = len(server.events("Catalog Compressed"))
                put(sample, number)
                wait_until(lambda done=done: len(server.events("Catalog Compressed")) > done, 20)  # type: ignore[misc]
        finally:
            stop.set()
        answers = [one.result() for one in asked]
    for found in answers:
        assert [number for number, _ in found] == sorted(number for number, _ in found)
    flags = {(number, flag) for found in answers for number, flag in found}
    assert len({number for number, flag in flags if flag}) >= 3
    assert len({number for number, flag in flags if not flag}) >= 3


@pytest.mark.timeout(120)
def test_nobody_waits_while_a_large_catalog_is_compressed(database: Database, serve: Serve) -> None:
    """With 20 MB that are hard to compress, calls are answered all the while, and none waits until it is done."""
    database.execute(
        """INSERT INTO obex_dapl_functions (name, code)
        SELECT 'command ' || i, (SELECT string_agg(md5(i || '/' || n), '') FROM generate_series(1, 6250) AS n)
        FROM generate_series(1, 100) AS i"""
    )
    server = serve(database.reader_url, env={**SLOW, "AVAPD_WORKERS": "1"}).wait_serving()
    with Load(server.calls, lambda calls: calls.get("nothing"), 1) as load, Raw(server.port, seconds=60) as raw:
        began = time.monotonic()
        assert sync(raw).data[0] == 0
        line = wait_until(lambda: server.events("Catalog Compressed"), 60)[0]
        ended = time.monotonic()
        wait_until(lambda: sync(raw).data[0] == 1, 60)
    seconds = line["seconds"]
    during = [entry for entry in load.history if entry.began > ended - seconds and entry.ended < ended]
    assert ended - began > seconds > 0.2
    assert len(during) > 20
    assert max(entry.ended - entry.began for entry in during) < 0.8 * seconds
    assert {entry.outcome.code for entry in load.history} == {5}
    assert server.metric("avap_worker_restarts_total") == 0
