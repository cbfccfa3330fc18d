"""The marks of calls on grpcio: a context that looks on, so that handlers know nothing of it.

An answer's headers are sent with its first message; the echo goes there, or, when there is none, with the status. So
both engines put it into the same place.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import grpc

from avapd.data.marks import REQUEST_ID
from avapd.data.reports import Reports
from avapd.data.service import SERVICE
from avapd.shared.board import METHODS, STATUS_OF_CODE, STATUSES
from avapd.wire.grpc import CANCELLED, INTERNAL, OK, PREFIX, Mark

_VISIBLE: Final = re.compile(rb"[!-~]+")
_COLUMN: Final = {code: STATUSES.index(status) for code, status in STATUS_OF_CODE.items()}


class MarkedCalls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Finds handlers as `calls` does, and gives those calls that have a mark a context that looks on."""

    def __init__(self, calls: grpc.GenericRpcHandler, reports: Reports) -> None:
        self._calls = calls
        self._marks = reports.marks
        self._traced = reports.traced
        self._noted = {name.decode() for name in reports.marks.noted}
        self._numbers = {f"/{SERVICE}/{name}": number for number, name in enumerate(METHODS)}

    def service(self, details: Any) -> Any:
        """The handler of a call."""
        handler = self._calls.service(details)
        mark = None
        if self._traced is not None:
            self._traced.left -= 1
        for name, _ in details.invocation_metadata:
            if name in self._noted:
                mark = self._mark(details.invocation_metadata)
                break
        else:
            if self._traced is not None and self._traced.left <= 0:
                mark = self._traced.root()
        number = self._numbers.get(details.method, METHODS.index("unknown"))
        return handler if mark is None else _marked(handler, mark, number)

    def _mark(self, metadata: Any) -> Mark | None:
        """Values are as the wire engine has them: of visible ASCII, or of no use."""
        fields = [(name.encode(), value.encode()) for name, value in metadata if name in self._noted]
        fields = [field for field in fields if _VISIBLE.fullmatch(field[1])]
        return self._marks.mark(fields) if fields else None


def _marked(handler: Any, mark: Mark, method: int) -> Any:
    """The handler for one call that has a mark."""
    streaming = handler.response_streaming
    behaviour = handler.stream_stream if streaming else handler.stream_unary

    async def call(requests: Any, context: Any) -> Any:
        return await Marked(context, mark, method).watch(behaviour, requests)

    make = grpc.stream_stream_rpc_method_handler if streaming else grpc.stream_unary_rpc_method_handler
    return make(call)


class Marked:
    """The context of one marked call, as handlers use it. `method` is its index on the board."""

    def __init__(self, context: Any, mark: Mark, method: int) -> None:
        self._context = context
        self._mark = mark
        self._method = method
        request_id = getattr(mark, "request_id", b"").decode()
        self._echo = ((REQUEST_ID.decode(), request_id),) if mark.echo else ()
        self._code = OK
        self._headed = False

    def peer(self) -> str:
        """Who calls."""
        return str(self._context.peer())

    async def read(self) -> Any:
        """The next message of the client."""
        message = await self._context.read()
        if isinstance(message, bytes):
            self._mark.request = bytes(PREFIX) + message
        return message

    async def head(self) -> None:
        """Send the headers of an answer, once."""
        if self._echo and not self._headed:
            self._headed = True
            await self._context.send_initial_metadata(self._echo)

    async def write(self, message: bytes) -> None:
        """Send a message."""
        await self.head()
        await self._context.write(message)

    async def abort(self, code: Any, message: str) -> None:
        """End the call with a status."""
        self._code = code.value[0]
        if self._echo and not self._headed:
            self._context.set_trailing_metadata(self._echo)
        await self._context.abort(code, message)

    async def watch(self, handler: Any, requests: Any) -> Any:
        """Run a handler on this context, and tell the mark how it ended."""
        self._code = INTERNAL
        try:
            answer = await handler(requests, self)
            self._code = OK
        except asyncio.CancelledError:
            self._code = CANCELLED
            raise
        else:
            await self.head()
            return answer
        finally:
            self._mark.ended(self._method * len(STATUSES) + _COLUMN[self._code])
