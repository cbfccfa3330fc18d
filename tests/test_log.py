"""Logs: one harmless JSON object a line, and no line ever delays the work it tells of."""

from __future__ import annotations

import json
import os
import re
import select
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import wait_until

from avapd.log import LEVELS, QUEUE_LINES, TEXT_LIMIT, Log, Sink, Throttle, printable

any_text = st.text(st.characters(exclude_categories=()))
FORGERIES = [
    'x\n{"ts": "2020-01-01T00:00:00Z", "level": "FATAL", "msg": "forged"}',
    "x\r\nforged",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred",
    "\x9b31mC1 control sequence",
    "a\u2028b\u2029c\x85d",
    "\u202edesrever\u2066",
    "\ud800 lone \udfff",
    "\x00\x7f\ufeff",
]


@contextmanager
def logged(**options: Any) -> Iterator[tuple[Log, Callable[[], bytes]]]:
    """A log into a pipe, and a function that closes it and returns all it wrote."""
    reader, writer = os.pipe()
    log = Log("master", sink=Sink(writer), **options)
    open_ends = [reader, writer]

    def written() -> bytes:
        log.close()
        os.close(open_ends.pop())
        with os.fdopen(open_ends.pop(), "rb") as pipe:
            return pipe.read()

    try:
        yield log, written
    finally:
        log.close()
        for fd in open_ends:
            os.close(fd)


def one_line(data: bytes) -> dict[str, Any]:
    """The one line there is, parsed; it is clean."""
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    text = data[:-1].decode()
    assert not [char for char in text if unsafe(char)]
    assert text.splitlines() == [text]
    line: dict[str, Any] = json.loads(text)
    return line


def unsafe(char: str) -> bool:
    """Control characters, line and paragraph separators, lone surrogates, marks that turn the direction of a text."""
    return unicodedata.category(char) in {"Cc", "Zl", "Zp", "Cs"} or unicodedata.bidirectional(char) in {
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    }  # fmt: skip


# --- the line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_line_has_the_fields_of_the_contract(level: str) -> None:
    """`ts` in RFC 3339 and UTC, `level`, `msg`, `pid`, `role`, then the fields of the event, in this order."""
    with logged(level="DEBUG") as (log, written):
        getattr(log, level.lower())("Definitions Broadcasted", count=3, version_hash="ab", up=True, none=None, part=0.5)
        line = one_line(written())
    assert list(line) == ["ts", "level", "msg", "pid", "role", "count", "version_hash", "up", "none", "part"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    assert abs(datetime.fromisoformat(line["ts"]).timestamp() - time.time()) < 60
    assert (line["level"], line["msg"], line["pid"], line["role"]) == (
        level,
        "Definitions Broadcasted",
        os.getpid(),
        "master",
    )
    assert (line["count"], line["up"], line["none"], line["part"]) == (3, True, None, 0.5)


def test_a_level_below_the_threshold_is_not_written() -> None:
    """Everything from the threshold up is."""
    with logged(level="WARN") as (log, written):
        for level in LEVELS:
            getattr(log, level.lower())(level)
        assert [json.loads(line)["level"] for line in written().splitlines()] == ["WARN", "ERROR", "FATAL"]


def test_bound_fields_stand_on_every_line() -> None:
    """`bind` adds to what is bound; the log it came from stays as it was."""
    with logged(worker=1) as (log, written):
        log.bind(request="r1").info("a", worker=2)
        log.info("b")
        first, second = map(json.loads, written().splitlines())
    assert (first["worker"], first["request"]) == (2, "r1")
    assert second["worker"] == 1
    assert "request" not in second


# --- untrusted texts ------------------------------------------------------------------------------------------


@given(text=any_text, key=any_text)
@settings(deadline=None)
def test_any_text_stays_one_clean_line(text: str, key: str) -> None:
    """In a message, a field, a list, a mapping and its keys."""
    with logged() as (log, written):
        log.info(text, field=text, names=[text, (text,)], nested={key: {key: text}})
        line = one_line(written())
    assert line["field"] == line["msg"] == line["names"][0] == printable(text)


@pytest.mark.parametrize("text", FORGERIES)
@pytest.mark.parametrize("readable", [False, True])
def test_a_forged_line_or_an_escape_is_harmless(text: str, readable: bool) -> None:
    """Neither as JSON nor for people to read can a name begin a line, clear a terminal or turn its text around."""
    with logged(readable=readable) as (log, written):
        log.info(text, name=text, names=[text], nested={text: text})
        data = written()
    assert data.count(b"\n") == 1
    assert not [char for char in data[:-1].decode() if unsafe(char)]


@pytest.mark.parametrize("readable", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        ValueError("x\n\x1b[31m\x9b\ud800"), OSError(2, "x\n\u202e"), Path("a\nb\x9b"), b"\xff\n\x1b", {"a", "b\n"},
        1 << 70,
        -(1 << 70), float("nan"), object, [ValueError("x\n\x9b")], {1: ValueError("x\n\x9b")}, "x" * (1 << 20),
        ValueError("x" * (1 << 20)),
    ],
    ids=lambda value: f"{type(value).__name__}{len(str(value))}",
)  # fmt: skip
def test_any_value_is_one_clean_short_line(value: object, readable: bool) -> None:
    """An exception, a path, bytes, a number over 64 bits: whatever is logged, a line comes out, and no error."""
    with logged(readable=readable) as (log, written):
        log.info("x", value=value)
        data = written()
    assert data.count(b"\n") == 1
    assert not [char for char in data[:-1].decode() if unsafe(char)]
    assert len(data) < 10 * TEXT_LIMIT


