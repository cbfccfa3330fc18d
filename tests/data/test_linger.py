"""The end of a connection: a slow client gets all that was said before it, and who reads nothing is cut off."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import uvloop
from support.raw import framed
from support.streams import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, frame
from support.streams import settings as settings_frame
from wire.raw import literals  # fmt: skip

from avapd.data.access import Probes
from avapd.data.wire_protocol import Members, WireProtocol
from avapd.wire.grpc import OK, Answer, Method
from avapd.wire.headers import Routes
from avapd.wire.hpack import Field
from avapd.wire.limits import Limits

SIZE = 210_000  # so that 60 KB are left in the transport when nothing more is to be said
CALL = frame(HEADERS, END_HEADERS, 1, literals([
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/large"), (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
])) + frame(DATA, END_STREAM, 1, framed(b""))  # fmt: skip
WIDE = frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))


class Large:
    """One method with a large answer."""

    names = noted = frozenset[bytes]()

    def __init__(self) -> None:
        self._method = Method.unary(b"/large", lambda _request: Answer(OK, payload=bytes(SIZE)))
        self.failures: list[Exception] = []

    def route(self, _path: bytes, _metadata: tuple[Field, ...]) -> Method:
        return self._method

    def mark(self, _fields: list[Field]) -> None: ...

    def outcome(self, _path: bytes, _code: int) -> int:
        return 0

    def failed(self, _path: bytes, error: Exception) -> None:
        self.failures.append(error)


def end(reads: bool, **limits: float) -> tuple[int, float]:
    """Have a server say good-bye in the midst of an answer; the octets its client got, and how long it took to close.

    The client `reads` 40 KB a second, so that what is left at the end takes it longer than one; or nothing.
    """

    async def run() -> tuple[int, float]:
        application = Large()
        members = Members()
        routes = Routes(application, Limits(**limits))  # type: ignore[arg-type]
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
        there.setblocking(False)
        loop = asyncio.get_running_loop()
        here.setblocking(False)
        _, protocol = await loop.connect_accepted_socket(
            lambda: WireProtocol(routes, members, Probes(1), lambda *_: 0), here
        )
        await loop.sock_sendall(
            there, PREFACE + settings_frame(initial_window_size=1 << 30) + WIDE + frame(SETTINGS, ACK, 0) + CALL
        )
        octets, began = 0, time.monotonic()
        drained = False
        while members.all:
            if reads:
                octets += len(await loop.sock_recv(there, 6_000))
                if not drained:
                    drained = True
                    protocol.drain()
                    await loop.sock_sendall(there, frame(6, 1, 0, b"good-bye"))
            elif not drained and time.monotonic() - began > 0.2:
                drained = True
                protocol.drain()
            await asyncio.sleep(0.15)
        assert not application.failures
        there.close()
        return octets, time.monotonic() - began

    return uvloop.run(asyncio.wait_for(run(), 30))


def test_a_slow_client_gets_the_whole_answer() -> None:
    """Though it takes longer than the second for which a connection lingers."""
    octets, seconds = end(reads=True)
    assert octets > SIZE
    assert seconds > 1.2


@pytest.mark.parametrize("stall", [0.5])
def test_who_reads_nothing_is_cut_off(stall: float) -> None:
    """After `stall_seconds`, good-bye or not."""
    octets, seconds = end(reads=False, stall_seconds=stall)
    assert octets == 0
    assert seconds < 5
