"""The admin port over HTTP: who gets what in which form, what is told to whom, and that the answers are bounded."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import wait_until

Serve = Callable[..., Server]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
QUIET = {"AVAPD_SILENCE_SECONDS": "60"}


class Answer(NamedTuple):
    """What came back."""

    code: int
    headers: dict[str, str]
    text: str

    @property
    def kind(self) -> str:
        return self.headers["Content-Type"].partition(";")[0]


def ask(server: Server, path: str, *, source: str = "127.0.0.1", **headers: str) -> Answer:
    """A request with these headers, from this address."""
    connection = http.client.HTTPConnection("127.0.0.1", server.admin_port, timeout=10, source_address=(source, 0))
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = Answer(answer.status, dict(answer.getheaders()), answer.read().decode())
    connection.close()
    return found


@pytest.fixture(scope="module")
def table(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert_many(30, 200)
    yield made
    made.drop()


@pytest.fixture(scope="module")
def server(table: Database) -> Iterator[Server]:
    with Server(table.reader_url, env=QUIET) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module")
def opened(table: Database) -> Iterator[Server]:
    """Bound to all addresses, of both kinds where there are both."""
    host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    with Server(table.reader_url, env={**QUIET, "AVAPD_ADMIN_HOST": host}) as made:
        yield made.wait_serving()


def publish(server: Server, table: Database, sql: str, *arguments: Any) -> int:
    """Change the table; the generation that has it."""
    before = server.status()["generation"]
    table.execute(sql, *arguments)
    server.wait_served(lambda status: status["generation"] > before, 30)
    wait_until(lambda: server.status()["publications"][0]["generation"] == server.status()["generation"], 30)
    return int(server.status()["generation"])


# --- forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0", "application/json"),
        ("text/html;q=x", "application/json"),
        (BROWSER, "text/html"),
        ("application/json;q=0.1, text/html", "text/html"),
    ],
)
def test_the_status_is_a_page_for_who_prefers_one(server: Server, accept: str, kind: str) -> None:
    """JSON for programs and for curl, a page for browsers."""
    found = ask(server, "/status", Accept=accept)
    assert (found.code, found.kind) == (200, kind)
    assert found.headers["Cache-Control"] == "no-store"
    assert found.headers["Vary"] == "Accept"


def test_a_browser_can_have_json_too(server: Server) -> None:
    """By a link of the page."""
    assert json.loads(ask(server, "/status?format=json", Accept=BROWSER).text)["ready"] is True


def test_the_root_leads_to_the_status(server: Server) -> None:
    """By a relative address, which holds behind a proxy with a prefix."""
    found = ask(server, "/", Accept=BROWSER)
    assert (found.code, found.headers["Location"]) == (302, "status")


def test_the_page_comes_with_a_policy_that_forbids_all_else(server: Server) -> None:
    """Nothing from elsewhere, no inline code but what has the hash, no frame around it."""
    policy = ask(server, "/status", Accept=BROWSER).headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_metrics_come_as_openmetrics_to_who_accepts_it(server: Server) -> None:
    """As Prometheus asks; the text format to everybody else."""
    found = ask(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert found.kind == "application/openmetrics-text"
    assert found.text.endswith("# EOF\n")
    assert "avap_requests" in {family.name for family in text_string_to_metric_families(found.text)}  # type: ignore[no-untyped-call]
    assert ask(server, "/metrics").kind == "text/plain"


# --- readiness ----------------------------------------------------------------------------------------------------


def test_readiness_tells_each_condition(server: Server) -> None:
    """One line each with ?verbose, and JSON to who accepts it."""
    lines = ask(server, "/readyz?verbose").text.splitlines()
    assert lines[0] == "[+]running ok: not draining"
    assert "[+]workers ok: 2 of 2 workers serve" in lines
    assert lines[-1] == "readyz passed"
    found = ask(server, "/readyz", Accept="application/json")
    told = json.loads(found.text)
    assert (found.code, told["ready"]) == (200, True)
    assert {one["name"] for one in told["conditions"] if one["required"]} == {"running", "catalog", "workers"}


def test_what_is_not_ready_says_why_in_every_form(serve: Serve) -> None:
    """Without a catalog: 503 and a line for each reason; the database is told, and is none of them."""
    cold = serve("postgresql://nobody@127.0.0.1:1/none")
    wait_until(lambda: cold.http("/livez") == (200, "ok\n"), 20)
    wait_until(lambda: "Connect" in ask(cold, "/readyz").text, 20)
    plain = ask(cold, "/readyz")
    assert (plain.code, len(plain.text.splitlines())) == (503, 2)
    assert plain.text.startswith("no catalog yet: ")
    assert plain.text.endswith("no worker serves\n")
    verbose = ask(cold, "/readyz?verbose")
    assert (verbose.code, verbose.text.endswith("readyz failed\n")) == (503, True)
    assert "[-]catalog failed: no catalog yet: " in verbose.text
    assert "[-]database warns: " in verbose.text
    told = json.loads(ask(cold, "/readyz", Accept="application/json").text)
    failed = [one["name"] for one in told["conditions"] if one["required"] and not one["ok"]]
    assert (told["ready"], failed) == (False, ["catalog", "workers"])
    page = ask(cold, "/status", Accept=BROWSER)
    assert (page.code, "not ready" in page.text) == (200, True)


# --- names of hosts -----------------------------------------------------------------------------------------------


def test_bound_to_loopback_it_answers_to_no_other_name(server: Server) -> None:
    """So no page from elsewhere can make its own name mean this host, and read what is here."""
    for name in ("evil.example", "evil.example:9464", "192.0.2.1", "localhost.evil.example", "[2001:db8::1]:9464", ""):
        for path in ("/status", "/metrics", "/changes?generation=1"):
            assert ask(server, path, Host=name).code == 421, name
    for name in ("localhost", "LOCALHOST:1", "127.0.0.1:9464", "[::1]:9464", "127.0.0.2"):
        assert ask(server, "/status", Host=name).code == 200, name


def test_bound_elsewhere_it_answers_to_every_name(opened: Server) -> None:
    """Replicas are asked by names of services."""
    assert ask(opened, "/status", Host="avapd.example:9464").code == 200


def test_every_address_means_both_kinds(opened: Server) -> None:
    """`[::]` is IPv4 too, as it is for the gRPC port: a pod's probes and Prometheus may come by either."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        if family == socket.AF_INET or socket.has_dualstack_ipv6():
            with socket.create_connection((address, opened.admin_port), timeout=10) as connection:
                assert connection.family == family
                connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.0 200 OK")