@given(any_text)
@settings(deadline=None)
def test_printable_keeps_what_is_harmless(text: str) -> None:
    """A harmless text under the limit is itself; what is escaped shows its number."""
    shown = printable(text)
    if len(text) <= TEXT_LIMIT and not any(unsafe(char) or unicodedata.category(char) == "Cf" for char in text):
        assert shown == text
    assert not [char for char in shown if unsafe(char)]


def test_a_text_of_a_mebibyte_is_cut_and_says_so() -> None:
    """A line has a bounded size, whatever somebody called a command."""
    with logged() as (log, written):
        log.info("x" * (1 << 20), name="\x1b" * (1 << 20))
        data = written()
    assert len(data) < 10 * TEXT_LIMIT
    assert one_line(data)["msg"] == "x" * TEXT_LIMIT + "… (1048576 characters)"


# --- the reader stops -----------------------------------------------------------------------------------------


def test_a_stopped_reader_neither_blocks_nor_loses_count() -> None:
    """Lines nobody reads are queued, then dropped and counted; what was lost is told once it goes on."""
    reader, writer = os.pipe()
    sink = Sink(writer)
    log = Log("master", sink=sink)
    total = QUEUE_LINES + 5_000
    began = time.monotonic()
    for number in range(total):
        log.info("line", number=number, padding="x" * 200)
    assert time.monotonic() - began < 10
    dropped = sink.dropped
    assert 0 < dropped < total

    data = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1 << 20):
            data.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: data.count(b"\n") == total - dropped)
    log.info("again")
    log.info("and again")
    log.close()
    os.close(writer)
    thread.join()
    os.close(reader)
    *lines, again, last = map(json.loads, bytes(data).splitlines())
    assert [line["number"] for line in lines] == sorted({line["number"] for line in lines})
    assert len(lines) == total - dropped
    assert again["log_lines_dropped"] == dropped
    assert "log_lines_dropped" not in last


def test_the_end_does_not_wait_for_a_stopped_reader() -> None:
    """`close` is bounded in time, and a reader that is gone is no error."""
    reader, writer = os.pipe()
    sink = Sink(writer)
    for _ in range(1000):
        sink.put(b"x" * 1000 + b"\n")
    began = time.monotonic()
    sink.close(0.05)
    assert time.monotonic() - began < 2
    os.close(reader)
    sink._thread.join(5)
    assert not sink._thread.is_alive()
    assert sink.dropped > 0
    os.close(writer)


def test_a_line_is_whole_or_not_there_when_the_pipe_does_not_block() -> None:
    """Another process that shares stdout may have made it non-blocking: no half line, and none lost without a count."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    sink = Sink(writer)
    log = Log("master", sink=sink)
    total = 100
    for number in range(total):
        log.info("line", number=number, padding=["x" * 500] * 20)
    wait_until(lambda: not select.select([], [writer], [], 0)[1], what="the pipe is full")

    data = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            data.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(sink._lines.empty)
    log.info("line", number=total)
    log.close()
    os.close(writer)
    thread.join()
    os.close(reader)
    numbers = [json.loads(line)["number"] for line in bytes(data).splitlines()]
    assert len(numbers) + sink.dropped == total + 1


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """/dev/full refuses every write; each lost line is counted."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        sink = Sink(full.fileno())
        for _ in range(3):
            sink.put(b"x\n")
        sink.close(5)
        assert sink.dropped == 3


# --- Throttle ---------------------------------------------------------------------------------------------------


def test_a_throttle_lets_one_pass_per_interval_and_counts_the_rest() -> None:
    """The number held back is told by the next that passes, once."""
    throttle = Throttle(5.0)
    assert [throttle.passes(now) for now in (0.0, 1.0, 4.999, 5.0, 9.999, 10.0, 15.0)] == [0, None, None, 2, None, 1, 0]
