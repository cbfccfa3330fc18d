"""One real worker, driven by hand through its channel: what it accepts and what it refuses (scenarios 15 and 16)."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator

import psutil
import pytest
from support.access import key_of
from support.calls import Calls
from support.raw import Raw
from support.server import KEY, free_port
from support.waiting import stays, wait_until

from avapd.control.listeners import open_listeners
from avapd.control.worker import Worker, environment
from avapd.pb import avap_pb2
from avapd.shared import board, memory, snapshot
from avapd.shared.board import Board, State
from avapd.shared.channel import (
    Ack,
    Adopt,
    Booted,
    Compressed,
    Drain,
    Keys,
    Load,
    Message,
    Reject,
    Release,
    Start,
    Want,
)
from avapd.wire.limits import Limits

ENCODINGS = (b"grpc-accept-encoding", b"identity,deflate,gzip")


def arena(generation: int, names: list[str], *, seal: bool = True) -> tuple[int, int]:
    """A descriptor and size of a snapshot with these commands."""
    messages = [
        avap_pb2.CommandResponse(name=name, code=str(generation).encode()).SerializeToString() for name in names
    ]
    fd = memory.create("avapd-snapshot")
    size = snapshot.pack(fd, generation, len(messages), messages).arena_size
    if not seal:
        copy = memory.create("avapd-snapshot")
        memory.write_at(copy, os.pread(fd, size, 0), 0)
        os.close(fd)
        fd = copy
    return fd, size


class Rig:
    """A worker with the test in the master's place."""

    def __init__(self, *, catalog: bool, spare: bool = False) -> None:
        self.port = free_port()
        self.listeners = open_listeners("127.0.0.1", self.port, 1)
        self.board = Board(board.create(4), 4)
        start = Start(
            slot=0, row=0, rows=4, slots=2, cpu=0, engine="wire", environment="test", log_level="ERROR",
            keys=[key_of(KEY)], catalog=catalog, spare=spare, orphan_seconds=0.2,
            max_stale_seconds=0.0, pre_drain_seconds=0.0, drain_seconds=2.0, max_answer_bytes=1 << 20,
            limits=dataclasses.asdict(Limits()),
        )  # fmt: skip
        self.worker = Worker(start, self.board.row(0), self.board.fd, self.listeners[0], environment(os.environ, 4))
        self._heard: list[Message] = []

    def load(self, generation: int, fd: int, size: int, *, thorough: bool = False) -> Ack | Reject:
        """Send a Load and wait for the verdict."""
        self.worker.send(Load(generation=generation, size=size, thorough=thorough), fd)
        os.close(fd)
        verdict = self.hear((Ack, Reject))
        assert isinstance(verdict, Ack | Reject)
        return verdict

    def hear(self, kinds: tuple[type, ...]) -> Message:
        """The next message of one of these kinds."""
        while True:
            while self._heard:
                message = self._heard.pop(0)
                if isinstance(message, kinds):
                    return message
            readable, _, _ = select.select([self.worker.channel], [], [], 10)
            assert readable, f"no {kinds} came"
            self._heard += [message for message, _ in self.worker.channel.receive()]

    def close(self) -> None:
        self.worker.signal(signal.SIGKILL)
        self.worker.bury(self.worker._process.wait())
        for listener in self.listeners:
            listener.close()
        os.close(self.board.fd)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A worker that has booted with a catalog of generation 5: `a`, `b`."""
    made = Rig(catalog=True)
    assert isinstance(made.load(5, *arena(5, ["a", "b"])), Ack)
    yield made
    made.close()


def test_it_serves_what_it_was_given_from_a_port_it_never_opened(rig: Rig) -> None:
    """After its ack a worker serves the snapshot on the master's socket; its row says so."""
    with Calls(f"127.0.0.1:{rig.port}", KEY) as calls:
        assert calls.command("a").code == b"5"
        assert calls.health() == "SERVING"
    assert rig.worker.state is State.SERVING
    assert rig.board.row(0)[board.GENERATION] == 5
    assert rig.board.row(0)[board.PID] == rig.worker.pid


