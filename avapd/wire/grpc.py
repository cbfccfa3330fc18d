"""gRPC over HTTP/2, the parts without state (grpc/grpc doc/PROTOCOL-HTTP2.md): methods, answers, and their octets.

An application is asked once for each distinct list of request headers what they mean; it answers with a `Method`, or
with an `Answer` that refuses. A unary answer becomes a `Response`: the frames of the whole stream, ready but for the
stream's number, which stands between the `parts`:

    HEADERS head │ number │ :status 200, … ┆ DATA head │ number │ 0 length message ┆ HEADERS head │ number │ grpc-status
    HEADERS head │ number │ :status 200, …, grpc-status, grpc-message                                    (Trailers-Only)

so that writing it is one call: `number.join(parts)`.
"""

from __future__ import annotations

import enum
import functools
import re
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from avapd.wire import frames
from avapd.wire.errors import ErrorCode
from avapd.wire.hpack import Field, encode

if TYPE_CHECKING:
    from avapd.wire.call import Call

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

PREFIX: Final = 5  # compressed flag and length in front of each message
# Trailers must stay under the 8 KiB that some clients take (gRPC-Java), the message is cut long before.
_MESSAGE_BYTES: Final = 1_536
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_UNSAFE: Final = re.compile(rb"[^ -$&-~]")

Body = bytes | memoryview


class Answer(NamedTuple):
    """What a unary method says: a gRPC status code with its message, and the serialized response when the code is OK.

    The response may come in pieces, which then go out as they lie. `compressed` is asked for the same response as gzip,
    only when the client takes it; without one yet (None) the response goes out as it is. `sterner` is what a refusal
    becomes on a connection that has had too many (`Connection.stern`).
    """

    code: int
    message: str = ""
    payload: Body | tuple[Body, ...] = b""
    compressed: Callable[[], Body | None] | None = None
    sterner: Answer | None = None

    def whole(self) -> bytes:
        """The response in one piece."""
        return b"".join(self.payload) if isinstance(self.payload, tuple) else bytes(self.payload)


class Receiver(Protocol):
    """The application's end of a bidirectional call."""

    def message(self, message: bytes) -> None:
        """The client sent a message."""

    def end(self) -> None:
        """The client will send no more."""


class Mark:
    """What belongs to one call alone. `echo` is a header block that goes behind the headers of its answer.

    `request` is the whole request of a call that has one, as it came; `ended` is told of every call once.
    """

    __slots__ = ("echo", "request")

    def __init__(self, echo: bytes = b"") -> None:
        self.echo = echo
        self.request = b""

    def ended(self, outcome: int) -> None:
        """The call has ended; see `Application.outcome`."""


class Application(Protocol):
    """What is served. `names` are the metadata that `route` reads, `noted` those of which `mark` makes a mark."""

    names: frozenset[bytes]
    noted: frozenset[bytes]

    def mark(self, fields: list[Field]) -> Mark | None:
        """The mark of a call with these fields, all of visible ASCII; None when they are of no use."""

    def route(self, path: bytes, metadata: tuple[Field, ...]) -> Method | Answer:
        """The method of an exact path, or why the call is refused.

        UNIMPLEMENTED is said before the request is read, every other refusal after it, like any answer. What is said is
        remembered: it must depend on the arguments alone, until `Routes.forget`.
        """

    def outcome(self, path: bytes, code: int) -> int:
        """What is put on `Connection.finished` for a call to this path that ends with this status code."""

    def failed(self, path: bytes, error: Exception) -> None:
        """A handler raised: to be logged, the client is told nothing of it."""


class Kind(enum.Enum):
    """How many messages go which way."""

    UNARY = enum.auto()
    SERVER_STREAM = enum.auto()
    BIDI = enum.auto()


class Method:
    """A method and how to call it: by `serve`, `begin` or `converse`, as its kind is.

    Of methods with one path, ready answers are shared; with `remembered` false there are none, and `serve` may say
    something else each time. `owner` is added to the outcome of each call: it tells who is served. `shed` is what calls
    get instead while they are shed (`Connection.shed`); without one they are served all the same.
    """

    __slots__ = ("begin", "converse", "kind", "owner", "path", "remembered", "serve", "shed")

    def __init__(self, path: bytes, kind: Kind) -> None:
        self.path = path
        self.kind = kind
        self.owner = 0
        self.remembered = True
        self.shed: Response | None = None
        self.serve: Callable[[bytes], Answer]
        self.begin: Callable[[Call, bytes], None]
        self.converse: Callable[[Call], Receiver]

    @classmethod
    def unary(cls, path: bytes, serve: Callable[[bytes], Answer]) -> Method:
        """One request, one answer. `serve` must not wait, and say the same for the same octets until `forget`."""
        method = cls(path, Kind.UNARY)
        method.serve = serve
        return method

    @classmethod
    def server_stream(cls, path: bytes, begin: Callable[[Call, bytes], None]) -> Method:
        """One request, then as many messages as `begin`, or whoever it gives the call to, sends."""
        method = cls(path, Kind.SERVER_STREAM)
        method.begin = begin
        return method

    @classmethod
    def bidi(cls, path: bytes, begin: Callable[[Call], Receiver]) -> Method:
        """Messages both ways."""
        method = cls(path, Kind.BIDI)
        method.converse = begin
        return method


