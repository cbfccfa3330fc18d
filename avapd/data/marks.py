"""What goes with one call from its headers to its end: its request id.

`x-request-id`, where it is printable ASCII and not too long, is echoed in the headers of the answer, and named in the
line of the log when the call fails. Lines are few, however many calls fail.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from avapd.log import Log, Throttle
from avapd.shared.board import METHODS, STATUSES
from avapd.wire.grpc import Mark
from avapd.wire.hpack import Field

REQUEST_ID: Final = b"x-request-id"
ID_OCTETS: Final = 126  # HPACK writes the length in one octet
# By the length of the id: the field up to it, a literal that enters no table (RFC 7541 section 6.2.2).
_ECHOES: Final = [b"\0" + bytes((len(REQUEST_ID),)) + REQUEST_ID + bytes((length,)) for length in range(ID_OCTETS + 1)]
_COLUMNS: Final = len(STATUSES)
_OURS: Final = (500, 503)
_LINE_SECONDS: Final = 1.0


class Failures:
    """Logs calls that failed, one a second at most."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._throttle = Throttle(_LINE_SECONDS)

    def tell(self, outcome: int, request_id: bytes) -> None:
        """A call with this request id has failed."""
        held = self._throttle.passes(monotonic())
        if held is None:
            return
        method, status = METHODS[outcome // _COLUMNS], STATUSES[outcome % _COLUMNS]
        write = self._log.error if status in _OURS else self._log.warn
        write("Request Failed", method=method, status=status, request_id=request_id.decode(), held_back=held)


class RequestMark(Mark):
    """The mark of a call with a request id. Its request is of no use to it."""

    __slots__ = ("_failures", "request_id")

    def __init__(self, request_id: bytes, failures: Failures) -> None:
        self.request_id = request_id
        self.echo = _ECHOES[len(request_id)] + request_id
        self._failures = failures

    def ended(self, outcome: int) -> None:
        """Outcomes are those of the board; health and reflection have none."""
        if outcome > 0 and outcome % _COLUMNS:
            self._failures.tell(outcome, self.request_id)


class Marks:
    """Makes the marks of an engine's calls. `noted` are the headers they are made of."""

    def __init__(self, log: Log, *, request_ids: bool = True) -> None:
        self.failures = Failures(log)
        self.noted = frozenset({REQUEST_ID} if request_ids else ())

    def mark(self, fields: list[Field]) -> Mark | None:
        """The mark of a call with these headers, if there is any use in one."""
        request_id = fields[0][1]
        return RequestMark(request_id, self.failures) if len(request_id) <= ID_OCTETS else None


def request_id_in(fields: list[Field]) -> bytes:
    """The request id among other headers, empty without a good one."""
    return next((value for name, value in fields if name == REQUEST_ID and len(value) <= ID_OCTETS), b"")