def test_without_a_catalog_the_port_answers_not_serving() -> None:
    """A cold start opens the port before there is a catalog, and says NOT_SERVING there until there is one."""
    cold = Rig(catalog=False)
    try:
        cold.hear((Booted,))
        with Calls(f"127.0.0.1:{cold.port}", KEY) as calls:
            assert calls.health() == "NOT_SERVING"
            assert calls.get("a").code == 14
            assert isinstance(cold.load(1, *arena(1, ["a"])), Ack)
            assert calls.health() == "SERVING"
            assert calls.command("a").code == b"1"
    finally:
        cold.close()


@pytest.mark.parametrize("what", ["unsealed", "short", "long", "other generation", "older", "same", "garbage", "cut"])
def test_a_snapshot_that_is_not_right_is_rejected_and_the_old_one_served(rig: Rig, what: str) -> None:
    """Seals, size, magic, generation and checksum are checked before the swap; the answers stay those of before."""
    fd, size = arena(6, ["a", "b", "c"], seal=what != "unsealed")
    generation = 6
    match what:
        case "short":
            size -= 1
        case "long":
            size += 4096
        case "other generation":
            generation = 7
        case "older" | "same":
            os.close(fd)
            generation = 4 if what == "older" else 5
            fd, size = arena(generation, ["a"])
        case "garbage":
            os.close(fd)
            fd, size = memory.create("x"), 4096
            memory.write_at(fd, os.urandom(size), 0)
            memory.seal(fd)
        case "cut":
            data = os.pread(fd, size // 2, 0)
            os.close(fd)
            fd, size = memory.create("x"), len(data)
            memory.write_at(fd, data, 0)
            memory.seal(fd)
    verdict = rig.load(generation, fd, size)
    assert isinstance(verdict, Reject), what
    assert verdict.reason
    with Calls(f"127.0.0.1:{rig.port}", KEY) as calls:
        assert calls.command("b").code == b"5"
        assert calls.health() == "SERVING"
    assert isinstance(rig.load(9, *arena(9, ["a"])), Ack), "it takes the next good one"


def misplaced(fd: int, size: int, name: str) -> tuple[int, int]:
    """The same arena, sealed and with right checksums, but a name is not found through its index."""
    octets = bytearray(os.pread(fd, size, 0))
    os.close(fd)
    header = snapshot.Header(*snapshot.HEADER.unpack_from(octets))
    mask = header.slots - 1
    slot = snapshot.hash_of(snapshot.key_of(name)) & mask
    while octets[snapshot.HEADER_SIZE + slot * 16 + 12 :][:4] != struct.pack(
        "<I", snapshot.hash_of(snapshot.key_of(name)) >> 32
    ):
        slot = (slot + 1) & mask
    octets[snapshot.HEADER_SIZE + slot * 16 + 12] ^= 1
    index = octets[snapshot.HEADER_SIZE : header.records_offset]
    tail = bytes(octets[header.records_offset + header.records_size :])
    octets[: snapshot.HEADER.size] = snapshot.HEADER.pack(
        *header._replace(checksum=snapshot._checksum(header, index, tail))
    )
    made = memory.create("avapd-snapshot")
    memory.write_at(made, octets, 0)
    memory.seal(made)
    return made, size


def test_who_goes_first_tries_every_definition(rig: Rig) -> None:
    """One that is not answered as it lies there is a reason to refuse, wherever it stands; calls go on meanwhile."""
    names = [f"command{number:04}" for number in range(3000)]
    with Calls(f"127.0.0.1:{rig.port}", KEY) as calls:
        verdict = rig.load(6, *misplaced(*arena(6, names), "command2900"), thorough=True)
        assert isinstance(verdict, Reject)
        assert verdict.reason == "a definition is answered with 5, Command 'command2900' not found"
        assert calls.command("b").code == b"5"
        assert isinstance(rig.load(7, *arena(7, names), thorough=True), Ack)
        assert calls.command("command2900").code == b"7"


def test_a_spare_worker_loads_and_serves_nobody() -> None:
    """It acks like any other, and never accepts a connection."""
    spare = Rig(catalog=False, spare=True)
    try:
        spare.hear((Booted,))
        assert isinstance(spare.load(1, *arena(1, ["a"]), thorough=True), Ack)
        with Calls(f"127.0.0.1:{spare.port}", KEY) as calls:
            assert calls.get("a", timeout=0.5).code == 4
    finally:
        spare.close()


def test_of_several_waiting_snapshots_only_the_newest_is_taken(rig: Rig) -> None:
    """Scenario 15: what piled up while the worker was stopped is skipped; generations never go back."""
    rig.worker.signal(signal.SIGSTOP)
    for generation in (6, 7, 8):
        fd, size = arena(generation, ["a"])
        rig.worker.send(Load(generation=generation, size=size), fd)
        os.close(fd)
    rig.worker.signal(signal.SIGCONT)
    ack = rig.hear((Ack, Reject))
    assert isinstance(ack, Ack)
    assert ack.generation == 8


@pytest.mark.parametrize("what", ["right", "other generation", "other octets", "unsealed", "short"])
def test_a_compressed_catalog_is_sent_only_when_it_is_right(rig: Rig, what: str) -> None:
    """The worker wants it once a client takes gzip; one that is not what was announced is never sent to anybody."""
    path, takes = b"/avap.DefinitionEngine/SyncCatalog", ((b"x-avap-auth", KEY.encode()), ENCODINGS)
    with Raw(rig.port) as raw:
        plain = raw.call(path, metadata=takes)
        assert plain.data[0] == 0
        assert rig.hear((Want, Ack)) == Want(generation=5)
        packed = gzip.compress(plain.data[5:])
        fd = memory.create("test")
        memory.write_at(fd, packed, 0)
        if what != "unsealed":
            memory.seal(fd)
        checksum = hashlib.sha256(b"" if what == "other octets" else packed).hexdigest()
        generation, size = 4 if what == "other generation" else 5, len(packed) - (what == "short")
        rig.worker.send(Compressed(generation=generation, size=size, checksum=checksum), fd)
        os.close(fd)
        if what == "right":
            wait_until(lambda: raw.call(path, metadata=takes).data[0] == 1)
            assert raw.call(path, metadata=takes).data[5:] == packed
            assert raw.call(path, metadata=takes[:1]) == plain
        else:
            assert stays(lambda: raw.call(path, metadata=takes) == plain, 0.2)
        assert isinstance(rig.load(6, *arena(6, ["a"])), Ack)
        assert raw.call(path, metadata=takes).data[0] == 0
        assert rig.hear((Want,)) == Want(generation=6)


def test_keys_change_while_it_serves(rig: Rig) -> None:
    """A new set of digests replaces the old one at once; the worker never holds a key itself."""
    rig.worker.send(Keys(keys=[key_of("another-key-of-length")]))
    with Calls(f"127.0.0.1:{rig.port}", "another-key-of-length") as new, Calls(f"127.0.0.1:{rig.port}", KEY) as old:
        wait_until(lambda: new.get("a").code == 0)
        assert old.get("a").code == 16


def test_it_adopts_and_releases_another_slots_socket(rig: Rig) -> None:
    """With two sockets on the port every connection is answered, also those the kernel gives to the idle slot."""
    rig.listeners += open_listeners("127.0.0.1", rig.port, 1)
    rig.worker.send(Adopt(slot=1), rig.listeners[1].fileno())

    def answered() -> int:
        count = 0
        for _ in range(20):
            with Calls(f"127.0.0.1:{rig.port}", KEY) as calls:
                count += calls.get("a", timeout=2.0).code == 0
        return count

    assert answered() == 20
    rig.worker.send(Release(slot=1))
    rig.listeners[1].close()
    wait_until(lambda: answered() == 20)


def test_it_drains_on_request_and_leaves_the_masters_socket_listening(rig: Rig) -> None:
    """Drain ends with exit 0, and the slot's socket still takes connections for the next worker."""
    rig.worker.send(Drain(at_once=True))
    assert rig.worker._process.wait(10) == 0
    with socket.create_connection(("127.0.0.1", rig.port), 2) as waiting:
        assert waiting.getpeername()[1] == rig.port
    rig.worker._process.returncode = 0


def test_it_is_pinned_has_no_core_dumps_and_many_files(rig: Rig) -> None:
    """One CPU, RLIMIT_CORE 0, RLIMIT_NOFILE at the hard limit."""
    process = psutil.Process(rig.worker.pid)
    assert process.cpu_affinity() == [0]
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard


def test_messages_are_plain_data() -> None:
    """A Start message holds digests, never a key, and nothing of the database."""
    names = {field.name for field in dataclasses.fields(Start)}
    assert not {name for name in names if "url" in name or "database" in name or name == "api_keys"}
