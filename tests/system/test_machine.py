"""Anything may happen to the table, the database and the workers; what is served was in the table once, and ends as it.

A Hypothesis state machine edits, breaks, deletes, doubles and restores rows, cuts the line to the database and kills
workers. After each step it asks all four rpcs, and holds the answers against every state that the table ever had. A
definition that was broken is never served so, and never vanishes: its last good version stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import grpc
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from support.database import Database
from support.proxy import Proxy, proxied
from support.server import KEY, Server
from support.waiting import wait_until

from avapd.demo.postgres import Postgres
from avapd.pb.avap_pb2 import CatalogChunk, CatalogEvent, CatalogResponse, CommandResponse

Serve = Callable[..., Server]
SERVICE = "/avap.DefinitionEngine/"
METADATA = (("x-avap-auth", KEY),)
EXAMPLES = int(os.environ.get("AVAPD_TEST_MACHINES", "2"))
STEPS = int(os.environ.get("AVAPD_TEST_STEPS", "15"))
BROKEN = "def broken(:"
NAMES = [f"command_{number:02}" for number in range(24)]
ENV = {"AVAPD_REFRESH_SECONDS": "0.1", "AVAPD_DATABASE_SECONDS": "1", "AVAPD_ORPHAN_SECONDS": "5"}

name = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    """A table, the server that follows it, and all that the table ever held."""

    serve: ClassVar[Serve]
    database: ClassVar[Database]
    port: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.ever: set[tuple[str, bytes]] = set()  # all that was sound
        self.kept: set[str] = set()  # broken names that were served before, and were not deleted since
        self.turn = 0
        self.cut = False
        self.proxy = Proxy(("127.0.0.1", self.port))

    @initialize()
    def begin(self) -> None:
        self.database.execute("TRUNCATE obex_dapl_functions RESTART IDENTITY")
        self.database.insert([(one, "[]", "function", f"# code of {one}\n") for one in NAMES])
        self.note()
        self.server = type(self).serve(proxied(self.database, self.proxy), env=ENV).wait_serving()

    def note(self) -> None:
        """Remember what the table holds, winners and losers alike."""
        self.ever |= {
            (row["name"], row["code"].encode())
            for row in self.database.query("SELECT name, code FROM obex_dapl_functions")
            if row["name"] and row["code"] not in {None, BROKEN}
        }
        self.kept &= self.table().keys()

    def table(self) -> dict[str, bytes]:
        """What should be served in the end, if it is not broken: of each name the highest id."""
        rows = self.database.query("SELECT name, code FROM obex_dapl_functions ORDER BY id")
        return {row["name"]: row["code"].encode() for row in rows if row["name"] and row["code"] is not None}

    def change(self, sql: str, *arguments: Any) -> None:
        """One step of the table, and a look at what is served."""
        self.turn += 1
        self.database.execute(sql, *arguments)
        self.note()
        self.look()

    # --- what may happen --------------------------------------------------------------------------------------

    @rule(of=name)
    def edit(self, of: str) -> None:
        self.change("UPDATE obex_dapl_functions SET code = $1 WHERE name = $2", f"turn = {self.turn}", of)

    @rule(of=name)
    def add(self, of: str) -> None:
        """A row of a name that is there already, as a rule."""
        self.change("INSERT INTO obex_dapl_functions (name, code) VALUES ($1, $2)", of, f"doubled = {self.turn}")

    @rule(of=name)
    def break_it(self, of: str) -> None:
        if all(of in served for served, _ in self.catalogs()) and of in self.table():
            self.kept.add(of)
        self.change("UPDATE obex_dapl_functions SET code = $1 WHERE name = $2", BROKEN, of)

    @rule(of=name)
    def unname(self, of: str) -> None:
        self.change("UPDATE obex_dapl_functions SET code = NULL WHERE name = $1", of)

    @rule(of=name)
    def delete(self, of: str) -> None:
        self.change("DELETE FROM obex_dapl_functions WHERE name = $1", of)

    @rule()
    def lose_half(self) -> None:
        """Nobody means that: it must be refused while there are ten."""
        self.change("DELETE FROM obex_dapl_functions WHERE id % 2 = 0")

    @rule()
    def restore(self) -> None:
        missing = [one for one in NAMES if one not in self.table()]
        for one in missing:
            self.database.execute("INSERT INTO obex_dapl_functions (name, code) VALUES ($1, $2)", one, "restored")
        self.note()
        self.look()

    @rule(which=st.integers(0, 1))
    def kill_a_worker(self, which: int) -> None:
        pids = self.server.workers()
        if which < len(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[which], signal.SIGKILL)
        self.look()

    @precondition(lambda self: not self.cut)
    @rule(how=st.sampled_from(["refuse", "reset", "freeze"]))
    def cut_the_line(self, how: str) -> None:
        self.proxy.become(how)
        self.cut = True
        self.look()

    @precondition(lambda self: self.cut)
    @rule()
    def mend_the_line(self) -> None:
        self.proxy.become("forward")
        self.cut = False
        self.look()

    # --- what must hold ---------------------------------------------------------------------------------------

    def look(self) -> None:
        """Whatever is served was in the table once; the catalogs of all rpcs have the hash they announce."""
        for served, version_hash in self.catalogs():
            commands = [served[one] for one in sorted(served)]
            raw = CatalogResponse(commands=commands).SerializeToString()
            assert hashlib.sha256(raw).hexdigest() == version_hash
            for one in commands:
                assert (one.name, one.code) in self.ever
                assert one.hash == hashlib.sha256(one.code).hexdigest()

    def catalogs(self) -> list[tuple[dict[str, CommandResponse], str]]:
        """The catalog by SyncCatalog, StreamCatalog and WatchCatalog, each on a connection of its own."""
        whole = CatalogResponse.FromString(self.called("SyncCatalog")[0])
        chunks = [CatalogChunk.FromString(raw) for raw in self.called("StreamCatalog")]
        event = CatalogEvent.FromString(self.called("WatchCatalog")[0])
        streamed = {command.name: command for chunk in chunks for command in chunk.commands}
        return [
            ({command.name: command for command in whole.commands}, whole.version_hash),
            (streamed, chunks[-1].version_hash),
            ({command.name: command for command in event.commands}, event.version_hash),
        ]

    def called(self, method: str) -> list[bytes]:
        """What an rpc answers; of a watch the first event. A worker that was killed is asked again, at another."""

        def once() -> list[bytes]:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{self.server.port}", options=options) as channel:
                try:
                    if method == "SyncCatalog":
                        return [channel.unary_unary(SERVICE + method)(b"", metadata=METADATA, timeout=5)]
                    call = channel.unary_stream(SERVICE + method)(b"", metadata=METADATA, timeout=5)
                    return [next(call)] if method == "WatchCatalog" else list(call)
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # the message is grpc's
                    return []

        return wait_until(once, 10, method)

    def teardown(self) -> None:
        """The line is mended, what is refused is approved: then the table is what is served, everywhere."""
        if not hasattr(self, "server"):
            self.proxy.close()
            return
        try:
            self.proxy.become("forward")
            expected = self.table()
            wait_until(lambda: self.converged(expected), 20, "what is served becomes what the table holds")
        finally:
            self.server.__exit__()
            self.proxy.close()

    def converged(self, expected: dict[str, bytes]) -> bool:
        refused = self.server.status()["refused"]
        if refused:
            self.server.order("approve", refused.rpartition(" ")[2])
        return all(self.as_it_should_be(served, expected) for served, _ in self.catalogs())

    def as_it_should_be(self, served: dict[str, CommandResponse], expected: dict[str, bytes]) -> bool:
        """What is sound is served; of what is broken something sound, if it was served before, and nothing else."""
        broken = {one for one, code in expected.items() if code == BROKEN.encode()}
        rest = {one: command.code for one, command in served.items() if one not in broken}
        return rest == {one: expected[one] for one in expected.keys() - broken} and self.kept & broken <= served.keys()


@pytest.mark.skipif(
    os.environ.get("AVAPD_TEST_POSTGRES") == "docker", reason="cuts the line to a PostgreSQL of its own, from the wheel"
)
@pytest.mark.timeout(300)
def test_whatever_happens_what_is_served_was_in_the_table(
    tcp: tuple[Database, Postgres, int], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No torn catalog, no definition that never was, and in the end the table (`AVAPD_TEST_MACHINES` for more)."""
    database, _, port = tcp
    for field, value in (("serve", staticmethod(serve)), ("database", database), ("port", port)):
        monkeypatch.setattr(Machine, field, value, raising=False)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
