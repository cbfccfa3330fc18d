"""What a worker sums up for the master: refusals by address, and traced calls, both bounded."""

from __future__ import annotations

import pytest
from support.lines import Lines

from avapd.data.refusals import ADDRESSES, Refusals, address, address_in
from avapd.data.spans import SpanMark, TracedMarks
from avapd.log import Log
from avapd.shared.board import METHODS, STATUSES
from avapd.shared.channel import MAX_MESSAGE, encode
from avapd.wire.grpc import Mark

TRACE, PARENT = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
GET_OK = METHODS.index("GetCommand") * len(STATUSES)


def test_refusals_are_summed_up_by_address_and_the_rest_together() -> None:
    """However many addresses there are, none of the calls is lost, and few are named."""
    refusals = Refusals()
    for number in range(10_000):
        refusals.note("auth_failed", f"10.0.{number // 256}.{number % 256}", 2)
    refusals.note("auth_failed", "10.0.0.0", 5)
    told = refusals.take()
    assert told is not None
    named = {str(peer): int(count) for _, peer, _, count in told.entries}
    assert len(named) == ADDRESSES + 1
    assert named["10.0.0.0"] == 7
    assert sum(named.values()) == 20_005
    assert refusals.take() is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (address(("10.0.0.1", 5)), "10.0.0.1"),
        (address(("::ffff:10.0.0.1", 5, 0, 0)), "10.0.0.1"),
        (address(("::1", 5, 0, 0)), "::1"),
        (address(None), ""),
        (address_in("ipv4:10.0.0.1:5"), "10.0.0.1"),
        (address_in("ipv6:%5B::1%5D:5"), "::1"),
        (address_in("ipv6:[::ffff:10.0.0.1]:5"), "10.0.0.1"),
        (address_in("unix:"), ""),
    ],
)
def test_an_address_is_told_without_its_port(found: str, said: str) -> None:
    """IPv4 as such, also on a socket of IPv6."""
    assert found == said


def marks(ratio: float = 0.0) -> TracedMarks:
    return TracedMarks(Log("worker", sink=Lines()), ratio)


def traced(made: TracedMarks, parent: bytes) -> Mark | None:
    return made.mark([(b"traceparent", parent)])


def test_too_many_spans_are_counted_and_fit_into_a_message() -> None:
    """Names and ids as long as they may be."""
    made = marks()
    for number in range(2_000):
        mark = made.mark([(b"x-request-id", b"i" * 126), (b"traceparent", b"00-%s-%s-01" % (TRACE, PARENT))])
        assert isinstance(mark, SpanMark)
        name = "日\x07" * 200
        mark.request = (
            bytes(5) + b"\x0a" + bytes((len(name.encode()) & 0x7F | 0x80, len(name.encode()) >> 7)) + name.encode()
        )
        mark.ended(GET_OK + number % 2)
    told = made.spans.take()
    assert told is not None
    assert len(told.spans) + told.dropped == 2_000
    assert told.dropped
    assert len(encode(told)) < MAX_MESSAGE
    assert str(told.spans[0][6]).startswith("日\\u0007")
    assert made.spans.take() is None


@pytest.mark.parametrize(
    ("parent", "sampled"),
    [
        (b"00-%s-%s-01" % (TRACE, PARENT), True),
        (b"00-%s-%s-03" % (TRACE, PARENT), True),
        (b"cc-%s-%s-01-what-comes-later" % (TRACE, PARENT), True),
        (b"00-%s-%s-00" % (TRACE, PARENT), False),
        (b"ff-%s-%s-01" % (TRACE, PARENT), False),
        (b"00-%s-%s-01" % (b"0" * 32, PARENT), False),
        (b"00-%s-%s-01" % (TRACE, b"0" * 16), False),
        (b"00-%s-%s-1" % (TRACE, PARENT), False),
        (b"00-%s-%s-01" % (TRACE.upper(), PARENT), False),
        (b"", False),
    ],
)
def test_a_traceparent_is_read_as_the_standard_has_it(parent: bytes, sampled: bool) -> None:
    """W3C Trace Context, section 3.2: version, lower case, no zeros; later versions may go on."""
    mark = traced(marks(), parent)
    assert isinstance(mark, SpanMark) == sampled
    if isinstance(mark, SpanMark):
        assert (mark.trace, mark.parent) == (TRACE.decode(), PARENT.decode())


def test_chance_picks_as_many_as_the_ratio_says() -> None:
    """One in twenty of a hundred thousand; all with a ratio of 1; none with 0."""
    for ratio, least, most in ((0.05, 4_500, 5_500), (1.0, 100_000, 100_000), (0.0, 0, 0)):
        made, picked = marks(ratio), 0
        for _ in range(100_000):
            if made.left <= 0:
                made.root()
                picked += 1
            made.left -= 1
        assert least <= picked <= most
