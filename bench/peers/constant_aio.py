"""The least a grpc.aio server on uvloop can do: one method, raw bytes, a constant answer, no key. Prints its port.

    python constant_aio.py PATH ANSWER_BYTES

It is the ceiling of what an engine on grpc.aio can reach: whatever avapd's grpcio engine adds is seen against it.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
import grpc.aio
import uvloop


class _Constant(grpc.GenericRpcHandler):
    def __init__(self, path: str, answer: bytes) -> None:
        async def call(_request: bytes, _context: Any) -> bytes:
            return answer

        self._handlers = {path: grpc.unary_unary_rpc_method_handler(call)}

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)


async def main(path: str, answer: bytes) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Constant(path, answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], bytes(int(sys.argv[2]))))
