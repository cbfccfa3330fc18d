"""A call to a streaming method, as its application holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from avapd.wire import grpc

if TYPE_CHECKING:
    from avapd.wire.calls import Calls
    from avapd.wire.states import Stream


class Call:
    """All methods may be called at any time, ended or not.

    `on_cancel` is called when the call ends by the client, a deadline or the connection; `on_sent` whenever everything
    that was sent has been written.
    """

    __slots__ = ("_calls", "_stream", "ended", "on_cancel", "on_sent", "receiver")

    def __init__(self, calls: Calls, stream: Stream) -> None:
        self._calls = calls
        self._stream = stream
        self.ended = False
        self.receiver: grpc.Receiver | None = None
        self.on_cancel: Callable[[], None] | None = None
        self.on_sent: Callable[[], None] | None = None

    @property
    def backlog(self) -> int:
        """Octets that wait for the client."""
        return self._stream.queued

    def send(self, message: grpc.Body | tuple[grpc.Body, ...]) -> None:
        """Send a message, whole or in pieces; the headers go with the first one."""
        if not self.ended:
            self._calls.send(self._stream, message)

    def finish(self, code: int = grpc.OK, message: str = "") -> None:
        """End the call with a status."""
        if not self.ended:
            self.ended = True
            self._calls.finish(self._stream, code, message)

    def cancelled(self) -> None:
        """The call has ended otherwise."""
        if not self.ended:
            self.ended = True
            if self.on_cancel is not None:
                self.on_cancel()
