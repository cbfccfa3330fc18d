"""What every engine must do alike: the contract of the rpcs, of health and of their metrics, seen from a client."""

from __future__ import annotations

import hashlib
import itertools
import re
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from support.calls import Calls, Outcome
from support.database import Database
from support.server import KEY, Server
from support.waiting import stays, wait_until

from avapd.pb import avap_pb2

ENGINES = ("grpcio",)
SECOND_KEY = "the-second-key-of-two"
HEALTH_NAMES = ("", "avap.DefinitionEngine", "liveness", "avapd.freshness")
MAX_ANSWER = 65_536
ROWS = [
    ("addVar", '[{"item": "name", "type": "variable"}]', "function", "def run(task, context):\n    return 1\n"),
    ("empty", "", "", ""),
    ("sí, 日本語 🎉", None, None, "# ñ\n"),
    ("type", "[]", "function_variable", "x = 1\n"),
]
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
GET, SYNC = "/avap.DefinitionEngine/GetCommand", "/avap.DefinitionEngine/SyncCatalog"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DENIED = Outcome(16, "Invalid Credentials", b"")
BAD_GET = Outcome(13, "Request is not a valid avap.CommandRequest", b"")
BAD_EMPTY = Outcome(13, "Request is not a valid avap.Empty", b"")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert(ROWS)
    yield made
    made.drop()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{KEY},{SECOND_KEY}\n")
    return path


@pytest.fixture(scope="module")
def server(engine: str, database: Database, key_file: Path) -> Iterator[Server]:
    """The one server of this file, in the environment `test`, with its keys in a file."""
    env = {
        "AVAPD_ENGINE": engine,
        "API_KEY": "",
        "API_KEY_FILE": str(key_file),
        "AVAPD_MAX_ANSWER_BYTES": str(MAX_ANSWER),
        "AVAPD_SILENCE_SECONDS": "60",  # a busy machine is no finding here
    }
    with Server(database.reader_url, env=env) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module")
def cold(engine: str) -> Iterator[Server]:
    """A server in `production` whose database has never answered."""
    with Server(NOWHERE, env={"AVAPD_ENGINE": engine, "AVAPD_ENV": "production"}) as made:
        with made.calls() as calls:
            assert calls.health("liveness", wait=True, timeout=20) == "SERVING"
        wait_until(lambda: all(worker["state"] == "WAITING" for worker in made.status()["workers"]))
        yield made


@pytest.fixture(scope="module")
def calls(server: Server) -> Iterator[Calls]:
    with server.calls() as made:
        yield made


@pytest.fixture(scope="module")
def anonymous(server: Server) -> Iterator[Calls]:
    """A client without any key."""
    with Calls(f"127.0.0.1:{server.port}") as made:
        yield made


def request_for(name: str) -> bytes:
    return avap_pb2.CommandRequest(name=name).SerializeToString()


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_definition_is_its_row(calls: Calls, row: tuple[str, str | None, str | None, str]) -> None:
    """Type and interface have their defaults, code is the UTF-8 source, hash its SHA-256."""
    name, interface, kind, code = row
    command = calls.command(name)
    assert command.name == name
    assert command.type == (kind or "function")
    assert command.interface_json == (interface or "[]")
    assert command.code == code.encode()
    assert command.hash == hashlib.sha256(code.encode()).hexdigest()


def test_the_catalog_is_every_definition_in_order(calls: Calls) -> None:
    """SyncCatalog holds what GetCommand gives, sorted by UTF-8 bytes, counted and hashed."""
    catalog = calls.catalog()
    names = sorted((row[0] for row in ROWS), key=str.encode)
    assert [command.name for command in catalog.commands] == names
    assert list(catalog.commands) == [calls.command(name) for name in names]
    assert catalog.total_count == len(ROWS)
    content = avap_pb2.CatalogResponse(commands=catalog.commands).SerializeToString()
    assert catalog.version_hash == hashlib.sha256(content).hexdigest()


