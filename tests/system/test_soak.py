"""Memory, descriptors and mappings stay as they are, through many publications and calls.

`AVAPD_TEST_SOAK_SECONDS=1800` spreads the publications over half an hour.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

import pytest
from support.calls import Calls
from support.database import Database
from support.server import Server
from support.waiting import wait_until

Serve = Callable[..., Server]
SECONDS: Final = float(os.environ.get("AVAPD_TEST_SOAK_SECONDS", "0"))
PUBLICATIONS, WARM_UP, LOOK_EVERY = 200, 60, 10
ROWS: Final = 500
# What each publication may leave behind in a worker, and what chance may, in bytes.
LEFT_BY_EACH, LEFT_BY_CHANCE = 1536, 128 << 10
# Descriptors and mappings come and go with connections, polls and pools of the allocator: so many, not one each time.
CHANCE: Final = 16

pytestmark = pytest.mark.timeout(SECONDS * 2 + 300)


class Holdings(NamedTuple):
    """What a process holds."""

    resident: int
    private: int
    files: int
    mappings: int

    @classmethod
    def of(cls, pid: int) -> Holdings:
        base = Path(f"/proc/{pid}")
        facts = dict(line.split(":", 1) for line in (base / "status").read_text().splitlines())
        resident, private = (int(facts[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon"))
        mappings = len((base / "maps").read_text().splitlines())
        return cls(resident, private, len(list((base / "fd").iterdir())), mappings)


class Clients:
    """Calls of both kinds, a hundred a second at most, and a new connection after each hundred. It keeps no answers."""

    def __init__(self, connect: Callable[[], Calls]) -> None:
        self.answered = 0
        self.failed: list[object] = []
        self._connect = connect
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._connect() as calls:
                for number in range(100):
                    if self._stop.wait(0.01):
                        return
                    outcome = calls.get(f"command_{number:06}", wait=True) if number % 20 else calls.sync(wait=True)
                    self.answered += 1
                    if outcome.code:
                        self.failed.append(outcome)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_two_hundred_publications_leave_nothing_behind(database: Database, serve: Serve) -> None:
    """After a warm-up, with calls all the time: resident memory within 5 %, and no descriptor or mapping more."""
    database.insert_many(ROWS, 700)
    env = {"AVAPD_REFRESH_SECONDS": "0.05", "AVAPD_SILENCE_SECONDS": "60"}
    server = serve(database.reader_url, env=env).wait_serving()
    pids = [server.process.pid, *server.workers()]
    looks: list[list[Holdings]] = []
    began = time.monotonic()
    with Clients(server.calls) as clients:
        for number in range(PUBLICATIONS):
            due = began + number * SECONDS / PUBLICATIONS
            wait_until(lambda due=due: time.monotonic() >= due, SECONDS + 10)  # type: ignore[misc]
            code, of = f"number = {number}\n" * 50, number % 50
            before = server.status()["generation"]  # full reads in between take numbers too
            database.execute("UPDATE obex_dapl_functions SET code = $1 WHERE id % 50 = $2", code, of)
            server.wait_served(lambda status, before=before: status["generation"] > before, 30)  # type: ignore[misc]
            if number >= WARM_UP and number % LOOK_EVERY == 0:
                looks.append([Holdings.of(pid) for pid in pids])
    assert len(server.events("Definitions Broadcasted")) == PUBLICATIONS + 1
    assert [server.process.pid, *server.workers()] == pids
    assert clients.answered > PUBLICATIONS
    assert not clients.failed
    for place, series in enumerate(zip(*looks, strict=True)):
        sizes = [(one.resident >> 10, one.private >> 10) for one in series]
        middle = sorted(one.resident for one in series)[len(series) // 2]
        assert all(abs(one.resident - middle) <= 0.05 * middle for one in series), (place, sizes)
        assert series[-1].files <= max(one.files for one in series[:3]) + CHANCE, series
        assert series[-1].mappings <= max(one.mappings for one in series[:3]) + CHANCE, series
        if place:  # a worker
            grown = series[-1].private - series[0].private
            assert grown <= LEFT_BY_EACH * LOOK_EVERY * (len(series) - 1) + LEFT_BY_CHANCE, (place, sizes)
