"""The audit: who did what, or tried to. Each event is a line of the log, and goes to a sink where there is one.

A line is marked `"audit": true`, whatever the log level, and names its `event`; the rest depends on it:

    auth_failed  limited                    peer, count, key (its name); summed up by the workers, see data/refusals.py
    order  order_refused                    what (the order), arguments, uid of who gave it, status
    published  refused                      generation, version_hash, source, what changed; or the reason
    quarantined                             the names that are new in it
    keys_changed                            how many there are, were added and removed
    certificates_changed, _refused          when the new ones expire; or the reason

The sink gets the same lines by POST, in batches, with a bearer token. It never delays anything: events wait in a
bounded buffer, and what finds it full is dropped and counted. A batch that was not taken is sent again, later and
later; so a line may come twice, when the sink had it and could not say so.
"""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from avapd import __version__
from avapd.config import Config
from avapd.log import Log, Throttle, printable

BUFFER_EVENTS: Final = 10_000
BATCH_EVENTS: Final = 500
_SECONDS: Final = 10.0  # for one POST, over everything
_LAST_SECONDS: Final = 2.0  # for the last ones, at the end
_BACKOFF_FIRST: Final = 0.5
_BACKOFF_MOST: Final = 30.0
_WARN_SECONDS: Final = 60.0
_WHAT: Final = 200


class Sink:
    """Sends lines to a URL in the background. Its user and password go into a header, and nowhere else."""

    def __init__(self, url: str, token: str, log: Log, *, buffer: int = BUFFER_EVENTS) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._url = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        self.shown = f"{parts.scheme}://{host}"
        self._headers = {"content-type": "application/x-ndjson", "user-agent": f"avapd/{__version__}"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        elif parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._log = log
        self._lines: deque[bytes] = deque()
        self._buffer = buffer
        self._arrived = asyncio.Event()
        self._throttle = Throttle(_WARN_SECONDS)
        self.sent = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Events that were not sent yet."""
        return len(self._lines)

    def put(self, line: bytes) -> None:
        """Take a line, or drop it when there is no room."""
        if len(self._lines) >= self._buffer:
            self.dropped += 1
        else:
            self._lines.append(line)
            self._arrived.set()

    async def run(self) -> None:
        """Send, and try again, until cancelled."""
        async with self._session() as session:
            delay = _BACKOFF_FIRST
            while True:
                await self._arrived.wait()
                if await self._post(session, _SECONDS):
                    delay = _BACKOFF_FIRST
                else:
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # spreads, hides nothing
                    delay = min(2 * delay, _BACKOFF_MOST)

    async def finish(self, seconds: float = _LAST_SECONDS) -> None:
        """The last attempt: send what waits as long as it is taken; what is left counts as dropped."""
        deadline = time.monotonic() + seconds
        async with self._session() as session:
            while self._lines and (left := deadline - time.monotonic()) > 0:
                if not await self._post(session, left):
                    break
        self.dropped += len(self._lines)
        self._lines.clear()

    @staticmethod
    def _session() -> aiohttp.ClientSession:
        # Certificates are verified. No proxy of the environment, no cookies, no redirect: the token goes to one place.
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def _post(self, session: aiohttp.ClientSession, seconds: float) -> bool:
        """Send one batch; whether it was taken."""
        batch = [line for line, _ in zip(self._lines, range(BATCH_EVENTS), strict=False)]
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with session.post(
                self._url, data=b"".join(batch), headers=self._headers, timeout=timeout, allow_redirects=False
            ) as answer:
                taken, reason = answer.status // 100 == 2, f"status {answer.status}"
        except Exception as error:  # noqa: BLE001  # whatever a sink does must not end the service
            taken, reason = False, type(error).__name__
        if taken:
            for _ in batch:
                self._lines.popleft()
            self.sent += len(batch)
            if not self._lines:
                self._arrived.clear()
        else:
            self._warn(reason)
        return taken

    def _warn(self, reason: str) -> None:
        held = self._throttle.passes(time.monotonic())
        if held is not None:
            self._log.warn("Audit Not Sent", sink=self.shown, reason=reason, waiting=len(self._lines), held_back=held)


def sink_of(config: Config, log: Log) -> Sink | None:
    """The sink that the settings describe; None without one."""
    return Sink(config.audit_sink_url, config.audit_sink_token, log) if config.audit_sink_url else None


class Audit(Collector):
    """Takes note of events. `sink` may be None: the log has them in any case."""

    def __init__(self, log: Log, sink: Sink | None) -> None:
        self._log = log
        self.sink = sink

    def note(self, event: str, what: str = "", **fields: Any) -> None:
        """An event. `what` is cut; no field may hold a secret."""
        if what:
            fields = {"what": printable(what, _WHAT), **fields}
        line = self._log.audit(event, **fields)
        if self.sink is not None:
            self.sink.put(line)

    def note_refusals(self, worker: int, entries: list[list[str | int]]) -> None:
        """What a worker has summed up; see shared/channel.py."""
        for reason, peer, key, count in entries:
            fields: dict[str, Any] = {"key": key} if key else {}
            self.note(str(reason), peer=peer or "others", count=count, worker=worker, **fields)

    async def run(self) -> None:
        """Feed the sink."""
        if self.sink is not None:
            await self._guarded(self.sink.run())

    async def finish(self) -> None:
        """What waits is sent, if that is quick."""
        if self.sink is not None:
            await self._guarded(self.sink.finish())

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """A sink that cannot be had at all, or a defect of ours, must not end the service."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  # as above
            self._log.error("Audit Sink Given Up", error=type(error).__name__, hint="the log has the events")

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance, as of all our collectors."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """How the sink is doing; zeros without one."""
        sink = self.sink
        for name, value, meaning in (
            ("sent", sink.sent if sink else 0, "Audit events that the sink has taken"),
            ("dropped", sink.dropped if sink else 0, "Audit events that the sink never got: the buffer was full"),
        ):
            yield CounterMetricFamily(f"avap_audit_{name}", meaning, value)
        yield GaugeMetricFamily("avap_audit_waiting", "Audit events not sent yet", sink.waiting if sink else 0)
