"""What an operator may order at run time, over a local socket that only root and the user of the master may use.

Everything here works with the database gone, takes effect at once, and is kept on disk where there is a store:

    POST /refresh            look at the table now
    POST /wait               until every worker serves a hash
    POST /approve            let one refused candidate through
    GET  /quarantine         the definitions that failed validation
    GET  /history            the generations that are kept
    GET  /diff?from=&to=     what two of them differ in
    POST /rollback           serve a kept generation again, as a new one, and freeze
    POST /freeze /unfreeze   publish nothing of the table; the table again
    POST /deny /allow        do not serve one name; serve it again

The transport is HTTP with JSON over a Unix socket: an abstract one on Linux, which needs no file system.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import orjson
from aiohttp import web

from avapd.control import package
from avapd.control.catalog import Definition
from avapd.control.encode import decoded
from avapd.control.history import Entry
from avapd.control.packer import Changes, name_of
from avapd.control.plane import Plane
from avapd.control.refresh import OPERATOR, ROLLBACK
from avapd.errors import AvapdError, SocketError
from avapd.log import Log, printable
from avapd.shared.snapshot import key_of

_CREDENTIALS: Final = struct.Struct("3i")
_LOOK_SECONDS: Final = 0.01
_WAIT_MOST: Final = 3_600.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = dict[str, Any]


class OrderError(AvapdError):
    """An order that cannot be carried out; the text says why."""


def admin_socket(setting: str, port: int) -> str:
    """The address of the socket: a path, or `@name` for an abstract one."""
    if setting:
        return setting
    return f"@avapd-admin-{port}" if sys.platform == "linux" else f"/tmp/avapd-admin-{port}.sock"  # noqa: S108


class Operator:
    """Carries out orders. `keep` writes the switches down, `note` is told who ordered what."""

    def __init__(
        self, plane: Plane, log: Log, *, keep: Callable[[], None], note: Callable[..., None] = lambda *_, **__: None
    ) -> None:
        _, self._poll, self._refresh, self._publisher, self._supervisor, _ = plane
        self._log = log
        self._keep = keep
        self._note = note
        app = web.Application(middlewares=[self._guarded])
        orders = (
            self._order_refresh, self._order_wait, self._order_approve, self._order_rollback, self._order_freeze,
            self._order_unfreeze, self._order_deny, self._order_allow,
        )  # fmt: skip
        for order in orders:
            app.router.add_post("/" + order.__name__.removeprefix("_order_"), _answering(order))
        app.router.add_get("/quarantine", _answering(self._quarantine))
        app.router.add_get("/history", _answering(self._history))
        app.router.add_get("/diff", _answering(self._diff))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def start(self, address: str) -> None:
        """Listen. Raises SocketError when the socket cannot be had."""
        await self._runner.setup()
        path = "\0" + address[1:] if address.startswith("@") else address
        try:
            await web.UnixSite(self._runner, path, shutdown_timeout=1.0).start()
            if not address.startswith("@"):
                os.chmod(address, 0o600)  # noqa: PTH101  # a socket is no file to a Path's eyes either
        except OSError as error:
            raise SocketError(f"cannot listen on {address} (AVAPD_ADMIN_SOCKET): {error.strerror}") from None

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        user = -1
        if sock is not None and hasattr(socket, "SO_PEERCRED"):
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, user, _ = _CREDENTIALS.unpack(raw)
            if user not in {0, os.geteuid()}:
                self._log.warn("Order Refused", user=user, order=request.path)
                self._note("order_refused", request.path.strip("/"), uid=user)
                return web.json_response({"error": "only root and the user of the master may order"}, status=403)
        if request.method != "POST":
            return await handler(request)
        arguments = printable((await request.read()).decode("utf-8", "replace"), 200)
        answer = await handler(request)
        self._note("order", request.path.strip("/"), arguments=arguments, uid=user, status=answer.status)
        return answer

    # --- the table --------------------------------------------------------------------------------------------

    async def _order_refresh(self, _body: Body) -> Body:
        self._refresh.reconcile()
        await self._poll.look_now()
        if self._poll.last_error:
            raise OrderError(self._poll.last_error)
        return self._state()

    async def _order_wait(self, body: Body) -> Body:
        wanted, seconds = str(body["hash"]), min(float(body.get("seconds", 60.0)), _WAIT_MOST)
        deadline = time.monotonic() + seconds
        while not self._everywhere(wanted):
            if time.monotonic() > deadline:
                raise OrderError(f"not served by every worker within {seconds:g} s; {self._state()['version_hash']} is")
            await asyncio.sleep(_LOOK_SECONDS)
        return self._state()

    def _everywhere(self, version_hash: str) -> bool:
        current = self._publisher.current
        if current is None or not current.view.version_hash.startswith(version_hash):
            return False
        workers = [slot.worker for slot in self._supervisor.slots]
        return all(worker and worker.serving and worker.generation == current.view.generation for worker in workers)

    async def _order_approve(self, body: Body) -> Body:
        refused = self._refresh.refused
        if refused is None or not refused.error.version_hash.startswith(str(body["hash"])):
            raise OrderError("no candidate with this hash is refused now")
        self._refresh.switches.approved.add(refused.error.version_hash)
        self._told("Candidate Approved", version_hash=refused.error.version_hash)
        return await self._order_refresh(body)

    async def _quarantine(self, _query: Body) -> Body:
        current = self._publisher.current
        return {"quarantine": self._refresh.quarantine.facts(current.view if current is not None else None)}

    # --- the past ---------------------------------------------------------------------------------------------

    async def _history(self, _query: Body) -> Body:
        return {"generations": [entry.facts() for entry in self._refresh.history.entries], **self._state()}

    async def _diff(self, query: Body) -> Body:
        history = self._refresh.history
        before, after = (self._entry(query, name).generation for name in ("from", "to"))
        return {"diff": "".join(self._differences(history.back_to(before), history.back_to(after)))}

    def _differences(self, before: Changes, after: Changes) -> Iterator[str]:
        current = self._publisher.current
        if current is None:
            return
        for key in sorted({*before, *after}, key=name_of):
            old, new = (side[key] if key in side else current.view.get(key) for side in (before, after))
            if old != new:
                yield from unified(None if old is None else decoded(old), None if new is None else decoded(new))

    async def _order_rollback(self, body: Body) -> Body:
        history = self._refresh.history
        withdrawn = self._publisher.withdraw()
        # What only one worker serves yet is no generation of its own: to stop it is to go back.
        entry = self._entry(body, "to") if body.get("to") else history.entries[-1] if withdrawn else history.previous()
        denied = {key_of(name) for name in self._refresh.switches.denied}

        def changes() -> Changes:
            back = {} if withdrawn and not body.get("to") else history.back_to(entry.generation)
            return {key: message for key, message in back.items() if key not in denied}

        self._freeze(f"rolled back to generation {entry.generation}")
        made = await self._refresh.change(changes, ROLLBACK)
        self._told("Rolled Back", to=entry.generation, generation=made.generation, version_hash=made.version_hash)
        return self._state()

    def _entry(self, body: Body, name: str) -> Entry:
        """A generation by its number or the beginning of its hash. Raises AvapdError."""
        text = str(body.get(name, ""))
        return self._refresh.history.find(int(text)) if text.isdecimal() and len(text) < 20 else (
            self._refresh.history.find(version_hash=text)
        )  # fmt: skip

    # --- switches ---------------------------------------------------------------------------------------------

    async def _order_freeze(self, body: Body) -> Body:
        self._freeze(printable(str(body.get("reason") or "frozen by the operator"), 200))
        self._told("Updates Frozen", reason=self._refresh.switches.frozen)
        return self._state()

    def _freeze(self, reason: str) -> None:
        self._publisher.withdraw()
        self._refresh.switches.frozen = reason
        self._refresh.switches.frozen_at = time.time()
        self._keep()

    async def _order_unfreeze(self, body: Body) -> Body:
        self._refresh.switches.frozen = ""
        self._refresh.switches.frozen_at = 0.0
        self._told("Updates Go On")
        return await self._order_refresh(body)

    async def _order_deny(self, body: Body) -> Body:
        name = str(body["name"])
        key, current = key_of(name), self._publisher.current
        served = current.view.get(key) if current is not None else None
        self._refresh.switches.denied.setdefault(name, None if served is None else bytes(served))
        self._told("Command Denied", name=printable(name, 100))
        if served is not None:
            await self._refresh.change(lambda: {key: None}, OPERATOR)
        return self._state()

    async def _order_allow(self, body: Body) -> Body:
        name = str(body["name"])
        if name not in self._refresh.switches.denied:
            raise OrderError(f"{name} is not denied")
        message = self._refresh.switches.denied.pop(name)
        self._told("Command Allowed", name=printable(name, 100))
        if message is not None:
            await self._refresh.change(lambda: {key_of(name): message}, OPERATOR)
        self._refresh.reconcile()
        self._poll.hurry()
        return self._state()

    def _told(self, event: str, **fields: Any) -> None:
        self._keep()
        self._log.warn(event, **fields)

    def _state(self) -> Body:
        current = self._publisher.current
        refused = self._refresh.refused
        return {
            "generation": self._publisher.generation,
            "version_hash": current.view.version_hash if current is not None else None,
            "count": len(current.view) if current is not None else 0,
            **self._refresh.switches.facts(),
            "refused": None if refused is None else {"reason": refused.error.reason, "error": str(refused.error)},
        }


def unified(before: Definition | None, after: Definition | None) -> Iterator[str]:
    """A unified diff of the code and the interface of one definition, for people to read."""
    for part in ("interface", "code"):
        old, new = (_lines(side, part) for side in (before, after))
        left, right = (
            f"{side}/{one.name}/{part}" if one else "/dev/null" for side, one in (("a", before), ("b", after))
        )
        for line in difflib.unified_diff(old, new, left, right):
            yield line if line.endswith("\n") else line + "\n"


def _lines(definition: Definition | None, part: str) -> list[str]:
    if definition is None:
        return []
    if part == "interface":
        return definition.interface_json.splitlines(keepends=True)
    return package.source_in(definition.code).decode("utf-8", "replace").splitlines(keepends=True)


def _answering(order: Callable[[Body], Awaitable[Body]]) -> Handler:
    """A handler that gives an order its body or query, and answers what it says or why it cannot."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            body = orjson.loads(await request.read() or b"{}") if request.method == "POST" else dict(request.query)
            if not isinstance(body, dict):
                raise OrderError("the body is not a JSON object")
            return web.json_response(await order(body))
        except (orjson.JSONDecodeError, KeyError, ValueError) as error:
            return web.json_response({"error": f"malformed order: {type(error).__name__} {error}"}, status=400)
        except AvapdError as error:
            return web.json_response({"error": str(error), "hint": error.hint}, status=409)
        except OSError as error:
            return web.json_response({"error": f"the host refused: {error.strerror}"}, status=409)

    return handle
