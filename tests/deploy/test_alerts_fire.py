"""Every alert, seen firing: a real Prometheus scrapes real servers, to which what the alert is about is done.

The rules are those of deploy/monitoring, sixty times as fast; their own times are what promtool tests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
import trustme
from deploy.prometheus import Alert, Prometheus
from deploy.rules import alerts
from support.certificates import Folder, days_on
from support.server import Server, free_port
from support.waiting import stays, wait_until

from avapd.demo.postgres import Postgres

pytestmark = pytest.mark.timeout(300)  # the first run downloads Prometheus

ROWS = 150
NOT_FOUND, UNAUTHENTICATED = 5, 16
# What cannot be caused from outside: a cgroup of the server's own with a limit.
UNSEEN = {"AvapMemoryTight"}
# Workers in which a name with `slow` takes 5 ms and one with `fail` fails; a master that asks its connection often.
ALTERED = """
import sys
if "avapd.data" in sys.orig_argv:
    import time
    from avapd.data.service import Service

    get = Service.get_command

    def got(self, request):
        if b"slow" in request:
            time.sleep(0.005)
        if b"fail" in request:
            raise RuntimeError("as the test wants it")
        return get(self, request)

    Service.get_command = got
elif "serve" in sys.orig_argv:
    from avapd.control.source import listener

    listener._ASK_SECONDS = 0.5
"""


class Watch:
    """Prometheus, and every alert that was seen firing."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.seen: dict[str, Alert] = {}

    def firing(self, instance: str = "") -> set[str]:
        """The names of what fires, on one instance or on any."""
        found = self.prometheus.firing()
        self.seen |= {alert.name: alert for alert in found}
        return {alert.name for alert in found if not instance or alert.labels.get("instance", instance) == instance}

    def wait(self, *names: str, instance: str = "", cause: Callable[[], object] = object) -> None:
        """Until all of these have fired; `cause` is done again and again meanwhile."""
        missing = set(names)

        def fired() -> bool:
            cause()
            missing.difference_update(self.firing(instance))
            return not missing

        wait_until(fired, 40, f"{missing} of {instance or 'all'}")

    def wait_values(self, expression: str, right: Callable[[dict[str, float]], bool]) -> None:
        """Until an expression has the right values by instance."""
        wait_until(lambda: right(self.prometheus.values(expression)), 40, expression)


@pytest.fixture
def postgres(own_postgres: Postgres) -> Postgres:
    """A database of its own with ROWS definitions."""
    own_postgres.psql((resources.files("avapd.demo") / "tables.sql").read_text(encoding="utf-8"))
    rows = f"SELECT 'command_' || i, 'x = 1' FROM generate_series(1, {ROWS}) AS i"
    own_postgres.psql(f"INSERT INTO obex_dapl_functions (name, code) {rows}")
    return own_postgres


