"""A client of another kind or language as a child process: it is told calls on stdin, and tells what comes of them.

All programs speak the same language, a line each way, words between single spaces, bytes in hex, `-` for nothing:

    unary  NUMBER PATH REQUEST TIMEOUT KEY     begin a call; TIMEOUT in milliseconds, KEY goes as x-avap-auth
    stream NUMBER PATH REQUEST TIMEOUT KEY     the same, for a method that answers with a stream
    cancel NUMBER                              cancel it, as this client cancels

    message NUMBER BYTES                       it gave a message
    end NUMBER CODE MESSAGE                    it ended, with a gRPC status (the message is UTF-8 in hex)

Started with `HOST:PORT KEEPALIVE`, where KEEPALIVE is the interval of pings in milliseconds, 0 for none. A program
makes one channel, moves the bytes of messages without looking at them, and ends when stdin does.
"""

from __future__ import annotations

import collections
import itertools
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self

from support.calls import Outcome
from support.server import KEY

from avapd.pb import avap_pb2

GET, SYNC = "/avap.DefinitionEngine/GetCommand", "/avap.DefinitionEngine/SyncCatalog"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


def get(name: str) -> bytes:
    """The request of GetCommand."""
    return avap_pb2.CommandRequest(name=name).SerializeToString()


class Call:
    """A call that a program makes."""

    def __init__(self, program: Program, number: int) -> None:
        self._program = program
        self._number = number
        self.events: queue.Queue[bytes | Outcome] = queue.Queue()

    def message(self, seconds: float = 10.0) -> bytes:
        """The next message, which must come."""
        event = self.events.get(timeout=seconds)
        assert isinstance(event, bytes), event
        return event

    def outcome(self, seconds: float = 30.0) -> Outcome:
        """How it ended, with the last message that was not taken yet."""
        deadline, last = time.monotonic() + seconds, b""
        while True:
            event = self.events.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(event, Outcome):
                return event._replace(payload=last)
            last = event

    def cancel(self) -> None:
        """Cancel it."""
        self._program.tell(f"cancel {self._number}")


class Program:
    """A running client. Use as a context manager: the end of the block ends it."""

    def __init__(
        self, command: Iterable[str], target: str, keepalive_ms: int = 0, env: dict[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [*command, target, str(keepalive_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            verb, number, *words = line.split()
            call = self._calls[int(number)]
            if verb == "message":
                call.events.put(_bytes(words[0]))
            else:
                del self._calls[int(number)]
                call.events.put(Outcome(int(words[0]), _bytes(words[1]).decode(), b""))

    def tell(self, line: str) -> None:
        """Write a line to it."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def begin(
        self, path: str, request: bytes = b"", timeout: float | None = 30.0, key: str = KEY, *, kind: str = "unary"
    ) -> Call:
        """Begin a call, with a deadline in seconds (None for none)."""
        number = next(self._numbers)
        call = self._calls[number] = Call(self, number)
        milliseconds = "-" if timeout is None else str(round(timeout * 1000))
        self.tell(f"{kind} {number} {path} {request.hex() or '-'} {milliseconds} {key or '-'}")
        return call

    def watch(self, service: str = "", timeout: float | None = None) -> Call:
        """Begin a health Watch."""
        request = b"\x0a" + bytes([len(service)]) + service.encode() if service else b""
        return self.begin(WATCH, request, timeout, "", kind="stream")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            code = self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(10)
            assert self._process.stdout
            self._process.stdout.close()
        assert code == 0, f"the client ended with {code}"


def in_flight(calls: Iterable[Call], most: int) -> Iterator[Outcome]:
    """How calls ended, in order; `calls` begins each when it is asked for it, so that at most `most` are open."""
    running: collections.deque[Call] = collections.deque()
    for call in calls:
        running.append(call)
        if len(running) == most:
            yield running.popleft().outcome()
    for call in running:
        yield call.outcome()


def _bytes(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)
