"""A service on the wire engine in a process of its own, at a free loopback port, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import traceback
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import uvloop
from support.access import access

from avapd.data.wire_protocol import Members, WireProtocol
from avapd.wire.call import Call
from avapd.wire.grpc import UNKNOWN, Application
from avapd.wire.headers import Routes
from avapd.wire.limits import Limits

_TICK_SECONDS = 0.02


def serve(application: Application, limits: Limits, tell: Callable[[int], None]) -> None:
    """Serve until SIGTERM; `tell` is given the port once connections are accepted."""

    async def listen() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        routes, members, nobody = Routes(application, limits), Members(), access(limits=limits)
        server = await loop.create_server(lambda: WireProtocol(routes, members, nobody, _count_nothing), "127.0.0.1", 0)
        tell(server.sockets[0].getsockname()[1])
        while not ended.is_set():
            await asyncio.sleep(_TICK_SECONDS)
            for member in list(members.all):
                member.tick(monotonic())
        for member in list(members.all):
            member.abort()
        await asyncio.sleep(0)

    uvloop.run(listen())


def run(call: Call, work: Coroutine[Any, Any, None]) -> None:
    """Have a coroutine work for a call, until the call ends. What it raises is told, and ends the call."""
    task = asyncio.get_running_loop().create_task(work)

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            traceback.print_exception(error)
            call.finish(UNKNOWN, "the test service failed")

    def cancel() -> None:
        task.cancel()

    task.add_done_callback(done)
    call.on_cancel = cancel


def _count_nothing(_finished: list[int], _nanoseconds: int, _member: WireProtocol) -> int:
    return 0
