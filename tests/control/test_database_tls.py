"""The connection to the database under TLS: verify-full with an authority of its own, and everything less refused."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from support.certificates import chain, days_on
from support.database import Database
from support.guarded import Guarded
from support.server import Server, free_port
from support.waiting import wait_until

from avapd.control.source import Source
from avapd.control.source.connection import Database as Reached
from avapd.demo.postgres import Postgres
from avapd.errors import SourceError, SourceUnreachableError

PASSWORD = "s3cr3t-pass"
MARK = b"leak-this-marker"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    """A path with what a query has to have quoted."""
    folder = tmp_path / "a b&c=d"
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return str(folder / "ca.pem")


def server_context(shown: trustme.LeafCert | trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if isinstance(shown, trustme.LeafCert):
        shown.configure_cert(context)
    else:
        with shown.private_key_pem.tempfile() as key, shown.cert_pem.tempfile() as cert:
            context.load_cert_chain(cert, key)
    return context


@pytest.fixture(scope="module")
def sample(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([(name, "[]", "function", "x = 1") for name in ("a", "b", "c")])
    yield made
    made.drop()


@pytest.fixture
def guarded(sample: Database) -> Iterator[Callable[..., Guarded]]:
    """Puts TLS with a certificate in front of the PostgreSQL of `sample`."""
    query = parse_qs(urlsplit(sample.url).query)
    made: list[Guarded] = []

    def guard(leaf: trustme.LeafCert | trustme.CA, answer: bytes = b"S") -> Guarded:
        made.append(Guarded(f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}", server_context(leaf), answer))
        return made[-1]

    yield guard
    for one in made:
        one.__exit__()


def url(database: Database, front: Guarded, host: str = "localhost") -> str:
    return f"postgresql://avapd_reader:{PASSWORD}@{host}:{front.port}/{database.name}"


def read(where: str, ca_file: str) -> int:
    """How many rows are there. Raises SourceError."""
    source = Source(where, ca_file=ca_file, schema="public", seconds=5, max_definition_bytes=1 << 20, max_bytes=1 << 20)
    return len(asyncio.run(source.read(compiled=False)).functions)


def test_verify_full_works_with_an_authority_of_its_own(
    sample: Database, guarded: Callable[..., Guarded], authority: trustme.CA, ca_file: str
) -> None:
    """The rows come through, and nothing but the request for TLS went in clear text."""
    front = guarded(authority.issue_cert("localhost"))
    for more in ("", "?sslmode=verify-full", "?application_name=x"):
        assert read(url(sample, front) + more, ca_file) == 3
    assert front.heard == bytes.fromhex("0000000804d2162f") * 3


def test_a_renewed_authority_needs_no_restart(
    sample: Database, guarded: Callable[..., Guarded], authority: trustme.CA, ca_file: str
) -> None:
    """The file is read with each connection."""
    other = trustme.CA()
    front = guarded(other.issue_cert("localhost"))
    reached = Reached(url(sample, front), 5, ca_file)

    async def ask(connection: object) -> int:
        return int(await connection.fetchval("SELECT 1"))  # type: ignore[attr-defined]

    with pytest.raises(SourceUnreachableError):
        asyncio.run(reached.read(ask))
    other.cert_pem.write_to_path(ca_file)
    assert asyncio.run(reached.read(ask)) == 1


@pytest.mark.parametrize("kind", ["another host", "another authority", "signed by itself", "expired"])
def test_a_server_that_cannot_prove_its_name_is_refused(
    sample: Database, guarded: Callable[..., Guarded], authority: trustme.CA, ca_file: str, kind: str
) -> None:
    """It never sees a login, and the error tells nothing of the password."""
    cases: dict[str, Callable[[], Any]] = {
        "another host": lambda: authority.issue_cert("other.example"),
        "another authority": lambda: trustme.CA().issue_cert("localhost"),
        "signed by itself": trustme.CA,
        "expired": lambda: authority.issue_cert("localhost", not_before=days_on(-9), not_after=days_on(-1)),
    }
    front = guarded(cases[kind]())
    with pytest.raises(SourceUnreachableError) as caught:
        read(url(sample, front), ca_file)
    assert PASSWORD not in str(caught.value) + caught.value.hint
    assert not front.login
    assert PASSWORD.encode() not in front.heard


@pytest.mark.parametrize(
    "answer", [b"N", b"E", b"X" + MARK, b"E\x00\x00\x00\x40SFATAL\x00M" + MARK + b"\x00\x00", b"S" + MARK]
)
def test_a_server_that_refuses_tls_gets_nothing_and_is_not_echoed(
    sample: Database, guarded: Callable[..., Guarded], authority: trustme.CA, ca_file: str, answer: bytes
) -> None:
    """`N`, an error before TLS, and octets stuffed behind `S`: no login, and no word of it in the error."""
    front = guarded(authority.issue_cert("localhost"), answer)
    with pytest.raises(SourceError) as caught:
        read(url(sample, front), ca_file)
    assert PASSWORD.encode() not in front.heard
    assert not front.login
    assert MARK.decode() not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_an_authority_that_cannot_be_read_is_an_error_and_not_less_safety(
    sample: Database, guarded: Callable[..., Guarded], authority: trustme.CA, tmp_path: Path
) -> None:
    """Missing and garbage: the server is not even asked."""
    front = guarded(authority.issue_cert("localhost"))
    (tmp_path / "garbage.pem").write_text("nothing\n", encoding="utf-8")
    for name in ("missing.pem", "garbage.pem"):
        with pytest.raises(SourceUnreachableError):
            read(url(sample, front), str(tmp_path / name))
    assert front.heard == b""


def test_a_server_follows_its_database_over_tls(
    serve: Callable[..., Server], sample: Database, guarded: Callable[..., Guarded], authority: trustme.CA, ca_file: str
) -> None:
    """`avapd serve` with AVAPD_DATABASE_CA_FILE: polls and notifications; in production nothing is warned of."""
    front = guarded(authority.issue_cert("localhost"))
    env = {"AVAPD_DATABASE_CA_FILE": ca_file, "AVAPD_ENV": "production"}
    server = serve(url(sample, front), env=env).wait_serving()
    wait_until(lambda: server.status()["listening"])
    assert server.status()["count"] == 3
    assert not [line for line in server.events("Setting") if "database" in line["warning"]]
    assert PASSWORD not in server.log


def test_a_database_with_tls_of_its_own(authority: trustme.CA, tmp_path: Path) -> None:
    """PostgreSQL's own OpenSSL, where an installation with it is found."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or [Path(shutil.which("postgres") or "postgres")]
    if not found[-1].exists():
        pytest.skip("no PostgreSQL with OpenSSL is installed; the wheel's has none")
    leaf = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()
    made = Postgres(port=port)
    made.bin = found[-1].resolve().parent
    with made as postgres:
        for name, content in (("server.crt", chain(leaf)), ("server.key", leaf.private_key_pem.bytes())):
            path = postgres.data / name
            path.write_bytes(content)
            path.chmod(0o600)
            shutil.chown(path, postgres.data.owner())
        database = Database(postgres.url())
        database.insert([("addVar", "[]", "function", "x = 1")])
        database.execute("ALTER SYSTEM SET ssl = on")
        database.execute("SELECT pg_reload_conf()")
        where = f"postgresql://avapd_reader@localhost:{port}/{database.name}"
        wait_until(lambda: database.query("SHOW ssl")[0][0] == "on")

        async def encrypted(connection: object) -> bool:
            query = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
            return bool(await connection.fetchval(query))  # type: ignore[attr-defined]

        assert asyncio.run(Reached(where, 5, str(tmp_path / "ca.pem")).read(encrypted))
        assert read(where, str(tmp_path / "ca.pem")) == 1
        with pytest.raises(SourceUnreachableError):
            read(where.replace("localhost", "127.0.0.1"), str(tmp_path / "ca.pem"))