# --- what was published -------------------------------------------------------------------------------------------


def test_sources_are_for_this_host(opened: Server, table: Database) -> None:
    """Names are told to everybody; lines to who came straight from this host by a name of it, and to nobody else."""
    generation = publish(opened, table, "UPDATE obex_dapl_functions SET code = 'x = 1' WHERE name = 'command_000001'")
    path = f"/changes?generation={generation}"
    here = ask(opened, path)
    assert (here.kind, here.headers["X-Content-Type-Options"]) == ("text/plain", "nosniff")
    assert here.text.startswith("~ command_000001\n")
    assert "+x = 1" in here.text
    for found in (
        ask(opened, path, source="127.0.0.2"),
        ask(opened, path, Host="avapd.example"),
        ask(opened, path, X_Forwarded_For="192.0.2.1"),
    ):
        assert found.text.startswith("~ command_000001\n")
        assert "x = 1" not in found.text
        assert "AVAPD_ADMIN_SOURCES" in found.text


@pytest.mark.parametrize(("setting", "source", "shown"), [("off", "127.0.0.1", False), ("on", "127.0.0.2", True)])
def test_sources_are_shown_as_set(sample: Database, serve: Serve, setting: str, source: str, shown: bool) -> None:
    """`off` to nobody, `on` to everybody who reaches the port."""
    env = {"AVAPD_ADMIN_SOURCES": setting, "AVAPD_WORKERS": "1"}
    server = serve(sample.reader_url, env=env).wait_serving()
    generation = publish(server, sample, "UPDATE obex_dapl_functions SET code = 'x = 1' WHERE name = 'addVar'")
    assert ("+x = 1" in ask(server, f"/changes?generation={generation}", source=source).text) is shown


