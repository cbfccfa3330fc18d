"""grpcio, synchronous, as a client program: unary calls are futures, each stream has a thread."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any

import grpc
from clients.python.lines import Order, orders, tell_end, tell_message


def options(keepalive: int) -> list[tuple[str, int]]:
    """Options of a channel that pings every `keepalive` milliseconds; 0 is never."""
    always = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    pings = [
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    return [*always, *pings] if keepalive else always


def read(number: str, stream: Any) -> None:
    """Tell what a stream gives."""
    with contextlib.suppress(grpc.RpcError):
        for message in stream:
            tell_message(number, message)
    tell_end(number, stream.code().value[0], stream.details() or "")


def end(number: str, call: Any) -> None:
    """Tell what a unary call gave."""
    if call.code() is grpc.StatusCode.OK:
        tell_message(number, call.result())
    tell_end(number, call.code().value[0], call.details() or "")


def begin(channel: Any, order: Order) -> Any:
    """Begin a call."""
    if order.kind == "unary":
        call = channel.unary_unary(order.path).future(order.request, timeout=order.timeout, metadata=order.metadata)
        call.add_done_callback(lambda call: end(order.number, call))
        return call
    stream = channel.unary_stream(order.path)(order.request, timeout=order.timeout, metadata=order.metadata)
    threading.Thread(target=read, args=(order.number, stream), daemon=True).start()
    return stream


def main(target: str, keepalive: str) -> None:
    running: dict[str, Any] = {}
    with grpc.insecure_channel(target, options=options(int(keepalive))) as channel:
        for order in orders(lambda number: running[number].cancel()):
            running[order.number] = begin(channel, order)


if __name__ == "__main__":
    main(*sys.argv[1:])
