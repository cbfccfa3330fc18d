"""The admin port over HTTP, bound to loopback unless set otherwise. It is asked without a key, and changes nothing.

    /metrics              Prometheus text, or OpenMetrics for who accepts it
    /livez  /readyz       200 or 503; one line for each condition with ?verbose, JSON for who accepts it
    /status               all that is known, as JSON; a page for a browser
    /changes?generation=  what a publication changed: names, and a unified diff for who may see sources

A page from elsewhere can have a browser on this host ask here, and read the answer if it made its own name mean this
host (DNS rebinding). So what is bound to loopback answers to names of loopback only, and sources that only this host
may see ask for such a name as well.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from avapd.config import Config
from avapd.control import page
from avapd.control.certificates import Certificates
from avapd.control.plane import Plane
from avapd.control.publications import Publications
from avapd.control.status import Status
from avapd.control.traffic import Meter
from avapd.errors import AvapdError, SocketError

_JSON: Final = "application/json"
# What was answered is true for a moment only, and must not be taken for something else than it says.
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Vary": "Accept"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """The HTTP server of the master."""

    def __init__(
        self, registry: CollectorRegistry, plane: Plane, config: Config, certificates: Certificates | None = None
    ) -> None:
        """Needs the running loop. `certificates` are None without TLS."""
        self._registry = registry
        self._meter = Meter(plane.board)
        self._status = Status(plane, self._meter, config, certificates)
        self._publications = Publications(plane.refresh.history, plane.publisher)
        self._sources = config.admin_sources
        self._local = _is_loopback(config.admin_host.strip("[]"))
        app = web.Application(middlewares=[self._guarded])
        for path, handler in (
            ("/", self._root), ("/status", self._tell), ("/changes", self._changes), ("/metrics", self._metrics),
            ("/livez", self._livez), ("/readyz", self._readyz),
        ):  # fmt: skip
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises SocketError when the port cannot be had."""
        await self._runner.setup()
        address = host.strip("[]")
        try:
            if address == "::":  # every address, IPv4 included, which asyncio by itself would leave out
                sock = socket.create_server((address, port), family=socket.AF_INET6, dualstack_ipv6=True)
                await web.SockSite(self._runner, sock).start()
            else:
                await web.TCPSite(self._runner, address, port).start()
        except OSError as error:
            raise SocketError(f"cannot listen on {host} port {port} (AVAPD_ADMIN_PORT): {error.strerror}") from None
        self._meter.start()

    def drain(self) -> None:
        """Not ready from now on."""
        self._status.draining = True

    async def stop(self) -> None:
        """Stop listening."""
        self._meter.stop()
        await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._local and not _names_loopback(request):
            raise web.HTTPMisdirectedRequest(
                text="bound to loopback, this answers to localhost and loopback addresses only, not to other names\n"
            )
        answer = await handler(request)
        answer.headers.update(_HEADERS)
        return answer

    async def _root(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "status"})

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        conditions = self._status.conditions()
        failed = [one for one in conditions if one.required and not one.ok]
        status = 503 if failed else 200
        if _quality(request, _JSON) > 0:
            body = {"ready": not failed, "conditions": [one._asdict() for one in conditions]}
            return web.Response(body=orjson.dumps(body) + b"\n", content_type=_JSON, status=status)
        if "verbose" in request.query:
            lines = [f"[{'+' if one.ok else '-'}]{one.name} {one.mark}: {one.reason}" for one in conditions]
            lines.append(f"readyz {'failed' if failed else 'passed'}")
        else:
            lines = [one.reason for one in failed] or [
                f"ok: {one.reason}" for one in conditions if one.name == "workers"
            ]
        return web.Response(text="\n".join(lines) + "\n", status=status)

    async def _tell(self, request: web.Request) -> web.Response:
        wants_page = _quality(request, "text/html") > _quality(request, _JSON)
        if wants_page and request.query.get("format") != "json":
            conditions = self._status.conditions()
            text = page.render(self._status.facts(), conditions, self._status.rates(), sources=self._may_see(request))
            return web.Response(text=text, content_type="text/html", headers=page.HEADERS)
        facts = self._status.facts(buckets="buckets" in request.query)
        return web.Response(body=orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n", content_type=_JSON)

    async def _changes(self, request: web.Request) -> web.Response:
        number = request.query.get("generation", "")
        if not (number.isascii() and number.isdecimal() and len(number) < 20):
            return web.Response(text="which generation? ask for /changes?generation=NUMBER\n", status=400)
        may_see = self._may_see(request)
        try:
            text = await self._publications.changes(int(number), sources=may_see)
        except AvapdError as error:
            return web.Response(text=f"{error}\n{error.hint}\n", status=404)
        if not may_see:
            text += (
                f"\nCode and interface are not shown here (AVAPD_ADMIN_SOURCES={self._sources}): see `avapd diff`.\n"
            )
        return web.Response(text=text)

    def _may_see(self, request: web.Request) -> bool:
        """Whether sources may be shown to who asks.

        With `loopback` only to who came straight from this host: exactly by the addresses that a proxy for others does
        not use, by a name of loopback, and not for somebody else.
        """
        if self._sources != "loopback":
            return self._sources == "on"
        proxied = any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "Via"))
        came_from = (request.remote or "").removeprefix("::ffff:")  # how an IPv6 socket tells of IPv4
        return came_from in {"127.0.0.1", "::1"} and _names_loopback(request) and not proxied


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower().rstrip(".") == "localhost"


def _names_loopback(request: web.Request) -> bool:
    """Whether the Host header means this host; browsers always send one, a client without it is none."""
    host = request.headers.get("Host", "localhost")
    if not host.endswith("]") and ":" in host:
        host = host.rpartition(":")[0]
    return _is_loopback(host.strip("[]"))


def _quality(request: web.Request, kind: str) -> float:
    """How much a media type is wanted, if it is named in the Accept header (RFC 9110, section 12.5.1); else 0."""
    for part in ",".join(request.headers.getall("Accept", [])).split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name == kind:
            weights = [piece[2:] for piece in parameters if piece.startswith("q=")]
            try:
                return float(weights[0]) if weights else 1.0
            except ValueError:
                return 0.0
    return 0.0
