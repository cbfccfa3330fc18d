"""proto/avap.proto, the committed messages in avapd/pb and the contract are one and the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from avapd.pb import avap_pb2

PROTO = Path(__file__).parent.parent / "proto"
BYTES, INT32, MESSAGE, STRING = 12, 5, 11, 9  # FieldDescriptorProto.Type
FIELDS = {
    "Empty": [],
    "CommandRequest": [("name", 1, STRING, False)],
    "CommandResponse": [
        ("name", 1, STRING, False),
        ("type", 2, STRING, False),
        ("interface_json", 3, STRING, False),
        ("code", 4, BYTES, False),
        ("hash", 5, STRING, False),
    ],
    "CatalogResponse": [
        ("commands", 1, MESSAGE, True),
        ("total_count", 2, INT32, False),
        ("version_hash", 3, STRING, False),
    ],
}
METHODS = {
    "GetCommand": (".avap.CommandRequest", ".avap.CommandResponse"),
    "SyncCatalog": (".avap.Empty", ".avap.CatalogResponse"),
}


@pytest.fixture
def compiled(tmp_path: Path) -> FileDescriptorProto:
    """proto/avap.proto as protoc understands it."""
    out = tmp_path / "set"
    assert protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={out}", "avap.proto"]) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return file


def committed() -> FileDescriptorProto:
    """The descriptor in avapd/pb."""
    return FileDescriptorProto.FromString(avap_pb2.DESCRIPTOR.serialized_pb)


def test_the_committed_messages_are_those_of_the_proto(compiled: FileDescriptorProto) -> None:
    """Nobody edited the proto and forgot to generate; the compiler's version does not matter."""
    found = committed()
    for file in (compiled, found):
        file.ClearField("source_code_info")
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")  # protoc adds it, the generated module leaves it out
    assert found == compiled


@pytest.mark.parametrize("name", FIELDS)
def test_names_numbers_and_types_are_those_of_the_contract(name: str) -> None:
    """Existing clients speak this wire form: everything may be added to, nothing renamed or renumbered."""
    message = next(message for message in committed().message_type if message.name == name)
    found = [(field.name, field.number, field.type, field.label == 3) for field in message.field]
    assert found[: len(FIELDS[name])] == FIELDS[name]


def test_the_service_is_that_of_the_contract() -> None:
    """Package, service, methods and their messages are fixed, and both are unary."""
    file = committed()
    (service,) = file.service
    assert (file.package, file.syntax, service.name) == ("avap", "proto3", "DefinitionEngine")
    methods = {method.name: method for method in service.method}
    for name, types in METHODS.items():
        method = methods[name]
        assert (method.input_type, method.output_type) == types
        assert not method.client_streaming
        assert not method.server_streaming
