"""The audit of a whole server: what was done, by whom, comes to the log and to a sink."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.database import Database
from support.load import Load
from support.raw import GET, framed
from support.server import KEY, Server
from support.sink import HttpSink
from support.streams import END_HEADERS, HEADERS, Streams, frame
from support.waiting import wait_until
from wire.raw import data, fields, literals

from avapd.config import ENGINES

Serve = Callable[..., Server]
Lines = list[dict[str, Any]]
TOKEN = "a-token-nobody-may-see"
WRONG = "a-wrong-key-nobody-may-see"
VICTIM_SECONDS = 0.25  # attacker, victim and judge share a busy machine; without care it would be seconds


def audited(sink: HttpSink, **more: str) -> dict[str, str]:
    return {"AVAPD_AUDIT_SINK_URL": sink.url, "AVAPD_AUDIT_SINK_TOKEN": TOKEN, "AVAPD_WORKERS": "1", **more}


def test_orders_and_what_follows_come_to_the_sink(serve: Serve, sample: Database, tmp_path: Path) -> None:
    """Who ordered what, what was published, quarantined and refused, and new keys: never a key."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with HttpSink() as sink:
        env = audited(sink, API_KEY="", API_KEY_FILE=str(keys), AVAPD_LOG_LEVEL="ERROR")
        server = serve(sample.reader_url, env=env)
        wait_until(lambda: sink.of("published"), 20)
        assert server.order("deny", "addVar").returncode == 0
        assert server.order("deny", "addVar").returncode == 0
        assert server.order("rollback", "99").returncode == 1
        sample.insert([("broken", "[]", "function", "x = = 1")])
        wait_until(lambda: sink.of("quarantined"), 20)
        another = "another-key-of-enough-length"
        keys.write_text(f"{KEY},{another}")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sink.of("keys_changed"), 20)

        orders = sink.of("order")
        assert [(one["what"], one["status"]) for one in orders] == [("deny", 200), ("deny", 200), ("rollback", 409)]
        assert {one["uid"] for one in orders} == {os.getuid()}
        assert json.loads(orders[0]["arguments"]) == {"name": "addVar"}
        assert [one["source"] for one in sink.of("published")][:2] == ["database", "operator"]
        assert list(sink.of("quarantined")[0]["definitions"]) == ["broken"]
        changed = sink.of("keys_changed")[0]
        assert (changed["keys"], len(changed["added"]), changed["removed"]) == (2, 1, [])
        wait_until(lambda: [line for line in server.events() if line.get("audit")] == sink.events)
        wait_until(lambda: server.metric("avap_audit_sent_total") == len(sink.events))
        said = server.log + json.dumps(sink.events)
        assert not any(secret in said for secret in (TOKEN, KEY, another))


def test_a_refused_candidate_is_told(serve: Serve, database: Database) -> None:
    """Its reason and its hash, as they stand in `/status`."""
    database.insert([(f"name{number}", "[]", "function", "x = 1") for number in range(20)])
    with HttpSink() as sink:
        server = serve(database.reader_url, env=audited(sink)).wait_serving()
        database.execute("DELETE FROM obex_dapl_functions")
        wait_until(lambda: sink.of("refused"), 20)
        assert sink.of("refused")[0]["version_hash"] in server.status()["refused"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_flood_of_wrong_keys_is_a_few_lines_and_disturbs_nobody(serve: Serve, sample: Database, engine: str) -> None:
    """Each wrong call is counted, by address, in lines a second apart; good calls are answered meanwhile."""
    block = literals(fields(GET, [(b"x-avap-auth", WRONG.encode())]))
    stop, told = threading.Event(), []

    def flood(port: int) -> None:
        with Streams(port) as streams:
            for first in range(1, 1 << 20, 200):
                numbers = range(first, first + 200, 2)
                streams.send(b"".join(
                    frame(HEADERS, END_HEADERS, number, block) + data(number, framed(b""), end=True)
                    for number in numbers
                ))  # fmt: skip
                endings = streams.endings(numbers)
                told.append(sum(one.field(b"grpc-status") == b"16" for one in endings.values()))
                if stop.is_set():
                    return

    with HttpSink() as sink:
        sink.behave = "hang"
        server = serve(sample.reader_url, env=audited(sink, AVAPD_ENGINE=engine, AVAPD_SILENCE_SECONDS="60"))
        server.wait_serving()
        thread = threading.Thread(target=flood, args=(server.port,), daemon=True)
        thread.start()
        with Load(server.calls, lambda calls: calls.get("addVar"), threads=1) as load:
            wait_until(lambda: len(load.history) > 100 and sum(told) > 1000, 60)
        stop.set()
        thread.join(30)
        assert not load.failures()
        times = sorted(entry.ended - entry.began for entry in load.history)
        assert times[len(times) * 95 // 100] < VICTIM_SECONDS
        total = sum(told)

        def lines() -> Lines:
            return [line for line in server.events("Audit") if line["event"] == "auth_failed"]

        wait_until(lambda: sum(line["count"] for line in lines()) == total)
        assert {line["peer"] for line in lines()} == {"127.0.0.1"}
        assert len(lines()) < total / 20
        assert WRONG not in server.log


def test_the_end_sends_what_waits(serve: Serve, sample: Database) -> None:
    """A sink that is down while events come gets them when it is back for the server's end."""
    with HttpSink() as gone:
        port = gone.port
        env = audited(gone)
    server = serve(sample.reader_url, env=env).wait_serving()
    wait_until(lambda: server.events("Audit Not Sent"))
    assert server.order("freeze").returncode == 0
    with server.calls(WRONG) as calls:
        assert calls.get("addVar").code == 16
    with HttpSink(port) as sink:
        assert server.stop(seconds=15) == 0
        assert {"published", "order", "auth_failed"} <= {one["event"] for one in sink.events}
    assert TOKEN not in server.log
