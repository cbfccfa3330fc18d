"""connectrpc.conformance.v1.ConformanceService on the wire engine, as a server under test of `connectconformance`.

    python -P -m clients.services.conformance_server DESCRIPTORS

takes a ServerCompatRequest from stdin, tells its port by a ServerCompatResponse on stdout, and serves until SIGTERM.
DESCRIPTORS is a FileDescriptorSet with server_compat.proto and service.proto.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from clients.services import answers
from clients.services.listener import run, serve
from clients.services.messages import load

from avapd.wire.call import Call
from avapd.wire.grpc import OK, UNIMPLEMENTED, Answer, Method
from avapd.wire.hpack_tables import Field
from avapd.wire.limits import Limits

PACKAGE = "connectrpc.conformance.v1."
SERVICE = f"/{PACKAGE}ConformanceService/".encode()
# The request metadata of the suites that are told apart by their echo.
NAMES = frozenset({b"x-conformance-test", b"x-custom-header"})


class ConformanceService:
    """The methods, as service.proto describes them. All are served as streams, for the metadata of their answers."""

    names = NAMES
    noted: frozenset[bytes] = frozenset()

    def __init__(self, messages: dict[str, Any]) -> None:
        self.messages = {name.removeprefix(PACKAGE): made for name, made in messages.items()}

    def mark(self, _fields: list[Field]) -> None:
        """Nothing is noted of a single call."""

    def route(self, path: bytes, metadata: tuple[Field, ...]) -> Method | Answer:
        name = path.removeprefix(SERVICE).decode("ascii", "replace")
        one = {"Unary": _Unary, "IdempotentUnary": _Unary, "ServerStream": _ServerStream}.get(name)
        if one is not None:
            return Method.server_stream(path, lambda call, message: one(self, name, metadata, call).whole(message))
        many = {"ClientStream": _ClientStream, "BidiStream": _BidiStream}.get(name)
        if many is not None:
            return Method.bidi(path, partial(many, self, name, metadata))
        return Answer(UNIMPLEMENTED, f"unknown method {path!r}")

    def outcome(self, path: bytes, code: int) -> int:  # noqa: ARG002  # the protocol has it
        return code

    def failed(self, path: bytes, error: Exception) -> None:
        sys.stderr.write(f"{path!r}: {error!r}\n")


class _Conversation:
    """What the methods share: the requests so far, and how to answer them."""

    def __init__(self, service: ConformanceService, method: str, metadata: tuple[Field, ...], call: Call) -> None:
        self.call = call
        self.requests: list[Any] = []
        self.definition: Any = None
        self._messages = service.messages
        self._method = method
        self._metadata = metadata
        deadline = call._stream.deadline
        self._timeout = None if deadline == float("inf") else int(1000 * (deadline - call._calls._now))

    def take(self, message: bytes) -> None:
        request = self._messages[f"{self._method}Request"].FromString(message)
        self.requests.append(request)
        if len(self.requests) == 1 and request.HasField("response_definition"):
            self.definition = request.response_definition

    def whole(self, message: bytes) -> None:
        """The only request."""
        self.take(message)
        self.end()

    def message(self, message: bytes) -> None:
        """One request of several."""
        self.take(message)

    def end(self) -> None:
        """All requests have come."""
        run(self.call, self.answer())

    async def answer(self) -> None:
        raise NotImplementedError

    # --- pieces of an answer ------------------------------------------------------------------------------

    def info(self, requests: Iterable[Any], *, whole: bool = True) -> Any:
        made = type(self._messages["ConformancePayload"]().request_info)()
        if whole:
            if self._timeout is not None:
                made.timeout_ms = self._timeout
            for name in dict.fromkeys(name for name, _ in self._metadata):
                values = [value.decode() for found, value in self._metadata if found == name]
                made.request_headers.add(name=name.decode(), value=values)
        for request in requests:
            made.requests.add().Pack(request)
        return made

    def response(self, data: bytes, info: Any) -> bytes:
        made = self._messages[f"{self._method}Response"]()
        made.payload.data = data
        if info is not None:
            made.payload.request_info.CopyFrom(info)
        return bytes(made.SerializeToString())

    async def pause(self) -> None:
        await asyncio.sleep(self.definition.response_delay_ms / 1000 if self.definition else 0)

    def start(self) -> None:
        answers.start(self.call, fields(self.definition.response_headers) if self.definition else [])

    def finish(self, info: Any = None) -> None:
        """End as the definition says; an error that comes first of all tells what was asked."""
        definition = self.definition
        if definition is None:
            answers.finish(self.call, OK, "", [])
            return
        trailers, headers = fields(definition.response_trailers), fields(definition.response_headers)
        if not definition.HasField("error"):
            answers.finish(self.call, OK, "", trailers, headers)
            return
        error = definition.error
        details = list(error.details)
        if info is not None:
            details.append(type(error.details.add())())
            details[-1].Pack(info)
        status = struct_status(error.code, error.message, details)
        trailers.append((b"grpc-status-details-bin", base64.b64encode(status).rstrip(b"=")))
        answers.finish(self.call, error.code, error.message, trailers, headers)


class _Unary(_Conversation):
    async def answer(self) -> None:
        await self.pause()
        info = self.info(self.requests)
        if self.definition is not None and self.definition.HasField("error"):
            self.finish(info)
            return
        self.start()
        self.call.send(self.response(self.definition.response_data if self.definition else b"", info))
        self.finish()


class _ClientStream(_Unary):
    """Differs only in how many requests come."""


class _ServerStream(_Conversation):
    async def answer(self) -> None:
        await self.send_all(self.definition.response_data if self.definition else ())

    async def send_all(self, data: Iterable[bytes]) -> None:
        info = self.info(self.requests)
        data = list(data)
        self.start()
        for number, piece in enumerate(data):
            await self.pause()
            self.call.send(self.response(piece, None if number else info))
        self.finish(None if data else info)


class _BidiStream(_ServerStream):
    """Half duplex: like ServerStream, after all requests. Full duplex: a response for each request as it comes."""

    def __init__(self, service: ConformanceService, method: str, metadata: tuple[Field, ...], call: Call) -> None:
        super().__init__(service, method, metadata, call)
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        run(call, self.converse())

    def message(self, message: bytes) -> None:
        self._queue.put_nowait(message)

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def converse(self) -> None:
        sent = 0
        while (message := await self._queue.get()) is not None:
            self.take(message)
            if not self.requests[0].full_duplex:
                continue
            data = self.definition.response_data if self.definition else ()
            if sent == len(data):
                if not sent:
                    self.start()
                self.finish(None if sent else self.info(self.requests))
                return
            if not sent:
                self.start()
            await self.pause()
            self.call.send(self.response(data[sent], self.info(self.requests[-1:], whole=not sent)))
            sent += 1
        left = self.definition.response_data[sent:] if self.definition else ()
        if not sent:
            await self.send_all(left)
            return
        for piece in left:
            await self.pause()
            self.call.send(self.response(piece, None))
        self.finish()


def fields(headers: Iterable[Any]) -> list[Field]:
    """Header messages as fields of a header block."""
    return [(header.name.lower().encode(), value.encode()) for header in headers for value in header.value]


def struct_status(code: int, message: str, details: Iterable[Any]) -> bytes:
    """A google.rpc.Status: code 1, message 2, details 3."""

    def part(tag: int, data: bytes) -> bytes:
        return bytes([tag]) + varint(len(data)) + data

    parts = [b"\x08" + varint(code), part(0x12, message.encode())]
    return b"".join([*parts, *(part(0x1A, detail.SerializeToString()) for detail in details)])


def varint(number: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def main() -> None:
    """Read the request, serve, answer."""
    messages = load(sys.argv[1])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    (size,) = struct.unpack(">I", stdin.read(4))
    asked = messages[f"{PACKAGE}ServerCompatRequest"].FromString(stdin.read(size))
    limits = Limits(request_bytes=asked.message_receive_limit or 4 << 20, held_bytes=64 << 20)

    def tell(port: int) -> None:
        answer = messages[f"{PACKAGE}ServerCompatResponse"](host="127.0.0.1", port=port).SerializeToString()
        stdout.write(struct.pack(">I", len(answer)) + answer)
        stdout.flush()

    serve(ConformanceService(messages), limits, tell)


if __name__ == "__main__":
    main()
