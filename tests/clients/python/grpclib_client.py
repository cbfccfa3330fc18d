"""grpclib, which is HTTP/2 by the `h2` package, as a client program."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from clients.python.lines import Order, serve, tell_message
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError


class Raw(CodecBase):
    """Messages as the bytes they are."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:  # noqa: ARG002  # the base class has it
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:  # noqa: ARG002  # the base class has it
        return data


async def call(channel: Channel, order: Order) -> tuple[int, str]:
    """Make a call; its status code and message."""
    kind = UnaryUnaryMethod if order.kind == "unary" else UnaryStreamMethod
    method: Any = kind(channel, order.path, bytes, bytes)
    try:
        async with method.open(timeout=order.timeout, metadata=order.metadata) as stream:
            await stream.send_message(order.request, end=True)
            async for message in stream:
                tell_message(order.number, message)
    except GRPCError as error:
        return error.status.value, error.message or ""
    except TimeoutError as error:
        return Status.DEADLINE_EXCEEDED.value, str(error)
    except (StreamTerminatedError, OSError) as error:
        return Status.UNAVAILABLE.value, str(error)
    return 0, ""


async def main(target: str, keepalive: str) -> None:
    host, port = target.split(":")
    config = Configuration()
    if seconds := int(keepalive) / 1000:
        config = Configuration(
            _keepalive_time=seconds,
            _keepalive_permit_without_calls=True,
            _http2_max_pings_without_data=0,
            _http2_min_sent_ping_interval_without_data=seconds,
        )
    async with Channel(host, int(port), codec=Raw(), config=config) as channel:
        await serve(lambda order: call(channel, order))


asyncio.run(main(*sys.argv[1:]))
