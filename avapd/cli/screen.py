"""A terminal taken over for a while: drawn on as a whole, listened to, and given back as it was.

The escape codes are those every terminal of the last decades knows: the second screen, no cursor, no wrapping.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_QUIT: Final = {"q", "Q", "\x03", "\x04", "\x1b"}


class Screen:
    """A context manager around the time that the terminal is ours. Needs the running loop.

    `over` becomes true by `q`, Ctrl-C, SIGTERM and the end of the terminal. `changed` is set by that, by a window of
    another size, by Ctrl-Z and `fg`, and by whoever has something new to draw.
    """

    def __init__(self) -> None:
        self.over = False
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._in = sys.stdin.fileno()
        self._before: list[Any] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return shutil.get_terminal_size()

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, as many as fit."""
        shown = lines[: self.size[1]]
        self._write("\x1b[H" + "\n".join(f"\x1b[K{line}\x1b[0m" for line in shown) + "\x1b[J")

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._in)
        self._take()
        self._loop.add_reader(self._in, self._hear)
        self._loop.add_signal_handler(signal.SIGWINCH, self.changed.set)
        self._loop.add_signal_handler(signal.SIGTSTP, self._pause)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._end)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._loop.remove_reader(self._in)
        self._give_back()

    def _take(self) -> None:
        tty.setcbreak(self._in)
        self._write(_ENTER)

    def _give_back(self) -> None:
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):
            return  # the terminal is gone

    def _pause(self) -> None:
        """Ctrl-Z: the shell has its terminal until `fg`."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.changed.set()

    def _end(self) -> None:
        self.over = True
        self.changed.set()

    def _hear(self) -> None:
        try:
            keys = os.read(self._in, 64).decode("utf-8", "replace")
        except OSError:
            keys = ""
        # An arrow key is an escape with more behind it; alone it means to leave.
        if not keys or keys in _QUIT or any(key in _QUIT - {"\x1b"} for key in keys if not keys.startswith("\x1b")):
            self._loop.remove_reader(self._in)
            self._end()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
