"""grpcio on asyncio, as a client program."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio
from clients.python.grpcio_sync import options
from clients.python.lines import Order, serve, tell_message


async def call(channel: Any, order: Order) -> tuple[int, str]:
    """Make a call; its status code and message."""
    how = {"timeout": order.timeout, "metadata": order.metadata}
    try:
        if order.kind == "unary":
            tell_message(order.number, await channel.unary_unary(order.path)(order.request, **how))
        else:
            async for message in channel.unary_stream(order.path)(order.request, **how):
                tell_message(order.number, message)
    except grpc.aio.AioRpcError as error:
        return error.code().value[0], error.details() or ""
    return 0, ""


async def main(target: str, keepalive: str) -> None:
    async with grpc.aio.insecure_channel(target, options=options(int(keepalive))) as channel:
        await serve(lambda order: call(channel, order))


asyncio.run(main(*sys.argv[1:]))
