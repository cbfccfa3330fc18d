"""Named keys on a real server, on both engines: ends, removal, rates and counts, wrong keys, and who is left alone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.server import KEY, Server
from support.waiting import stays, wait_until

from avapd.config import ENGINES
from avapd.pb.avap_pb2 import CatalogRequest

Serve = Callable[..., Server]
WATCH = "/avap.DefinitionEngine/WatchCatalog"
REFUSED = (16, "Invalid Credentials", b"")
RATE = 20


class File:
    """The file of keys, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **keys: str) -> None:
        """Keys by name, `-` for `_`, each with more lines of its table if wanted."""
        new = self.path.with_name("new")
        tables = (
            f'[keys.{name}]\nkey = "{key_of(name)}"\n{more}\n' for name, more in keys.items()
        )  # fmt: skip
        new.write_text("# keys\n" + "\n".join(tables))
        new.chmod(0o600)
        new.replace(self.path)


def key_of(name: str) -> str:
    return f"key-of-{name}-of-enough-length"


@pytest.fixture
def file(tmp_path: Path) -> File:
    made = File(tmp_path / "keys.toml")
    made.write(one="", two="", rated=f"rate = {RATE}")
    return made


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest, serve: Serve, sample: Database, file: File) -> Server:
    """Two workers, with the keys of the file beside KEY."""
    env = {"AVAPD_ENGINE": request.param, "AVAPD_API_KEYS_FILE": str(file.path), "AVAPD_LIMIT_FAILURES": "20"}
    env |= {"AVAPD_LIMIT_FAILURES_PER_SECOND": "1", "AVAPD_SILENCE_SECONDS": "60"}
    return serve(sample.reader_url, env=env).wait_serving()


class Watch:
    """A WatchCatalog call that is read until it ends; `end` is then the status code."""

    def __init__(self, server: Server, key: str) -> None:
        self._calls = server.calls(key)
        self.events = 0
        self.end: tuple[int, str] | None = None
        self._stream: Any = self._calls.channel.unary_stream(WATCH)(
            CatalogRequest().SerializeToString(), metadata=(("x-avap-auth", key),)
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_until(lambda: self.events, what="the first event of a watch")

    def _read(self) -> None:
        try:
            for _ in self._stream:
                self.events += 1
            self.end = (0, "")
        except grpc.RpcError as error:
            self.end = (error.code().value[0], error.details() or "")

    def close(self) -> None:
        self._stream.cancel()
        self._thread.join(10)
        self._calls.close()


@pytest.fixture
def watch(server: Server) -> Iterator[Callable[[str], Watch]]:
    """Begins watches with a key."""
    made: list[Watch] = []

    def begun(key: str) -> Watch:
        made.append(Watch(server, key))
        return made[-1]

    yield begun
    for one in made:
        one.close()


def get(calls: Calls) -> Outcome:
    return calls.get("addVar")


def test_a_removed_key_is_refused_and_its_watches_end_and_no_others(
    server: Server, file: File, watch: Callable[[str], Watch]
) -> None:
    """Within 5 s, on open connections too; calls and watches with other keys notice nothing."""
    gone, stays_on, default = (watch(key) for key in (key_of("one"), key_of("two"), KEY))
    with server.calls(key_of("one")) as one, Load(lambda: server.calls(key_of("two")), get) as load:
        assert get(one).code == 0
        file.write(two="", rated=f"rate = {RATE}")
        began = time.monotonic()
        wait_until(lambda: get(one) == REFUSED)
        wait_until(lambda: gone.end == REFUSED[:2])
        assert time.monotonic() - began < 5
        assert stays(lambda: stays_on.end is None and default.end is None, 0.3)
        file.write(one="", two="", rated=f"rate = {RATE}")
        wait_until(lambda: get(one).code == 0)
    assert load.failures() == []
    (line, *_) = [line for line in server.events("Keys Reloaded") if line["removed"]]
    assert line["removed"] == ["one"]


def test_a_key_ends_by_itself(server: Server, file: File, watch: Callable[[str], Watch]) -> None:
    """When its time comes, though nothing is written and the master is stopped: workers look at the clock."""
    ends = datetime.now(UTC) + timedelta(seconds=4)
    file.write(one=f"expires = {ends.isoformat()}", two="")
    watched, other = watch(key_of("one")), watch(key_of("two"))
    with server.calls(key_of("one")) as one, server.calls(key_of("two")) as two:
        wait_until(lambda: server.metric("avap_key_expires_timestamp_seconds", key="one") == ends.timestamp())
        assert get(one).code == 0
        server.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: get(one) == REFUSED)
            wait_until(lambda: watched.end == REFUSED[:2])
            assert datetime.now(UTC) - ends < timedelta(seconds=5)
            assert datetime.now(UTC) >= ends
            assert get(two).code == 0
            assert other.end is None
        finally:
            server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: [line["key"] for line in server.events("Key Expired")] == ["one"])