class Response:
    """The frames of a whole stream; see the head of this file.

    `size` is what flow control counts, `head` and `trailers` are header blocks, `body` the octets of DATA. Without
    `trailers` the DATA ends the stream, without DATA the HEADERS do. `parts` is empty when DATA must be cut up.
    """

    __slots__ = ("body", "head", "outcome", "parts", "size", "trailers")

    def __init__(self, outcome: int, head: bytes, body: tuple[Body, ...] = (), trailers: bytes | None = None) -> None:
        self.outcome = outcome
        self.head = head
        self.body = body
        self.trailers = trailers
        self.size = sum(map(len, body))
        self.parts: tuple[bytes, ...] = ()
        if self.size <= frames.MAX_FRAME:
            ends = frames.END_HEADERS | (0 if body else frames.END_STREAM)
            self.parts = (frames.head(len(head), frames.HEADERS, ends), head)
            if body:
                data = frames.head(self.size, frames.DATA, 0 if trailers else frames.END_STREAM)
                self.parts = (self.parts[0], head + data, b"".join(body))
            if trailers:
                *before, message = self.parts
                self.parts = (*before, message + trailers_head(trailers), trailers)

    def echoing(self, block: bytes) -> Response:
        """The same answer with a block behind its headers."""
        if not block:
            return self
        made, parts = _new(Response), self.parts
        made.outcome, made.body, made.trailers, made.size = self.outcome, self.body, self.trailers, self.size
        made.head = head = self.head + block
        if parts:
            first = _lengths(len(head)) + parts[0][3:]
            made.parts = (first, head + parts[1][len(self.head) :], *parts[2:])
        else:
            made.parts = parts
        return made


_new: Final = Response.__new__


@functools.lru_cache(1024)
def _lengths(length: int) -> bytes:
    """The first three octets of a frame's head. Computing them takes as long as the rest of `echoing`."""
    return length.to_bytes(3, "big")


def unwanted(response: Response) -> tuple[bytes, ...]:
    """The parts of a response that comes before its request has ended: RST_STREAM(NO_ERROR) follows (B2)."""
    *before, last = response.parts
    return *before, last + frames.head(4, frames.RST_STREAM, 0), int(ErrorCode.NO_ERROR).to_bytes(4, "big")


def trailers_head(block: bytes) -> bytes:
    """The first five octets of the HEADERS frame that ends a stream."""
    return frames.head(len(block), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)


_STATUS: Final = (b":status", b"200")
_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
HEAD: Final = encode([_STATUS, _CONTENT_TYPE])
_HEAD_GZIP: Final = encode([_STATUS, _CONTENT_TYPE, (b"grpc-encoding", b"gzip")])
_OK_TRAILERS: Final = encode([(b"grpc-status", b"0")])
ACCEPTED: Final = (b"grpc-accept-encoding", b"identity,gzip")
ENCODINGS: Final = frozenset({b"", b"identity", b"gzip"})


def trailers(code: int, message: str = "") -> bytes:
    """The block that ends a call which has had its headers."""
    return encode(_status_fields(code, message)) if code or message else _OK_TRAILERS


def trailers_only(
    code: int, message: str, outcome: int, *more: Field, status: bytes = b"200", content_type: Field = _CONTENT_TYPE
) -> Response:
    """A call that ends before its first message: one HEADERS frame."""
    return Response(outcome, encode([(b":status", status), content_type, *_status_fields(code, message), *more]))


def response(answer: Answer, outcome: int, *, gzip: bool = False) -> Response:
    """The frames of a unary answer; `gzip` when the client takes it."""
    if answer.code != OK:
        return trailers_only(answer.code, answer.message, outcome)
    compressed = answer.compressed() if gzip and answer.compressed is not None else None
    if compressed is not None:
        return Response(outcome, _HEAD_GZIP, (prefix(compressed, 1), compressed), _OK_TRAILERS)
    payload = answer.payload
    if isinstance(payload, tuple):
        return Response(outcome, HEAD, (prefix_of(sum(map(len, payload))), *payload), _OK_TRAILERS)
    return Response(outcome, HEAD, (prefix(payload), payload), _OK_TRAILERS)


def plain(status: bytes, text: bytes, *, body: bool = True) -> Response:
    """An HTTP answer to what is no gRPC call; without a body for HEAD."""
    fields = [(b":status", status), (b"content-type", b"text/plain"), (b"allow", b"POST")]
    return Response(-1, encode(fields if status == b"405" else fields[:2]), (text,) if body else ())


def prefix(message: Body, flag: int = 0) -> bytes:
    """What goes in front of a message."""
    return prefix_of(len(message), flag)


