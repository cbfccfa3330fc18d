"""Work aside: what it gives and raises comes back, and what hangs is left to hang."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from avapd.control.aside import aside


def test_what_work_gives_and_raises_comes_back() -> None:
    """As if it had been done here."""
    assert asyncio.run(aside(lambda: 6 * 7)) == 42
    with pytest.raises(ZeroDivisionError):
        asyncio.run(aside(lambda: 1 // 0))


def test_work_that_hangs_holds_no_end_up() -> None:
    """Neither that of who waits for it, nor that of the loop."""
    release = threading.Event()

    async def run() -> None:
        async with asyncio.timeout(0.1):
            await aside(release.wait)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert time.monotonic() - began < 5
    release.set()
