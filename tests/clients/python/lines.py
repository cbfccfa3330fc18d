"""The language of the client programs on the side of the program; ../program.py has the other side, and tells it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

CANCELLED, UNKNOWN = 1, 2
_TELLING = threading.Lock()


class Order(NamedTuple):
    """A call to begin: `timeout` in seconds, None for no deadline."""

    kind: str
    number: str
    path: str
    request: bytes
    timeout: float | None
    metadata: tuple[tuple[str, str], ...]


def orders(cancel: Callable[[str], None]) -> Iterator[Order]:
    """The calls to begin, until stdin ends; `cancel` gets the numbers of those to cancel."""
    for line in sys.stdin:
        verb, number, *words = line.split()
        if verb == "cancel":
            cancel(number)
            continue
        path, request, timeout, key = words
        yield Order(
            verb,
            number,
            path,
            b"" if request == "-" else bytes.fromhex(request),
            None if timeout == "-" else int(timeout) / 1000,
            () if key == "-" else (("x-avap-auth", key),),
        )


async def serve(call: Callable[[Order], Awaitable[tuple[int, str]]]) -> None:
    """Make a task of each order; `call` gives its status code and message, and is cancelled as tasks are."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    running: dict[str, asyncio.Task[None]] = {}
    given_up: set[str] = set()

    async def run(order: Order) -> None:
        try:
            code, message = await call(order)
        except asyncio.CancelledError:
            code, message = CANCELLED, ""
        except Exception as error:  # noqa: BLE001  # a library may stumble over what came for a call that it gave up
            code, message = CANCELLED if order.number in given_up else UNKNOWN, repr(error)
        del running[order.number]
        tell_end(order.number, code, message)

    def begin(order: Order) -> None:
        running[order.number] = asyncio.create_task(run(order))

    def cancel(number: str) -> None:
        if number in running:
            given_up.add(number)
            running[number].cancel()

    def cancel_soon(number: str) -> None:
        loop.call_soon_threadsafe(cancel, number)

    def read() -> None:
        for order in orders(cancel_soon):
            loop.call_soon_threadsafe(begin, order)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


def tell_message(number: str, message: bytes) -> None:
    """A message came."""
    _tell(f"message {number} {message.hex() or '-'}\n")


def tell_end(number: str, code: int, message: str) -> None:
    """The call has ended."""
    _tell(f"end {number} {code} {message.encode().hex() or '-'}\n")


def _tell(line: str) -> None:
    with _TELLING:
        sys.stdout.write(line)
        sys.stdout.flush()
