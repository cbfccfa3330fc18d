"""The admin port: `/metrics`, `/livez`, `/readyz`, `/status` over HTTP, bound to loopback unless set otherwise."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from avapd import __version__
from avapd.control.plane import Plane
from avapd.errors import SocketError


class Admin:
    """The HTTP server of the master."""

    def __init__(self, registry: CollectorRegistry, plane: Plane, environment: str) -> None:
        self._registry = registry
        _, self._poll, self._refresh, self._publisher, self._supervisor, self._notifications = plane
        self._environment = environment
        self._started = time.time()
        self.draining = False
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises SocketError when the port cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), port, shutdown_timeout=1.0).start()
        except OSError as error:
            raise SocketError(f"cannot listen on {host} port {port} (AVAPD_ADMIN_PORT): {error.strerror}") from None

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Ready while a worker serves; being cut off from the database does not change it (fail open)."""
        if self.draining:
            return web.Response(status=503, text="draining\n")
        if self._supervisor.serving == 0:
            why = (
                "no worker serves"
                if self._publisher.current
                else f"no catalog yet: {self._poll.last_error or 'loading'}"
            )
            return web.Response(status=503, text=why + "\n")
        return web.Response(text=f"ok: {self._supervisor.serving} of {len(self._supervisor.slots)} workers serve\n")

    async def _status(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=orjson.dumps(self._facts(), option=orjson.OPT_INDENT_2) + b"\n", content_type="application/json"
        )

    def _facts(self) -> dict[str, Any]:
        current, times, refused = self._publisher.current, self._refresh.times, self._refresh.refused
        return {
            "version": __version__,
            "environment": self._environment,
            "started": _utc(self._started),
            "count": len(current.view) if current else 0,
            "generation": self._publisher.generation,
            "version_hash": current.view.version_hash if current else None,
            "snapshot_bytes": current.total if current else 0,
            "source": self._refresh.origin or None,
            "last_attempt": _utc(times.attempt),
            "last_check": _utc(times.check),
            "last_change": _utc(times.change),
            "last_activation": _utc(times.activation),
            "database": {"up": self._refresh.source_up, "last_error": self._poll.last_error or None},
            "listening": self._notifications.listening,
            "polls": {**self._poll.results, "last_seconds": round(self._poll.duration_last, 4)},
            "rejected": self._refresh.rejected,
            "quarantined": self._refresh.quarantine.counts(),
            "unchecked": len(self._refresh.unchecked),
            **self._refresh.switches.facts(),
            "refused": str(refused.error) if refused else None,
            "workers": [
                {
                    "worker": slot.number,
                    "pid": slot.worker.pid if slot.worker else None,
                    "state": slot.worker.state.name if slot.worker else "ABSENT",
                    "generation": slot.worker.generation if slot.worker else 0,
                    "restarts": slot.restarts,
                }
                for slot in self._supervisor.slots
            ],
        }


def _utc(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None
