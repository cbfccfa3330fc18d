"""Tools that a bench needs and that may be missing; peers are built here, each by the tool of its own language.

Everything is built from the lock file in the peer's folder, into a cache folder, so that the checkout stays as it is.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = ROOT / "bench" / "peers"
PROTO: Final = ROOT / "proto" / "avap.proto"
_BUILT: Final = shutil.ignore_patterns("target", "node_modules", "__pycache__")


class MissingToolError(Exception):
    """Something is not installed; the text says how to install it."""


def tool(name: str, install: str) -> str:
    """Where a program is. Raises MissingToolError."""
    found = shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is not installed: {install}")
    return found


@functools.cache
def go(name: str, package: str = ".") -> Path:
    """The program of a package in `peers/<name>`, where it needs a new build or not. Raises MissingToolError."""
    compiler = tool("go", "https://go.dev/dl")
    target = cache() / "-".join(filter(None, (name, package.strip("./"))))
    _run(
        f"go build in bench/peers/{name}",
        [compiler, "build", "-trimpath", "-o", str(target), package],
        PEERS / name,
        {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
    )
    return target


@functools.cache
def go_install(module: str, version: str) -> Path:
    """The program of somebody else's module, at a version. Raises MissingToolError."""
    compiler = tool("go", "https://go.dev/dl")
    name = module.rsplit("/", 1)[-1]

    def install(folder: Path) -> None:
        words = [compiler, "install", "-trimpath", f"{module}@{version}"]
        _run(f"go install {name}@{version}", words, folder, {"CGO_ENABLED": "0", "GOBIN": str(folder)})

    return _once(name, version, install) / name


@functools.cache
def cargo(name: str) -> Path:
    """The program of `peers/<name>`, as its Cargo.lock pins it. Raises MissingToolError."""
    builder = tool("cargo", "https://rustup.rs")
    target = cache() / f"{name}-target"
    _run(
        f"cargo build in bench/peers/{name}",
        [builder, "build", "--quiet", "--release", "--locked"],
        PEERS / name,
        {"CARGO_TARGET_DIR": str(target)},
    )
    return target / "release" / f"avapd-bench-{name}"


@functools.cache
def npm(name: str) -> Path:
    """A copy of `peers/<name>` with the packages of its package-lock.json. Raises MissingToolError."""
    tool("node", "https://nodejs.org")
    program = tool("npm", "https://nodejs.org")

    def install(folder: Path) -> None:
        shutil.copytree(PEERS / name, folder, dirs_exist_ok=True, ignore=_BUILT)
        words = [program, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        _run(f"npm ci in bench/peers/{name}", words, folder)

    return _once(name, _digest(*sorted((PEERS / name).glob("*.js*"))), install)


@functools.cache
def venv(name: str) -> tuple[Path, Path]:
    """A Python with what `peers/<name>/requirements.lock` pins, and its generated stubs. Raises MissingToolError."""
    lock = PEERS / name / "requirements.lock"
    plugin = "grpclib_python" if name == "grpclib" else "grpc_python"

    def install(folder: Path) -> None:
        programs, stubs = folder / "bin", folder / "stubs"
        python, path = str(programs / "python"), f"{programs}{os.pathsep}{os.environ['PATH']}"
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
        protoc = [python, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", f"--python_out={stubs}"]
        _run(f"python -m venv for bench/peers/{name}", [sys.executable, "-m", "venv", str(folder)], folder)
        _run(f"pip install in bench/peers/{name}", [*pip, "-r", str(lock)], folder)
        stubs.mkdir()
        _run(f"protoc for bench/peers/{name}", [*protoc, f"--{plugin}_out={stubs}", str(PROTO)], folder, {"PATH": path})

    place = _once(name, _digest(lock, PROTO), install)
    return place / "bin" / "python", place / "stubs"


def version_of(*command: str) -> str:
    """What a program says of its version, the first number in it."""
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return found.group() if found else (said.stdout + said.stderr).strip()


def locked(lock: str, pattern: str) -> str:
    """The version in a lock file of the peers: the group of this pattern."""
    found = re.search(pattern, (PEERS / lock).read_text(encoding="utf-8"))
    assert found is not None, f"{lock} locks nothing like {pattern}"
    return found.group(1)


def cache() -> Path:
    """The folder of everything that is built."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avapd-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """A command line as anyone could type it: without the folders of this machine."""
    words = [f"{name}={value}" for name, value in (environment or {}).items() if name != "PATH"]
    text = " ".join([*words, *map(str, command)])
    places = ((sys.executable, "python"), (str(ROOT) + "/", ""), (str(cache()) + "/", ""))
    for place, name in places:
        text = text.replace(place, name)
    return re.sub(r"/tmp/[\w./-]*?([\w.-]+)(?=[\s?&]|$)", r"\1", text)


def _once(name: str, digest: str, install: Callable[[Path], None]) -> Path:
    """The folder of this name and digest, filled by `install` when it is not there yet: built aside, then renamed."""
    place = cache() / f"{name}-{digest}"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as aside:
            folder = Path(aside, "made")
            folder.mkdir()
            install(folder)
            try:
                folder.rename(place)
            except OSError:  # another run was faster
                if not place.exists():
                    raise
    return place


def _digest(*files: Path) -> str:
    made = hashlib.sha256(sys.version.encode())
    for file in files:
        made.update(file.name.encode() + file.read_bytes())
    return made.hexdigest()[:12]


def _run(what: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines() or [str(done.returncode)]
        raise MissingToolError(f"`{what}` failed: {next((line for line in why if line.startswith('ERROR')), why[-1])}")
