"""The servers that are compared: each serves the same catalog to whoever holds the key, one process that answers each.

A contestant is a context manager that starts it, on the CPUs of its caller, and gives the `Target` to load. What it
needs and does not find ends in MissingToolError, before anything is measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from avapd import config
from avapd.pb import avap_pb2
from avapd.shared.snapshot import key_of
from bench.frame import Run
from bench.servers.avapd import KEY, Avapd, BenchError, free_port, pinned
from bench.servers.build import PEERS, MissingToolError, go, go_version, locked, tool
from bench.servers.database import name_of

SERVICE_PATH: Final = "/avap.DefinitionEngine/"
GET: Final = SERVICE_PATH + "GetCommand"
SYNC: Final = SERVICE_PATH + "SyncCatalog"
OPTIONS: Final = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
# grpc-core gives a stream's place free only after its answer has left: whoever keeps 100 under way is refused then.
_STREAMS: Final = "200"
_START_SECONDS: Final = 10.0
WIRE, GRPCIO, BARE_AIO, GRPC_GO, NGHTTPD = "wire", "grpcio", "bare_aio", "grpc_go", "nghttpd"


class Target(NamedTuple):
    """A server that runs: where to call it, with what, and how the answer ends (a gRPC status) and how long it is.

    `pid` is the process that answers, `pids` are all of the server. `avapd` is the server where it is ours.
    """

    port: int
    path: str
    headers: dict[str, str]
    message: bytes
    pid: int
    answer_bytes: int
    status: int = 0
    pids: tuple[int, ...] = ()
    avapd: Avapd | None = None


class Service(NamedTuple):
    """What is served: a table that `fill` made, and the same as a file that holds a serialized CatalogResponse."""

    url: str
    catalog: Path
    definitions: int
    answer_bytes: int

    @property
    def name(self) -> str:
        """The definition that is asked for."""
        return name_of(self.definitions // 2)

    def target(self, port: int, pid: int, avapd: Avapd | None = None) -> Target:
        """Where a server of this service listens."""
        pids = (avapd.process.pid, pid) if avapd else (pid,)
        headers, message = {"x-avap-auth": KEY}, key_of(self.name)
        return Target(port, GET, headers, message, pid, self.answer_bytes, pids=pids, avapd=avapd)


@contextlib.contextmanager
def service(url: str, definitions: int, answer_bytes: int) -> Iterator[Service]:
    """The catalog of this database as avapd answers it to SyncCatalog, in a file."""
    with tempfile.NamedTemporaryFile(suffix=".catalog") as file:
        with (
            Avapd(url, workers=1, AVAPD_ENGINE=GRPCIO, AVAPD_MAX_ANSWER_BYTES=str(1 << 30)) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.port}", options=OPTIONS) as channel,
        ):
            server.wait("SERVING")
            file.write(channel.unary_unary(SYNC)(b"", timeout=60, metadata=(("x-avap-auth", KEY),)))
        file.flush()
        yield Service(url, Path(file.name), definitions, answer_bytes)


def check(target: Target, name: str = "") -> None:
    """One call, before anything is measured: status and size are as they should be, and the name where it is told."""
    with grpc.insecure_channel(f"127.0.0.1:{target.port}", options=OPTIONS) as channel:
        call = channel.unary_unary(target.path)
        try:
            answer, status, said = call(target.message, timeout=10, metadata=tuple(target.headers.items())), 0, ""
        except grpc.RpcError as error:
            answer, status, said = b"", error.code().value[0], error.details()
    if status != target.status or len(answer) != target.answer_bytes:
        raise BenchError(f"the answer has {len(answer)} bytes and status {status} {said}; wanted was {target}")
    if name and avap_pb2.CommandResponse.FromString(answer).name != name:
        raise BenchError(f"the answer is not {name}")


# --- the contestants ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def avapd(engine: str, service: Service, **settings: str) -> Iterator[Target]:
    """`avapd serve` with one worker on this engine."""
    with Avapd(service.url, workers=1, AVAPD_ENGINE=engine, AVAPD_LIMIT_STREAMS=_STREAMS, **settings) as server:
        server.wait("SERVING")
        target = service.target(server.port, server.worker_pids()[0], server)
        check(target, service.name)
        yield target


@contextlib.contextmanager
def _bare_aio(service: Service) -> Iterator[Target]:
    arguments = [sys.executable, str(PEERS / "constant_aio.py"), GET, str(service.answer_bytes)]
    with _printing_port(arguments) as (port, pid):
        target = service.target(port, pid)
        check(target)
        yield target


@contextlib.contextmanager
def _grpc_go(service: Service) -> Iterator[Target]:
    with _printing_port([str(go(GRPC_GO)), str(service.catalog)], API_KEY=KEY) as (port, pid):
        target = service.target(port, pid)
        check(target, service.name)
        yield target


@contextlib.contextmanager
def _nghttpd(service: Service) -> Iterator[Target]:
    """A static file that holds the answer as it stands in DATA, with the trailer that a gRPC client wants.

    nghttpd takes a port but does not tell it, so it gets one that was free.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, *GET.split("/"))
        file.parent.mkdir()
        file.write_bytes(b"\0" + service.answer_bytes.to_bytes(4, "big") + bytes(service.answer_bytes))
        port = free_port()
        process = subprocess.Popen(
            [_nghttpd_path(), "--no-tls", "--workers=1", "--address=127.0.0.1", "--trailer=grpc-status: 0",
             "--htdocs", folder, str(port)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(port)
            yield service.target(port, process.pid)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _printing_port(arguments: list[str], **environment: str) -> Iterator[tuple[int, int]]:
    """A program that prints the port it listens on; port and pid."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


# --- what they need -----------------------------------------------------------------------------------------


def _find_wire() -> dict[str, str]:
    if WIRE not in config.ENGINES:
        raise MissingToolError("this avapd has no engine of that name")
    return {}


def _find_grpc_go() -> dict[str, str]:
    go(GRPC_GO)
    return {"grpc-go": locked(GRPC_GO, "google.golang.org/grpc"), "go": go_version()}


def _find_nghttpd() -> dict[str, str]:
    said = subprocess.run([_nghttpd_path(), "--version"], check=True, capture_output=True, text=True).stdout
    return {NGHTTPD: said.split("/")[-1].strip()}


def _nghttpd_path() -> str:
    return tool(NGHTTPD, "apt install nghttp2-server")


class Contestant(NamedTuple):
    """How to start it, and how to find what it needs: versions, or MissingToolError."""

    start: Callable[[Service], contextlib.AbstractContextManager[Target]]
    find: Callable[[], dict[str, str]] = dict


CONTESTANTS: Final = {
    WIRE: Contestant(functools.partial(avapd, WIRE), _find_wire),
    GRPCIO: Contestant(functools.partial(avapd, GRPCIO)),
    BARE_AIO: Contestant(_bare_aio),
    GRPC_GO: Contestant(_grpc_go, _find_grpc_go),
    NGHTTPD: Contestant(_nghttpd, _find_nghttpd),
}


def present(run: Run, names: Sequence[str]) -> list[str]:
    """Those of these contestants that are asked for and can be run; the others are left out, with the reason."""
    found = []
    for name in names:
        if run.wants(name, names):
            try:
                run.versions |= CONTESTANTS[name].find()
            except MissingToolError as error:
                run.skip(name, str(error))
            else:
                found.append(name)
    return found


@contextlib.contextmanager
def started(run: Run, names: Sequence[str], service: Service) -> Iterator[dict[str, Target]]:
    """These contestants, on the server core."""
    with contextlib.ExitStack() as stack:
        with pinned({run.cores.server}):
            targets = {name: stack.enter_context(CONTESTANTS[name].start(service)) for name in names}
        yield targets
