"""A client that asks little: one call now and then, on a connection that is there or on a new one each time.

It is plain sockets and ready octets, so that next to nothing of what it measures is its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final, Self

from avapd.wire import frames
from avapd.wire.hpack import encode
from bench.servers.avapd import BenchError
from bench.servers.contestants import Target

# Windows so large that none needs to be opened again.
HELLO: Final = (
    frames.PREFACE
    + frames.settings({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW})
    + frames.SETTINGS_ACK
    + frames.window_update(0, frames.MAX_WINDOW - frames.WINDOW)
)
_SECONDS: Final = 30.0


class Knocker:
    """Holds one connection to a target."""

    def __init__(self, target: Target) -> None:
        self._port = target.port
        self._block = encode([
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", target.path.encode()),
            (b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
            *((name.encode(), value.encode()) for name, value in target.headers.items()),
        ])  # fmt: skip
        self._message = b"\0" + len(target.message).to_bytes(4, "big") + target.message
        self._number = -1
        self._open = self._connect()

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), _SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(HELLO)
        return made

    def again(self) -> None:
        """A call on the open connection."""
        self._number += 2
        self._call(self._open, self._number)

    def anew(self) -> None:
        """A call on a connection of its own, as a kubelet probes."""
        with self._connect() as made:
            self._call(made, 1)

    def _call(self, sock: socket.socket, number: int) -> None:
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, number, self._block)
        sock.sendall(head + frames.frame(frames.DATA, frames.END_STREAM, number, self._message))
        octets = bytearray()
        while not self._ended(octets, number):
            part = sock.recv(1 << 16)
            if not part:
                raise BenchError("the connection ended before the answer")
            octets += part

    @staticmethod
    def _ended(octets: bytearray, number: int) -> bool:
        """Take whole frames; whether the last of the answer was among them. Raises BenchError for a refusal."""
        while len(octets) >= frames.HEAD_BYTES:
            end = frames.HEAD_BYTES + int.from_bytes(octets[:3], "big")
            if len(octets) < end:
                break
            kind, flags, stream = octets[3], octets[4], int.from_bytes(octets[5:9], "big")
            del octets[:end]
            if kind in {frames.RST_STREAM, frames.GOAWAY}:
                raise BenchError("the call was refused")
            if stream == number and kind == frames.HEADERS and flags & frames.END_STREAM:
                return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def timed(calls: dict[str, Callable[[], None]], until: float, pause: float) -> dict[str, list[float]]:
    """Each of these calls in turn, a pause after each round, until then (monotonic); milliseconds by name."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    while time.monotonic() < until:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - began) * 1e3)
        time.sleep(pause)
    return times
