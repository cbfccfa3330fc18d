"""gRPC's own interop client (the one of grpc-go) against its test service on the wire engine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients.services.process import started
from clients.tools import go_program, go_tool

pytestmark = pytest.mark.timeout(600)  # the first run builds the client

# All that it has for a server without TLS, credentials and compression.
CASES = (
    "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
    "timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
    "special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
)  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Path:
    return go_tool("google.golang.org/grpc/interop/client")


@pytest.fixture(scope="module")
def port(client: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where the test service listens; its messages are those that the client was built with."""
    descriptors = tmp_path_factory.mktemp("interop") / "descriptors"
    done = subprocess.run([go_program("client"), "descriptors"], capture_output=True, check=True)
    descriptors.write_bytes(done.stdout)
    with started("interop_server", descriptors) as process:
        assert process.stdout
        yield int(process.stdout.readline())


@pytest.mark.parametrize("case", CASES)
def test_interop(client: Path, port: int, case: str) -> None:
    """The case, as doc/interop-test-descriptions.md of grpc has it, passes."""
    done = subprocess.run(
        [client, "--server_host=127.0.0.1", f"--server_port={port}", "--use_tls=false", f"--test_case={case}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
