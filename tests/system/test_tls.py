"""TLS and mTLS on the gRPC port, with real clients, real processes and certificates of the test's own authorities."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from support.calls import Calls
from support.certificates import NAMES, Folder, chain, shown
from support.database import Database
from support.load import Load
from support.server import KEY, Server, free_port
from support.waiting import wait_until

ENGINES = ("wire", "grpcio")
STALLED = 200
HANDSHAKES = 40  # a limit, for the flood
UNAVAILABLE, UNIMPLEMENTED = 14, 12


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("certificates"), trustme.CA())


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, database: Database, folder: Folder) -> Iterator[Server]:
    """TLS without client certificates, in production, as an operator has it."""
    with started(database, folder, request.param) as made:
        yield made


@pytest.fixture(scope="module", params=ENGINES)
def mutual(request: pytest.FixtureRequest, database: Database, folder: Folder) -> Iterator[Server]:
    """Clients must show a certificate."""
    with started(database, folder, request.param, mutual=True) as made:
        yield made


@contextlib.contextmanager
def started(database: Database, folder: Folder, engine: str, *, mutual: bool = False, **env: str) -> Iterator[Server]:
    settings = {
        **folder.settings(mutual=mutual), "AVAPD_ENV": "production", "AVAPD_INSECURE": "", "AVAPD_ENGINE": engine,
        "AVAPD_HEALTH_PORT": str(free_port()), "AVAPD_SILENCE_SECONDS": "60",
        **env,
    }  # fmt: skip
    with Server(database.reader_url, env=settings) as made:
        yield made.wait_serving()


def health_port(server: Server) -> int:
    return int(server.env["AVAPD_HEALTH_PORT"])


def ended(sock: socket.socket, seconds: float = 10.0) -> bytes:
    """Everything that comes until the other side ends it; a reset ends it too."""
    sock.settimeout(seconds)
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            found += data
    return found


# --- who may talk ---------------------------------------------------------------------------------------------------


def test_a_client_is_served_over_tls(server: Server, folder: Folder) -> None:
    """A stock grpcio client that trusts the authority, by name and by address; the key is asked for as ever."""
    for host in NAMES:
        with Calls(f"{host}:{server.port}", KEY, folder.credentials()) as calls:
            assert calls.command("addVar").code == b"x = 1\n"
            assert calls.health() == "SERVING"
    with Calls(f"localhost:{server.port}", "wrong", folder.credentials()) as calls:
        assert calls.get("addVar").code == 16


def test_a_client_that_does_not_know_the_authority_goes_away(server: Server, folder: Folder) -> None:
    """The certificate is what it says: another authority's client refuses it."""
    with Calls(f"localhost:{server.port}", KEY, folder.credentials(trusting=trustme.CA())) as calls:
        assert calls.get("addVar").code == UNAVAILABLE


def test_mtls_asks_for_a_certificate_of_the_right_authority(mutual: Server, folder: Folder) -> None:
    """None, and one of another authority, the server's own included, are refused, whatever key comes with them."""
    with Calls(f"localhost:{mutual.port}", KEY, folder.credentials(folder.clients)) as calls:
        assert calls.command("addVar").code == b"x = 1\n"
    for signed_by in (None, trustme.CA(), folder.authority):
        with Calls(f"localhost:{mutual.port}", KEY, folder.credentials(signed_by)) as calls:
            assert calls.get("addVar").code == UNAVAILABLE


@pytest.mark.parametrize("protocols", [[], ["http/1.1"]])
def test_a_client_that_does_not_offer_h2_is_refused(server: Server, folder: Folder, protocols: list[str]) -> None:
    """ALPN is how both sides know that it is HTTP/2: without it nothing is answered."""
    with pytest.raises(OSError, match=r"."):
        shown(server.port, folder.context(protocols=protocols))
    assert shown(server.port, folder.context())


def test_tls_before_1_2_is_refused_and_1_2_is_not(server: Server, folder: Folder) -> None:
    """The handshake itself fails, with an alert or with the end."""
    for version, served in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)):
        context = folder.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Python's, of TLS 1.1
            context.minimum_version = context.maximum_version = version
        if served:
            assert shown(server.port, context)
        else:
            with pytest.raises(OSError, match=r"."):
                shown(server.port, context)


def test_clear_text_on_the_tls_port_just_ends(server: Server, folder: Folder) -> None:
    """Nothing readable is answered, the connection ends, and the next client is served."""
    for octets in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), 5) as sock:
            sock.sendall(octets)
            assert b"HTTP" not in ended(sock)
    assert shown(server.port, folder.context())


def test_tls_on_a_plain_port_just_ends(server: Server, folder: Folder) -> None:
    """The health port is one: a ClientHello is no preface."""
    with pytest.raises(OSError, match=r"."):
        shown(health_port(server), folder.context())
    with Calls(f"127.0.0.1:{health_port(server)}") as calls:
        assert calls.health() == "SERVING"


# --- handshakes that go nowhere ---------------------------------------------------------------------------------------


