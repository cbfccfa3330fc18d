"""The import table of architecture.md and the size budget of style.md, held against the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import avapd

PACKAGE = Path(avapd.__file__).parent
FILE_LINES = 400
FUNCTION_LINES = 50
# The frame loop, which may have 80 lines: no call where none is needed, and a plain twin in the tests.
LOOP, LOOP_LINES = ("wire/connection.py", "_frames"), 80

# Room → the rooms of ours it may import. A room is the first name below `avapd`; a longer name opens only that module.
ROOMS: dict[str, tuple[str, ...]] = {
    "wire": (),
    "errors": (),
    "pb": (),
    "log": ("errors",),
    "config": ("errors", "wire.limits"),
    "shared": ("errors",),
    "data": ("shared", "wire", "config", "log", "errors"),
    "control": ("shared", "wire", "config", "log", "errors", "pb"),
    "client": ("errors", "pb"),
    "demo": ("control.package", "config", "log", "errors"),
    "cli": ("control", "client", "demo", "config", "log", "errors"),
    "__main__": ("cli",),
    "__init__": (),
}
# What one file of a room may do beyond its room.
FILES: dict[str, tuple[str, ...]] = {"data/grpcio_engine.py": ("pb",), "data/reflection.py": ("pb",)}
# Foreign packages that only these rooms or files may import.
GUARDED: dict[str, tuple[str, ...]] = {
    "asyncpg": ("control/source/connection.py",),
    "prometheus_client": ("control",),
    "opentelemetry": ("control/otlp.py",),
    "subprocess": ("control", "demo"),
    "grpc": (*(f"data/grpcio_{name}.py" for name in ("calls", "engine", "doors", "health", "marks")), "client"),
    **dict.fromkeys(
        ("grpc_health", "grpc_reflection"),
        ("data/grpcio_engine.py", "data/reflection.py", "client"),
    ),
}
# What a room must not even take from the standard library.
NEVER: dict[str, tuple[str, ...]] = {"wire": ("asyncio", "socket", "os", "time", "threading", "logging")}


def sources() -> list[str]:
    """Every file of ours below avapd/, generated code left out."""
    paths = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return sorted(path for path in paths if not path.startswith("pb/"))


def imported(path: str, tree: ast.AST) -> Iterator[str]:
    """Absolute names of all that a file imports, wherever the statement stands and however it is written."""
    above = ("avapd", *Path(path).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = above[: len(above) + 1 - node.level] if node.level else ()
            base = (*parents, *filter(None, [node.module]))
            yield from (".".join((*base, alias.name)) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                yield str(name.value)


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a dotted name or a path is one of the places or lies in one."""
    return any(name == place or name.startswith((f"{place}.", f"{place}/")) for place in places)


def breaches(path: str, source: str) -> list[str]:
    """What a file imports and must not."""
    room = Path(path).parts[0].removesuffix(".py")
    allowed = (room, *ROOMS[room], *FILES.get(path, ()), "__version__")
    found = []
    for name in imported(path, ast.parse(source)):
        top, _, inner = name.partition(".")
        if top == "avapd":
            wrong = bool(inner) and not within(inner, allowed)
        else:
            wrong = top in NEVER.get(room, ()) or (top in GUARDED and not within(path, GUARDED[top]))
        if wrong:
            found.append(name)
    return found


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_only_what_its_room_may(path: str) -> None:
    """The table of architecture.md holds for every file."""
    assert breaches(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_every_room_is_in_the_table() -> None:
    """Nobody adds a room without saying what it may import."""
    assert {Path(path).parts[0].removesuffix(".py") for path in sources()} <= set(ROOMS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/link.py", "import avapd.control.source"),
        ("data/link.py", "import avapd.control.source as harmless"),
        ("data/link.py", "from avapd import control"),
        ("data/link.py", "from avapd import *"),
        ("data/link.py", "from .. import control"),
        ("data/link.py", "from ..control import package"),
        ("data/link.py", "from ..control.package import sign"),
        ("data/link.py", "def f():\n    from avapd.client import Client"),
        ("data/link.py", "class A:\n    async def f(self):\n        import avapd.demo"),
        ("data/link.py", "if TYPE_CHECKING:\n    from avapd.control.worker import Worker"),
        ("data/link.py", "try:\n    import asyncpg.protocol\nexcept ImportError:\n    pass"),
        ("data/link.py", "import importlib\nimportlib.import_module('avapd.control')"),
        ("data/link.py", "__import__('prometheus_client')"),
        ("data/link.py", "import subprocess"),
        ("data/link.py", "from avapd.pb import avap_pb2"),
        ("data/service.py", "import grpc"),
        ("data/grpcio_listener.py", "from grpc_health.v1 import health_pb2"),
        ("data/worker.py", "from grpc_reflection.v1alpha import reflection"),
        ("data/grpcio_engine.py", "import asyncpg"),
        ("shared/board.py", "from avapd.log import Log"),
        ("shared/board.py", "from ..data import worker"),
        ("log.py", "from . import config"),
        ("config.py", "from avapd.log import Log"),
        ("errors.py", "import avapd.log"),
        ("control/check.py", "import asyncpg"),
        ("control/check.py", "from avapd.data.service import Service"),
        ("control/check.py", "from avapd.client import Client"),
        ("control/check.py", "import grpc.aio"),
        ("control/check.py", "from avapd.demo.postgres import Postgres"),
        ("client/calls.py", "from avapd.shared.snapshot import View"),
        ("client/calls.py", "from avapd import log"),
        ("demo/catalog.py", "from avapd.control import source"),
        ("demo/catalog.py", "from avapd.control.packages import sign"),
        ("cli/server.py", "from avapd.data.worker import serve"),
        ("cli/server.py", "from avapd.shared import memory"),
        ("wire/frames.py", "import asyncio"),
        ("wire/frames.py", "from os import path"),
        ("wire/frames.py", "from avapd.errors import AvapdError"),
    ],
)
def test_the_check_catches_a_breach(path: str, source: str) -> None:
    """Direct, relative, in a function, for typing only, by name at run time: each way of breaking the table is seen."""
    assert breaches(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/link.py", "from avapd import __version__\nimport avapd\nimport asyncio"),
        ("data/link.py", "from . import service\nfrom .service import Service\nfrom ..shared import board"),
        ("data/grpcio_engine.py", "import grpc\nfrom avapd.pb import avap_pb2"),
        ("control/source/connection.py", "import asyncpg\nfrom avapd.errors import SourceError"),
        ("demo/catalog.py", "from avapd.control import package\nfrom avapd.control.package import sign"),
        ("wire/frames.py", "import struct\nfrom avapd.wire.errors import WireError"),
    ],
)
def test_the_check_lets_pass_what_is_allowed(path: str, source: str) -> None:
    """The check is no tighter than the table."""
    assert breaches(path, source) == []


def test_a_worker_holds_nothing_of_the_control_plane() -> None:
    """A worker's process has loaded neither the control plane, nor a database driver, nor Prometheus."""
    code = "import avapd.data.__main__, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "avapd.data.worker" in loaded
    held = [name for name in loaded if within(name, ("avapd.control", "avapd.client", "asyncpg", "prometheus_client"))]
    assert held == []


@pytest.mark.parametrize("path", sources())
def test_a_file_stays_within_the_budget(path: str) -> None:
    """At most 400 lines a file and 50 a function, 80 the frame loop."""
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= FILE_LINES
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno + 1 > (LOOP_LINES if (path, node.name) == LOOP else FUNCTION_LINES)
    }
    assert long == {}
