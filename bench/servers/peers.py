"""How the peers of `peers/` are built and started: `PROGRAM CATALOG` with the key in API_KEY; each prints its port."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from bench.servers import build
from bench.servers.avapd import KEY, free_port
from bench.servers.build import PEERS, PROTO, shown, tool

_START_SECONDS: Final = 10.0
# The cluster of Node: as many processes as Node's own advice for two cores, all on the one server core here.
_CLUSTER_WORKERS: Final = 2


class Process(NamedTuple):
    """A server that listens: the processes that answer, all of them, and the command line that anyone can type."""

    port: int
    answering: tuple[int, ...]
    pids: tuple[int, ...]
    command: str


Start = Callable[[Path, str, int], contextlib.AbstractContextManager[Process]]


class Peer(NamedTuple):
    """`start` takes the catalog's file, the path of GetCommand and the size of its answer; `find` gives versions.

    Both raise MissingToolError.
    """

    start: Start
    find: Callable[[], dict[str, str]]


@contextlib.contextmanager
def _printing_port(command: list[str], *, children: bool = False, **environment: str) -> Iterator[Process]:
    """A program that prints the port it listens on."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        workers = tuple(child.pid for child in psutil.Process(process.pid).children()) if children else ()
        pids = (process.pid, *workers)
        yield Process(port, workers or pids, pids, shown(command, {"API_KEY": KEY}))
    finally:
        family = psutil.Process(process.pid).children() if process.poll() is None else []
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()


def _constant_aio(_catalog: Path, path: str, answer_bytes: int) -> contextlib.AbstractContextManager[Process]:
    return _printing_port([sys.executable, str(PEERS / "constant_aio.py"), path, str(answer_bytes)])


def _python(name: str, catalog: Path, _path: str, _size: int) -> contextlib.AbstractContextManager[Process]:
    python, stubs = build.venv(name)
    return _printing_port(
        [str(python), str(PEERS / name / "server.py"), str(catalog)], API_KEY=KEY, PYTHONPATH=str(stubs)
    )


def _grpc_js(workers: int, catalog: Path, _path: str, _size: int) -> contextlib.AbstractContextManager[Process]:
    command = [tool("node", ""), str(build.npm("grpc_js") / "server.js"), str(catalog), str(PROTO)]
    return _printing_port([*command, *([str(workers)] if workers else [])], children=workers > 0, API_KEY=KEY)


def _grpc_go(catalog: Path, _path: str, _size: int) -> contextlib.AbstractContextManager[Process]:
    return _printing_port([str(build.go("grpc_go")), str(catalog)], API_KEY=KEY)


def _tonic(catalog: Path, _path: str, _size: int) -> contextlib.AbstractContextManager[Process]:
    return _printing_port([str(build.cargo("tonic")), str(catalog)], API_KEY=KEY)


@contextlib.contextmanager
def _nghttpd(_catalog: Path, path: str, answer_bytes: int) -> Iterator[Process]:
    """A static file that holds the answer as it stands in DATA, with the trailer that a gRPC client wants.

    nghttpd takes a port but does not tell it, so it gets one that was free.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, *path.split("/"))
        file.parent.mkdir()
        file.write_bytes(b"\0" + answer_bytes.to_bytes(4, "big") + bytes(answer_bytes))
        port = free_port()
        command = [
            _nghttpd_path(), "--no-tls", "--workers=1", "--address=127.0.0.1", "--trailer=grpc-status: 0",
            f"--htdocs={folder}", str(port),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield Process(port, (process.pid,), (process.pid,), shown(command))
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


def _find_python(name: str) -> dict[str, str]:
    build.venv(name)
    package = "grpclib" if name == "grpclib" else "grpcio"
    return {name: build.locked(f"{name}/requirements.lock", rf"(?m)^{package}==(\S+)")}


def _find_grpc_js() -> dict[str, str]:
    build.npm("grpc_js")
    library = build.locked("grpc_js/package-lock.json", r'node_modules/@grpc/grpc-js": \{\s+"version": "([^"]+)"')
    return {"grpc-js": library, "node": build.version_of(tool("node", ""), "--version")}


def _find_grpc_go() -> dict[str, str]:
    build.go("grpc_go")
    library = build.locked("grpc_go/go.mod", rf"{re.escape('google.golang.org/grpc')} v(\S+)")
    return {"grpc-go": library, "go": build.version_of(tool("go", ""), "version")}


def _find_tonic() -> dict[str, str]:
    build.cargo("tonic")
    library = build.locked("tonic/Cargo.lock", r'name = "tonic"\s+version = "([^"]+)"')
    return {"tonic": library, "rustc": build.version_of(tool("rustc", ""), "--version")}


def _find_nghttpd() -> dict[str, str]:
    return {"nghttpd": build.version_of(_nghttpd_path(), "--version")}


def _nghttpd_path() -> str:
    return tool("nghttpd", "apt install nghttp2-server")


PEERS_BY_NAME: Final = {
    **{
        name: Peer(functools.partial(_python, name), functools.partial(_find_python, name))
        for name in ("grpc_aio", "grpc_sync", "grpclib")
    },
    "constant_aio": Peer(_constant_aio, dict),
    "grpc_js": Peer(functools.partial(_grpc_js, 0), _find_grpc_js),
    "grpc_js_cluster": Peer(functools.partial(_grpc_js, _CLUSTER_WORKERS), _find_grpc_js),
    "grpc_go": Peer(_grpc_go, _find_grpc_go),
    "tonic": Peer(_tonic, _find_tonic),
    "nghttpd": Peer(_nghttpd, _find_nghttpd),
}
