"""Load that keeps its history: threads, each with a connection of its own, that call in a closed loop."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from support.calls import Calls, Outcome


class Entry(NamedTuple):
    """One call: which thread made it, when it began and ended (monotonic seconds), and how."""

    thread: int
    began: float
    ended: float
    outcome: Outcome


class Load:
    """Runs `call` on `threads` connections while the block lasts; `history` then holds every call, by thread in order.

    Calls wait for a connection, but are never retried: a failed one was in flight when its server went away.
    """

    def __init__(self, connect: Callable[[], Calls], call: Callable[[Calls], Outcome], threads: int = 4) -> None:
        self.history: list[Entry] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, connect, call), daemon=True) for number in range(threads)
        ]

    def _run(self, number: int, connect: Callable[[], Calls], call: Callable[[Calls], Outcome]) -> None:
        with connect() as calls:
            while not self._stop.is_set():
                began = time.monotonic()
                outcome = call(calls)
                self.history.append(Entry(number, began, time.monotonic(), outcome))

    def failures(self) -> list[Entry]:
        """The calls that did not end with OK."""
        return [entry for entry in self.history if entry.outcome.code]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"


def knock(port: int, seconds: float = 5.0) -> bool:
    """Open a connection and wait for the server's SETTINGS: True when a worker answered, False when it was cut off.

    ConnectionRefusedError and TimeoutError pass through: nobody may ever see those.
    """
    with socket.create_connection(("127.0.0.1", port), seconds) as sock:
        try:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return len(sock.recv(9)) > 0
        except ConnectionError:
            return False
