"""The marks of calls on grpcio: a context that looks on, so that handlers know nothing of it.

An answer's headers are sent with its first message; the echo goes there, or, when there is none, with the status. So
both engines put it into the same place.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from avapd.data.marks import REQUEST_ID, Marks
from avapd.shared.board import STATUS_OF_CODE, STATUSES
from avapd.wire.grpc import CANCELLED, INTERNAL, OK, PREFIX, Mark

_COLUMN: Final = {code: STATUSES.index(status) for code, status in STATUS_OF_CODE.items()}


def mark_of(marks: Marks, metadata: Any) -> Mark | None:
    """The mark of a call with this metadata, which grpcio has found to be visible ASCII or blanks."""
    fields = [(name.encode(), value.encode()) for name, value in metadata if name.encode() in marks.noted]
    fields = [(name, value) for name, value in fields if value and b" " not in value and b"\t" not in value]
    return marks.mark(fields) if fields else None


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