@pytest.fixture
def start(postgres: Postgres, serve: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    """Starts a server on that database."""
    (tmp_path / "sitecustomize.py").write_text(ALTERED)

    def begin(**env: str) -> Server:
        return serve(postgres.url("avapd_reader"), env={"PYTHONPATH": str(tmp_path), **env})

    return begin


Start = Callable[..., Server]


@pytest.fixture
def ports(tmp_path: Path) -> dict[str, str]:
    """Where the third server will be, which is not there at first, and its certificate, which ends soon."""
    (tmp_path / "certificates").mkdir()
    folder = Folder(tmp_path / "certificates", trustme.CA())
    folder.rotate(not_after=days_on(10))
    return {"PORT": str(free_port()), "AVAPD_ADMIN_PORT": str(free_port()), **folder.settings()}


@pytest.fixture
def pair(start: Start) -> tuple[Server, Server]:
    """Two replicas; the second takes few connections."""
    return start(), start(AVAPD_LIMIT_ADDRESS_CONNECTIONS="3")


@pytest.fixture
def watch(pair: tuple[Server, Server], ports: dict[str, str], tmp_path: Path) -> Iterator[Watch]:
    """Prometheus, which watches two servers and a third."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    instances = {"a": pair[0].admin_port, "b": pair[1].admin_port, "c": int(ports["AVAPD_ADMIN_PORT"])}
    with Prometheus(folder, instances) as made:
        yield Watch(made)


def test_every_alert_fires(
    watch: Watch, pair: tuple[Server, Server], ports: dict[str, str], start: Start, postgres: Postgres
) -> None:
    """Each for its cause, none on servers that are well, and with texts that are complete."""
    a, b = (server.wait_serving() for server in pair)
    watch.wait("AvapDown", instance="c")
    wait_until(lambda: stays(lambda: not watch.firing("a") | watch.firing("b"), 1.0), 30, "nothing fires for a while")

    changes(watch, b, postgres)
    postgres.kill()
    calls(watch, a)
    watch.wait("AvapWorkerRestarted", "AvapWorkerFlapping", instance="a", cause=lambda: kill_workers(a))
    c = restarts(watch, ports, start)
    Path(ports["AVAPD_TLS_CERT_FILE"]).unlink()
    watch.wait("AvapCertificateExpires", "AvapCertificateRefused", instance="c")
    watch.wait("AvapConnectionsRefused", instance="b", cause=lambda: connect(b))
    watch.wait("AvapDatabaseDown", "AvapNotListening", "AvapCatalogStale", "AvapCatalogVeryStale", instance="b")
    # The third has no catalog that could be old, or another than theirs.
    assert not watch.firing("c") & {"AvapCatalogStale", "AvapCatalogVeryStale", "AvapCatalogsDiffer"}
    c.__exit__()
    b.__exit__()
    watch.wait("AvapReplicaLost")
    a.__exit__()
    watch.wait("AvapAbsent")

    assert set(watch.seen) | UNSEEN == {rule["alert"] for rule in alerts()}
    for alert in watch.seen.values():
        for text in alert.annotations.values():
            assert not re.search(r"<|{{|%!", text), alert


def changes(watch: Watch, frozen: Server, postgres: Postgres) -> None:
    """One replica does not follow a change; then a definition that breaks, and a table that lost a third."""
    assert frozen.order("freeze").returncode == 0
    postgres.psql("INSERT INTO obex_dapl_functions (name, code) VALUES ('late', 'x = 2')")
    watch.wait("AvapCatalogsDiffer", "AvapUpdatesFrozen")
    assert "AvapUpdatesFrozen" not in watch.firing("a")
    assert frozen.order("unfreeze").returncode == 0
    watch.wait_values("avap_catalog_fingerprint > 0", lambda found: len(set(found.values())) == 1)
    postgres.psql("UPDATE obex_dapl_functions SET code = 'x =' WHERE name = 'late'")
    watch.wait("AvapQuarantined", instance="a")
    postgres.psql(f"DELETE FROM obex_dapl_functions WHERE id <= {ROWS // 3}")
    watch.wait("AvapCandidateRefused", "AvapPublishRejected", instance="b")


def calls(watch: Watch, server: Server) -> None:
    """Slow answers and failures; then wrong keys, more than ten a second."""
    numbers = itertools.count()  # an answer that was given before is ready, and fast
    with server.calls() as calls:

        def slow() -> None:
            assert {calls.get(f"slow {next(numbers)}").code for _ in range(10)} == {NOT_FOUND}

        watch.wait("AvapLatencyHigh", cause=slow)
        watch.wait("AvapErrorBudgetBurnFast", "AvapErrorBudgetBurnSlow", cause=lambda: calls.get("fail"))
    with server.calls("not-the-key-of-this-server") as calls:

        def wrong() -> None:
            assert {calls.get("late").code for _ in range(50)} == {UNAUTHENTICATED}

        watch.wait("AvapUnauthorized", instance="a", cause=wrong)


def connect(server: Server) -> None:
    """Ten connections at once."""
    with contextlib.ExitStack() as held:
        for _ in range(10):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port)))


def kill_workers(server: Server) -> None:
    """All of them, once."""
    pids = server.workers()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(server.workers()) - set(pids)) == len(pids), 20, "new workers")


def restarts(watch: Watch, ports: dict[str, str], start: Start) -> Server:
    """A server without a database, which serves nothing; started three times."""
    for attempt in range(3):
        server = start(**ports)
        watch.wait_values("changes(process_start_time_seconds[5m])", lambda found: found.get("c") == attempt)  # noqa: B023
        if attempt < 2:
            server.__exit__()
    watch.wait("AvapRestarting", "AvapNoWorkerServes", "AvapWorkerDown", "AvapCacheTooSmall", instance="c")
    return server
