"""The servers that are compared: each serves the same catalog to whoever holds the key.

A contestant is a context manager that starts it, on the CPUs of its caller, and gives the `Target` to load. What it
needs and does not find ends in MissingToolError, before anything is measured.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from avapd.pb import avap_pb2
from avapd.shared.snapshot import key_of
from bench.frame import Run
from bench.servers import peers
from bench.servers.avapd import KEY, Avapd, BenchError, pinned
from bench.servers.build import MissingToolError
from bench.servers.database import name_of
from bench.servers.peers import Process

SERVICE_PATH: Final = "/avap.DefinitionEngine/"
GET: Final = SERVICE_PATH + "GetCommand"
SYNC: Final = SERVICE_PATH + "SyncCatalog"
OPTIONS: Final = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
# grpc-core gives a stream's place free only after its answer has left: whoever keeps 100 under way is refused then.
_STREAMS: Final = "200"
WIRE, GRPCIO = "wire", "grpcio"
_ENGINES: Final = {WIRE, GRPCIO}
GRPC_AIO, GRPC_SYNC, GRPCLIB, CONSTANT_AIO = "grpc_aio", "grpc_sync", "grpclib", "constant_aio"
GRPC_JS, GRPC_JS_CLUSTER, GRPC_GO, TONIC, NGHTTPD = "grpc_js", "grpc_js_cluster", "grpc_go", "tonic", "nghttpd"
# Whoever checks the key and finds the name: all but the two that answer one and the same.
SERVING: Final = (WIRE, GRPCIO, GRPC_AIO, GRPC_SYNC, GRPCLIB, GRPC_JS, GRPC_JS_CLUSTER, GRPC_GO, TONIC)
ALL: Final = (*SERVING, NGHTTPD, CONSTANT_AIO)


class Target(NamedTuple):
    """A server that runs: where to call it, with what, and how the answer ends (a gRPC status) and how long it is.

    `sent_bytes` is how long it is on the way, in gzip, for a client that says in `headers` that it takes it so.
    `answering` are the processes that answer, `pids` are all of the server. `avapd` is the server where it is ours.
    """

    port: int
    path: str
    headers: dict[str, str]
    message: bytes
    answering: tuple[int, ...]
    answer_bytes: int
    status: int = 0
    sent_bytes: int = 0
    pids: tuple[int, ...] = ()
    avapd: Avapd | None = None


class Service(NamedTuple):
    """What is served: a table that `fill` made, and the same as a file that holds a serialized CatalogResponse.

    `catalog_bytes` is how large that answer is, `answer_bytes` the answer to GetCommand.
    """

    url: str
    catalog: Path
    definitions: int
    answer_bytes: int
    catalog_bytes: int

    @property
    def name(self) -> str:
        """The definition that is asked for."""
        return name_of(self.definitions // 2)

    def target(self, process: Process) -> Target:
        """Where a server of this service listens."""
        return Target(
            process.port, GET, {"x-avap-auth": KEY}, key_of(self.name), process.answering, self.answer_bytes,
            pids=process.pids,
        )  # fmt: skip


@contextlib.contextmanager
def service(url: str, definitions: int, answer_bytes: int) -> Iterator[Service]:
    """The catalog of this database as avapd answers it to SyncCatalog, in a file."""
    with tempfile.NamedTemporaryFile(suffix=".catalog") as file:
        with (
            Avapd(url, workers=1, AVAPD_MAX_ANSWER_BYTES=str(1 << 30)) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.port}", options=OPTIONS) as channel,
        ):
            server.wait("SERVING")
            answer = channel.unary_unary(SYNC)(b"", timeout=120, metadata=(("x-avap-auth", KEY),))
            file.write(answer)
        file.flush()
        yield Service(url, Path(file.name), definitions, answer_bytes, len(answer))


def check(target: Target, name: str = "") -> None:
    """One call, before anything is measured: status and size are as they should be, and the name where it is told."""
    with grpc.insecure_channel(f"127.0.0.1:{target.port}", options=OPTIONS) as channel:
        call = channel.unary_unary(target.path)
        try:
            answer, status, said = call(target.message, timeout=30, metadata=tuple(target.headers.items())), 0, ""
        except grpc.RpcError as error:
            answer, status, said = b"", error.code().value[0], error.details()
    if status != target.status or len(answer) != target.answer_bytes:
        raise BenchError(f"the answer has {len(answer)} bytes and status {status} {said}; wanted was {target}")
    if name and avap_pb2.CommandResponse.FromString(answer).name != name:
        raise BenchError(f"the answer is not {name}")


@contextlib.contextmanager
def avapd(run: Run, engine: str, service: Service, *, workers: int = 1, **settings: str) -> Iterator[Target]:
    """`avapd serve` on this engine."""
    with Avapd(
        service.url, workers=workers, AVAPD_ENGINE=engine, AVAPD_LIMIT_STREAMS=_STREAMS,
        AVAPD_MAX_ANSWER_BYTES=str(1 << 30), **settings,
    ) as server:  # fmt: skip
        server.wait("SERVING")
        run.commands.setdefault(engine, server.command)
        answering = tuple(server.worker_pids())
        process = Process(server.port, answering, (server.process.pid, *answering), server.command)
        target = service.target(process)._replace(avapd=server)
        check(target, service.name)
        yield target


@contextlib.contextmanager
def _peer(run: Run, name: str, service: Service) -> Iterator[Target]:
    with peers.PEERS_BY_NAME[name].start(service.catalog, GET, service.answer_bytes) as process:
        run.commands.setdefault(name, process.command)
        target = service.target(process)
        check(target, "" if name in {NGHTTPD, CONSTANT_AIO} else service.name)
        yield target


def present(run: Run, names: Sequence[str]) -> list[str]:
    """Those of these contestants that are asked for and can be run; the others are left out, with the reason."""
    found = []
    for name in names:
        if run.wants(name, names):
            try:
                run.versions |= {} if name in _ENGINES else peers.PEERS_BY_NAME[name].find()
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
            targets = {
                name: stack.enter_context((avapd if name in _ENGINES else _peer)(run, name, service)) for name in names
            }
        yield targets
