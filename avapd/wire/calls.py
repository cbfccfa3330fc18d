"""Calls: gRPC on the streams of one connection.

A unary call, the rule:  begin(headers) → data(request, ended) → answer, all in the same turn of the loop; no task, no
future. A streaming method gets a `Call`, through which it sends whenever it likes.

    request octets      1 flag, 4 length, message; split over DATA frames as the client pleases
    kept of them        only what is no whole message yet, `request_bytes` at most, `held_bytes` for all calls together
    answered            when the client has ended the request, so that a second message is noticed (B13); or at once
                        when the answer cannot change any more, and then RST_STREAM(NO_ERROR) follows (B2)

Each method that may answer takes `now`; times are seconds on the caller's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, TypeVar

from avapd.wire import frames, grpc
from avapd.wire.account import Account
from avapd.wire.call import Call
from avapd.wire.errors import ErrorCode, StreamFault
from avapd.wire.grpc import Answer, Application, Kind, Method, Refused, Response
from avapd.wire.headers import Head, Known, malformed
from avapd.wire.hpack import Field
from avapd.wire.limits import Limits
from avapd.wire.meaning import Marked
from avapd.wire.states import Stream, Streams
from avapd.wire.windows import Outbox

T = TypeVar("T")

_FAILED: Final = Answer(grpc.UNKNOWN, "The handler failed")
_LATE: Final = "Deadline Exceeded"
_SLOW: Final = "The request was not complete in time"
# A message up to this size is put together with its prefix; a larger one is only pointed at.
_JOIN_BYTES: Final = 4_096


class Calls:
    """The calls of one connection. `finished` collects the outcome of each that ended; the caller empties it."""

    __slots__ = (
        "_account", "_application", "_held", "_limits", "_now", "_outbox", "_streams", "finished", "on_output",
        "shedding", "stern", "wake_at",
    )  # fmt: skip

    def __init__(
        self, application: Application, limits: Limits, streams: Streams, outbox: Outbox, account: Account
    ) -> None:
        self._application = application
        self._limits = limits
        self._streams = streams
        self._outbox = outbox
        self._account = account
        self._held, self._now = 0, 0.0
        self.stern = self.shedding = False  # refusals are the sterner ones; calls are answered with `shed`
        self.finished: list[int] = []
        self.wake_at = inf  # no call needs `expire` before
        self.on_output: Callable[[], None] = lambda: None

    # --- what the client sends --------------------------------------------------------------------------------

    def begin(self, number: int, known: Known, now: float, *, ended: bool) -> None:
        """A request's headers have come."""
        head, _, timeout = known
        self._now = now
        if head.early is not None and not (ended and head.length > 0):
            self._outbox.whole(number, 0, head.early)  # HEADERS alone: nothing can stand in the way
            self.finished.append(head.early.outcome)
            if not ended:
                self._unwanted(number, ErrorCode.NO_ERROR)
            return
        head, mark = (head.plain, head.mark) if isinstance(head, Marked) else (head, None)
        method = head.method
        stream = Stream(number, head, self._outbox.initial)
        stream.mark = mark
        stream.ended = ended
        self._streams.open[number] = stream
        if ended and head.length > 0:
            raise malformed("content-length without DATA")
        stream.deadline = now + timeout
        bidi = method is not None and method.kind is Kind.BIDI
        stream.expires = now + (self._limits.bidi_seconds if bidi else self._limits.request_seconds)
        self.wake_at = min(self.wake_at, stream.deadline, stream.expires)
        if bidi and method is not None:
            stream.call = Call(self, stream)
            stream.call.receiver = self._tell(stream, method.converse, stream.call)
        if ended:
            self._take(stream, b"")

    def data(self, stream: Stream, payload: bytes, size: int, now: float, *, ended: bool) -> None:
        """DATA of an open stream: `payload` without padding, `size` with it."""
        self._now = now
        head = stream.head
        stream.writable -= size
        if stream.writable < 0:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        stream.received += len(payload)
        if head.length >= 0 and (stream.received > head.length or (ended and stream.received != head.length)):
            raise malformed("content-length is not that of the DATA")
        stream.ended = ended
        self._take(stream, payload)

    # --- requests ---------------------------------------------------------------------------------------------

    def _take(self, stream: Stream, payload: bytes) -> None:
        """Request octets; when `stream.ended`, the last."""
        head = stream.head
        if stream.ending or head.method is None:
            refusal = self.refusal(head)
            if refusal is not None and stream.ended and not stream.ending:
                self._answer(stream, refusal)
            return
        try:
            if stream.call is not None:
                self._converse_more(stream, stream.call, payload)
            elif stream.ended and stream.buffer is None:
                self._request(stream, head.method, payload)
            else:
                self._gather(stream, head.method, payload)
        except Refused as refused:
            self._refuse(stream, refused.code, refused.message, *refused.more)

    def refusal(self, head: Head) -> Response | None:
        """Why a call is refused, if it is."""
        return head.sterner if self.stern and head.sterner is not None else head.refusal

    def _gather(self, stream: Stream, method: Method, payload: bytes) -> None:
        """Keep what is no whole request yet; refuse as soon as its five octets tell that it cannot be taken (B15)."""
        buffer = self._hold(stream, payload)
        if stream.ended:
            request = bytes(buffer)
            self._release(stream)
            self._request(stream, method, request)
        elif len(buffer) >= grpc.PREFIX:
            whole = grpc.PREFIX + grpc.declared(buffer, 0, stream.head.encoding, self._limits.request_bytes)
            if len(buffer) > whole:
                raise Refused(grpc.UNIMPLEMENTED, "More than one request message")
            self._open_window(stream, whole - len(buffer))

    def _hold(self, stream: Stream, payload: bytes) -> bytearray:
        buffer = stream.buffer
        if buffer is None:
            buffer = stream.buffer = bytearray()
        buffer += payload
        self._held += len(payload)
        if self._held > max(self._limits.held_bytes, 2 * self._limits.request_bytes):
            raise Refused(grpc.RESOURCE_EXHAUSTED, "Too many unfinished requests on this connection")
        return buffer

    def _release(self, stream: Stream) -> None:
        if stream.buffer is not None:
            self._held -= len(stream.buffer)
            stream.buffer = None

    def _open_window(self, stream: Stream, missing: int) -> None:
        """Let the client send what its message still needs, and never more (A45)."""
        if missing > stream.writable:
            increment = missing - stream.writable
            stream.writable += increment
            self._outbox.out.append(frames.window_update(stream.number, increment))

    def _request(self, stream: Stream, method: Method, request: bytes) -> None:
        """The whole request is there: call the method."""
        head = stream.head
        if stream.mark is not None:
            stream.mark.request = request
        response = head.answers.get(request)
        if response is not None:
            self._answer(stream, response)
            return
        if method.kind is Kind.UNARY:
            self._answer(stream, self._ask(head, method, request))
            return
        message = self._only(request, head)
        stream.call = Call(self, stream)
        stream.expires = inf
        self._tell(stream, method.begin, stream.call, message)

    def unary(self, head: Head, request: bytes) -> Response | None:
        """The response to the whole request of a unary call, None for other calls."""
        if isinstance(head, Marked):
            return head.answered(self.respond, request)
        method = head.method
        if method is None or method.kind is not Kind.UNARY:
            return None
        try:
            return self._ask(head, method, request)
        except Refused as refused:
            outcome = self._application.outcome(head.path, refused.code)
            return grpc.trailers_only(refused.code, refused.message, outcome, *refused.more)

    def respond(self, head: Head, request: bytes) -> Response | None:
        """The response to the whole request of a call: known, a refusal, or that of `unary`."""
        known = (self.shedding and head.shed) or head.answers.get(request)
        return known or self.refusal(head) or self.unary(head, request)

    def _ask(self, head: Head, method: Method, request: bytes) -> Response:
        """Call a unary method. Raises Refused."""
        answer = self._serve(head, method, self._only(request, head))
        response = grpc.response(answer, self._application.outcome(head.path, answer.code), gzip=head.gzip)
        if answer is not _FAILED and head.memo is not None and not request[0]:
            head.memo.offer(request, response)
        return response

    def _only(self, request: bytes, head: Head) -> bytes:
        if request[:1] > b"\0":  # C19: what is decompressed counts as work of this turn
            self._outbox.volume += self._limits.request_bytes
        return grpc.only(request, head.encoding, self._limits.request_bytes)

    def answer(self, number: int, response: Response, now: float) -> None:
        """Answer a call, begun and complete, whose response does not fit the windows now."""
        self._now = now
        stream = self._streams.open[number]
        stream.ended, stream.mark = True, None  # `unary` has seen to the mark
        self._answer(stream, response)

    def _converse_more(self, stream: Stream, call: Call, payload: bytes) -> None:
        """Octets of a bidirectional call: every whole message is handed on."""
        if call.receiver is None or call.ended:
            return
        buffer, at, limit = self._hold(stream, payload), 0, self._limits.request_bytes
        stream.expires = self._now + self._limits.bidi_seconds
        while len(buffer) - at >= grpc.PREFIX and not call.ended:
            length = grpc.declared(buffer, at, stream.head.encoding, limit)
            if len(buffer) - at < grpc.PREFIX + length:
                break
            self._outbox.volume += limit if buffer[at] else 0
            message = grpc.message_at(buffer, at, length, limit)
            at += grpc.PREFIX + length
            self._tell(stream, call.receiver.message, message)
        rest = buffer[at:]
        self._release(stream)
        if call.ended:
            return
        if rest:
            self._hold(stream, bytes(rest))
        if stream.ended:
            if rest:
                raise Refused(grpc.INTERNAL, "The request ended inside a message")
            stream.expires = inf
            self._tell(stream, call.receiver.end)
        elif stream.writable < frames.WINDOW // 2:
            self._open_window(stream, frames.WINDOW)

    def _serve(self, head: Head, method: Method, message: bytes) -> Answer:
        try:
            return method.serve(message)
        except Exception as error:  # noqa: BLE001  # whatever a handler raises must not end the connection (B22)
            self._application.failed(head.path, error)
            return _FAILED

    def _tell(self, stream: Stream, function: Callable[..., T], *arguments: object) -> T | None:
        """Call the application's end of a streaming call; what it raises ends that call alone."""
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001  # as above
            self._application.failed(stream.head.path, error)
            if stream.number in self._streams.open and not stream.ending:
                self._refuse(stream, _FAILED.code, _FAILED.message)
            return None

    # --- answers ----------------------------------------------------------------------------------------------

    def _answer(self, stream: Stream, response: Response, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Answer a call: at once if the windows allow, else through the queue."""
        if stream.mark is not None:
            response = response.echoing(stream.mark.echo)
        stream.outcome = stream.head.owner + response.outcome
        stream.expires = inf
        if self._outbox.whole(stream.number, stream.window, response):
            self.written(stream, code)
            return
        self._outbox.begin(stream, response.head)
        self.wake_at = 0.0
        try:
            self._outbox.queue(stream, *response.body)
        except StreamFault as fault:
            self._account.our_reset(self._now)
            self.reset(stream, fault.code, grpc.RESOURCE_EXHAUSTED)
        else:
            self._outbox.end(stream, response.trailers)

    def written(self, stream: Stream, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """The last octet of an answer is written: the stream is closed (RFC 9113 section 8.1)."""
        self._end(stream, stream.outcome)
        if not stream.ended:
            self._unwanted(stream.number, code)

    def _unwanted(self, number: int, code: ErrorCode) -> None:
        """The rest of a request is not wanted (B2)."""
        self._streams.close_early(number)
        self._outbox.out.append(frames.rst_stream(number, code))

    def _end(self, stream: Stream, outcome: int) -> None:
        del self._streams.open[stream.number]
        self._release(stream)
        self.finished.append(outcome)
        if stream.mark is not None:
            stream.mark.ended(outcome - stream.head.owner)

    def _refuse(
        self, stream: Stream, code: int, message: str, *more: Field, reset: ErrorCode = ErrorCode.NO_ERROR
    ) -> None:
        """End a call with a status of our own, whatever has been sent of its answer."""
        outcome = self._application.outcome(stream.head.path, code)
        if not stream.headed:
            self._answer(stream, grpc.trailers_only(code, message, outcome, *more), reset)
        elif stream.queued:  # trailers behind half a message would be read as INTERNAL
            self.reset(stream, ErrorCode.CANCEL, code)
            return
        else:
            stream.outcome = stream.head.owner + outcome
            self._outbox.headers(stream.number, grpc.trailers(code, message), frames.END_STREAM)
            self.written(stream, reset)
        if stream.call is not None:
            self._tell(stream, stream.call.cancelled)

    # --- streaming answers ------------------------------------------------------------------------------------

    def send(self, stream: Stream, message: grpc.Body | tuple[grpc.Body, ...]) -> None:
        """A message of a streaming call."""
        if not stream.headed:
            self._outbox.begin(stream, grpc.HEAD if stream.mark is None else grpc.HEAD + stream.mark.echo)
        pieces = message if isinstance(message, tuple) else (message,)
        size = sum(map(len, pieces))
        parts = (grpc.prefix_of(size), *pieces)
        try:
            self._outbox.queue(stream, *(parts if size > _JOIN_BYTES else (b"".join(parts),)))
        except StreamFault as fault:
            self.reset(stream, fault.code)
        self.wake_at = 0.0
        self.on_output()

    def finish(self, stream: Stream, code: int, message: str) -> None:
        """The status of a streaming call."""
        outcome = self._application.outcome(stream.head.path, code)
        if not stream.headed:
            self._answer(stream, grpc.trailers_only(code, message, outcome))
        else:
            stream.outcome = stream.head.owner + outcome
            self._outbox.end(stream, grpc.trailers(code, message))
        self.on_output()

    def sent(self, stream: Stream) -> None:
        """Everything queued on a stream that goes on has been written."""
        if stream.call is not None and not stream.call.ended and stream.call.on_sent is not None:
            self._tell(stream, stream.call.on_sent)

    # --- ends -------------------------------------------------------------------------------------------------

    def cancel(self, stream: Stream, now: float) -> None:
        """The client gave the call up: nothing more is written on it (B25)."""
        pending = stream.outcome < 0
        self.close(stream, grpc.CANCELLED)
        if pending:
            self._account.reset(now)

    def reset(self, stream: Stream, code: ErrorCode, status: int = grpc.INTERNAL) -> None:
        """End a stream without an answer."""
        self._outbox.out.append(frames.rst_stream(stream.number, code))
        self.close(stream, status)
        if not stream.ended:
            self._streams.close_early(stream.number)

    def close(self, stream: Stream, code: int) -> None:
        """Forget an open stream whose answer is not complete, and tell its application."""
        self._outbox.drop(stream)
        self._end(stream, stream.head.owner + self._application.outcome(stream.head.path, code))
        if stream.call is not None:
            self._tell(stream, stream.call.cancelled)

    def expire(self, now: float) -> None:
        """End the calls whose time has come: deadlines (B11), slow requests (C20), answers nobody takes (C10)."""
        self._now = now
        self.wake_at = inf
        for stream in list(self._streams.open.values()):
            if stream.queued and stream.stalls == inf:
                stream.stalls = now + self._limits.blocked_seconds
            if stream.deadline <= now:
                self._refuse(stream, grpc.DEADLINE_EXCEEDED, _LATE, reset=ErrorCode.CANCEL)
            elif stream.stalls <= now:
                self._account.our_reset(now)
                self.reset(stream, ErrorCode.CANCEL, grpc.DEADLINE_EXCEEDED)
            elif stream.expires <= now:
                self._refuse(stream, grpc.DEADLINE_EXCEEDED, _SLOW, reset=ErrorCode.CANCEL)
            else:
                self.wake_at = min(self.wake_at, stream.deadline, stream.expires, stream.stalls)

    def end_all(self) -> None:
        """The connection ends: refuse what is open."""
        for stream in list(self._streams.open.values()):
            self._refuse(stream, grpc.UNAVAILABLE, "Server is shutting down", reset=ErrorCode.CANCEL)

    def drop_all(self) -> None:
        """The connection is lost: tell the applications."""
        for stream in list(self._streams.open.values()):
            self.close(stream, grpc.CANCELLED)
