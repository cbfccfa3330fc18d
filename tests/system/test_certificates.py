"""Certificates renewed in service: what clients see, whatever is put into the files, and when."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support.calls import Calls
from support.certificates import NAMES, Folder, chain, days_on, shown
from support.database import Database
from support.load import Load
from support.server import KEY, Server
from support.waiting import stays, wait_until

ENGINES = ("wire", "grpcio")
UNAVAILABLE = 14
EXPIRY = "avap_tls_certificate_expiry_timestamp_seconds"


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, trustme.CA())


def started(serve: Callable[..., Server], database: Database, folder: Folder, engine: str, **more: bool) -> Server:
    env = {**folder.settings(**more), "AVAPD_ENGINE": engine, "AVAPD_SILENCE_SECONDS": "60"}
    return serve(database.reader_url, env=env).wait_serving()


def all_show(server: Server, folder: Folder, leaf: bytes) -> bool:
    """Whether ten new connections in a row, which both workers take, see this certificate."""
    return all(shown(server.port, folder.context(folder.clients)) == leaf for _ in range(10))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_renewed_certificate_is_shown_without_a_lost_call(
    serve: Callable[..., Server], database: Database, folder: Folder, engine: str
) -> None:
    """A swapped symlink is seen by itself; connections go on, no call fails, new clients and new workers see it."""
    server = started(serve, database, folder, engine, mutual=True)

    def connect() -> Calls:
        return Calls(f"localhost:{server.port}", KEY, folder.credentials(folder.clients))

    with Load(connect, lambda calls: calls.get("addVar", wait=True), threads=3) as load:
        before = server.metric(EXPIRY, certificate="server")
        leaf = folder.rotate(not_after=days_on(100))
        wait_until(lambda: all_show(server, folder, leaf), 20)
        assert server.metric(EXPIRY, certificate="server") != before
        assert server.metric("avap_tls_reloads_total", result="loaded") == 1
        assert "certificates_changed" in {one["event"] for one in server.events("Audit")}
        calls_then = len(load.history)
        wait_until(lambda: len(load.history) > calls_then + 10)
        if engine == "wire":  # whose good-bye loses no call under TLS either
            server.process.send_signal(signal.SIGUSR2)
            wait_until(lambda: server.events("Workers Replaced"), 20)
    assert load.failures() == []
    old = server.workers()
    psutil.Process(old[1]).kill()
    wait_until(
        lambda: server.workers()[1:] not in ([], old[1:]) and server.status()["workers"][1]["state"] == "SERVING"
    )
    assert all_show(server, folder, leaf)
    assert server.metric("avap_tls_reloads_total", result="failed") == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_hangup_reads_certificates_and_the_clients_authority_at_once(
    serve: Callable[..., Server], database: Database, folder: Folder, engine: str
) -> None:
    """After it the old authority's clients are refused and the new one's served; the open connection is kept."""
    server = started(serve, database, folder, engine, mutual=True)
    with Calls(f"localhost:{server.port}", KEY, folder.credentials(folder.clients)) as known:
        assert known.get("addVar").code == 0
        before, folder.clients = folder.clients, trustme.CA()
        leaf = folder.rotate()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: all_show(server, folder, leaf))
        assert known.get("addVar").code == 0
        with Calls(f"localhost:{server.port}", KEY, folder.credentials(before)) as stranger:
            assert stranger.get("addVar").code == UNAVAILABLE
        with Calls(f"localhost:{server.port}", KEY, folder.credentials(folder.clients)) as friend:
            assert friend.get("addVar").code == 0


def with_password(leaf: trustme.LeafCert) -> bytes:
    """Its key, encrypted."""
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    form, how = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    return key.private_bytes(serialization.Encoding.PEM, form, how)


def test_bad_certificates_leave_the_old_one_in_place(
    serve: Callable[..., Server], database: Database, folder: Folder
) -> None:
    """Each of them is one ERROR that names the setting and one count; what comes after it and is good is shown."""
    server = started(serve, database, folder, "wire", mutual=True)
    leaf = folder.rotate()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all_show(server, folder, leaf))
    new, other = (folder.authority.issue_cert(*NAMES) for _ in range(2))
    expired = folder.authority.issue_cert(*NAMES, not_before=days_on(-9), not_after=days_on(-1))
    future = folder.authority.issue_cert(*NAMES, not_before=days_on(1))
    key, garbage = new.private_key_pem.bytes(), b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    cases = (
        ("AVAPD_TLS_KEY_FILE", (chain(new), other.private_key_pem.bytes())),
        ("AVAPD_TLS_KEY_FILE", (chain(new), b"")),
        ("AVAPD_TLS_KEY_FILE", (chain(new), with_password(new))),
        ("AVAPD_TLS_CERT_FILE", (chain(expired), expired.private_key_pem.bytes())),
        ("AVAPD_TLS_CERT_FILE", (chain(future), future.private_key_pem.bytes())),
        ("AVAPD_TLS_CERT_FILE", (b"", key)),
        ("AVAPD_TLS_CERT_FILE", (garbage, key)),
        ("AVAPD_TLS_CERT_FILE", (os.urandom(3000), key)),
        ("AVAPD_TLS_CLIENT_CA_FILE", (chain(new), key, garbage)),
        ("AVAPD_TLS_CLIENT_CA_FILE", (chain(new), key, new.cert_chain_pems[0].bytes())),
        ("AVAPD_TLS_CLIENT_CA_FILE", (chain(new), key, b"x")),
    )
    for number, (setting, contents) in enumerate(cases, 1):
        folder.put(*contents)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda number=number: len(server.events("Certificates Refused")) == number)  # type: ignore[misc]
        line = server.events("Certificates Refused")[-1]
        assert (line["level"], setting in line["error"]) == ("ERROR", True), line
        assert server.metric("avap_tls_reloads_total", result="failed") == number
        assert server.metric("avap_tls_files_refused") == 1
        assert [one["event"] for one in server.events("Audit")].count("certificates_refused") == number
        assert shown(server.port, folder.context(folder.clients)) == leaf
    assert "[-]certificates warns: the files hold what cannot be shown" in server.http("/readyz?verbose")[1]
    leaf = folder.rotate()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all_show(server, folder, leaf))
    assert server.metric("avap_tls_files_refused") == 0
    assert "[+]certificates ok: the first expires on " in server.http("/readyz?verbose")[1]
    expires = datetime.fromisoformat(server.status()["certificates"]["server"]).timestamp()
    assert expires == server.metric(EXPIRY, certificate="server")


def test_what_stays_bad_is_told_once_and_what_is_half_written_not_at_all(
    serve: Callable[..., Server], database: Database, folder: Folder
) -> None:
    """Nobody has to send a signal; a file that is gone is an ERROR as well, and serving goes on."""
    server = started(serve, database, folder, "wire")
    (folder.path / "key.pem").unlink()
    wait_until(lambda: server.events("Certificates Refused"), 20)
    assert stays(lambda: len(server.events("Certificates Refused")) == 1, 2.5)
    assert shown(server.port, folder.context())
    (folder.path / "key.pem").symlink_to(Path("..data") / "key.pem")
    wait_until(lambda: server.metric("avap_tls_files_refused") == 0, 20)
    # A certificate before its key, as a plain copy does it: right by the next look.
    leaf = folder.authority.issue_cert(*NAMES)
    for name, content in (("cert.pem", chain(leaf)), ("key.pem", leaf.private_key_pem.bytes())):
        (folder.path / f"{name}.new").write_bytes(content)
        (folder.path / f"{name}.new").replace(folder.path / name)
    wait_until(lambda: server.metric("avap_tls_reloads_total", result="loaded") == 1, 20)
    assert server.metric("avap_tls_reloads_total", result="failed") == 1


def test_a_certificate_that_ends_soon_is_warned_of(
    serve: Callable[..., Server], database: Database, folder: Folder
) -> None:
    """A WARN at the start, with the moment; the metric is that moment."""
    folder.rotate(not_after=days_on(10))
    server = started(serve, database, folder, "wire")
    (line,) = server.events("Certificates Expire Soon")
    assert line["level"] == "WARN"
    assert line["server_expires"].startswith(str(days_on(10).date()))
    assert abs(server.metric(EXPIRY, certificate="server") - days_on(10).timestamp()) < 120


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stop_under_tls_says_good_bye(
    serve: Callable[..., Server], database: Database, folder: Folder, engine: str
) -> None:
    """SIGTERM with connections open: they are closed, nobody is waited for in vain, exit 0."""
    server = started(serve, database, folder, engine)
    with Calls(f"localhost:{server.port}", KEY, folder.credentials()) as calls:
        assert calls.get("addVar").code == 0
        assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 5)