def test_a_wrong_file_changes_nothing_until_it_is_right(server: Server, file: File) -> None:
    """An ERROR names line and problem and no key; SIGHUP neither takes it nor ends anything."""
    text = file.path.read_text()
    file.path.write_text(text.replace('key = "', "key = ", 1))
    wait_until(lambda: server.events("Keys Not Reloaded"))
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.events("Settings Not Reloaded"))
    assert server.events("Keys Not Reloaded")[0]["problem"] == "line 3: not valid TOML"
    assert "line 3" in str(server.events("Settings Not Reloaded")[0]["problems"])
    with server.calls(key_of("one")) as one:
        assert get(one).code == 0
    file.path.write_text(text + f'[keys.three]\nkey = "{key_of("three")}"\n')
    with server.calls(key_of("three")) as three:
        wait_until(lambda: get(three).code == 0)
    assert "key-of-" not in server.log


def test_calls_are_counted_by_the_name_of_their_key(server: Server) -> None:
    """Whatever their status; without a right key they are nobody's. Watches count when they end."""
    for name, key in (("default", KEY), ("one", key_of("one")), ("two", key_of("two"))):
        with server.calls(key) as calls:
            for _ in range(3):
                assert get(calls).code == 0
            assert calls.get("no such").code == 5
            assert calls.sync().code == 0
        # A call is counted after its answer has left.
        wait_until(lambda name=name: server.metric("avap_key_requests_total", key=name) == 5)  # type: ignore[misc]
    with server.calls("wrong-key-of-enough-length") as wrong:
        assert get(wrong) == REFUSED
    assert server.metric("avap_key_requests_total") == 15
    assert "key-of-" not in server.http("/metrics")[1]


def test_a_rate_is_that_of_all_workers_and_of_its_key_alone(server: Server) -> None:
    """On connections to both: what goes beyond is RESOURCE_EXHAUSTED at once, counted, audited; others are served."""
    channels = [server.calls(key_of("rated")) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool, server.calls(key_of("two")) as two:
        outcomes: list[Outcome] = []
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            outcomes += pool.map(get, channels)
            assert get(two).code == 0
        seconds = time.monotonic() - began
    for calls in channels:
        calls.close()
    served = sum(outcome.code == 0 for outcome in outcomes)
    limited = [outcome for outcome in outcomes if outcome.code]
    assert set(limited) == {Outcome(8, "Too many calls a second with this key", b"")}
    # The burst of a second, once for each worker at most, and then the rate.
    assert RATE * (seconds - 0.5) <= served <= RATE * (seconds + 2.5)
    assert server.metric("avap_key_limited_total", key="rated") == len(limited)
    assert server.metric("avap_key_requests_total", key="rated") == len(outcomes)
    assert server.metric("avap_key_limited_total", key="two") == 0

    def audited() -> list[dict[str, Any]]:
        return [line for line in server.events("Audit") if line["event"] == "limited"]

    wait_until(lambda: sum(line["count"] for line in audited()) == len(limited))
    assert {(line["key"], line["peer"]) for line in audited()} == {("rated", "127.0.0.1")}


def test_wrong_keys_become_too_many_and_right_ones_are_served(server: Server) -> None:
    """UNAUTHENTICATED, then RESOURCE_EXHAUSTED; from the same address, right keys open all the while, old and new."""
    with server.calls() as known, server.calls("wrong-key-of-enough-length") as wrong:
        assert get(known).code == 0
        outcomes: list[Outcome] = []
        right: list[Outcome] = []

        def too_many() -> bool:
            outcomes.append(get(wrong))
            right.append(get(known))
            return outcomes[-1].code == 8

        wait_until(too_many)
        assert {outcome.code for outcome in right} == {0}, server.log[-2000:]
        assert outcomes[0] == REFUSED
        assert outcomes[-1] == Outcome(8, "Too many wrong keys from this address", b"")
        assert len(outcomes) > 15
        with server.calls(key_of("one")) as fresh:
            assert get(fresh).code == 0
        wait_until(lambda: get(wrong) == REFUSED, what="the allowance grows again")
    assert server.metric("avap_failures_throttled_total") >= 1
