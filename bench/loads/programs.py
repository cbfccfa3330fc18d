"""Clients as people have them, each in its own language: ghz, and closed loops on grpcio, grpc-js and grpc-go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.loads.load import Done, Load
from bench.servers.avapd import BenchError
from bench.servers.build import PEERS, PROTO, go, go_install, npm, shown, tool
from bench.servers.contestants import Target

_GHZ: Final = ("github.com/bojand/ghz/cmd/ghz", "v0.93.0")


def grpcio(target: Target, load: Load, seconds: float) -> Done:
    """grpc.aio on uvloop."""
    return _program([sys.executable, str(PEERS / "grpc_aio" / "load.py")], target, load, seconds)


def grpc_js(target: Target, load: Load, seconds: float) -> Done:
    """@grpc/grpc-js on Node."""
    return _program(grpc_js_program(), target, load, seconds)


def grpc_js_program() -> list[str]:
    """How it is called, built once. Raises MissingToolError."""
    return [tool("node", "https://nodejs.org"), str(npm("grpc_js") / "load.js")]


def grpc_go(target: Target, load: Load, seconds: float) -> Done:
    """grpc-go."""
    return _program(grpc_go_program(), target, load, seconds)


def grpc_go_program() -> list[str]:
    """How it is called, built once. Raises MissingToolError."""
    return [str(go("grpc_go", "./load"))]


def ghz_path() -> Path:
    """Where ghz is, built once. Raises MissingToolError."""
    return go_install(*_GHZ)


def ghz(target: Target, load: Load, seconds: float) -> Done:
    """ghz: each call with its default deadline of 20 s, so that no header block repeats."""
    call = target.path.strip("/").replace("/", ".")
    command = [
        str(ghz_path()), "--insecure", f"--proto={PROTO}", f"--call={call}",
        f"--connections={load.connections}", f"--concurrency={load.connections * load.streams}",
        f"--duration={seconds}s", "--duration-stop=wait", "--cpus=1", f"--metadata={json.dumps(target.headers)}",
        f"--data={json.dumps({'name': target.message[2:].decode()})}", "--format=json",
        f"127.0.0.1:{target.port}",
    ]  # fmt: skip
    said = json.loads(_output(command))
    good: int = said["statusCodeDistribution"].get("OK", 0)
    return Done(good, said["count"] - good, said["total"] / 1e9, said["average"] / 1e9, shown(command))


def _program(command: Sequence[str], target: Target, load: Load, seconds: float) -> Done:
    asked = {
        "port": target.port, "path": target.path, "headers": target.headers, "message": target.message.hex(),
        "answer_bytes": target.answer_bytes, "status": target.status, **load._asdict(), "seconds": seconds,
    }  # fmt: skip
    words = [*command, json.dumps(asked)]
    done: dict[str, Any] = json.loads(_output(words))
    return Done(**done, command=shown(words))


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{shown(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
