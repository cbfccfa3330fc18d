"""Clients of ours and of others over mTLS: `avapd.client`, the commands, grpcurl (grpc-go)."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from clients.tools import go_tool
from support.certificates import Folder, chain, days_on
from support.database import Database
from support.server import KEY, Server

from avapd.client import AsyncCache, AsyncClient, Cache, CallError, Client, Tls
from avapd.errors import ConfigError

pytestmark = pytest.mark.timeout(600)  # the first run builds grpcurl

Done = subprocess.CompletedProcess[str]
PROTO = Path(__file__).parents[2] / "proto"


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("certificates"), trustme.CA())
    leaf = made.clients.issue_cert("client.example")
    (made.path / "ours.pem").write_bytes(chain(leaf))
    (made.path / "ours-key.pem").write_bytes(leaf.private_key_pem.bytes())
    made.authority.cert_pem.write_to_path(made.path / "ca.pem")
    return made


@pytest.fixture(scope="module")
def server(database: Database, folder: Folder) -> Iterator[Server]:
    env = {**folder.settings(mutual=True), "AVAPD_ENV": "production", "AVAPD_SILENCE_SECONDS": "60"}
    with Server(database.reader_url, env={**env, "AVAPD_INSECURE": ""}) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module")
def tls(folder: Folder) -> Tls:
    return Tls(ca=folder.path / "ca.pem", cert=folder.path / "ours.pem", key=folder.path / "ours-key.pem")


@pytest.fixture(scope="module")
def target(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def test_the_python_clients_speak_mtls(target: str, tls: Tls, folder: Folder) -> None:
    """Calls and the cache, for threads and for asyncio; without a certificate nothing is served."""
    with Client(target, KEY, tls=tls) as client:
        assert client.get("addVar").code == b"x = 1\n"
    with Cache(target, KEY, tls=tls) as cache:
        assert cache.wait_ready(10)
        assert cache.names() == ["addVar"]

    async def asynchronously() -> list[str]:
        async with AsyncClient(target, KEY, tls=tls) as client, AsyncCache(target, KEY, tls=tls) as cache:
            assert await client.health() == "SERVING"
            assert await cache.wait_ready(10)
            return cache.names()

    assert asyncio.run(asynchronously()) == ["addVar"]
    stranger = Client(target, KEY, tls=Tls(ca=folder.path / "ca.pem"), timeout=5)
    with stranger, pytest.raises(CallError, match="UNAVAILABLE"):
        stranger.get("addVar")


def test_a_client_says_which_file_it_lacks(target: str, folder: Folder) -> None:
    """Before a connection is tried."""
    with pytest.raises(ConfigError, match=r"nothing\.pem cannot be read"):
        Client(target, KEY, tls=Tls(ca=folder.path / "nothing.pem"))
    with pytest.raises(ConfigError, match="go together"):
        Client(target, KEY, tls=Tls(cert=folder.path / "ours.pem"))


def avapd(*arguments: str, **environ: str) -> Done:
    command = [sys.executable, "-P", "-m", "avapd", *arguments]
    env = {"PATH": "/usr/bin:/bin", "API_KEY": KEY, **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def ask(target: str, folder: Folder) -> Callable[..., Done]:
    """A command of ours that speaks mTLS by its environment."""
    environ = {
        "AVAPD_TARGET": target, "AVAPD_TARGET_CA_FILE": str(folder.path / "ca.pem"),
        "AVAPD_TARGET_CERT_FILE": str(folder.path / "ours.pem"),
        "AVAPD_TARGET_KEY_FILE": str(folder.path / "ours-key.pem"),
    }  # fmt: skip
    return lambda *arguments: avapd(*arguments, **environ)


def test_the_commands_speak_mtls(ask: Callable[..., Done]) -> None:
    """get, list, sync, watch and health, by the environment or by flags."""
    assert ask("get", "addVar").stdout == "x = 1\n"
    assert json.loads(ask("list", "--json").stdout)[0]["name"] == "addVar"
    assert json.loads(ask("sync", "--json").stdout)["definitions"] == 1
    assert "changed: everything" in ask("watch", "--events", "1").stdout
    assert ask("health").returncode == 0


def test_flags_name_the_files_too(target: str, folder: Folder) -> None:
    """And another name than the one that the server is reached by; a name it has not is refused."""
    files = [
        f"--ca={folder.path / 'ca.pem'}", f"--cert={folder.path / 'ours.pem'}",
        f"--cert-key={folder.path / 'ours-key.pem'}", f"--target={target}",
    ]  # fmt: skip
    assert avapd("get", "addVar", *files, "--server-name=localhost").stdout == "x = 1\n"
    assert avapd("get", "addVar", *files, "--server-name=other.example", "--timeout=3").returncode != 0
    assert avapd("get", "addVar", f"--target={target}", "--tls", "--timeout=3").returncode != 0


def findings(folder: Folder, url: str) -> list[Any]:
    """What `avapd check` says of certificates."""
    done = avapd("check", "--json", AVAPD_ENV="test", DATABASE_URL=url, **folder.settings(mutual=True))
    found = [one for one in json.loads(done.stdout) if one["check"] == "certificates"]
    assert (done.returncode == 1) == any(one["status"] == "fail" for one in found), done
    return found


def test_check_looks_at_certificates(tmp_path: Path, database: Database) -> None:
    """Good, close to their end, and with the key of another one."""
    folder = Folder(tmp_path, trustme.CA())
    (good,) = findings(folder, database.reader_url)
    assert good["status"] == "ok"
    folder.rotate(not_after=days_on(13))
    (soon,) = findings(folder, database.reader_url)
    assert (soon["status"], "server for 12 days" in soon["found"]) == ("warn", True), soon
    leaf, other = (folder.authority.issue_cert("localhost") for _ in range(2))
    folder.put(chain(leaf), other.private_key_pem.bytes())
    (bad,) = findings(folder, database.reader_url)
    assert (bad["status"], "AVAPD_TLS_KEY_FILE" in bad["found"]) == ("fail", True), bad


def test_grpcurl_speaks_mtls(target: str, folder: Folder) -> None:
    """Grpc-go insists on ALPN; without a certificate it is not served."""
    program = go_tool("github.com/fullstorydev/grpcurl/cmd/grpcurl")

    def call(*options: str) -> Done:
        command = [
            str(program), "-cacert", str(folder.path / "ca.pem"), *options,
            "-H", f"x-avap-auth: {KEY}", "-max-time", "10",
            "-import-path", str(PROTO), "-proto", "avap.proto", "-d", '{"name": "addVar"}',
            target, "avap.DefinitionEngine/GetCommand",
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    shown = ("-cert", str(folder.path / "ours.pem"), "-key", str(folder.path / "ours-key.pem"))
    done = call(*shown)
    assert done.returncode == 0, done
    assert base64.b64decode(json.loads(done.stdout)["code"]) == b"x = 1\n"
    assert call().returncode != 0
