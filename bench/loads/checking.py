"""The clients of the bench `swap`, each in a process of its own: they call, and check every answer."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

from avapd.pb import avap_pb2
from avapd.shared.snapshot import key_of, varint
from bench.servers.avapd import KEY
from bench.servers.database import code_of, name_of

_METADATA: Final = (("x-avap-auth", KEY),)
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
]
_GET: Final = "/avap.DefinitionEngine/GetCommand"
_SYNC: Final = "/avap.DefinitionEngine/SyncCatalog"
_CALL_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 1.0
_SHOWN: Final = 5
# Neighbours in the order of calls are far apart in the table; coprime to every size that is used.
_STRIDE: Final = 7919


@dataclasses.dataclass(slots=True)
class Seen:
    """What a client saw; latencies in seconds, the first few violations in words."""

    answers: int = 0
    violated: int = 0
    violations: list[str] = dataclasses.field(default_factory=list)
    generations: set[int] = dataclasses.field(default_factory=set)
    latencies: list[float] = dataclasses.field(default_factory=list)

    def violation(self, what: str) -> None:
        """Count, and keep the first few."""
        self.violated += 1
        if len(self.violations) < _SHOWN:
            self.violations.append(what)


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """Whom to call, what it should hold, from which CPU; `connections` is for GetCommand."""

    port: int
    count: int
    definition_bytes: int
    cpu: int
    connections: int = 6


def generation_of(code: bytes, number: int, definition_bytes: int) -> int | None:
    """The generation of a definition's code; None when it is not, byte for byte, what one generation holds."""
    head, _, _ = code.partition(b"\n")
    digits = head.removeprefix(b"generation = ")
    generation = int(digits) if digits.isdigit() else -1
    return generation if code == code_of(number, generation, definition_bytes) else None


def get_commands(pipe: Connection, task: Task, ready: Barrier, stop: Event) -> None:
    """GetCommand in a closed loop on each connection, until `stop`; sends what it saw through `pipe`."""
    os.sched_setaffinity(0, {task.cpu})
    seen = Seen()

    async def loop(start: int) -> None:
        newest = -1
        async with grpc.aio.insecure_channel(f"127.0.0.1:{task.port}", options=_OPTIONS) as channel:
            call = channel.unary_unary(_GET)
            for turn in itertools.count(start * (task.count // task.connections)):
                if stop.is_set():
                    return
                newest = max(newest, await _get(call, task, turn * _STRIDE % task.count, newest, seen))

    async def main() -> None:
        await asyncio.gather(*(loop(start) for start in range(task.connections)))

    ready.wait(60)
    uvloop.run(main())
    pipe.send(seen)


async def _get(call: Any, task: Task, number: int, newest: int, seen: Seen) -> int:
    """One call and its check; the generation of the answer, -1 for none."""
    name = name_of(number)
    began = time.perf_counter()
    try:
        raw = await call(key_of(name), timeout=_CALL_SECONDS, metadata=_METADATA)
    except grpc.aio.AioRpcError as error:
        seen.violation(f"GetCommand {name}: {error.code().name} {error.details()}")
        return -1
    seen.latencies.append(time.perf_counter() - began)
    seen.answers += 1
    answer = avap_pb2.CommandResponse.FromString(raw)
    generation = generation_of(answer.code, number, task.definition_bytes)
    if answer.name != name or generation is None or answer.hash != hashlib.sha256(answer.code).hexdigest():
        seen.violation(f"GetCommand {name}: torn answer {raw[:120]!r}")
        return -1
    if generation < newest:
        seen.violation(f"GetCommand {name}: generation {generation} after {newest} on one connection")
    seen.generations.add(generation)
    return generation


def sync_catalogs(pipe: Connection, task: Task, ready: Barrier, stop: Event) -> None:
    """SyncCatalog with pauses between, until `stop`; sends what it saw through `pipe`."""
    os.sched_setaffinity(0, {task.cpu})
    seen = Seen()
    ready.wait(60)
    while True:
        with grpc.insecure_channel(f"127.0.0.1:{task.port}", options=_OPTIONS) as channel:
            _sync(channel.unary_unary(_SYNC), task, seen)
        if stop.wait(_PAUSE_SECONDS):
            break
    pipe.send(seen)


def _sync(call: Any, task: Task, seen: Seen) -> None:
    """One catalog and its check."""
    began = time.perf_counter()
    try:
        raw = call(b"", timeout=_CALL_SECONDS, metadata=_METADATA)
    except grpc.RpcError as error:
        seen.violation(f"SyncCatalog: {error.code().name} {error.details()}")
        return
    seen.latencies.append(time.perf_counter() - began)
    seen.answers += 1
    answer, count = avap_pb2.CatalogResponse.FromString(raw), task.count
    records = raw[: -len(b"\x10" + varint(count) + b"\x1a\x40") - 64]
    generations = {
        generation_of(command.code, number, task.definition_bytes) for number, command in enumerate(answer.commands)
    }
    if not answer.total_count == len(answer.commands) == count:
        seen.violation(f"SyncCatalog: {len(answer.commands)} rows, total_count {answer.total_count} instead of {count}")
    elif hashlib.sha256(records).hexdigest() != answer.version_hash:
        seen.violation("SyncCatalog: version_hash is not that of the rows")
    elif len(generations) != 1 or None in generations:
        seen.violation(f"SyncCatalog: rows of generations {generations}")
    elif any(command.hash != hashlib.sha256(command.code).hexdigest() for command in answer.commands):
        seen.violation("SyncCatalog: a row's hash is not that of its code")
    else:
        seen.generations |= {generation for generation in generations if generation is not None}
