"""What the engine serves in its own tests: one method of every kind, and a record of what was asked of them."""

from __future__ import annotations

import gzip

from avapd.wire.call import Call
from avapd.wire.grpc import Answer, Mark, Method
from avapd.wire.hpack import encode

Field = tuple[bytes, bytes]
SERVICE = b"/test.Service/"
ECHO = SERVICE + b"Echo"  # unary: b"reply to " + message
LARGE = SERVICE + b"Large"  # unary: as many bytes as the message says in decimal
FAIL = SERVICE + b"Fail"  # unary: raises
REFUSE = SERVICE + b"Refuse"  # unary: NOT_FOUND, with the message as its text
PACK = SERVICE + b"Pack"  # unary: the message, many times; `packed` is what is kept of it as gzip
COUNT = SERVICE + b"Count"  # server stream: as many messages as the message says in decimal, then OK
WATCH = SERVICE + b"Watch"  # server stream: one message at once, then open until the test ends it
TALK = SERVICE + b"Talk"  # bidirectional: b"reply to " + each message, OK after the client's end

PACKED_TIMES = 1_000
OK, NOT_FOUND, UNIMPLEMENTED, UNAUTHENTICATED = 0, 5, 12, 16
DENY: Field = (b"x-deny", b"yes")  # metadata with which every call is refused as UNAUTHENTICATED


class Talk:
    """The side of a Talk call that hears the client."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def message(self, message: bytes) -> None:
        self.call.send(b"reply to " + message)

    def end(self) -> None:
        self.call.finish()


class Told(Mark):
    """A mark that echoes its fields and keeps what it was told."""

    def __init__(self, fields: list[Field]) -> None:
        super().__init__(encode(fields))
        self.outcomes: list[int] = []

    def ended(self, outcome: int) -> None:
        self.outcomes.append(outcome)


class Methods:
    """The methods above. `asked` counts unary calls, `watching` holds Watch calls, `cancelled` counts lost streams.

    Pack has its answer compressed once `packed` is true; `wanted` counts the times that was asked for.
    """

    names = frozenset({DENY[0]})
    noted = frozenset({b"x-mark"})

    def __init__(self) -> None:
        self.asked = 0
        self.marks: list[Told] = []
        self.packed, self.wanted = False, 0
        self.failures: list[Exception] = []
        self.cancelled = 0
        self.watching: list[Call] = []
        self.methods = {
            ECHO: Method.unary(ECHO, self.echo),
            LARGE: Method.unary(LARGE, self.large),
            FAIL: Method.unary(FAIL, self.fail),
            REFUSE: Method.unary(REFUSE, self.refuse),
            PACK: Method.unary(PACK, self.pack),
            COUNT: Method.server_stream(COUNT, self.count),
            WATCH: Method.server_stream(WATCH, self.watch),
            TALK: Method.bidi(TALK, self.talk),
        }

    def mark(self, fields: list[Field]) -> Told | None:
        """None for fields that say no."""
        if fields[0][1] == b"no":
            return None
        self.marks.append(Told(fields))
        return self.marks[-1]

    def route(self, path: bytes, metadata: tuple[Field, ...]) -> Method | Answer:
        if DENY in metadata:
            return Answer(UNAUTHENTICATED, "denied", b"")
        return self.methods.get(path) or Answer(UNIMPLEMENTED, "unknown method", b"")

    def outcome(self, path: bytes, code: int) -> int:  # noqa: ARG002  # the protocol has it
        """The status alone: what `Connection.finished` tells of a call."""
        return code

    def failed(self, path: bytes, error: Exception) -> None:  # noqa: ARG002  # the protocol has it
        self.failures.append(error)

    def echo(self, message: bytes) -> Answer:
        self.asked += 1
        return Answer(OK, "", b"reply to " + message)

    def large(self, message: bytes) -> Answer:
        self.asked += 1
        return Answer(OK, "", b"x" * int(message))

    def fail(self, message: bytes) -> Answer:
        self.asked += 1
        raise RuntimeError(f"asked to fail: {message!r}")

    def refuse(self, message: bytes) -> Answer:
        self.asked += 1
        return Answer(NOT_FOUND, message.decode(), b"")

    def pack(self, message: bytes) -> Answer:
        self.asked += 1

        def compressed() -> bytes | None:
            self.wanted += 1
            return gzip.compress(message * PACKED_TIMES) if self.packed else None

        return Answer(OK, "", message * PACKED_TIMES, compressed)

    def count(self, call: Call, message: bytes) -> None:
        call.on_cancel = self._lost
        for number in range(int(message)):
            call.send(b"message %d" % number)
        call.finish()

    def watch(self, call: Call, message: bytes) -> None:
        call.on_cancel = self._lost
        self.watching.append(call)
        call.send(b"watching " + message)

    def talk(self, call: Call) -> Talk:
        call.on_cancel = self._lost
        return Talk(call)

    def _lost(self) -> None:
        self.cancelled += 1
