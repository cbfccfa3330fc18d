"""The worker's end of the channel, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from avapd.errors import ChannelError
from avapd.shared.channel import Channel, Message


class Link:
    """Calls `on_message(message, descriptors)` for what the master sends, and `on_lost()` once when it is gone."""

    def __init__(
        self, channel: Channel, on_message: Callable[[Message, list[int]], None], on_lost: Callable[[str], None]
    ) -> None:
        self._channel = channel
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel.fileno(), self._readable)

    def send(self, message: Message) -> None:
        """Send to the master; when it is gone, the reader finds that out by itself."""
        try:
            self._channel.send(message)
        except OSError:
            return

    def free(self) -> bool:
        """Whether the master has read all that was sent to it."""
        with contextlib.suppress(OSError):
            self._channel.flush()
        return not self._channel.pending

    def _readable(self) -> None:
        try:
            arrived = self._channel.receive()
        except EOFError:
            self._lose("the master is gone")
            return
        except (ChannelError, OSError) as error:
            self._lose(str(error))
            return
        for message, descriptors in arrived:
            self._on_message(message, descriptors)

    def _lose(self, reason: str) -> None:
        self.close()
        self._on_lost(reason)

    def close(self) -> None:
        """Stop listening to the master."""
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