def test_every_worker_gives_the_same_bytes(server: Server) -> None:
    """Sixteen connections, spread over the workers, receive identical answers."""
    answers = set()
    for _ in range(16):
        with server.calls() as calls:
            answers.add((calls.sync(), calls.get("addVar")))
    assert len(answers) == 1


def test_protobuf_is_read_as_protobuf(calls: Calls) -> None:
    """Unknown fields are skipped, the last of a repeated name wins, an overlong varint is still a length."""
    known = request_for("addVar")
    expected = calls.get("addVar")
    for request in (
        known + b"\x10\x07",  # field 2, varint
        b"\x1a\x03abc" + known,  # field 3, bytes
        request_for("nothing") + known,
        b"\x0a\x86\x00addVar",
    ):
        assert calls.call(GET, request) == expected
    assert calls.call(SYNC, b"\x0a\x03abc\x10\x07") == calls.sync()


# --- the status table of part 1 -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [GET, SYNC])
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("x-avap-auth", ""),),
        (("x-avap-auth", "wrong-key-of-enough-length"),),
        (("x-avap-auth", KEY[:-1]),),
        (("x-avap-auth", KEY + "x"),),
        (("x-avap-auth", KEY.upper()),),
        (("x-avap-auth", f"Bearer {KEY}"),),
        (("x-avap-auth", f"{KEY},{SECOND_KEY}"),),
        (("authorization", KEY),),
        (("authorization", f"Basic {KEY}"),),
        (("authorization", f"Bearer  {KEY}x"),),
        (("authorization", "Bearer "),),
        (("x-api-key", KEY),),
        (("x-avap-auth-bin", KEY.encode()),),
        (("x-avap-auth", "wrong-key-of-enough-length"), ("authorization", f"Bearer {KEY}")),
    ],
)
def test_no_key_or_a_wrong_key_is_unauthenticated(anonymous: Calls, path: str, metadata: Any) -> None:
    """16 `Invalid Credentials`, the same for every way of not being right."""
    assert anonymous.call(path, b"", metadata) == DENIED


@pytest.mark.parametrize("key", [KEY, SECOND_KEY])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_both_headers_carry_every_key(anonymous: Calls, key: str, scheme: str) -> None:
    """`x-avap-auth: <key>` and `authorization: Bearer <key>` open both rpcs, with each of the accepted keys."""
    for metadata in ((("x-avap-auth", key),), (("authorization", f"{scheme} {key}"),)):
        assert anonymous.call(GET, request_for("type"), metadata).code == 0
        assert anonymous.call(SYNC, b"", metadata).code == 0


def test_the_key_comes_before_everything_else(anonymous: Calls) -> None:
    """Without a key a bad request, an unknown name and a known name look the same."""
    for request in (b"\xff", request_for("nothing"), request_for("addVar")):
        assert anonymous.call(GET, request) == DENIED
    assert anonymous.call(SYNC, b"\xff") == DENIED


@pytest.mark.parametrize("name", ["nothing", "", "ADDVAR", "addVar ", "addVar\0", "a'b", "100% %41", "ñ 🎉\n\x1b[31m"])
def test_an_unknown_name_is_not_found(calls: Calls, name: str) -> None:
    """5, and the message holds the name as it was asked for, through the percent-encoding and back."""
    assert calls.get(name) == Outcome(5, f"Command '{name}' not found", b"")


@pytest.mark.parametrize(
    "request_bytes", [b"\xff", b"\x0a\x06addVa", b"\x0a\x02\xc3\x28", b"\x0a", b"\x00\x00", b"\x0b"]
)
def test_no_protobuf_is_internal(calls: Calls, request_bytes: bytes) -> None:
    """13, says so, shows no stack trace."""
    assert calls.call(GET, request_bytes) == BAD_GET


@pytest.mark.parametrize("request_bytes", [b"\xff", b"\x0a\x06addVa", b"\x0a", b"\x0b"])
def test_no_protobuf_for_the_catalog_is_internal(calls: Calls, request_bytes: bytes) -> None:
    """13, though the message is empty."""
    assert calls.call(SYNC, request_bytes) == BAD_EMPTY


