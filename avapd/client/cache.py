"""A local copy of the catalog, kept current by a watch: look-ups cost no call, and go on when the server is gone.

with Cache("127.0.0.1:50051", key, path=Path("/var/cache/avap.catalog")) as cache:
    cache.wait_ready(10)
    cache.get("addVar")

    READY   the watch is up: what is here is what is served
    STALE   the server is gone; what is here was served last, `since` tells from when on
    ERROR   there is nothing to serve, or what came could not be verified and nothing is here

Lost connections are tried again after 0.5 s, doubling up to 30 s, each time a random part of that. A server that knows
no WatchCatalog is asked for its catalog every `poll_seconds`. With `path` the copy outlives a restart; with
`signing_key` nothing that is not signed with it is ever served.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from avapd.client.calls import AsyncClient, Client, Event
from avapd.client.messages import CallError, Definition, VerificationError, decode
from avapd.client.replica import Replica, whole
from avapd.client.tls import Tls
from avapd.errors import AvapdError
from avapd.pb import avap_pb2

_RETRY_FIRST, _RETRY_MOST = 0.5, 30.0
_NO_WATCH: Final = "UNIMPLEMENTED"

OnChange = Callable[[frozenset[str]], None]


class State(enum.Enum):
    """Whether what is here can be relied on; see the head of this file."""

    READY = "ready"
    STALE = "stale"
    ERROR = "error"


class _Copy:
    """What both caches are, but for how they wait: the replica, its state, and what follows from what happens."""

    def __init__(
        self, target: str, key: str = "", *, path: Path | None = None, signing_key: str | None = None,
        on_change: OnChange | None = None, poll_seconds: float = 60.0, tls: Tls | None = None,
    ) -> None:  # fmt: skip
        self.state = State.ERROR
        self.since = time.time()
        self.error = "not connected yet"
        self.poll_seconds = poll_seconds
        self._target = target
        self._key = key
        self._tls = tls
        self._path = path
        self._on_change = on_change
        self._replica = Replica(signing_key)
        self._failures = 0
        if path is not None:
            with contextlib.suppress(OSError, VerificationError):  # a cold start then
                self._replica.load(path)
                self._become(State.STALE)

    @property
    def version_hash(self) -> str:
        """The hash of what is here, empty for nothing."""
        return self._replica.version_hash

    def __len__(self) -> int:
        return len(self._replica)

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self._replica)

    def _look_up(self, name: str) -> Definition:
        found = self._replica.get(name)
        if found is None:
            if not self._replica.version_hash:
                raise CallError("UNAVAILABLE", f"no catalog: {self.error}")
            raise CallError("NOT_FOUND", f"Command '{name}' not found")
        return found

    def _applied(self, event: Event) -> None:
        """An event came. Raises VerificationError."""
        changed = self._replica.apply(event)
        self._failures, self.error = 0, ""
        self._become(State.READY)
        if changed and self._path is not None:
            with contextlib.suppress(OSError):  # the copy on disk is a help, not a need
                self._replica.save(self._path)
        if changed and self._on_change is not None:
            self._on_change(changed)

    def _failed(self, error: AvapdError) -> float:
        """The watch ended; the seconds to wait before the next."""
        self.error = str(error)
        self._become(State.STALE if self._replica.version_hash else State.ERROR)
        self._failures += 1
        wait = min(_RETRY_MOST, _RETRY_FIRST * 2.0 ** min(self._failures - 1, 16))
        return wait * random.uniform(0.5, 1.0)  # noqa: S311

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.time()


class Cache(_Copy):
    """The copy for threads: one of its own keeps it current.

    Survives a fork, where grpcio was not imported before this package without GRPC_ENABLE_FORK_SUPPORT=1: the child
    has what its parent had, and watches anew when it first looks.
    """

    def __init__(
        self, target: str, key: str = "", *, path: Path | None = None, signing_key: str | None = None,
        on_change: OnChange | None = None, poll_seconds: float = 60.0, tls: Tls | None = None,
    ) -> None:  # fmt: skip
        """Begin to watch. `on_change` is called with the changed names, in the cache's thread."""
        super().__init__(
            target, key, path=path, signing_key=signing_key, on_change=on_change, poll_seconds=poll_seconds, tls=tls
        )
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._client = Client(self._target, self._key, tls=self._tls)
        self._thread = threading.Thread(target=self._follow, name="avapd-cache", daemon=True)
        self._thread.start()

    def get(self, name: str) -> Definition:
        """One definition, from here. Raises CallError: NOT_FOUND, or UNAVAILABLE without a catalog."""
        if self._pid != os.getpid():
            self._begin()
        return self._look_up(name)

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the copy is current; whether it is."""
        return self._ready.wait(seconds)

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                for event in self._client.watch(self.version_hash):
                    self._applied(event)
                    self._ready.set()
                raise CallError("UNAVAILABLE", "the watch ended")
            except AvapdError as error:
                if self._ended.is_set():
                    return
                wait = self._poll() if isinstance(error, CallError) and error.code == _NO_WATCH else self._failed(error)
                self._ended.wait(wait)

    def _poll(self) -> float:
        try:
            self._applied([whole(decode(avap_pb2.CatalogResponse, self._client.raw_catalog()))])
        except AvapdError as error:
            return self._failed(error)
        self._ready.set()
        return self.poll_seconds

    def close(self) -> None:
        """Stop watching; what is here can still be looked up."""
        self._ended.set()
        self._client.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncCache(_Copy):
    """The copy for asyncio: a task keeps it current while the cache is entered."""

    async def __aenter__(self) -> Self:
        self._ready = asyncio.Event()
        self._client = AsyncClient(self._target, self._key, tls=self._tls)
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._client.close()

    def get(self, name: str) -> Definition:
        """One definition, from here. Raises CallError: NOT_FOUND, or UNAVAILABLE without a catalog."""
        return self._look_up(name)

    async def wait_ready(self, seconds: float) -> bool:
        """Wait until the copy is current; whether it is."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), seconds)
        return self._ready.is_set()

    async def _follow(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(self._client.watch(self.version_hash)) as events:
                    async for event in events:
                        self._applied(event)
                        self._ready.set()
                raise CallError("UNAVAILABLE", "the watch ended")
            except AvapdError as error:
                no_watch = isinstance(error, CallError) and error.code == _NO_WATCH
                wait = await self._poll() if no_watch else self._failed(error)
                await asyncio.sleep(wait)

    async def _poll(self) -> float:
        try:
            self._applied([whole(decode(avap_pb2.CatalogResponse, await self._client.raw_catalog()))])
        except AvapdError as error:
            return self._failed(error)
        self._ready.set()
        return self.poll_seconds
