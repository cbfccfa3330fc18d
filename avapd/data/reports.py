"""What a worker tells the master once a second beside its counters, and the marks of calls that lead to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from avapd.data.marks import Marks
from avapd.data.refusals import Refusals
from avapd.log import Log
from avapd.shared.channel import Message, Start

if TYPE_CHECKING:
    from avapd.data.spans import TracedMarks


class Reports:
    """Of one engine. `traced` is None when tracing is off."""

    def __init__(self, start: Start, log: Log) -> None:
        self.refusals = Refusals()
        self.traced: TracedMarks | None = None
        if start.trace_ratio is not None:
            from avapd.data.spans import TracedMarks  # noqa: PLC0415  # not there when it is off

            self.traced = TracedMarks(log, start.trace_ratio, request_ids=start.echo_request_id)
        self.marks = self.traced or Marks(log, request_ids=start.echo_request_id)

    def take(self) -> Iterator[Message]:
        """What there is to tell now."""
        if (refusals := self.refusals.take()) is not None:
            yield refusals
        if self.traced is not None and (spans := self.traced.spans.take()) is not None:
            yield spans
