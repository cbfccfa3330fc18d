"""Validation: is a definition what it claims to be? Asked of child processes that may take only so much.

    interface   a JSON array of objects
    code        compiles as Python, by the configured grammar
    checker     the child died of it, or took longer than it may

The master only handles text: what parses untrusted text is `child.py`, a process of its own. A child that a definition
ends is replaced, and only that definition is held to be faulty.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from avapd.config import Config
from avapd.control.catalog import Definition
from avapd.control.package import source_in
from avapd.control.validator.child import ANSWER, HEAD

INTERFACE, CODE, CHECKER = "interface", "code", "checker"
_CHILD: Final = str(Path(__file__).with_name("child.py"))
_CPU_SECONDS: Final = 5
_MEMORY_BYTES: Final = 512 << 20
# A child that answers nothing for so long does not even get the CPU to be ended by its own limit.
_SILENT_SECONDS: Final = 30.0
# So many are on their way to a child at once. Their answers fit into the socket's buffer, so neither side blocks.
_WINDOW: Final = 32


class Fault(NamedTuple):
    """What is wrong with a definition: a bounded label, and a sentence for people."""

    reason: str
    error: str


_DEADLY: Final = Fault(
    CHECKER, f"it ends the process that compiles it ({_CPU_SECONDS} s of CPU and {_MEMORY_BYTES >> 20} MiB are allowed)"
)


class _Child:
    """A process that answers one definition after the other."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it. Raises OSError when the host cannot."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-W", "ignore", _CHILD, *arguments],
                    stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
                    env=dict[str, str](), cwd="/",
                )  # fmt: skip
            except OSError:
                self._socket.close()
                raise
        self._socket.settimeout(_SILENT_SECONDS)
        self._answers = self._socket.makefile("rb")
        if self._answers.read(ANSWER.size) != ANSWER.pack(0):
            self.end()
            raise ChildProcessError(errno.ECHILD, "the process that checks definitions does not start")

    def ask(self, definitions: Sequence[Definition]) -> Iterator[Fault | None]:
        """What is wrong with each; ends early when the child does."""
        with contextlib.suppress(OSError):
            for at in range(0, len(definitions), _WINDOW):
                window = definitions[at : at + _WINDOW]
                self._socket.sendall(b"".join(map(_framed, window)))
                for _ in window:
                    head = self._answers.read(ANSWER.size)
                    if len(head) < ANSWER.size:
                        return
                    answer = self._answers.read(*ANSWER.unpack(head)).decode("utf-8", "replace")
                    reason, _, error = answer.partition(":")
                    yield Fault(reason, error) if reason else None

    def kill(self) -> None:
        """End the process; whoever waits for its answer gets none."""
        self._process.kill()

    def end(self) -> None:
        """End it, and let go of everything."""
        self.kill()
        self._answers.close()
        self._socket.close()
        self._process.wait()


def _framed(definition: Definition) -> bytes:
    interface, code = definition.interface_json.encode(), source_in(definition.code)
    return HEAD.pack(len(interface), len(code)) + interface + code


class Validator:
    """Children that are started when they are needed. To be called from threads; `close` ends the children.

    `grammar` is the minor version of Python that code must compile as, 0 for any text; `interfaces` tells whether
    interfaces are looked at, `cpu_seconds` what one definition may take.
    """

    def __init__(
        self, *, grammar: int, interfaces: bool, children: int = 1, niceness: int = 10,
        cpu_seconds: float = _CPU_SECONDS,
    ) -> None:  # fmt: skip
        self._children: list[_Child | None] = [None] * children
        self._locks = [threading.Lock() for _ in range(children)]
        numbers = (grammar, int(interfaces), _MEMORY_BYTES, niceness)
        self._arguments = [str(one) for one in (cpu_seconds, *numbers)]
        self._needed = bool(grammar or interfaces)
        self._closed = False

    def faults(self, definitions: Sequence[Definition]) -> list[Fault | None]:
        """What is wrong with each of these, None for nothing. Raises OSError when no child can be started."""
        if not self._needed:
            return [None] * len(definitions)
        share = max(_WINDOW, -(-len(definitions) // len(self._children)))
        parts = [definitions[at : at + share] for at in range(0, len(definitions), share)]
        if len(parts) <= 1:
            return self._asked(0, definitions)
        with ThreadPoolExecutor(len(parts)) as threads:
            return [fault for part in threads.map(self._asked, range(len(parts)), parts) for fault in part]

    def close(self) -> None:
        """End the children, whatever they are at: who waits for them gets an OSError."""
        self._closed = True
        for child in self._children:
            if child is not None:
                child.kill()
        for place, lock in enumerate(self._locks):
            with lock:
                self._end(place)

    def _end(self, place: int) -> None:
        child, self._children[place] = self._children[place], None
        if child is not None:
            child.end()

    def _asked(self, place: int, definitions: Sequence[Definition]) -> list[Fault | None]:
        found: list[Fault | None] = []
        with self._locks[place]:
            while len(found) < len(definitions):
                found += self._answers(place, definitions[len(found) :])
                if len(found) < len(definitions):  # whether it died of this one shows when that is asked alone
                    found += self._answers(place, [definitions[len(found)]]) or [_DEADLY]
        return found

    def _answers(self, place: int, definitions: Sequence[Definition]) -> list[Fault | None]:
        if self._closed:
            raise OSError(errno.ECANCELED, "definitions are not checked any more")
        child = self._children[place] = self._children[place] or _Child(self._arguments)
        found = list(child.ask(definitions))
        if len(found) < len(definitions):
            self._end(place)
        return found


def validator_of(config: Config, *, children: int = 1, niceness: int = 10) -> Validator:
    """The validator that the settings describe."""
    return Validator(
        grammar=config.code_grammar, interfaces=config.check_interface, children=children, niceness=niceness
    )