def test_before_the_first_catalog_the_answer_is_unavailable(cold: Server) -> None:
    """14, says so; the key is still asked for first."""
    with cold.calls() as calls:
        for outcome in (calls.get("addVar"), calls.sync()):
            assert outcome == Outcome(14, "No catalog loaded yet", b"")
        assert calls.call(GET, request_for("addVar"), ()) == DENIED


def test_an_answer_above_the_maximum_is_refused(calls: Calls, database: Database) -> None:
    """Exactly AVAPD_MAX_ANSWER_BYTES goes through; one byte more is 8, for one definition and for the catalog."""
    before = calls.catalog().version_hash
    frame = len(
        avap_pb2.CommandResponse(name="big", type="function", interface_json="[]", hash="0" * 64).SerializeToString()
    )
    code = MAX_ANSWER - frame - 4  # the tag of `code` and its length
    database.insert([("big", None, None, "x" * code)])
    try:
        served = wait_until(lambda: (got := calls.get("big")).code == 0 and got)
        assert isinstance(served, Outcome)
        assert len(served.payload) == MAX_ANSWER
        catalog = calls.sync()
        assert catalog.code == 8
        assert re.fullmatch(r"The answer has \d+ bytes, the maximum is 65536; use StreamCatalog", catalog.message)
        database.execute("UPDATE obex_dapl_functions SET code = code || 'x' WHERE name = 'big'")
        wait_until(lambda: calls.get("big").code == 8)
        message = "The answer has 65537 bytes, the maximum is 65536; use StreamCatalog"
        assert calls.get("big") == Outcome(8, message, b"")
    finally:
        database.execute("DELETE FROM obex_dapl_functions WHERE name = 'big'")
    wait_until(lambda: calls.sync().code == 0)
    assert calls.catalog().version_hash == before


UNKNOWN_METHODS = [
    "/avap.DefinitionEngine/DeleteCommand",
    "/avap.DefinitionEngine/getcommand",
    "/avap.DefinitionEngine/",
    "/avap.DefinitionEngine",
    "/avap.Other/GetCommand",
    "/GetCommand",
    "/grpc.health.v1.Health/Nothing",
    "/grpc.health.v2.Health/Check",
    REFLECTION,
    "/" + "x" * 300,
]


@pytest.mark.parametrize("path", UNKNOWN_METHODS, ids=lambda path: path[:40])
def test_an_unknown_method_is_unimplemented(calls: Calls, path: str) -> None:
    """12, and the message names it (the beginning of it, when it is long)."""
    outcome = calls.call(path, b"")
    assert outcome.code == 12
    assert path[:64] in outcome.message


# --- health (part 5) ----------------------------------------------------------------------------------------


def watch(calls: Calls, service: str) -> Any:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return calls.channel.unary_stream("/grpc.health.v1.Health/Watch")(request, timeout=30)


def status_of(raw: bytes) -> str:
    status = health_pb2.HealthCheckResponse.FromString(raw).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def listed(calls: Calls) -> dict[str, str]:
    outcome = calls.call("/grpc.health.v1.Health/List", b"", ())
    assert outcome.code == 0, outcome
    statuses = list_response().FromString(outcome.payload).statuses
    return {name: status_of(status.SerializeToString()) for name, status in statuses.items()}


