"""deploy/proxy: each proxy as it is shipped, by TLS between clients and two avapd that are restarted."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import trustme
from clients import tools
from support.calls import Calls
from support.certificates import chain
from support.database import Database
from support.load import Load
from support.server import KEY, Server, free_port
from support.waiting import wait_until

from avapd.pb import avap_pb2

pytestmark = pytest.mark.timeout(300)  # the first run installs Envoy

SHIPPED = Path(__file__).parents[2] / "deploy" / "proxy"
ENVOY = Path(tools.__file__).parent / "proxies" / "requirements.txt"
NAME = "avapd.internal"
UNAUTHENTICATED, UNIMPLEMENTED, UNAVAILABLE = 16, 12, 14
# Around the shipped file, which belongs inside `http { }`: what distributions have in their own nginx.conf.
NGINX = """
daemon off;
worker_processes 1;
pid {0}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {0}/body;
    proxy_temp_path {0}/proxy;
    fastcgi_temp_path {0}/fastcgi;
    uwsgi_temp_path {0}/uwsgi;
    scgi_temp_path {0}/scgi;
    include {0}/shipped.conf;
}}
"""


class Proxy(NamedTuple):
    """How to check a configuration, run it, and take a server out of it where it does not do so by itself."""

    check: list[str]
    run: list[str]
    rotate: Callable[[str, int], None] | None = None


class Place(NamedTuple):
    """Where a test lets the proxy listen, find its files, and find avapd."""

    folder: Path
    port: int
    servers: tuple[int, int]


def shipped(name: str, changes: dict[str, str]) -> str:
    """A file of deploy/proxy with names of a real installation, all of which it has, replaced by those of the test."""
    text = (SHIPPED / name).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    return text


def nginx(place: Place) -> Proxy:
    program, folder = tools.installed("nginx"), place.folder
    changes = {
        "listen 443 ": f"listen 127.0.0.1:{place.port} ",
        "/etc/nginx/tls": str(folder),
        "avapd-1.internal:50051": f"127.0.0.1:{place.servers[0]}",
        "avapd-2.internal:50051": f"127.0.0.1:{place.servers[1]}",
    }
    (folder / "shipped.conf").write_text(shipped("nginx.conf", changes), encoding="utf-8")
    (folder / "nginx.conf").write_text(NGINX.format(folder), encoding="utf-8")
    command = [str(program), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    env = {"PATH": os.environ["PATH"], "NGINX_COMMAND": " ".join(command), "NGINX_CONF": str(folder / "shipped.conf")}

    def rotate(state: str, port: int) -> None:
        subprocess.run([SHIPPED / "rotate", state, f"127.0.0.1:{port}"], env=env, check=True)

    return Proxy([*command, "-t"], command, rotate)


def envoy(place: Place) -> Proxy:
    program = tools.wheels(ENVOY) / "envoy" / "_bin" / "envoy"
    changes = {
        "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {place.port}",
        "port_value: 9901": f"port_value: {free_port()}",
        "/etc/envoy/tls": str(place.folder),
        "address: avapd-1.internal, port_value: 50051": f"address: 127.0.0.1, port_value: {place.servers[0]}",
        "address: avapd-2.internal, port_value: 50051": f"address: 127.0.0.1, port_value: {place.servers[1]}",
    }
    (place.folder / "envoy.yaml").write_text(shipped("envoy.yaml", changes), encoding="utf-8")
    command = [str(program), "-c", str(place.folder / "envoy.yaml"), "--log-level", "warn"]
    return Proxy([*command, "--mode", "validate"], [*command, "--concurrency", "1", "--disable-hot-restart"])


PROXIES: dict[str, Callable[[Place], Proxy]] = {"nginx": nginx, "envoy": envoy}


class Fleet:
    """Two avapd on one database, each of which can be restarted on its own port."""

    def __init__(self, database: Database, folder: Path, authority: trustme.CA) -> None:
        self._url = database.reader_url
        certify(folder, authority)
        self._tls = {"AVAPD_TLS_CERT_FILE": str(folder / "tls.crt"), "AVAPD_TLS_KEY_FILE": str(folder / "tls.key")}
        self.servers = [self._start(), self._start()]

    def _start(self, port: int | None = None) -> Server:
        own = {"PORT": str(port or free_port()), "AVAPD_PRE_DRAIN_SECONDS": "0.5", "AVAPD_INSECURE": ""}
        return Server(self._url, env={**own, **self._tls})

    def restart(self, number: int) -> None:
        """As a roll-out does: SIGTERM, which must end well, and a new one that serves."""
        old = self.servers[number]
        assert old.stop() == 0, old.log[-2000:]
        old.__exit__()
        self.servers[number] = self._start(old.port)
        self.servers[number].wait_serving()

    def end(self) -> None:
        for server in self.servers:
            server.__exit__()


def certify(folder: Path, authority: trustme.CA) -> None:
    """A certificate for NAME, in files."""
    folder.mkdir(exist_ok=True)
    certificate = authority.issue_cert(NAME)
    (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    (folder / "tls.crt").write_bytes(chain(certificate))


class TlsCalls(Calls):
    """A client that knows the proxy by its certificate, and has no retry policy."""

    def __init__(self, front: Front, key: str = KEY) -> None:
        super().__init__(f"127.0.0.1:{front.port}", key)
        self.close()
        options = [("grpc.ssl_target_name_override", NAME), ("grpc.enable_http_proxy", 0)]
        credentials = grpc.ssl_channel_credentials(front.authority)
        self.channel = grpc.secure_channel(f"127.0.0.1:{front.port}", credentials, options)


class Front(NamedTuple):
    """A running proxy, the certificate authority that vouches for it, and the two avapd behind it."""

    name: str
    port: int
    authority: bytes
    fleet: Fleet
    proxy: Proxy


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1"), ("si", None, None, "x = 2")])
    yield made
    made.drop()


@pytest.fixture(scope="module", params=PROXIES)
def front(
    request: pytest.FixtureRequest, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """The proxy, checked and running with a certificate of the test's own authority; another one vouches for avapd."""
    folder, inside = tmp_path_factory.mktemp(request.param), trustme.CA()
    fleet = Fleet(database, folder / "avapd", inside)
    try:
        with running(request.param, folder, fleet, inside) as (made, process):
            with TlsCalls(made) as calls:
                wait_until(lambda: serves(calls, process, folder / "log"), 30, f"{request.param} serves")
            yield made
    finally:
        fleet.end()


