"""Server reflection (grpc.reflection.v1 and v1alpha, the same messages) for the wire engine; in development only."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from avapd.pb import avap_pb2
from avapd.wire.call import Call
from avapd.wire.grpc import INTERNAL, Method

_PATHS: Final = (
    b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_NOT_FOUND: Final = 5


def methods() -> dict[bytes, Method]:
    """The methods by path."""
    return {path: Method.bidi(path, _Conversation) for path in _PATHS}


class _Conversation:
    """One call: answers come in the order of the questions."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def message(self, message: bytes) -> None:
        """Answer a ServerReflectionRequest."""
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(message)
        except DecodeError:
            self._call.finish(INTERNAL, "Request is not a valid ServerReflectionRequest")
            return
        response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            _answer(request, response)
        except KeyError:
            response.error_response.error_code = _NOT_FOUND
            response.error_response.error_message = "Symbol not found."
        self._call.send(response.SerializeToString())

    def end(self) -> None:
        """The client has asked everything."""
        self._call.finish()


def _answer(request: Any, response: Any) -> None:
    """Fill in the response. Raises KeyError for what does not exist."""
    pool = descriptor_pool.Default()
    match request.WhichOneof("message_request"):
        case "list_services":
            files = avap_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR
            names = sorted(service.full_name for file in files for service in file.services_by_name.values())
            for name in names:
                response.list_services_response.service.add(name=name)
        case "file_by_filename":
            _add_files(pool.FindFileByName(request.file_by_filename), response)
        case "file_containing_symbol":
            _add_files(_file_of(request.file_containing_symbol), response)
        case "file_containing_extension":
            asked = request.file_containing_extension
            message: Any = pool.FindMessageTypeByName(asked.containing_type)
            extension: Any = pool.FindExtensionByNumber(message, asked.extension_number)
            _add_files(extension.file, response)
        case "all_extension_numbers_of_type":
            message = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
            found = response.all_extension_numbers_response
            found.base_type_name = message.full_name
            found.extension_number.extend(extension.number for extension in pool.FindAllExtensions(message))
        case _:
            raise KeyError


def _file_of(symbol: str) -> Any:
    """The file of a message, an enum, a service, or a method, which the pool does not know by itself."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        service, _, method = symbol.rpartition(".")
        if method not in pool.FindServiceByName(service).methods_by_name:
            raise
        return pool.FindFileContainingSymbol(service)


def _add_files(file: Any, response: Any) -> None:
    """The file and everything it imports."""
    wanted, seen = [file], set()
    while wanted:
        file = wanted.pop()
        if file.name in seen:
            continue
        seen.add(file.name)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        response.file_descriptor_response.file_descriptor_proto.append(proto.SerializeToString())
        wanted.extend(file.dependencies)
