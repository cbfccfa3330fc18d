"""connect-go, by `buf curl`: the HTTP/2 of Go's net/http, which sends header fields in another order each time."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from clients.engines import ENGINES
from clients.tools import installed, npm
from support.database import Database
from support.server import KEY, Server
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # the first run installs the client

HERE = Path(__file__).parent
SCHEMA = HERE.parent.parent / "proto" / "avap.proto"
CODE_BYTES = 2_950_000
ENGINE, HEALTH = "avap.DefinitionEngine", "grpc.health.v1.Health"
# The exit code of `buf curl` is the gRPC status times eight.
CODES = {"not_found": 5, "resource_exhausted": 8, "unimplemented": 12, "unauthenticated": 16}


# A method that the server does not have.
MORE = """syntax = "proto3"; package avap; message Empty {}
service DefinitionEngine { rpc Nothing(Empty) returns (Empty); }"""


class Curl(NamedTuple):
    """`buf curl` on one server."""

    program: Path
    url: str
    env: dict[str, str]

    def start(self, path: str, *arguments: str) -> subprocess.Popen[str]:
        """Start it, in a session of its own: the program is a script with a child."""
        command = [str(self.program), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
        return subprocess.Popen(
            [*command, f"{self.url}/{path}"], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def call(self, path: str, data: object, *arguments: str, key: str = KEY) -> tuple[str, Any]:
        """How a unary call ended, `ok` or connect's name of the status, and the answer or the message."""
        with self.start(path, "-d", json.dumps(data), "-H", f"x-avap-auth: {key}", *arguments) as process:
            out, err = process.communicate(timeout=30)
        if process.returncode == 0:
            return "ok", json.loads(out)
        error = json.loads(err)
        assert process.returncode == 8 * CODES[error["code"]]
        return error["code"], error["message"]

    def lines(self, path: str, *arguments: str) -> list[str]:
        """What it prints, when all is well."""
        with self.start(path, *arguments) as process:
            out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        return out.splitlines()


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    """Definitions of almost 3 MiB, which with what JSON adds is as much as `buf curl` takes, and 16 MiB in all."""
    made = Database(postgres_url)
    made.insert_many(6, CODE_BYTES)
    yield made
    made.drop()


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, database: Database) -> Iterator[Server]:
    """In development, for its reflection."""
    env = {"AVAPD_ENGINE": request.param, "AVAPD_ENV": "development", "AVAPD_REFRESH_SECONDS": "60"}
    with Server(database.reader_url, env=env) as made, made.calls() as calls:
        wait_until(lambda: calls.health() == "SERVING", 20)
        yield made


@pytest.fixture(scope="module")
def curl(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Curl:
    installed("node")
    program = npm(HERE / "node") / "node_modules" / ".bin" / "buf"
    home = str(tmp_path_factory.mktemp("home"))
    return Curl(program, f"http://127.0.0.1:{server.port}", {"PATH": os.environ["PATH"], "HOME": home})


def test_reflection_describes_the_services(curl: Curl) -> None:
    """Without a schema of its own the client learns the methods from the server."""
    methods = set(curl.lines("", "--list-methods"))
    assert methods >= {f"{ENGINE}/GetCommand", f"{ENGINE}/SyncCatalog", f"{HEALTH}/Check", f"{HEALTH}/Watch"}


def test_reflection_answers_one_question_after_another(curl: Curl) -> None:
    """A stream in both directions: three answers, in the order of the questions, the second of them an error."""
    questions = [{"list_services": ""}, {"file_containing_symbol": "nothing"}, {"file_containing_symbol": ENGINE}]
    path = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    answers = "".join(curl.lines(path, "-d", " ".join(json.dumps(question) for question in questions)))
    decoder, found = json.JSONDecoder(), []
    while answers:
        answer, end = decoder.raw_decode(answers)
        found.append(answer)
        answers = answers[end:].lstrip()
    kinds = ["listServicesResponse", "errorResponse", "fileDescriptorResponse"]
    assert [kind in answer for kind, answer in zip(kinds, found, strict=True)] == [True] * 3
    assert found[1]["errorResponse"]["errorCode"] == 5


@pytest.mark.parametrize("schema", [(), ("--schema", str(SCHEMA))], ids=["reflection", "schema"])
def test_a_definition_arrives_whole(curl: Curl, schema: tuple[str, ...]) -> None:
    """GetCommand of megabytes, with the schema from the server or from proto/avap.proto."""
    status, answer = curl.call(f"{ENGINE}/GetCommand", {"name": "command_000003"}, *schema)
    assert (status, answer["name"]) == ("ok", "command_000003")
    code = base64.b64decode(answer["code"])
    assert len(code) == CODE_BYTES
    assert hashlib.sha256(code).hexdigest() == answer["hash"]


def test_errors_arrive_as_errors(curl: Curl, tmp_path: Path) -> None:
    """Status and message of an unknown name, a wrong key, an unknown method and an unknown health service."""
    (tmp_path / "more.proto").write_text(MORE)
    get = f"{ENGINE}/GetCommand"
    assert curl.call(get, {"name": "ñ 100%"}) == ("not_found", "Command 'ñ 100%' not found")
    assert curl.call(get, {"name": "command_000003"}, key="wrong") == ("unauthenticated", "Invalid Credentials")
    unknown = curl.call(f"{ENGINE}/Nothing", {}, "--schema", str(tmp_path / "more.proto"))
    assert unknown == ("unimplemented", f"Method '/{ENGINE}/Nothing' not found")
    assert curl.call(f"{HEALTH}/Check", {"service": "nothing"})[0] == "not_found"


def test_a_client_that_does_not_want_so_much_harms_nobody(curl: Curl) -> None:
    """It gives up an answer of more than 16 MiB at its own limit of 4 MiB; the next call is served."""
    status, message = curl.call(f"{ENGINE}/SyncCatalog", {})
    assert (status, "larger than configured max" in message) == ("resource_exhausted", True)
    assert curl.call(f"{HEALTH}/Check", {}) == ("ok", {"status": "SERVING"})


def test_deadlines_are_kept(curl: Curl) -> None:
    """One that is far off is no hindrance, a Watch ends at its own; timeouts are told in microseconds."""
    for timeout in ("20s", "7.654321s", "1h"):
        assert curl.call(f"{HEALTH}/Check", {}, "--timeout", timeout) == ("ok", {"status": "SERVING"})
    with curl.start(f"{HEALTH}/Watch", "--timeout", "700ms") as process:
        out, err = process.communicate(timeout=30)
    assert json.loads(out) == {"status": "SERVING"}
    assert json.loads(err)["code"] == "deadline_exceeded"


def test_a_stream_is_open_until_it_is_cancelled(curl: Curl, server: Server) -> None:
    """The first message of a Watch comes at once; Ctrl-C ends the client, and its connection is gone."""
    wait_until(lambda: server.metric("avap_connections") == 1)  # that of the fixture
    with curl.start(f"{HEALTH}/Watch") as process:
        assert process.stdout
        first = "".join(itertools.islice(process.stdout, 3))
        assert json.loads(first) == {"status": "SERVING"}
        wait_until(lambda: server.metric("avap_connections") == 2)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(10)
    wait_until(lambda: server.metric("avap_connections") == 1)