@cache
def list_response() -> Any:
    """HealthListResponse as grpc/health/v1/health.proto has it; the grpc_health of grpcio 1.83 does not."""
    proto = descriptor_pb2.FileDescriptorProto(
        name="health_list.proto", package="test.health", syntax="proto3", dependency=[health_pb2.DESCRIPTOR.name]
    )
    message = proto.message_type.add(name="HealthListResponse")
    field = {"type": 11, "label": 3, "number": 1}
    message.field.add(name="statuses", type_name=".test.health.HealthListResponse.StatusesEntry", **field)
    entry = message.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", type=9, label=1, number=1)
    entry.field.add(name="value", type=11, label=1, number=2, type_name=".grpc.health.v1.HealthCheckResponse")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(proto.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.health.HealthListResponse"))


@pytest.mark.parametrize("service", HEALTH_NAMES)
def test_a_serving_worker_is_healthy(anonymous: Calls, service: str) -> None:
    """Check and Watch say SERVING for every name of the contract, without a key."""
    wait_until(lambda: anonymous.health(service) == "SERVING")
    stream = watch(anonymous, service)
    assert status_of(next(stream)) == "SERVING"
    assert stays(stream.is_active, 0.2)
    stream.cancel()


def test_a_worker_without_a_catalog_is_alive_but_not_serving(cold: Server) -> None:
    """Only `liveness` is SERVING, by Check, Watch and List alike."""
    expected = dict.fromkeys(HEALTH_NAMES, "NOT_SERVING") | {"liveness": "SERVING"}
    with Calls(f"127.0.0.1:{cold.port}") as calls:
        assert {name: calls.health(name) for name in HEALTH_NAMES} == expected
        assert {name: status_of(next(watch(calls, name))) for name in HEALTH_NAMES} == expected
        assert listed(calls) == expected


def test_health_lists_exactly_the_names_of_the_contract(anonymous: Calls) -> None:
    """List answers every name with its status, and nothing else."""
    wait_until(lambda: listed(anonymous) == dict.fromkeys(HEALTH_NAMES, "SERVING"))


@pytest.mark.parametrize("service", ["nothing", "Liveness", "avap.definitionengine", "x" * 1000])
def test_check_of_an_unknown_service_is_not_found(anonymous: Calls, service: str) -> None:
    """5, and not a status."""
    assert anonymous.health(service) == "5"


def test_watch_of_an_unknown_service_stays_open(anonymous: Calls) -> None:
    """SERVICE_UNKNOWN is a message of the stream and not its end."""
    stream = watch(anonymous, "nothing")
    assert status_of(next(stream)) == "SERVICE_UNKNOWN"
    assert stays(stream.is_active, 0.5)
    stream.cancel()


def test_health_ignores_a_wrong_key(calls: Calls) -> None:
    """Whatever a probe sends as a key, it is answered."""
    for metadata in ((), (("x-avap-auth", "wrong"),), (("x-avap-auth", KEY),)):
        assert calls.call("/grpc.health.v1.Health/Check", b"", metadata).code == 0


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
def test_a_health_request_that_is_no_protobuf_ends_with_an_error(calls: Calls, method: str) -> None:
    """The call ends with INTERNAL, as the other rpcs do."""
    stream = calls.channel.unary_stream(f"/grpc.health.v1.Health/{method}")(b"\xff", timeout=5)
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert stream.code() is grpc.StatusCode.INTERNAL
    assert "Traceback" not in stream.details()


# --- reflection ---------------------------------------------------------------------------------------------


def reflect(calls: Calls, **question: str) -> Any:
    request = reflection_pb2.ServerReflectionRequest(**question).SerializeToString()
    answers = calls.channel.stream_stream(REFLECTION)(iter([request]), timeout=10)
    return reflection_pb2.ServerReflectionResponse.FromString(next(answers))


def test_reflection_answers_in_development(engine: str, database: Database) -> None:
    """v1alpha, without a key: the services, and the file that declares ours."""
    env = {"AVAPD_ENGINE": engine, "AVAPD_ENV": "development", "AVAPD_WORKERS": "1"}
    with Server(database.reader_url, env=env) as server:
        with Calls(f"127.0.0.1:{server.port}") as calls:
            assert calls.health("liveness", wait=True, timeout=20) == "SERVING"
            names = {service.name for service in reflect(calls, list_services="").list_services_response.service}
            file = reflect(calls, file_containing_symbol="avap.DefinitionEngine").file_descriptor_response
        assert {"avap.DefinitionEngine", "grpc.health.v1.Health"} <= names
        assert avap_pb2.DESCRIPTOR.serialized_pb in file.file_descriptor_proto


def test_there_is_no_reflection_elsewhere(server: Server, cold: Server) -> None:
    """In `test` and in `production` the method is unknown."""
    for without in (server, cold):
        with without.calls() as calls:
            for version in ("v1alpha", "v1"):
                path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
                assert calls.call(path, b"").code == 12


# --- metrics (part 6) ---------------------------------------------------------------------------------------


def counted(server: Server) -> dict[tuple[str, str], int]:
    """`avap_requests_total` by method and status."""
    found = re.findall(
        r'^avap_requests_total\{method="(\w+)",status="(\w+)"\} (\S+)$', server.http("/metrics")[1], re.MULTILINE
    )
    return {(method, status): int(float(count)) for method, status, count in found}


COUNTED: list[tuple[str, str, str, bytes, Any]] = [
    ("GetCommand", "200", GET, request_for("addVar"), None),
    ("GetCommand", "401", GET, request_for("addVar"), ()),
    ("GetCommand", "404", GET, request_for("nothing"), None),
    ("GetCommand", "500", GET, b"\xff", None),
    ("SyncCatalog", "200", SYNC, b"", None),
    ("SyncCatalog", "401", SYNC, b"", ()),
    ("SyncCatalog", "500", SYNC, b"\xff", None),
    *(("unknown", "501", path, b"", None) for path in UNKNOWN_METHODS),
]


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: f"{case[1]}-{case[2][:40]}")
def test_each_call_is_counted_once(server: Server, calls: Calls, case: tuple[str, str, str, bytes, Any]) -> None:
    """By method and HTTP-like status, under no other pair, and its duration too."""
    method, status, path, body, metadata = case
    before, timed = counted(server), server.metric("avap_request_duration_seconds_count", method=method)
    for _ in range(3):
        calls.call(path, body, metadata)
    after = counted(server)
    assert {pair: after[pair] - before[pair] for pair in after if after[pair] != before[pair]} == {(method, status): 3}
    assert server.metric("avap_request_duration_seconds_count", method=method) - timed == 3