def prefix_of(size: int, flag: int = 0) -> bytes:
    """What goes in front of a message of so many octets."""
    return bytes((flag,)) + size.to_bytes(4, "big")


def _status_fields(code: int, message: str) -> Iterable[Field]:
    yield b"grpc-status", b"%d" % code
    if message:
        yield b"grpc-message", percent_encoded(message)


def percent_encoded(message: str) -> bytes:
    """A grpc-message: UTF-8, then %XX for every octet that is not printable ASCII, and for % itself."""
    text = message.encode("utf-8", "replace")
    if len(text) > _MESSAGE_BYTES:
        text = text[:_MESSAGE_BYTES].decode("utf-8", "ignore").encode()
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], text)


def timeout(text: bytes) -> float:
    """The seconds of a grpc-timeout. Raises ValueError."""
    found = _TIMEOUT.fullmatch(text)
    if not found:
        raise ValueError("malformed grpc-timeout")
    seconds = int(found[1]) * _SECONDS[found[2]]
    # 1n and 0n are what clients send for a deadline that has passed (grpc-core, grpc-go).
    return seconds if seconds > 1e-9 else 0.0


class Refused(Exception):  # noqa: N818  # not an error of ours
    """A request that ends its call with a status."""

    def __init__(self, code: int, message: str, *more: Field) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.more = more


def declared(buffer: bytes | bytearray, at: int, encoding: bytes, limit: int) -> int:
    """The length of the message whose five octets stand at `at`. Raises Refused for what cannot be read anyway."""
    flag = buffer[at]
    if flag > 1:
        raise Refused(INTERNAL, "Bad compressed flag")
    if encoding not in ENCODINGS:  # also when nothing is compressed, as grpc-go and Connect's conformance suite have it
        raise Refused(UNIMPLEMENTED, "grpc-encoding is not supported", ACCEPTED)
    if flag and encoding != b"gzip":
        raise Refused(INTERNAL, "Compressed message without grpc-encoding")
    length = int.from_bytes(buffer[at + 1 : at + PREFIX], "big")
    if length > limit:
        raise Refused(RESOURCE_EXHAUSTED, f"The request has {length} bytes, the maximum is {limit}")
    return length


def message_at(buffer: bytes | bytearray, at: int, length: int, limit: int) -> bytes:
    """The message whose prefix stands at `at`, decompressed within the limit. Raises Refused."""
    body = bytes(buffer[at + PREFIX : at + PREFIX + length])
    return inflated(body, limit) if buffer[at] else body


def only(request: bytes, encoding: bytes, limit: int) -> bytes:
    """The one message of a whole request. Raises Refused (B12 to B20)."""
    if not request:
        raise Refused(UNIMPLEMENTED, "The call ended before its message")
    if len(request) < PREFIX:
        raise Refused(INTERNAL, "The request ended inside a message")
    length = declared(request, 0, encoding, limit)
    rest = len(request) - PREFIX - length
    if rest < 0:
        raise Refused(INTERNAL, "The request ended inside a message")
    if rest:
        raise Refused(UNIMPLEMENTED, "More than one request message")
    return message_at(request, 0, length, limit)


def inflated(body: bytes, limit: int) -> bytes:
    """A gzip message. Raises Refused when it is none, or larger than the limit; never makes more than the limit."""
    inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        message = inflate.decompress(body, limit + 1)
    except zlib.error:
        raise Refused(INTERNAL, "Bad gzip data") from None
    if len(message) > limit:
        raise Refused(RESOURCE_EXHAUSTED, f"The request has more than {limit} bytes, decompressed")
    if not inflate.eof or inflate.unused_data:
        raise Refused(INTERNAL, "Bad gzip data")
    return message


class Memo:
    """Ready responses of one method, by the octets of the request's DATA; shared by all connections.

    What is asked for a second time is kept. Both that and what was seen once are bounded: by `count`, and by the octets
    kept. When full it starts anew, which costs one look-up for each of the popular.
    """

    __slots__ = ("_count", "_kept", "_seen", "answers")

    KEY_BYTES: Final = 512
    RESPONSE_BYTES: Final = 16 << 10
    BYTES: Final = 16 << 20

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept = 0
        self._seen: set[bytes] = set()
        self.answers: dict[bytes, Response] = {}

    def offer(self, request: bytes, answered: Response) -> None:
        """A request and what was answered."""
        if len(request) > self.KEY_BYTES or answered.size > self.RESPONSE_BYTES:
            return
        if request not in self._seen:
            if len(self._seen) >= self._count:
                self._seen.clear()
            self._seen.add(request)
            return
        if len(self.answers) >= self._count or self._kept > self.BYTES:
            self.answers.clear()
            self._kept = 0
        self._kept += answered.size + len(answered.head) + len(request)
        self.answers[request] = answered

    def forget(self) -> None:
        """Answers may be different from now on."""
        self.answers.clear()
        self._seen.clear()
        self._kept = 0
