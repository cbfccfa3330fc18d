"""What the headers of a request mean.

A `Head` means the same for every call with these headers, so it is remembered and shared. A `Marked` one is of a single
call: its answer carries what the call's mark echoes, and the mark is told how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from avapd.wire import grpc
from avapd.wire.grpc import Mark, Memo, Method, Response
from avapd.wire.hpack import Inserts

_NO_ANSWERS: Final[dict[bytes, Response]] = {}


class Head:
    """What the headers of a request mean. Either `early`, or `refusal`, or a method to be called."""

    __slots__ = (
        "answers",
        "early",
        "early_parts",
        "encoding",
        "gzip",
        "length",
        "memo",
        "method",
        "owner",
        "path",
        "refusal",
        "shed",
        "sterner",
        "waits",
    )

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.early: Response | None = None  # is sent at once,
        self.early_parts: tuple[bytes, ...] = ()  # as these octets when the request goes on
        self.refusal: Response | None = None  # is sent when the request has ended, whatever it holds
        self.sterner: Response | None = None  # and this instead, on a connection that had too many
        self.shed: Response | None = None  # that of the method
        self.waits = True  # nothing happens before the first DATA
        self.method: Method | None = None
        self.owner = 0  # that of the method
        self.memo: Memo | None = None  # of a unary method
        self.answers = _NO_ANSWERS  # those of the memo
        self.length = -1  # content-length, -1 without
        self.encoding = b""  # grpc-encoding
        self.gzip = False  # the client takes gzip

    def answer_at_once(self, response: Response) -> None:
        """Whatever follows the headers is not wanted."""
        self.early = response
        self.early_parts = grpc.unwanted(response)
        self.waits = False


class Marked(Head):
    """A head and the mark of one call. It knows no answer by heart, so that each goes through `Calls`."""

    __slots__ = ("mark", "plain")

    def __init__(self, plain: Head, mark: Mark) -> None:
        self.plain = plain
        self.mark = mark
        self.length = plain.length
        self.waits = plain.waits
        self.answers = _NO_ANSWERS
        self.refusal = self.early = self.sterner = self.shed = None
        self.owner = plain.owner
        if plain.early is not None:
            self.answer_at_once(plain.early.echoing(mark.echo))
            mark.ended(plain.early.outcome)

    def answered(self, ask: Callable[[Head, bytes], Response | None], request: bytes) -> Response | None:
        """The response to the whole request of a call, None when it is not unary. The mark is told.

        `ask` gives what one without a mark is answered.
        """
        mark = self.mark
        response = ask(self.plain, request)
        if response is None:
            return None
        mark.request = request
        mark.ended(response.outcome)
        return response.echoing(mark.echo)


Known = tuple[Head, Inserts, float]
