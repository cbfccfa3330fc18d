"""Signals: a handler only puts the name into a queue; `HANDLED` is the operator's manual of what then happens."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

HANDLED: Final = {
    signal.SIGTERM: "stop: drain and exit 0; a second one ends at once",
    signal.SIGINT: "stop, as SIGTERM",
    signal.SIGHUP: "refresh now, read keys and certificates again",
    signal.SIGUSR2: "replace the workers one by one",
    signal.SIGCHLD: "collect children that ended",
}


class Signals:
    """The signals of the master, as an asynchronous stream."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[signal.Signals] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in HANDLED:
            loop.add_signal_handler(number, self._queue.put_nowait, number)

    async def next(self) -> signal.Signals:
        """The next signal that arrives."""
        return await self._queue.get()
