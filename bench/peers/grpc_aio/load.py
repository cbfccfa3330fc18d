"""A closed loop on grpc.aio, for machines without h2load. JSON in (argv), JSON out; see bench/loads/drive.py."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

DEADLINE_SECONDS: Final = 20.0  # of a call


async def main(asked: dict[str, Any]) -> dict[str, float]:
    """Call until the time is over."""
    message, metadata = bytes.fromhex(asked["message"]), tuple(asked["headers"].items())
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{asked['port']}", options=options) for _ in range(asked["connections"])
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    times: list[float] = []
    failed = 0
    began = time.perf_counter()
    end = began + asked["seconds"]

    async def loop(channel: Any) -> None:
        nonlocal failed
        call = channel.unary_unary(asked["path"])
        while (start := time.perf_counter()) < end:
            try:
                answer = await call(message, metadata=metadata, timeout=DEADLINE_SECONDS)
                failed += asked["status"] != 0 or len(answer) != asked["answer_bytes"]
            except grpc.aio.AioRpcError as error:
                failed += asked["status"] != error.code().value[0]
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(loop(channel) for channel in channels for _ in range(asked["streams"])))
    seconds = time.perf_counter() - began
    for channel in channels:
        await channel.close()
    return {"calls": len(times), "failed": failed, "seconds": seconds, "mean": sum(times) / len(times)}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(json.loads(sys.argv[1])))))