def test_what_is_unavailable_is_counted(cold: Server) -> None:
    """503 while there is no catalog."""
    before = counted(cold)
    with cold.calls() as calls:
        calls.get("addVar")
        calls.sync()
    after = counted(cold)
    assert {pair: after[pair] - before[pair] for pair in after if after[pair] != before[pair]} == {
        ("GetCommand", "503"): 1,
        ("SyncCatalog", "503"): 1,
    }


def test_a_watch_that_its_client_ends_is_counted_as_cancelled(server: Server, calls: Calls) -> None:
    """As most watches end: 499, by method and by key, and in no bucket of the latency."""

    def facts() -> tuple[float, float, float]:
        return (
            server.metric("avap_requests_total", method="WatchCatalog", status="499"),
            server.metric("avap_key_requests_total", key="default"),
            server.metric("avap_request_duration_seconds_count", method="WatchCatalog"),
        )

    before = facts()
    path, metadata = "/avap.DefinitionEngine/WatchCatalog", (("x-avap-auth", KEY),)
    stream = calls.channel.unary_stream(path)(b"", metadata=metadata, timeout=30)
    next(stream)
    stream.cancel()
    wait_until(lambda: facts() == (before[0] + 1, before[1] + 1, before[2]))


def test_a_client_cannot_make_a_label(server: Server, calls: Calls) -> None:
    """The label values are fixed, whatever methods were called."""
    for number in range(20):
        calls.call(f"/avap.DefinitionEngine/Method{number}", b"")
    methods = ("GetCommand", "SyncCatalog", "unknown")
    statuses = ("200", "401", "404", "429", "499", "500", "501", "503", "504")
    assert set(counted(server)) >= set(itertools.product(methods, statuses))
    assert "Method1" not in server.http("/metrics")[1]


def test_health_is_not_counted_as_a_request(server: Server, anonymous: Calls) -> None:
    """Probes would drown what the alerts look at."""
    before = counted(server)
    for _ in range(5):
        anonymous.health()
    assert counted(server) == before


