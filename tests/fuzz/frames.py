"""Target `frames`: whatever a client does, the connection raises nothing and says only what it may.

The books of wire/peer.py judge every frame that comes out. The same octets, cut into other pieces, must bring the
same octets back. The input is a program, so that frames have the length they say; it may also say any octets:

    first byte   bits 0-3: size of the pieces of the second play, 4: window of 1 KiB, 5: no opening, 6: small limits
    0x00-0x09    a frame of this type: flags, stream, length (a byte each), payload
    0x10-0x1F    a good call to one of the methods: stream, length, message
    0x20-0x2F    octets as they are: length, octets
    0x30-0x3F    time passes: that many seconds to the power of two
    0x40         the server wants to go
"""

from __future__ import annotations

from collections.abc import Iterator

from wire.application import COUNT, ECHO, FAIL, LARGE, REFUSE, TALK, WATCH, Methods
from wire.peer import Peer
from wire.raw import INITIAL_WINDOW_SIZE, fields, frame, framed, headers, literals, request

from avapd.wire.grpc import Answer
from avapd.wire.limits import Limits

_PATHS = (ECHO, LARGE, FAIL, REFUSE, COUNT, WATCH, TALK, b"/unknown")
_MOST = 100_000
_UNOPENED = 32
_SMALL = Limits(
    streams=3, refusals=3, resets=3, our_resets=3, window_updates=5, tiny_frames=5, empty_data=3, priorities=3,
    glitches=4, quantum_frames=2, write_bytes=16_384, blocked_bytes=20_000, held_bytes=16_384, request_bytes=1000,
    memo_blocks=2, memo_shared=4, settings_per_minute=5, control_frames=20,
)  # fmt: skip
_USUAL = Limits()

Step = bytes | float | None  # octets to send, seconds to wait, or the wish to go


class _Bounded(Methods):
    """The test's service with an end to what may be asked of it. A failure of the engine itself is one of ours."""

    def large(self, message: bytes) -> Answer:
        return super().large(b"%d" % min(int(message[:9]), _MOST))

    def count(self, call: object, message: bytes) -> None:
        super().count(call, b"%d" % min(int(message[:9]), 1000))  # type: ignore[arg-type]  # a Call

    def failed(self, path: bytes, error: Exception) -> None:
        super().failed(path, error)
        assert path in _PATHS, "the engine failed, and no handler"


def run(data: bytes) -> None:
    """Play the program twice, whole and in pieces."""
    if not data:
        return
    options, steps = data[0], list(_steps(data[1:]))
    whole = _played(steps, options, 0)
    pieces = _played(steps, options, 1 + (options & 15))
    assert whole.received == pieces.received, "the same octets in other pieces had another effect"
    assert whole.closed == pieces.closed


def _played(steps: list[Step], options: int, piece: int) -> Peer:
    window = {INITIAL_WINDOW_SIZE: 1024} if options & 16 else {}
    peer = Peer(_Bounded(), _SMALL if options & 64 else _USUAL, settings_=window, open_=not options & _UNOPENED)
    for step in steps:
        if peer.closed:
            break
        if step is None:
            peer.drain()
        elif isinstance(step, bytes):
            peer.writable = False  # DATA leaves between two reads, and only then is the same DATA due
            peer.send(step, step=piece)
            peer.writable = True
            peer.settle()
        else:
            peer.wait(step)
    failures = [error for error in peer.application.failures if isinstance(error, AssertionError)]
    assert not failures, failures
    return peer


def _steps(program: bytes) -> Iterator[Step]:
    """The program, decoded. Octets that are sent one after the other are sent together."""
    at, octets = 0, bytearray()
    while at < len(program):
        kind, rest = program[at], program[at + 1 :]
        at += 1
        if kind <= 0x09 and len(rest) >= 3:
            flags, stream, length = rest[:3]
            payload = rest[3 : 3 + length]
            octets += frame(kind, flags, stream, payload)
            at += 3 + len(payload)
        elif 0x10 <= kind <= 0x1F and len(rest) >= 2:
            stream, length = rest[:2]
            octets += _call(kind, stream, rest[2 : 2 + length])
            at += 2 + length
        elif 0x20 <= kind <= 0x2F and rest:
            octets += rest[1 : 1 + rest[0]]
            at += 1 + rest[0]
        elif 0x30 <= kind <= 0x40:
            yield bytes(octets)
            octets.clear()
            yield None if kind == 0x40 else float(1 << (kind & 15))
    yield bytes(octets)


def _call(kind: int, stream: int, message: bytes) -> bytes:
    """A good call; above 0x17 it goes on."""
    path = _PATHS[kind & 7]
    if kind < 0x18:
        return request(stream, message, path)
    return headers(stream, literals(fields(path))) + frame(0, 0, stream, framed(message))
