"""What is left of a connection that has ended: nothing, and without the collector, which comes late or never."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
import uvloop
from support.raw import framed
from support.streams import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, settings
from wire.raw import literals  # fmt: skip

from avapd.data.access import Probes
from avapd.data.health import Health
from avapd.data.wire_port import HealthApplication
from avapd.data.wire_protocol import Members, WireProtocol
from avapd.wire.connection import Connection
from avapd.wire.headers import Routes
from avapd.wire.limits import Limits

CLIENTS = 20
CHECK, WATCH = b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"


def living() -> int:
    """How many connections there are in this process, held by somebody or not."""
    return sum(type(thing) is Connection for thing in gc.get_objects())


def talk(port: int, path: bytes) -> None:
    """A client that calls, has its answer and goes."""
    block = literals([
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ])  # fmt: skip
    call = frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, framed(b""))
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(PREFACE + settings() + frame(SETTINGS, ACK, 0) + call)
        heard = b""
        while b"\x00\x00\x00\x00\x02\x08" not in heard:  # the message: a status
            part = sock.recv(4096)
            assert part
            heard += part


@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_nothing_is_left_to_the_collector(path: bytes) -> None:
    """Garbage in cycles grew by 6 KB a connection for a thousand of them, before anybody looked for it."""

    def failed(_path: bytes, error: Exception) -> None:
        raise error

    async def run() -> int:
        health = Health()
        health.set("", serving=True)
        routes, members = Routes(HealthApplication(health, failed), Limits()), Members()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: WireProtocol(routes, members, Probes(CLIENTS), lambda *_: 0), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        for _ in range(CLIENTS):
            await asyncio.to_thread(talk, port, path)
        async with asyncio.timeout(20):
            while members.all or members.busy:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
        server.close()
        return living()

    gc.collect()
    gc.disable()
    try:
        before = living()
        assert uvloop.run(run()) == before
    finally:
        gc.enable()
