"""Turns: who waits gets one in order, and the loop looks at its sockets between them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from avapd.data.wire_protocol import Turns

LOOPS = (uvloop.new_event_loop, asyncio.new_event_loop)


def run(test: Callable[[Turns], Awaitable[None]], make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=make) as runner:

        async def within() -> None:
            async with asyncio.timeout(20):
                await test(Turns())

        runner.run(within())


@pytest.mark.parametrize("make", LOOPS)
def test_each_gets_a_turn_in_order_however_long_they_take(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Who adds itself again comes after those who wait already."""
    seen: list[int] = []

    async def test(turns: Turns) -> None:
        done = asyncio.Event()

        def turn(number: int, left: int) -> None:
            seen.append(number)
            if number % 7 == 0:
                spend(2 * Turns.SLICE_SECONDS)
            if left:
                turns.add(lambda: turn(number, left - 1))
            elif number == 99:
                done.set()

        for number in range(100):
            turns.add(lambda number=number: turn(number, 2))  # type: ignore[misc]
        await done.wait()

    run(test, make)
    assert seen == [*range(100)] * 3


@pytest.mark.parametrize("make", LOOPS)
def test_a_socket_is_looked_at_between_turns(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What one turn had sent to it is read before more than a few others had theirs, though a hundred wait."""
    order: list[object] = []

    async def test(turns: Turns) -> None:
        here, there = socket.socketpair()
        read = asyncio.Event()

        def heard() -> None:
            order.append(here.recv(10))
            read.set()

        def turn(number: int) -> None:
            order.append(number)
            if number == 0:
                there.send(b"x")
            spend(Turns.SLICE_SECONDS)

        with here, there:
            here.setblocking(False)
            asyncio.get_running_loop().add_reader(here, heard)
            for number in range(100):
                turns.add(lambda number=number: turn(number))  # type: ignore[misc]
            await read.wait()
            asyncio.get_running_loop().remove_reader(here)

    run(test, make)
    assert order[0] == 0
    assert order.index(b"x") < 10


@pytest.mark.parametrize("make", LOOPS)
def test_a_turn_that_raises_takes_none_from_the_others(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """It is told to the loop; the rest go on."""
    told: list[str] = []

    async def test(turns: Turns) -> None:
        done = asyncio.Event()

        def wrong() -> None:
            raise ZeroDivisionError

        asyncio.get_running_loop().set_exception_handler(lambda _, told_of: told.append(repr(told_of["exception"])))
        for _ in range(3):
            turns.add(wrong)
        turns.add(done.set)
        await done.wait()

    run(test, make)
    assert told == ["ZeroDivisionError()"] * 3


def spend(seconds: float) -> None:
    """Keep the loop busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
