"""Doors: a real grpc.aio server accepts from a socket somebody else owns, and lets go of it unharmed."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from support.stage import files

from avapd.data.grpcio_listener import Door
from avapd.errors import SocketError

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


def listening() -> socket.socket:
    """A listening socket as the master makes it."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """`/t/echo` answers with the request; `/t/wait` tells that it was called and waits to be let go."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.release = asyncio.Event()

    def service(self, details: Any) -> Any:
        async def echo(request: bytes, _context: Any) -> bytes:
            return request

        async def wait(request: bytes, _context: Any) -> bytes:
            self.called.set()
            await self.release.wait()
            return request

        return grpc.unary_unary_rpc_method_handler({"/t/echo": echo, "/t/wait": wait}[details.method])


class House:
    """A server with doors."""

    def __init__(self, doors: int = 1) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.handler = Handler()
        self.server.add_generic_rpc_handlers((self.handler,))
        self.doors = [Door(self.server) for _ in range(doors)]

    @property
    def door(self) -> Door:
        return self.doors[0]

    async def stop(self, seconds: float = 5) -> None:
        """As an engine stops: doors first."""
        for door in self.doors:
            door.shut()
        await self.server.stop(seconds)
        for door in self.doors:
            for end in door._blank:
                end.close()


@asynccontextmanager
async def running(doors: int = 1, grace: float = 5) -> AsyncIterator[House]:
    """A started server; stopped at the end."""
    house = House(doors)
    await house.server.start()
    try:
        yield house
    finally:
        await house.stop(grace)


async def call(listener: socket.socket, path: str = "/t/echo", *, seconds: float = 10.0) -> bytes:
    """A call over a connection of its own."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}", options=OPTIONS) as channel:
        answer: bytes = await channel.unary_unary(path)(b"x", timeout=seconds, wait_for_ready=True)
        return answer


def waits(listener: socket.socket) -> bool:
    """Whether a connection is in the accept queue, taken by nobody."""
    return bool(select.select([listener], [], [], 0)[0])


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the kernel's queue tells nobody that it changed
            await asyncio.sleep(0.001)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on a loop of its own."""
    asyncio.run(asyncio.wait_for(test(), 30))


# --- opening and shutting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1"])
def test_an_open_door_serves_a_socket_of_somebody_else(host: str) -> None:
    """Whatever its address family; the ephemeral port the door was made with serves nobody."""

    async def test() -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        dual = family == socket.AF_INET6 and host == "::"
        with socket.create_server((host, 0), family=family, dualstack_ipv6=dual) as listener:
            listener.setblocking(False)
            async with running() as house:
                house.door.open(listener)
                target = (
                    f"[::1]:{listener.getsockname()[1]}"
                    if family == socket.AF_INET6
                    else f"127.0.0.1:{listener.getsockname()[1]}"
                )
                async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
                    assert await channel.unary_unary("/t/echo")(b"abc", timeout=10, wait_for_ready=True) == b"abc"

    run(test)


def test_a_door_may_be_opened_before_and_after_the_start() -> None:
    """One that was opened before the server started serves like one that was opened later."""

    async def test() -> None:
        with listening() as early, listening() as late:
            house = House(2)
            house.doors[0].open(early)
            await house.server.start()
            house.doors[1].open(late)
            assert await call(early) == await call(late) == b"x"
            await house.stop()

    run(test)


def test_a_connection_that_waited_is_accepted_when_the_door_opens() -> None:
    """It was in the queue while nobody served; it is not refused, and not forgotten."""

    async def test() -> None:
        with listening() as listener:
            async with running() as house:
                calls = [asyncio.create_task(call(listener)) for _ in range(5)]
                await until(lambda: waits(listener))
                assert not any(task.done() for task in calls)
                house.door.open(listener)
                assert await asyncio.gather(*calls) == [b"x"] * 5
                assert not waits(listener)

    run(test)


def test_a_shut_door_takes_no_connection_and_the_next_open_one_does() -> None:
    """Again and again: what comes while it is shut waits in the queue and is served later."""

    async def test() -> None:
        with listening() as listener:
            async with running() as house:
                for _ in range(20):
                    house.door.open(listener)
                    assert await call(listener) == b"x"
                    house.door.shut()
                    waiting = asyncio.create_task(call(listener))
                    await until(lambda: waits(listener))
                    assert not waiting.done()
                    house.door.open(listener)
                    assert await waiting == b"x"
                    house.door.shut()

    run(test)


def test_the_owner_can_take_what_waits_at_a_shut_door() -> None:
    """The socket is whole: another holder of it accepts the connection."""

    async def test() -> None:
        with listening() as listener:
            async with running() as house:
                house.door.open(listener)
                assert await call(listener) == b"x"
                house.door.shut()
                with socket.create_connection(listener.getsockname()):
                    await until(lambda: waits(listener))
                    accepted, _ = listener.accept()
                    accepted.close()

    run(test)