def test_the_gauges_tell_what_is_served(server: Server, calls: Calls) -> None:
    """Definitions, generation and version agree between metrics, status and clients."""
    status = server.status()
    assert server.metric("avap_cache_size") == status["count"] == calls.catalog().total_count == len(ROWS)
    assert status["version_hash"] == calls.catalog().version_hash
    assert server.metric("avap_generation") == status["generation"] == max(w["generation"] for w in status["workers"])
    assert server.metric("avap_worker_up") == 2
    assert server.metric("avap_database_up") == 1
    assert server.http("/livez") == (200, "ok\n")
    assert server.http("/readyz") == (200, "ok: 2 of 2 workers serve\n")


def test_a_cold_server_is_not_ready(cold: Server) -> None:
    """`/livez` is good, `/readyz` is not, and says why."""
    assert cold.http("/livez")[0] == 200
    code, text = cold.http("/readyz")
    assert (code, text.startswith("no catalog yet: ")) == (503, True)
    assert cold.metric("avap_database_up") == 0


# --- rotation of keys ---------------------------------------------------------------------------------------


def codes(server: Server, key: str) -> set[int]:
    """How a key fares on several connections, so on every worker."""
    found = set()
    for _ in range(12):
        with server.calls(key) as calls:
            found.add(calls.get("type").code)
    return found


@pytest.fixture
def rotate(server: Server, key_file: Path) -> Iterator[Callable[[str], None]]:
    """Writes the key file and sends SIGHUP; puts the first keys back."""

    def write(text: str) -> None:
        key_file.write_text(text)
        server.process.send_signal(signal.SIGHUP)

    yield write
    write(f"{KEY},{SECOND_KEY}\n")
    wait_until(lambda: codes(server, KEY) == codes(server, SECOND_KEY) == {0})


def test_keys_rotate_by_sighup(server: Server, rotate: Callable[[str], None], calls: Calls) -> None:
    """New keys are accepted and old ones denied, on old and new connections of every worker; nobody restarts."""
    new, pids = "the-newest-key-of-all", server.workers()
    assert calls.get("type").code == 0
    rotate(f"{new}, {KEY}")
    wait_until(lambda: codes(server, new) == {0})
    assert codes(server, KEY) == {0}
    assert codes(server, SECOND_KEY) == {16}
    rotate(new)
    wait_until(lambda: codes(server, KEY) == {16})
    assert calls.get("type") == DENIED
    assert codes(server, new) == {0}
    assert server.workers() == pids
    assert wait_until(lambda: server.events("Keys Reloaded"))[-1]["keys"] == 1


@pytest.mark.parametrize("text", ["", "k3y-canary", "not printable: \x1b[31m key", "ключ-из-кириллицы", ",,,"])
def test_bad_keys_change_nothing(server: Server, rotate: Callable[[str], None], text: str) -> None:
    """A key file that would not do at the start does not do at SIGHUP: it is told, and the old keys stay."""
    before = len(server.events("Settings Not Reloaded"))
    rotate(text)
    wait_until(lambda: len(server.events("Settings Not Reloaded")) > before)
    assert codes(server, KEY) == {0}
    problems = server.events("Settings Not Reloaded")[-1]["problems"]
    assert any("API_KEY" in problem for problem in problems)
    assert not text or text not in server.log


def test_sighup_refreshes_at_once(engine: str, database: Database) -> None:
    """With an hour between two polls an edit is served after SIGHUP."""
    env = {"AVAPD_ENGINE": engine, "AVAPD_REFRESH_SECONDS": "3600", "AVAPD_WORKERS": "1"}
    with Server(database.reader_url, env=env) as server, server.wait_serving().calls() as calls:
        database.insert([("later", None, None, "x = 1")])
        try:
            assert calls.get("later").code == 5
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: calls.get("later").code == 0)
        finally:
            database.execute("DELETE FROM obex_dapl_functions WHERE name = 'later'")


def test_a_missing_key_file_changes_nothing(server: Server, rotate: Callable[[str], None], key_file: Path) -> None:
    """A secret that is being replaced and is not there at the moment does no harm."""
    before = len(server.events("Settings Not Reloaded"))
    key_file.unlink()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(server.events("Settings Not Reloaded")) > before)
    assert codes(server, KEY) == {0}
