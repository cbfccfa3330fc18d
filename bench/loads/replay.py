"""The replay client (peers/replay, in Go): calls whose header blocks and messages are made here, before anything runs.

It costs so little that the server is the limit. So it can show what a client costs whose header blocks never repeat, or
that asks for another definition each time; and with a rate it is an open loop.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from bench.loads.load import Done, Load
from bench.loads.styles import Style
from bench.servers.avapd import BenchError
from bench.servers.build import go, shown, tool
from bench.servers.contestants import Target

# Drifting blocks are made for so many calls of each connection, then they come again; until then the other connections
# have sent theirs, so that a memo must be very large to know one.
_DRIFTING: Final = 4_000
_STEADY: Final = 100
_END_SECONDS: Final = 20.0


class Calls(NamedTuple):
    """What is called: header blocks in this style, and these messages in turn; by default the target's own."""

    style: Style
    messages: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the client saw; `late_p99_ms` is how far it was behind its own schedule. peers/replay/main.go tells more."""

    calls: int
    failed: int
    unanswered: int
    seconds: float
    cpu_seconds: float
    latency: dict[str, float]
    late_p99_ms: float
    failures: dict[str, int]


class Replay:
    """A client under way on the CPU of its caller; entered when it has its connections and begins.

    With `rate` (calls a second) it is an open loop, with `idle` it only gets the time that nobody else wants.
    """

    def __init__(
        self, target: Target, load: Load, calls: Calls, seconds: float,
        *, warmup: float = 0.0, rate: float = 0.0, idle: bool = False,
    ) -> None:  # fmt: skip
        self._plan = {
            "port": target.port, "connections": load.connections, "streams": load.streams, "rate": rate,
            "seconds": seconds, "warmup": warmup, "blocks": _blocks(calls.style, target, load.connections),
            "bodies": [_text(_prefixed(message)) for message in calls.messages or (target.message,)],
            "grpc_status": str(target.status), "answer_bytes": 0 if target.status else target.answer_bytes + 5,
        }  # fmt: skip
        self.command = f"replay PLAN.json, plan: {self._told(calls)}"
        self._seconds = warmup + seconds
        self._file = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115 - closed by __exit__
        self._before = [tool("chrt", "apt install util-linux"), "--idle", "0"] if idle else []

    def _told(self, calls: Calls) -> str:
        """The plan without what fills pages."""
        plan = {name: value for name, value in self._plan.items() if name not in {"blocks", "bodies", "port"}}
        return shown([json.dumps({**plan, "blocks": calls.style.name, "names": len(calls.messages) or 1})])

    def __enter__(self) -> Self:
        json.dump(self._plan, self._file)
        self._file.flush()
        self._process = subprocess.Popen(
            [*self._before, go("replay"), self._file.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.seen()
        return self

    def seen(self) -> Seen:
        """What it saw, once it is through. Raises BenchError when it broke off."""
        out, err = self._process.communicate(timeout=self._seconds + _END_SECONDS)
        if self._process.returncode or not out:
            raise BenchError(f"the replay client broke off: {err.strip()}")
        return Seen(**json.loads(out))

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._file.close()


def replayed(calls: Calls, target: Target, load: Load, seconds: float) -> Done:
    """A closed loop of these calls; bound to them it is a client for bench.loads.drive."""
    with Replay(target, load, calls, seconds) as client:
        seen = client.seen()
    lost = seen.failed + seen.unanswered
    if lost:
        raise BenchError(f"{lost} calls failed: {seen.failures}")
    return Done(seen.calls, lost, seen.seconds, seen.latency["mean_ms"] / 1e3, client.command)


def _blocks(style: Style, target: Target, connections: int) -> list[list[str]]:
    """The blocks of each connection; one sequence does for all where they do not drift."""
    length = str(len(_prefixed(target.message)))  # some clients tell it
    values = tuple({":path": target.path, "content-length": length, **target.headers}.items())
    return [_sequence(style, values, seed) for seed in range(connections if style.drifts else 1)]


@functools.cache
def _sequence(style: Style, values: Sequence[tuple[str, str]], seed: int) -> list[str]:
    return [_text(block) for block in style.sequence(_DRIFTING if style.drifts else _STEADY, dict(values), seed)]


def _prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