def test_calls_in_flight_survive_the_door() -> None:
    """Shut or pointed elsewhere, its accepted connections go on, with old calls and new ones."""

    async def test() -> None:
        with listening() as one, listening() as two:
            async with running() as house:
                house.door.open(one)
                async with grpc.aio.insecure_channel(f"127.0.0.1:{one.getsockname()[1]}", options=OPTIONS) as channel:
                    flying = asyncio.ensure_future(
                        channel.unary_unary("/t/wait")(b"slow", timeout=20, wait_for_ready=True)
                    )
                    await house.handler.called.wait()
                    house.door.shut()
                    house.door.open(two)
                    assert await call(two) == b"x"
                    assert await channel.unary_unary("/t/echo")(b"same connection", timeout=10) == b"same connection"
                    house.door.shut()
                    house.handler.release.set()
                    assert await flying == b"slow"

    run(test)


def test_a_door_moves_from_socket_to_socket() -> None:
    """Without being shut between; only the newest is served."""

    async def test() -> None:
        with listening() as one, listening() as two:
            async with running() as house:
                for _ in range(5):
                    for listener, other in ((one, two), (two, one)):
                        house.door.open(listener)
                        assert await call(listener) == b"x"
                        with socket.create_connection(other.getsockname()):
                            await until(lambda other=other: waits(other))  # type: ignore[misc]
                            other.accept()[0].close()

    run(test)


def test_several_doors_serve_several_sockets() -> None:
    """Each its own; shutting one leaves the others open."""

    async def test() -> None:
        listeners = [listening() for _ in range(3)]
        async with running(3) as house:
            for door, listener in zip(house.doors, listeners, strict=True):
                door.open(listener)
            assert await asyncio.gather(*map(call, listeners)) == [b"x"] * 3
            house.doors[1].shut()
            assert await call(listeners[0]) == await call(listeners[2]) == b"x"
            with socket.create_connection(listeners[1].getsockname()):
                await until(lambda: waits(listeners[1]))
        for listener in listeners:
            listener.close()

    run(test)


# --- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [0, 5])
def test_the_masters_socket_listens_on_after_the_server_stopped(grace: float) -> None:
    """What grpcio shuts down at its end is its own; the next server serves what waited at ours."""

    async def test() -> None:
        with listening() as listener:
            async with running(grace=grace) as house:
                house.door.open(listener)
                assert await call(listener) == b"x"
            waiting = asyncio.create_task(call(listener))
            await until(lambda: waits(listener))
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            async with running() as successor:
                successor.door.open(listener)
                assert await waiting == b"x"

    run(test)


def test_a_socket_may_be_closed_by_its_owner_while_it_is_served() -> None:
    """The door has a descriptor of its own."""

    async def test() -> None:
        listener = listening()
        with socket.socket(fileno=os.dup(listener.fileno())) as same:
            async with running() as house:
                house.door.open(listener)
                listener.close()
                assert await call(same) == b"x"

    run(test)


# --- descriptors --------------------------------------------------------------------------------------------


def test_a_door_costs_three_descriptors_and_no_more() -> None:
    """The listener and its blank pair, however many doors there are: a worker has one for each slot."""

    async def test() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        doors = [Door(server)]
        costs = []
        for _ in range(5):
            before = files()
            doors.append(Door(server))
            costs.append(files() - before)
        for door in doors:
            for end in door._blank:
                end.close()
        await server.stop(0)
        assert costs == [3] * 5

    run(test)


def test_opening_and_shutting_costs_no_descriptor() -> None:
    """A thousand times."""

    async def test() -> None:
        with listening() as listener:
            async with running() as house:
                before = files()
                for _ in range(1000):
                    house.door.open(listener)
                    house.door.shut()
                assert files() == before

    run(test)


# --- another grpcio -----------------------------------------------------------------------------------------


class Stranger:
    """A server that opens its ports in some other way than the grpcio of today."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock

    def add_insecure_port(self, _address: str) -> int:
        if self._sock is None:
            with listening() as gone:
                return int(gone.getsockname()[1])
        return int(self._sock.getsockname()[1])


def test_a_grpcio_that_works_otherwise_is_refused_with_words() -> None:
    """No listener among the descriptors, or one in no epoll set: the worker fails at boot and never serves half."""
    with pytest.raises(SocketError, match="not found among the descriptors"):
        Door(Stranger(None))
    with listening() as listener, pytest.raises(SocketError, match="in no epoll set"):
        Door(Stranger(listener))
