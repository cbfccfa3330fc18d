"""StreamCatalog and WatchCatalog on the wire engine: a call takes the next message when the last has left it.

A client that does not read costs one slot: the octets it has not taken, and the hash it was told last. It is not in
anybody's way, gets what is newest when it reads again, and is cut off when it takes nothing for `STALL_SECONDS`.

Watchers are told of another catalog some at a time, in turns of the loop: a thousand take 30 ms, for which no other
call should have to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from avapd.data.auth import Key
from avapd.data.feed import Feed, Message
from avapd.data.request import name_in
from avapd.data.service import DENIED
from avapd.wire.call import Call
from avapd.wire.grpc import INTERNAL, OK, UNAVAILABLE

STALL_SECONDS: Final = 30.0
_TOLD_AT_ONCE: Final = 32
DEADLINE_EXCEEDED: Final = 4
NOT_LOADED: Final = "No catalog loaded yet"
BAD_REQUEST: Final = "Request is not a valid avap.CatalogRequest"
STALLED: Final = "The client takes nothing"
SHUTTING_DOWN: Final = "Server is shutting down"


class _Chunks:
    """One StreamCatalog call."""

    def __init__(self, watches: Watches, call: Call, key: Key | None, messages: Iterator[Message]) -> None:
        self.call = call
        self.key = key
        self._watches = watches
        self._messages = messages
        call.on_sent = self.go_on

    def go_on(self) -> None:
        """Send the next message, or the end."""
        if self.call.backlog or self.call.ended:
            return
        message = next(self._messages, None)
        if message is None:
            self._watches.forget(self)
            self.call.finish(OK)
        else:
            self.call.send(message)


class _Watcher:
    """One WatchCatalog call: the hash it was told, and the event that is on its way."""

    def __init__(self, watches: Watches, call: Call, key: Key | None, has: str) -> None:
        self.call = call
        self.key = key
        self.stalls_at = inf
        self.left = 0
        self._watches = watches
        self._has = has
        self._first = True
        self._event: Iterator[Message] | None = None
        self._becomes = ""
        call.on_sent = self.go_on

    def go_on(self) -> None:
        """Send the next message of the event, or begin the next event, unless the client has not taken the last."""
        view = self._watches.feed.view
        if view is None or self.call.backlog or self.call.ended:
            return
        while True:
            if self._event is None:
                if self._has == view.version_hash and not self._first:
                    return
                self._first = False
                self._event, self._becomes = self._watches.feed.event(view, self._has), view.version_hash
            message = next(self._event, None)
            if message is not None:
                self.call.send(message)
                return
            self._event, self._has = None, self._becomes


class Watches:
    """The streaming calls of a worker, each with the key it was begun with."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._watchers: set[_Watcher] = set()
        self._untold: list[_Watcher] = []
        self._chunks: set[_Chunks] = set()
        self._ending = False

    def stream(self, call: Call, request: bytes, key: Key | None = None) -> None:
        """StreamCatalog."""
        has = self._begin(call, request)
        if has is not None and self.feed.view is not None:
            chunks = _Chunks(self, call, key, self.feed.chunks(self.feed.view, has))
            self._chunks.add(chunks)
            call.on_cancel = lambda: self.forget(chunks)
            chunks.go_on()

    def watch(self, call: Call, request: bytes, key: Key | None = None) -> None:
        """WatchCatalog."""
        has = self._begin(call, request)
        if has is None:
            return
        if self._ending:
            call.finish(UNAVAILABLE, SHUTTING_DOWN)
            return
        watcher = _Watcher(self, call, key, has)
        self._watchers.add(watcher)
        call.on_cancel = lambda: self._watchers.discard(watcher)
        watcher.go_on()

    def forget(self, chunks: _Chunks) -> None:
        """A StreamCatalog call is over."""
        self._chunks.discard(chunks)

    def end_without_key(self, accepted: Callable[[Key], bool]) -> None:
        """End the calls whose key is accepted no more; the others notice nothing."""
        streams: list[_Chunks | _Watcher] = [*self._watchers, *self._chunks]
        ended = {stream for stream in streams if stream.key is not None and not accepted(stream.key)}
        self._watchers -= ended
        self._chunks -= ended
        for stream in ended:
            stream.call.finish(DENIED.code, DENIED.message)

    def _begin(self, call: Call, request: bytes) -> str | None:
        """The hash that the client has; None when the call is over already."""
        try:
            has = name_in(request)
        except ValueError:
            call.finish(INTERNAL, BAD_REQUEST)
            return None
        if self.feed.view is None:
            call.finish(UNAVAILABLE, NOT_LOADED)
            return None
        return has

    def swapped(self) -> None:
        """There is another catalog."""
        telling = bool(self._untold)
        self._untold = list(self._watchers)
        if not telling:
            self._tell_some()

    def _tell_some(self) -> None:
        for watcher in self._untold[-_TOLD_AT_ONCE:]:
            watcher.go_on()
        del self._untold[-_TOLD_AT_ONCE:]
        if self._untold:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def tick(self, now: float) -> None:
        """Cut off who takes nothing; called about once a second."""
        for watcher in list(self._watchers):
            left = watcher.call.backlog
            if not left or left != watcher.left:
                watcher.left, watcher.stalls_at = left, now + STALL_SECONDS if left else inf
            elif now >= watcher.stalls_at:
                self._watchers.discard(watcher)
                watcher.call.finish(DEADLINE_EXCEEDED, STALLED)

    def end(self) -> None:
        """End the watches, and those that begin from now on: they would hold a drain up."""
        self._ending = True
        for watcher in list(self._watchers):
            watcher.call.finish(UNAVAILABLE, SHUTTING_DOWN)
        self._watchers.clear()
