"""The calls of the grpcio engine: which handler a path and a key have, what they send, and what is counted.

Handlers are made once for each path and key; a wrong key is routed to one that says so. They get raw bytes and give raw
bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import chain
from typing import Any, Final

import grpc
import grpc.aio

from avapd.data.access import Access
from avapd.data.auth import Key
from avapd.data.failures import address_of
from avapd.data.feed import Message
from avapd.data.meter import LIMITED
from avapd.data.refusals import REASONS, address_in
from avapd.data.reports import Reports
from avapd.data.request import name_in
from avapd.data.service import DENIED, HEADERS_TOO_LARGE, NO_MESSAGE, SERVICE, Service, unimplemented
from avapd.data.streams import BAD_REQUEST, DEADLINE_EXCEEDED, NOT_LOADED, SHUTTING_DOWN, STALL_SECONDS, STALLED
from avapd.shared.board import METHODS, STATUS_OF_CODE, STATUSES, UNTIMED, Row
from avapd.wire.grpc import CANCELLED, INTERNAL, OK, UNAVAILABLE, Answer, Memo

CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_COLUMN: Final = {code: STATUSES.index(status) for code, status in STATUS_OF_CODE.items()}
_MEMO_ANSWERS: Final = 1024
_MEMO_BYTES: Final = 16 << 10
_Messages = Callable[[str, Key], AsyncIterator[Message]]


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Routes by the exact bytes of the path to handlers made once; a wrong key is routed to a handler that says so."""

    def __init__(self, service: Service, access: Access, row: Row, max_header_bytes: float, reports: Reports) -> None:
        self._row = row
        self._reports = reports
        self.answers: dict[bytes, Answer] = {}
        self._max_header_bytes = max_header_bytes
        self._access = access
        self._unary_methods = {f"/{SERVICE}/{name}": serve for name, serve in service.methods.items()}
        self._stream_methods = {
            f"/{SERVICE}/{name}": messages
            for name, messages in (("StreamCatalog", self._chunks), ("WatchCatalog", self._events))
        }
        self._refusals = {
            path: tuple(
                grpc.stream_stream_rpc_method_handler(self._refuse(METHODS.index(path.rpartition("/")[2]), answer))
                for answer in (DENIED, HEADERS_TOO_LARGE)
            )
            for path in (*self._unary_methods, *self._stream_methods)
        }
        self._handlers: dict[tuple[str, Key], Any] = {}
        self._feed = service.feed
        self._swapped = asyncio.Event()
        self._ending = False
        self._unknown = METHODS.index("unknown")

    def service(self, details: Any) -> Any:
        """The handler of a call, by its path and its metadata."""
        refusals = self._refusals.get(details.method)
        if refusals is None:  # asked last, after health and reflection: what nobody knows ends here
            refuse = self._refuse(self._unknown, unimplemented(details.method))
            return grpc.stream_stream_rpc_method_handler(refuse)
        # Here and not in the handler: grpcio has made the metadata for this call already, and would make them anew.
        metadata = details.invocation_metadata
        # grpcio holds clients to the limit only once they have acknowledged it. Counted as in RFC 9113 section 6.5.2.
        if 32 * len(metadata) + sum(map(len, chain.from_iterable(metadata))) > self._max_header_bytes:
            return refusals[1]
        key = self._access.keyring().allows(metadata)
        if key is None:
            return refusals[0]
        handler = self._handlers.get((details.method, key))
        if handler is None:
            handler = self._handlers[details.method, key] = self._handler(details.method, key)
        return handler

    def _handler(self, path: str, key: Key) -> Any:
        """The handler of a method for who has this key."""
        method, serve = METHODS.index(path.rpartition("/")[2]), self._unary_methods.get(path)
        if serve is not None:  # not unary_unary: grpcio never answers a call that ends before its message does
            return grpc.stream_unary_rpc_method_handler(self._unary(method, serve, key))
        return grpc.stream_stream_rpc_method_handler(self._stream(method, self._stream_methods[path], key))

    def keys_changed(self) -> None:
        """The key ring is another one: watches look whether theirs is still there."""
        self._handlers.clear()
        self._wake()

    def _remembered(self, serve: Callable[[bytes], Answer], request: bytes) -> Answer:
        """GetCommand's answers are kept ready: at most 16 MiB, until the next swap."""
        answer = self.answers.get(request)
        if answer is None:
            answer = serve(request)
            if len(request) > Memo.KEY_BYTES:  # an unknown field may make any request another one
                return answer
            if answer.code == OK and isinstance(answer.payload, bytes) and len(answer.payload) <= _MEMO_BYTES:
                if len(self.answers) >= _MEMO_ANSWERS:
                    self.answers.clear()
                self.answers[request] = answer
        return answer

    def _unary(self, method: int, serve: Callable[[bytes], Answer], key: Key) -> Any:
        count, clock = self._row.count, time.perf_counter_ns
        if METHODS[method] == "GetCommand":
            serve = partial(self._remembered, serve)

        async def call(_requests: Any, context: Any) -> bytes:
            try:
                request = await context.read()
            except asyncio.CancelledError:
                self._count_cancelled(method, key)
                raise
            began = clock()
            answer = NO_MESSAGE if request is grpc.aio.EOF else serve(request) if self._access.admits(key) else LIMITED
            self._row.count_key(key.column)
            if answer.code == OK:
                count(method, 0, clock() - began)
                return answer.whole()
            count(method, _COLUMN[answer.code], clock() - began)
            self._note(answer, context, key)
            await context.abort(CODES[answer.code], answer.message)
            raise AssertionError("abort raises")

        return call

    def _count_cancelled(self, method: int, key: Key) -> None:
        """A call has ended by its client, a deadline or the connection; how most watches end."""
        self._row.count(method, _COLUMN[CANCELLED], UNTIMED)
        self._row.count_key(key.column)

    def _note(self, answer: Answer, context: Any, key: Key | None = None) -> None:
        """Have refusals audited."""
        reason = REASONS.get(STATUS_OF_CODE[answer.code])
        if reason is not None:
            self._reports.refusals.note(reason, address_in(context.peer()), key=key.name if key else "")

    # --- streams ----------------------------------------------------------------------------------------------

    def swapped(self) -> None:
        """There is another catalog."""
        self.answers.clear()
        self._wake()

    def _wake(self) -> None:
        self._swapped.set()
        self._swapped = asyncio.Event()

    def end_watches(self) -> None:
        """End the watches, which else would hold a drain up."""
        self._ending = True
        self._swapped.set()

    def _stream(self, method: int, messages: _Messages, key: Key) -> Any:
        """A handler that sends messages; a client that takes none for a while is cut off."""

        async def call(_requests: Any, context: Any) -> None:
            request = await context.read()
            try:
                answer = await self._sent(request, context, messages, key)
            except TimeoutError:
                answer = Answer(DEADLINE_EXCEEDED, STALLED)
            except asyncio.CancelledError:
                self._count_cancelled(method, key)
                raise
            self._row.count(method, _COLUMN[answer.code], 0)
            self._row.count_key(key.column)
            if answer.code != OK:
                self._note(answer, context, key)
                await context.abort(CODES[answer.code], answer.message)

        return call

    async def _sent(self, request: Any, context: Any, messages: _Messages, key: Key) -> Answer:
        """Send what a client asked for; how the call ends. Raises TimeoutError when it takes nothing."""
        if request is grpc.aio.EOF:
            return NO_MESSAGE
        try:
            has = name_in(request)
        except ValueError:
            return Answer(INTERNAL, BAD_REQUEST)
        if self._feed.view is None or not self._access.admits(key):
            return LIMITED if self._feed.view is not None else Answer(UNAVAILABLE, NOT_LOADED)
        async for message in messages(has, key):
            if not self._access.keyring().has(key):
                return DENIED
            async with asyncio.timeout(STALL_SECONDS):
                await context.write(b"".join(message))
        ended = Answer(OK) if self._access.keyring().has(key) else DENIED
        return Answer(UNAVAILABLE, SHUTTING_DOWN) if self._ending else ended

    async def _chunks(self, has: str, _key: Key) -> AsyncIterator[Message]:
        if self._feed.view is not None:
            for message in self._feed.chunks(self._feed.view, has):
                yield message

    async def _events(self, has: str, key: Key) -> AsyncIterator[Message]:
        first = True
        while not self._ending and self._access.keyring().has(key):
            view, swapped = self._feed.view, self._swapped
            if view is not None and (first or has != view.version_hash):
                first, becomes = False, view.version_hash
                for message in self._feed.event(view, has):
                    yield message
                has = becomes
            else:
                await swapped.wait()

    def _refuse(self, method: int, answer: Answer) -> Any:
        """A handler that answers before it reads anything."""

        async def call(_requests: Any, context: Any) -> None:
            said = answer
            if answer.sterner is not None and not self._access.failed(address_of(context.peer()), time.monotonic()):
                said = answer.sterner
            self._row.count(method, _COLUMN[said.code], 0)
            self._note(said, context)
            await context.abort(CODES[said.code], said.message)

        return call
