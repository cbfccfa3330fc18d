"""Traced calls (AVAPD_OTEL=on): noted here, told to the master once a second, which exports them.

A call is traced when its `traceparent` says that it is sampled, else by chance where there is a ratio and the caller
has not decided against it (W3C Trace Context). No OpenTelemetry is needed for that, and a worker has no way to a
network.

Calls that are known by heart never get here, so those that chance picks are made unknown: `SampledProtocol` has one
read decoded anew. With tracing off nothing of this is imported.
"""

from __future__ import annotations

import random
import re
from functools import partial
from math import inf, log, log1p
from time import perf_counter_ns, time_ns
from typing import Any, Final

from avapd.data.marks import REQUEST_ID, Marks, RequestMark, request_id_in
from avapd.data.request import name_in
from avapd.data.wire_protocol import Count, Make, WireProtocol
from avapd.log import Log, printable
from avapd.shared.board import METHODS, STATUSES
from avapd.shared.channel import Spans as Told
from avapd.wire.grpc import PREFIX, Application, Mark
from avapd.wire.headers import Head, Routes
from avapd.wire.hpack import Block, Field
from avapd.wire.limits import Limits
from avapd.wire.meaning import Marked

TRACEPARENT: Final = b"traceparent"
# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace, parent, flags; later versions may go on.
_PARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED: Final = 1
_SPANS: Final = 500  # in one second, and in one message: 400 KB at most
_NAME: Final = 100
_COLUMNS: Final = len(STATUSES)


class Spans:
    """The traced calls since `take` was last called; what is too many is counted."""

    def __init__(self) -> None:
        self._spans: list[list[str | int]] = []
        self._dropped = 0

    def add(self, outcome: int, mark: SpanMark) -> None:
        """A traced call has ended."""
        if len(self._spans) >= _SPANS:
            self._dropped += 1
            return
        method, status = divmod(outcome, _COLUMNS)
        duration = perf_counter_ns() - mark.clock
        self._spans.append([
            METHODS[method], STATUSES[status], mark.trace, mark.parent, mark.began, duration,
            _command(METHODS[method], mark.request), mark.request_id.decode(),
        ])  # fmt: skip

    def take(self) -> Told | None:
        """What there is to tell; it begins anew."""
        if not self._spans:
            return None
        told = Told(spans=self._spans, dropped=self._dropped)
        self._spans, self._dropped = [], 0
        return told


def _command(method: str, request: bytes) -> str:
    """The name that GetCommand was asked for, fit to be shown; empty when it is none."""
    if method != "GetCommand" or request[:1] != b"\0":
        return ""
    try:
        return printable(name_in(request[PREFIX:]), _NAME)
    except ValueError:
        return ""


class SpanMark(RequestMark):
    """The mark of a traced call, with a request id or without."""

    __slots__ = ("_spans", "began", "clock", "parent", "trace")

    def __init__(self, marks: TracedMarks, request_id: bytes, trace: str, parent: str) -> None:
        super().__init__(request_id, marks.failures)
        self.request = b""
        if not request_id:
            self.echo = b""
        self.trace = trace
        self.parent = parent
        self.began = time_ns()
        self.clock = perf_counter_ns()
        self._spans = marks.spans

    def ended(self, outcome: int) -> None:
        """As of any call with a request id; health and reflection are not traced."""
        if outcome >= 0:
            if self.request_id:
                super().ended(outcome)
            self._spans.add(outcome, self)


class TracedMarks(Marks):
    """Marks of calls that are traced, and of the others as ever. `left` calls on, one is traced by chance."""

    def __init__(self, log: Log, ratio: float, *, request_ids: bool = True) -> None:
        super().__init__(log, request_ids=request_ids)
        self.noted |= {TRACEPARENT}
        self.spans = Spans()
        self._ratio = ratio
        self.left = self._draw() - 1

    def _draw(self) -> float:
        """How many calls it is to the next one, if each had the same chance: a geometric distribution has no rhythm."""
        if not self._ratio:
            return inf
        chance = 1 - random.random()  # noqa: S311  # spreads, hides nothing
        return 1 if self._ratio == 1 else int(log(chance) / log1p(-self._ratio)) + 1

    def mark(self, fields: list[Field]) -> Mark | None:
        """The mark of a call with these headers, if there is any use in one."""
        parents = [value for name, value in fields if name == TRACEPARENT]
        found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
        if found is None:
            if self.left <= 0:
                return self.root(request_id_in(fields))
        elif int(found[3], 16) & _SAMPLED:
            return SpanMark(self, request_id_in(fields), found[1].decode(), found[2].decode())
        ids = [field for field in fields if field[0] == REQUEST_ID]
        return super().mark(ids) if ids else None

    def root(self, request_id: bytes = b"") -> SpanMark:
        """The mark of a call that chance has picked."""
        self.left = self._draw()
        return SpanMark(self, request_id, f"{random.getrandbits(128) or 1:032x}", "")


class TracedRoutes(Routes):
    """Marks a call whose headers hold nothing to note, when one is due."""

    def __init__(self, *arguments: Any, marks: TracedMarks) -> None:
        super().__init__(*arguments)
        self._marks = marks

    def read(self, block: Block) -> tuple[Head, float]:
        """As ever; a caller that has decided against a trace is heard."""
        head, seconds = super().read(block)
        if self._marks.left <= 0 and not any(name == TRACEPARENT for name, _ in block.fields):
            return Marked(head, self._marks.root()), seconds
        return head, seconds


class SampledProtocol(WireProtocol):
    """A connection of which now and then a call is traced by chance."""

    __slots__ = ("_marks",)

    def __init__(self, *arguments: Any, marks: TracedMarks) -> None:
        super().__init__(*arguments)
        self._marks = marks

    def data_received(self, data: bytes) -> None:
        """Octets of the client."""
        if self._marks.left > 0:
            super().data_received(data)
            return
        self._wire.read_anew(True)
        super().data_received(data)
        self._wire.read_anew(False)


def traced(marks: TracedMarks, application: Application, limits: Limits, count: Count) -> tuple[Routes, Count, Make]:
    """What a port that traces is made of: its routes, who counts its calls, and who makes its connections."""

    def counted(finished: list[int], nanoseconds: int, member: WireProtocol) -> int:
        marks.left -= len(finished)
        return count(finished, nanoseconds, member)

    return TracedRoutes(application, limits, marks=marks), counted, partial(SampledProtocol, marks=marks)
