"""The poll: it goes on whatever happens to a look."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest
from support.lines import Lines

from avapd.control import poll as module
from avapd.control.poll import Poll
from avapd.control.publisher import Publisher
from avapd.control.refresh import Refresh
from avapd.control.source import Source
from avapd.control.validator import Validator
from avapd.log import Log


def made(url: str, lines: Lines, seconds: float = 0.1, deadline: float = 600.0) -> Poll:
    """A poll of this database."""
    log = Log("master", sink=lines)
    source = Source(url, schema="public", seconds=deadline, max_definition_bytes=1 << 20, max_bytes=1 << 20)
    publisher = Publisher(log)
    return Poll(
        Refresh(
            source,
            publisher,
            Validator(grammar=0, interfaces=False),
            log,
            signing_key=None,
            seconds=seconds,
            on_checked=lambda: None,
        ),
        publisher,
        log,
        seconds=seconds,
    )


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is awaited is another task's work
            await asyncio.sleep(0.01)


async def holds(condition: Any, seconds: float) -> bool:
    """Whether a condition is true all the time."""
    ends = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < ends:
        if not condition():
            return False
        await asyncio.sleep(0.01)
    return True


def test_a_poll_that_hangs_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that accepts and is silent, without the deadline that else ends a look: told, and tried again."""
    monkeypatch.setattr(module, "_HANGS_SECONDS", 0.0)
    lines = Lines()

    async def run() -> None:
        poll = made(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/db?sslmode=disable", lines)
        task = asyncio.create_task(poll.keep_running())
        await until(lambda: len(lines.said("Poll Restarted")) >= 2)
        task.cancel()
        await asyncio.wait({task})

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(run())
    assert lines.said("Poll Restarted")[0]["reason"] == "it hangs"


def test_a_poll_that_dies_is_begun_anew(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever raises in the loop itself is told by its name."""
    lines = Lines()

    async def run() -> None:
        poll = made(sample.reader_url, lines)
        drawn = iter([ZeroDivisionError()])

        def uniform(_low: float, high: float) -> float:
            for error in drawn:
                raise error
            return high

        monkeypatch.setattr(random, "uniform", uniform)
        task = asyncio.create_task(poll.keep_running())
        await until(lambda: lines.said("Poll Restarted"))
        before = poll.results["unchanged"]
        await until(lambda: poll.results["unchanged"] > before)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(run())
    assert lines.said("Poll Restarted")[0]["reason"] == "it died: ZeroDivisionError"


def test_notifications_are_looked_at_once_and_then_calmly(sample: Any) -> None:
    """One hundred at once: one look now, and at most one more a moment later."""
    lines = Lines()

    async def run() -> None:
        poll = made(sample.reader_url, lines, seconds=3600.0)
        task = asyncio.create_task(poll.run())
        await until(poll.first.done)
        before = sum(poll.results.values())
        for _ in range(100):
            poll.notified()
        await until(lambda: sum(poll.results.values()) > before)
        assert await holds(lambda: sum(poll.results.values()) <= before + 2, 3 * module._CALM_SECONDS)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(run())


def test_who_asks_for_a_look_waits_for_one_that_began_later(sample: Any) -> None:
    """Not for the one that was under way."""
    lines = Lines()

    async def run() -> None:
        poll = made(sample.reader_url, lines, seconds=3600.0)
        task = asyncio.create_task(poll.run())
        await asyncio.sleep(0)
        await poll.look_now()
        assert sum(poll.results.values()) >= 1
        first = sum(poll.results.values())
        await poll.look_now()
        assert sum(poll.results.values()) == first + 1
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(run())
