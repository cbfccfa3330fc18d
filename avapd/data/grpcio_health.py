"""Health on grpcio: what `Health` says, in handlers of our own.

The library's Watch writes while it holds the lock that setting a status needs: one client that reads nothing, and needs
no key for it, would stop the worker. Here each watch waits for itself, and setting a status waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from avapd.data.grpcio_calls import CODES
from avapd.data.health import BAD_REQUEST, Health, path_of, response
from avapd.data.request import name_in
from avapd.data.streams import SHUTTING_DOWN, STALL_SECONDS, STALLED
from avapd.wire.grpc import OK, Answer

_SERVICE: Final = "grpc.health.v1.Health"


class GrpcioHealth:
    """The statuses, and the streams of those who watch them."""

    def __init__(self) -> None:
        self._health = Health()
        self._changed = asyncio.Event()
        self._ending = False

    def handler(self) -> Any:
        """The handler of the health service. Requests come as raw bytes, so that bad ones end as INTERNAL."""
        check, listed = (_unary(self._health.methods[path_of(name)].serve) for name in ("Check", "List"))
        return grpc.method_handlers_generic_handler(_SERVICE, {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "List": grpc.unary_unary_rpc_method_handler(listed),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        })  # fmt: skip

    def set(self, name: str, *, serving: bool) -> None:
        """Set a status; while draining everything but liveness is and stays NOT_SERVING."""
        self._health.set(name, serving=serving)
        self._wake()

    def drain(self) -> None:
        """NOT_SERVING under every name but liveness, for good."""
        self._health.drain()
        self._wake()

    def end_watches(self) -> None:
        """End the streams, and those that begin from now on: they would hold a drain up."""
        self._ending = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch(self, raw: bytes, context: Any) -> None:
        """A stream of statuses; a client that takes none for a while is cut off."""
        try:
            name = name_in(raw)
        except ValueError:
            await context.abort(grpc.StatusCode.INTERNAL, BAD_REQUEST)
            return
        told = None
        try:
            while not self._ending:
                changed, status = self._changed, self._health.status(name)
                if status != told:
                    told = status
                    async with asyncio.timeout(STALL_SECONDS):
                        await context.write(response(status))
                else:
                    await changed.wait()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, STALLED)
        await context.abort(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)


def _unary(serve: Callable[[bytes], Answer]) -> Any:
    async def call(raw: bytes, context: Any) -> bytes:
        answer = serve(raw)
        if answer.code != OK:
            await context.abort(CODES[answer.code], answer.message)
        return answer.whole()

    return call
