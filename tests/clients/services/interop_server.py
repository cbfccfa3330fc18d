"""grpc.testing.TestService, which gRPC's interop clients call, on the wire engine.

    python -P -m clients.services.interop_server DESCRIPTORS

prints its port and serves until SIGTERM. DESCRIPTORS is a FileDescriptorSet with grpc/testing/messages.proto.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from clients.services import answers
from clients.services.listener import run, serve
from clients.services.messages import load

from avapd.wire.call import Call
from avapd.wire.grpc import OK, UNIMPLEMENTED, Answer, Method
from avapd.wire.hpack_tables import Field
from avapd.wire.limits import Limits

SERVICE = b"/grpc.testing.TestService/"
INITIAL, TRAILING = b"x-grpc-test-echo-initial", b"x-grpc-test-echo-trailing-bin"
MAX_REQUEST = 4 << 20


class TestService:
    """The methods, by path. What echoes metadata is served as a stream, since unary answers have no room for them."""

    names = frozenset({INITIAL, TRAILING})
    noted: frozenset[bytes] = frozenset()

    def __init__(self, messages: dict[str, Any]) -> None:
        self._messages = messages
        self._methods = {
            method.path: method
            for method in (
                Method.unary(SERVICE + b"EmptyCall", lambda _: Answer(OK)),
                Method.unary(SERVICE + b"UnaryCall", self._unary),
                Method.server_stream(SERVICE + b"StreamingOutputCall", self._output),
                Method.bidi(SERVICE + b"StreamingInputCall", partial(_Sum, self)),
                Method.bidi(SERVICE + b"FullDuplexCall", partial(_Echo, self, ())),
            )
        }

    def mark(self, _fields: list[Field]) -> None:
        """Nothing is noted of a single call."""

    def route(self, path: bytes, metadata: tuple[Field, ...]) -> Method | Answer:
        method = self._methods.get(path)
        if method is None:
            return Answer(UNIMPLEMENTED, f"unknown method {path!r}")
        if metadata and path.endswith(b"UnaryCall"):
            return Method.server_stream(path, partial(self._unary_with_metadata, metadata))
        if metadata and path.endswith(b"FullDuplexCall"):
            return Method.bidi(path, partial(_Echo, self, metadata))
        return method

    def outcome(self, path: bytes, code: int) -> int:  # noqa: ARG002  # the protocol has it
        return code

    def failed(self, path: bytes, error: Exception) -> None:
        sys.stderr.write(f"{path!r}: {error!r}\n")

    def parse(self, name: str, message: bytes) -> Any:
        return self._messages[f"grpc.testing.{name}"].FromString(message)

    def payload(self, name: str, size: int) -> bytes:
        """A message with a payload of zeros."""
        made = self._messages[f"grpc.testing.{name}"]()
        made.payload.body = bytes(size)
        return bytes(made.SerializeToString())

    def _unary(self, message: bytes) -> Answer:
        request = self.parse("SimpleRequest", message)
        if request.response_status.code:
            return Answer(request.response_status.code, request.response_status.message)
        return Answer(OK, "", self.payload("SimpleResponse", request.response_size))

    def _unary_with_metadata(self, metadata: tuple[Field, ...], call: Call, message: bytes) -> None:
        answer = self._unary(message)
        initial, trailing = echoed(metadata)
        answers.start(call, initial)
        call.send(answer.whole())
        answers.finish(call, answer.code, answer.message, trailing)

    def _output(self, call: Call, message: bytes) -> None:
        run(call, self.send_all(call, self.parse("StreamingOutputCallRequest", message), call.finish))

    async def send_all(self, call: Call, request: Any, finish: Callable[[], None]) -> None:
        """Send what a request asks for, at its pace."""
        for wanted in request.response_parameters:
            await asyncio.sleep(wanted.interval_us / 1e6)
            call.send(self.payload("StreamingOutputCallResponse", wanted.size))
        finish()


class _Sum:
    """StreamingInputCall: how much has come."""

    def __init__(self, service: TestService, call: Call) -> None:
        self._service = service
        self._call = call
        self._size = 0

    def message(self, message: bytes) -> None:
        self._size += len(self._service.parse("StreamingInputCallRequest", message).payload.body)

    def end(self) -> None:
        made = self._service._messages["grpc.testing.StreamingInputCallResponse"]
        self._call.send(made(aggregated_payload_size=self._size).SerializeToString())
        self._call.finish()


class _Echo:
    """FullDuplexCall: each request is answered before the next one is looked at."""

    def __init__(self, service: TestService, metadata: tuple[Field, ...], call: Call) -> None:
        self._service = service
        self._call = call
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._initial, self._trailing = echoed(metadata)
        run(call, self._serve())

    def message(self, message: bytes) -> None:
        self._requests.put_nowait(self._service.parse("StreamingOutputCallRequest", message))

    def end(self) -> None:
        self._requests.put_nowait(None)

    async def _serve(self) -> None:
        if self._initial:
            answers.start(self._call, self._initial)
        while (request := await self._requests.get()) is not None:
            status = request.response_status
            if status.code:
                self._call.finish(status.code, status.message)
                return
            await self._service.send_all(self._call, request, _go_on)
        answers.finish(self._call, OK, "", self._trailing)


def _go_on() -> None:
    return


def echoed(metadata: tuple[Field, ...]) -> tuple[list[Field], list[Field]]:
    """What goes back with the headers and what with the trailers; binary values without their padding."""
    initial = [field for field in metadata if field[0] == INITIAL]
    trailing = [(name, value.rstrip(b"=")) for name, value in metadata if name == TRAILING]
    return initial, trailing


def tell(port: int) -> None:
    """Print the port."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(TestService(load(sys.argv[1])), Limits(request_bytes=MAX_REQUEST), tell)