@contextlib.contextmanager
def running(
    name: str, folder: Path, fleet: Fleet, trusted: trustme.CA
) -> Iterator[tuple[Front, subprocess.Popen[bytes]]]:
    """The proxy in front of a fleet that serves, in a folder of its own; it trusts what this authority signed."""
    authority = trustme.CA()
    certify(folder, authority)
    (folder / "ca.crt").write_bytes(trusted.cert_pem.bytes())
    place = Place(folder, free_port(), (fleet.servers[0].port, fleet.servers[1].port))
    proxy = PROXIES[name](place)
    checked = subprocess.run(proxy.check, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    for server in fleet.servers:
        server.wait_serving()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(proxy.run, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Front(name, place.port, authority.cert_pem.bytes(), fleet, proxy), process
    finally:
        process.terminate()
        process.wait(10)


def serves(calls: Calls, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {log.read_text()}")
    return calls.health() == "SERVING"


def watch(calls: Calls) -> Any:
    """A WatchCatalog call; iterate for its events."""
    call = calls.channel.unary_stream("/avap.DefinitionEngine/WatchCatalog")
    return call(b"", metadata=(("x-avap-auth", KEY),), timeout=60)


def test_what_avapd_says_passes_and_nothing_else(front: Front) -> None:
    """Definition, catalog, refusal and health come through TLS as avapd gave them; other services are not reached."""
    with TlsCalls(front) as calls, TlsCalls(front, "no-key-of-any-server") as stranger:
        assert calls.command("addVar").name == "addVar"
        assert calls.catalog().total_count == 2
        assert stranger.get("addVar")[:2] == (UNAUTHENTICATED, "Invalid Credentials")
        assert calls.call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"").code == UNIMPLEMENTED
        assert calls.call("/grpc.health.v1.Health/List", b"").code == UNIMPLEMENTED


def test_a_watch_gets_each_change_at_once(front: Front, database: Database) -> None:
    """The first event is the catalog; the next comes with the change, held back by no buffer."""
    with TlsCalls(front) as calls:
        events = (avap_pb2.CatalogEvent.FromString(raw) for raw in watch(calls))
        first = next(events)
        database.execute("UPDATE obex_dapl_functions SET code = code || '0' WHERE name = 'si'")
        second = next(events)
        assert [command.name for command in second.commands] == ["si"]
        assert second.version_hash != first.version_hash


def test_no_call_is_lost_when_both_are_restarted(front: Front) -> None:
    """One after the other, under load, as deploy/proxy/README.md says: every call is answered."""
    with Load(lambda: TlsCalls(front), lambda calls: calls.get("addVar")) as load:
        for number in (0, 1):
            restart(front, number)
    assert not load.failures()


def restart(front: Front, number: int) -> None:
    """One step of a roll-out; it is over when the proxy has taken the server back."""
    server, rotate = front.fleet.servers[number], front.proxy.rotate
    if rotate:
        rotate("down", server.port)
        wait_until(lambda: server.metric("avap_connections") == 0, 30)
    front.fleet.restart(number)
    if rotate:
        rotate("up", server.port)
    server = front.fleet.servers[number]
    wait_until(lambda: server.metric("avap_requests_total", method="GetCommand", status="200") > 20, 30)


def test_a_strangers_certificate_gets_no_call(front: Front, tmp_path: Path) -> None:
    """With the same name, of an authority that the proxy does not know: clients get UNAVAILABLE, from the proxy."""
    with running(front.name, tmp_path, front.fleet, trustme.CA()) as (made, _), TlsCalls(made) as calls:
        wait_until(lambda: calls.call("/not.Listed/Method", b"").code == UNIMPLEMENTED, 30, f"{front.name} answers")
        assert calls.get("addVar").code == UNAVAILABLE


@pytest.mark.parametrize(
    ("command", "words", "code"),
    [
        ("true", ["down", "avapd-3.internal:50051"], 1),
        ("true", ["down", "avapd-1xinternal:50051"], 1),
        ("false", ["down", "avapd-1.internal:50051"], 1),
        ("true", ["sideways", "avapd-1.internal:50051"], 2),
        ("true", [], 2),
    ],
)
def test_a_rotation_that_fails_changes_nothing(tmp_path: Path, command: str, words: list[str], code: int) -> None:
    """A server that is not there, a file that nginx refuses, an order there is none of: the file stays as it was."""
    conf = tmp_path / "avapd.conf"
    conf.write_bytes((SHIPPED / "nginx.conf").read_bytes())
    env = {"PATH": os.environ["PATH"], "NGINX_COMMAND": command, "NGINX_CONF": str(conf)}
    done = subprocess.run([SHIPPED / "rotate", *words], env=env, capture_output=True, check=False)
    assert done.returncode == code
    assert conf.read_bytes() == (SHIPPED / "nginx.conf").read_bytes()


def test_what_is_put_back_is_as_before(tmp_path: Path) -> None:
    """Down marks one server and no other; up undoes it; either twice is as once."""
    conf, before = tmp_path / "avapd.conf", (SHIPPED / "nginx.conf").read_text(encoding="utf-8")
    conf.write_text(before, encoding="utf-8")
    env = {"PATH": os.environ["PATH"], "NGINX_COMMAND": "true", "NGINX_CONF": str(conf)}
    marked = before.replace("avapd-1.internal:50051 max_fails=0;", "avapd-1.internal:50051 max_fails=0 down;")
    for state, expected in (("down", marked), ("down", marked), ("up", before), ("up", before)):
        subprocess.run([SHIPPED / "rotate", state, "avapd-1.internal:50051"], env=env, check=True)
        assert conf.read_text(encoding="utf-8") == expected