def test_stalled_handshakes_are_closed_within_5_s_and_disturb_nobody(server: Server, folder: Folder) -> None:
    """Many of them, silent and in the middle of a hello: calls and new clients go on."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with contextlib.ExitStack() as stack:

        def connect() -> Calls:
            return Calls(f"localhost:{server.port}", KEY, folder.credentials())

        load = stack.enter_context(Load(connect, lambda calls: calls.get("addVar", wait=True), threads=2))
        stalled = []
        for number in range(STALLED):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
            if number % 2:
                sock.sendall(hello)
            stalled.append((sock, time.monotonic()))
        assert shown(server.port, folder.context())
        late = 0.0
        for sock, began in stalled:
            ended(sock)
            late = max(late, time.monotonic() - began)
    assert late < 6.0  # 5 s, and one for a busy machine
    assert load.history
    assert load.failures() == []


def test_a_flood_of_handshakes_is_bounded(database: Database, folder: Folder) -> None:
    """Of more silent connections than the limit the oldest are cut at once, not after the time of a handshake."""
    few: dict[str, Any] = {
        "AVAPD_WORKERS": "1",
        "AVAPD_LIMIT_HANDSHAKES": str(HANDSHAKES),
        "AVAPD_LIMIT_HANDSHAKE_SECONDS": "60",
    }
    with started(database, folder, "wire", **few) as server:
        with contextlib.ExitStack() as stack:
            socks = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
                for _ in range(3 * HANDSHAKES)
            ]
            for sock in socks[: 2 * HANDSHAKES]:
                assert ended(sock) == b""
            socks[-1].settimeout(0.2)
            with pytest.raises(TimeoutError):
                socks[-1].recv(1)
            assert shown(server.port, folder.context())
        assert server.stop() == 0


# --- the health port --------------------------------------------------------------------------------------------------


def test_the_health_port_answers_health_in_clear_text_and_nothing_else(mutual: Server) -> None:
    """No key, no certificate; every method of the service is UNIMPLEMENTED there, with the right key too."""
    with Calls(f"127.0.0.1:{health_port(mutual)}", KEY) as calls:
        for name in ("", "avap.DefinitionEngine", "liveness", "avapd.freshness"):
            wait_until(lambda name=name: calls.health(name) == "SERVING")  # type: ignore[misc]
        assert calls.health("nothing") == "5"
        assert calls.get("addVar").code == UNIMPLEMENTED
        assert calls.sync().code == UNIMPLEMENTED
        for path in ("/avap.DefinitionEngine/StreamCatalog", "/avap.DefinitionEngine/WatchCatalog", "/x/y"):
            assert calls.call(path, b"").code == UNIMPLEMENTED


@pytest.mark.parametrize("engine", ENGINES)
def test_the_health_port_outlives_its_workers(database: Database, folder: Folder, engine: str) -> None:
    """A worker is killed and all are replaced: a probe that connects anew each time never fails, then hears the end."""
    with started(database, folder, engine) as server:
        port = health_port(server)

        def probe() -> str:
            with Calls(f"127.0.0.1:{port}") as calls:
                return calls.health(wait=True)

        before = server.workers()
        psutil.Process(before[0]).kill()
        wait_until(lambda: probe() == "SERVING" and set(server.workers()) != set(before) and len(server.workers()) == 2)
        server.wait_serving()
        before = server.workers()
        server.process.send_signal(12)  # SIGUSR2
        while not server.events("Workers Replaced"):
            assert probe() == "SERVING"
        assert not set(before) & set(server.workers())
        assert server.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_the_private_key_is_nowhere_but_in_memory(mutual: Server, folder: Folder) -> None:
    """Not in a log, a metric, the status, an environment or a command line; workers know not even the file's path."""
    key = (folder.path / "key.pem").read_text(encoding="ascii")
    secret = key.splitlines()[1]
    assert len(secret) > 40
    for text in (mutual.log, mutual.http("/metrics")[1], mutual.http("/status")[1]):
        assert secret not in text
        assert "PRIVATE KEY" not in text
    for worker in mutual.family()[1:]:
        text = str(worker.environ()) + str(worker.cmdline())
        assert secret not in text
        assert str(folder.path) not in text


# --- starts that must not happen --------------------------------------------------------------------------------------


def test_a_start_with_a_certificate_that_cannot_be_shown_exits_78(
    database: Database, folder: Folder, tmp_path: Path
) -> None:
    """Before a socket or a worker exists, with the setting's name in the message."""
    other, leaf = (folder.authority.issue_cert(*NAMES) for _ in range(2))
    bad = Folder(tmp_path, folder.authority)
    bad.put(chain(leaf), other.private_key_pem.bytes())
    env = {**bad.settings(), "AVAPD_ENV": "production", "AVAPD_INSECURE": ""}
    with Server(database.reader_url, env=env) as server:
        assert server.wait_end() == 78
        (line,) = server.events("Cannot Start")
        assert "AVAPD_TLS_KEY_FILE" in line["error"]
        assert not server.events("Worker Started")


@pytest.mark.parametrize("environment", ["production", "staging"])
def test_a_start_in_clear_text_that_nobody_asked_for_exits_78(environment: str) -> None:
    """Both ways out are named."""
    env = {"AVAPD_ENV": environment, "AVAPD_INSECURE": ""}
    with Server("postgresql://reader@127.0.0.1:1/none", env=env) as server:
        assert server.wait_end() == 78
        assert "AVAPD_TLS_CERT_FILE" in server.log
        assert "AVAPD_INSECURE=1" in server.log
