"""Logs: one JSON object a line on stdout (contract part 7), or the same events for people to read.

A line must never delay the work it tells of: lines pass through a bounded queue to a thread of their own,
so a stopped reader of stdout, a full disk or a slow terminal costs lines, not requests. What was lost
is counted and told as soon as a line goes through again.

Names and texts from outside (command names, database errors) are untrusted. A line holds no raw control
character: JSON escapes those below U+0020, the rest (DEL, the C1 range, line separators, bidirectional marks) are
escaped here, and each text is cut at TEXT_LIMIT characters.
"""

from __future__ import annotations

import atexit
import os
import queue
import re
import select
import sys
import threading
from datetime import UTC, datetime
from typing import Final

import orjson

LEVELS: Final = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")
TEXT_LIMIT: Final = 512
QUEUE_LINES: Final = 10_000
_INT_LIMIT: Final = 1 << 63
_COLORS: Final = {"DEBUG": "\x1b[2m", "INFO": "\x1b[32m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m", "FATAL": "\x1b[31m"}
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str, limit: int = TEXT_LIMIT) -> str:
    """Make a text of unknown origin harmless on a terminal and in a log: escaped, and cut at `limit`."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text)} characters)"
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _harmless(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): _harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(item) for item in value]
    if value is None or isinstance(value, float) or (isinstance(value, int) and -_INT_LIMIT <= value < _INT_LIMIT):
        return value
    return printable(str(value))


class Sink:
    """Writes lines to a file descriptor from a thread of its own, and counts what it had to drop."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        self.dropped = 0
        atexit.register(self.close)

    def put(self, line: bytes) -> None:
        """Take a line, or drop it when the reader has been away for QUEUE_LINES lines."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self, seconds: float = 1.0) -> None:
        """Write what is queued, but wait for a stopped reader no longer than `seconds`."""
        atexit.unregister(self.close)
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            rest = memoryview(line)
            try:
                while rest:
                    try:
                        rest = rest[os.write(self._fd, rest) :]
                    except BlockingIOError:  # somebody we share it with made it non-blocking
                        select.select([], [self._fd], [])
            except OSError:  # closed pipe, full disk: the line is lost, the process is not
                self.dropped += 1


class Log:
    """Events of one process. `role` is `master` or `worker`; fields given to `bind` go on every line."""

    def __init__(
        self, role: str, *, level: str = "INFO", readable: bool = False, sink: Sink | None = None, **fields: object
    ) -> None:
        self._role = role
        self._threshold = LEVELS.index(level)
        self._readable = readable
        self._sink = sink or Sink()
        self._fields = fields
        self._told_dropped = 0

    def bind(self, **fields: object) -> Log:
        """The same log with more fields on every line."""
        level = LEVELS[self._threshold]
        return Log(self._role, level=level, readable=self._readable, sink=self._sink, **{**self._fields, **fields})

    def debug(self, msg: str, **fields: object) -> None:
        """What a developer wants to know."""
        self._write(0, msg, fields)

    def info(self, msg: str, **fields: object) -> None:
        """What went as it should."""
        self._write(1, msg, fields)

    def warn(self, msg: str, **fields: object) -> None:
        """What works, but not as it was asked for."""
        self._write(2, msg, fields)

    def error(self, msg: str, **fields: object) -> None:
        """What did not work; the service goes on."""
        self._write(3, msg, fields)

    def fatal(self, msg: str, **fields: object) -> None:
        """What ends the process."""
        self._write(4, msg, fields)

    def audit(self, event: str, **fields: object) -> bytes:
        """What must be told at any level; the line of JSON, also where people read another one."""
        return self._emit(1, "Audit", {"audit": True, "event": event, **fields})

    def close(self) -> None:
        """Flush, bounded in time."""
        self._sink.close()

    def _write(self, level: int, msg: str, fields: dict[str, object]) -> None:
        if level >= self._threshold:
            self._emit(level, msg, fields)

    def _emit(self, level: int, msg: str, fields: dict[str, object]) -> bytes:
        fields = {**self._fields, **fields}
        if (dropped := self._sink.dropped) != self._told_dropped:
            self._told_dropped = dropped
            fields["log_lines_dropped"] = dropped
        now = datetime.now(UTC)
        harmless = {key: _harmless(value) for key, value in fields.items()}
        line = self._json(now, LEVELS[level], printable(msg), harmless)
        self._sink.put(self._people(now, LEVELS[level], printable(msg), harmless) if self._readable else line)
        return line

    def _json(self, now: datetime, level: str, msg: str, fields: dict[str, object]) -> bytes:
        ts = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"ts": ts, "level": level, "msg": msg, "pid": os.getpid(), "role": self._role}
        return orjson.dumps(head | fields, default=str) + b"\n"

    def _people(self, now: datetime, level: str, msg: str, fields: dict[str, object]) -> bytes:
        color, end = (_COLORS[level], "\x1b[0m") if sys.stdout.isatty() else ("", "")
        text = " ".join(f"{key}={value}" for key, value in fields.items())
        stamp = now.astimezone().strftime("%H:%M:%S.%f")[:-3]
        return f"{stamp} {color}{level:<5}{end} {self._role:<6} {msg}  {text}".rstrip().encode() + b"\n"


class Throttle:
    """Lets one event pass per `seconds`; tells how many were held back since the last that passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = float("-inf")
        self._held = 0

    def passes(self, now: float) -> int | None:
        """The number of events held back before this one, or None when this one is held back too."""
        if now < self._next:
            self._held += 1
            return None
        held, self._held = self._held, 0
        self._next = now + self._seconds
        return held