def test_what_changed_is_bounded(sample: Database, serve: Serve) -> None:
    """A definition too large is named only, of many a part is compared, nothing that moves a terminal comes through."""
    server = serve(sample.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    change = "UPDATE obex_dapl_functions SET code = $1 WHERE name = $2"
    big = publish(server, sample, change, "y = 2" + " # 10 octets" * 10_000, "addVar")
    text = ask(server, f"/changes?generation={big}").text
    assert text == "~ addVar\n\naddVar: too large to be compared here, see `avapd diff`\n"
    escape = publish(server, sample, change, "if 1:\n\tz = 3 # \x1b[2J", "si")
    assert "+\tz = 3 # \\u001b[2J\n" in ask(server, f"/changes?generation={escape}").text
    columns = "obex_dapl_functions (name, interface, type, code)"
    rows = "SELECT 'n' || i, '[]', '', repeat('x = ' || i || chr(10), 500) FROM generate_series(1, 700) AS i"
    many = publish(server, sample, f"INSERT INTO {columns} {rows}")
    text = ask(server, f"/changes?generation={many}").text
    assert "… and 200 more\n" in text
    assert text.endswith("… more than is shown here: see `avapd diff`\n")
    assert len(text) < 300_000


def test_of_a_long_quarantine_the_first_are_named(sample: Database, serve: Serve) -> None:
    """By name, and how many more there are; all are counted."""
    sample.insert([(f"bad{number:03}", "{}", "function", "x = 1") for number in range(130)])
    server = serve(sample.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    wait_until(lambda: server.status()["quarantined"]["interface"] == 130)
    assert [one["name"] for one in server.status()["quarantine"]] == [f"bad{number:03}" for number in range(100)]
    page = ask(server, "/status", Accept=BROWSER).text
    assert "and 30 more than the 100 shown here" in page
    assert "bad100" not in page


def test_what_is_not_kept_is_not_found(server: Server) -> None:
    """Of the oldest generation, of unknown ones and of nonsense there is nothing to tell."""
    oldest = server.status()["publications"][-1]["generation"]
    for number in (oldest, 0, 10**18):
        assert ask(server, f"/changes?generation={number}").code == 404
    for text in ("", "-1", "x", "9" * 20, "%D9%A3", "1.0"):
        assert ask(server, f"/changes?generation={text}").code == 400


# --- figures ------------------------------------------------------------------------------------------------------


def test_the_status_tells_what_the_workers_do(server: Server) -> None:
    """Under load: calls a second and their P95 as the clients count them, connections and memory by worker."""
    began = server.status()
    with Load(server.calls, lambda calls: calls.get("command_000007", wait=True), 3) as load:
        wait_until(lambda: server.status()["connections"] == 3, 20)
        wait_until(lambda: server.status()["rate"] > 0 and server.status()["p95_seconds"], 20)
        busy = server.status()
    wait_until(lambda: server.status()["calls"] - began["calls"] == len(load.history))
    assert busy["connections"] == sum(one["connections"] for one in busy["workers"])
    assert busy["rate"] == pytest.approx(sum(one["rate"] for one in busy["workers"]), abs=0.1)
    assert 0 < busy["p95_seconds"] <= max(entry.ended - entry.began for entry in load.history)
    assert busy["error_rate"] == 0
    for one in busy["workers"]:
        assert 1 << 20 < one["memory"]["private_bytes"] < one["memory"]["resident_bytes"]
        assert 0 < one["uptime_seconds"] <= busy["uptime_seconds"]
