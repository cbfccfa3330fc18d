"""A program on a terminal of its own, and what it shows there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from typing import Any, Self

# A program's terminal is its controlling one only if it asks, after it became the leader of a session.
_START = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
_FRAME = re.compile(r"\x1b\[H(?!\x1b\[2J)((?:(?!\x1b\[H).)*)\x1b\[J", re.DOTALL)
_COLORS = re.compile(r"\x1b\[\d*m|\x1b\[K")


class Terminal:
    """Started at construction. Use as a context manager: the end kills what is left."""

    def __init__(self, *command: str, columns: int = 100, lines: int = 24) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.settings = self.attributes()
        self._octets = bytearray()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *command], stdin=self._slave, stdout=self._slave, stderr=self._slave,
            start_new_session=True, env={"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8"},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """Everything that was written."""
        return self._octets.decode(errors="replace").replace("\r\n", "\n")

    @property
    def raw(self) -> str:
        """What was drawn last, whole, with its colours."""
        frames = _FRAME.findall(self.output)
        return str(frames[-1]) if frames else ""

    @property
    def screen(self) -> list[str]:
        """The same as lines of plain text."""
        return _COLORS.sub("", self.raw).split("\n")

    def attributes(self) -> list[Any]:
        """The settings of the terminal."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the window, which the program is told."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while octets := os.read(self._master, 65536):
                self._octets += octets

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._slave)  # the reader sees the end then
        self._reader.join(10)
        os.close(self._master)
