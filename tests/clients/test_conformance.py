"""The conformance suite of ConnectRPC (gRPC over HTTP/2 with protobuf) against its test service on the wire engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from clients.services.process import ENVIRONMENT, command
from clients.tools import go_module_folder, go_tool

pytestmark = pytest.mark.timeout(600)  # the first run builds the suite

MODULE = "connectrpc.com/conformance"
PASSED = 372
FEATURES = """
features:
  versions: [HTTP_VERSION_2]
  protocols: [PROTOCOL_GRPC]
  codecs: [CODEC_PROTO]
  supportsTls: false
"""


@pytest.fixture
def descriptors(tmp_path: Path) -> Path:
    """The messages of the suite, from the .proto files in its module."""
    made, protos = tmp_path / "descriptors", go_module_folder(MODULE) / "proto"
    package = "connectrpc/conformance/v1"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", "--include_imports",
            f"--descriptor_set_out={made}", f"{package}/server_compat.proto", f"{package}/service.proto",
        ],
        check=True,
    )  # fmt: skip
    return made


def test_conformance(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every case passes."""
    program = go_tool(f"{MODULE}/cmd/connectconformance")
    config = tmp_path / "config.yaml"
    config.write_text(FEATURES)
    service = command("conformance_server", request.getfixturevalue("descriptors"))
    done = subprocess.run(
        [program, "--conf", config, "--mode", "server", "--", *service],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert (done.returncode, f"{PASSED} passed, 0 failed" in told) == (0, True), told[-6000:]
