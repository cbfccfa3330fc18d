"""Whatever comes in, from clients or from the table, has its defined answer and does no harm."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import random
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote

import psutil
import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.raw import GET, PREFACE, RIGHT_KEY, Headers, Raw, frame, framed
from support.server import KEY, Server
from support.waiting import wait_until

from avapd.control.source import Source
from avapd.errors import CatalogTooLargeError
from avapd.pb import avap_pb2

MIB = 1 << 20
CODE_LIMIT = 16 * MIB  # the default of AVAPD_MAX_DEFINITION_BYTES
MARK = "f0rged"
FORGERY = f'\n{{"level":"FATAL","msg":"{MARK}"}}\r\x1b[31m{MARK}\x07\x85\u2028{MARK}'
HUNDRED = "n" * 100
ROWS = [("known", None, None, "x = 1\n"), (HUNDRED, "[]", "function", "y = 2\n")]
KNOWN = avap_pb2.CommandRequest(name="known").SerializeToString()
DENIED = Outcome(16, "Invalid Credentials", b"")


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    """The names are `text` here, as in tables that somebody widened."""
    made = Database(postgres_url)
    made.execute("ALTER TABLE obex_dapl_functions ALTER COLUMN name TYPE text")
    made.insert(ROWS)
    yield made
    made.drop()


@pytest.fixture(scope="module")
def server(database: Database) -> Iterator[Server]:
    with Server(database.reader_url, env={"AVAPD_ENV": "production", "AVAPD_SILENCE_SECONDS": "60"}) as made:
        yield made.wait_serving()


@pytest.fixture(scope="module")
def calls(server: Server) -> Iterator[Calls]:
    with server.calls() as made:
        yield made


def assert_serving(server: Server) -> None:
    """New connections, enough to meet every worker, are answered."""
    for _ in range(8):
        with Raw(server.port, seconds=15) as raw:
            assert raw.call(GET, framed(KNOWN)).code == 0


def assert_no_forgery(log: str) -> None:
    """What came from outside stands only inside a JSON text, and no raw control character stands anywhere."""
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", log)
    for line in log.split("\n"):
        if MARK in line:
            assert json.loads(line)["msg"] != MARK
    assert "Traceback" not in log


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the shared server: the same processes, all of them serving, and an honest log."""
    if "server" not in request.fixturenames:
        yield
        return
    server: Server = request.getfixturevalue("server")
    pids = server.workers()
    yield
    assert server.workers() == pids
    assert server.metric("avap_worker_restarts_total") == 0
    assert_serving(server)
    assert_no_forgery(server.log)


# --- names in requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "unknown",
        "",
        "m" * 100,
        HUNDRED + "n",
        "n" * 256,
        "known\0",
        "\0",
        f"a{FORGERY}",
        "🎉" * 64,
        "../../etc",
        "%s%n",
    ],
    ids=lambda name: ascii(name[:12]),
)
def test_an_unknown_name_is_not_found(calls: Calls, name: str) -> None:
    """NOT_FOUND with the name as it was sent."""
    assert calls.get(name) == Outcome(5, f"Command '{name}' not found", b"")


def test_a_name_of_a_hundred_characters_is_found(calls: Calls) -> None:
    """The longest name a varchar(100) holds."""
    assert calls.command(HUNDRED).code == b"y = 2\n"


@pytest.mark.parametrize("letter", ["n", "🎉", "\x1b"])
def test_a_long_unknown_name_is_cut_in_the_answer(calls: Calls, letter: str) -> None:
    """NOT_FOUND with the first 256 characters: the message stays small enough for a trailer."""
    assert calls.get(letter * 4000) == Outcome(5, f"Command '{letter * 256}…' not found", b"")


def test_a_name_of_a_mebibyte_is_refused_by_the_transport(calls: Calls) -> None:
    """RESOURCE_EXHAUSTED: above AVAPD_LIMIT_REQUEST_BYTES nothing reads it; exactly at the limit it is a name."""
    head = 4  # tag and three bytes of length
    assert calls.get("n" * (65_536 - head)).code == 5
    assert calls.get("n" * (65_536 - head + 1)).code == 8
    assert calls.get("n" * MIB).code == 8


def test_no_bytes_make_a_call_fail_in_another_way(calls: Calls) -> None:
    """Seeded garbage: found, not found or INTERNAL `not a valid …`, and nothing else."""
    source = random.Random(1)
    for _ in range(200):
        garbage = source.randbytes(source.randrange(1, 200))
        if source.random() < 0.5:
            garbage = KNOWN + garbage
        get = calls.call("/avap.DefinitionEngine/GetCommand", garbage)
        assert get.code in {0, 5, 13}
        if get.code == 13:
            assert get.message == "Request is not a valid avap.CommandRequest"
        sync = calls.call("/avap.DefinitionEngine/SyncCatalog", garbage)
        assert sync.code in {0, 13}
        if sync.code == 13:
            assert sync.message == "Request is not a valid avap.Empty"


# --- keys ---------------------------------------------------------------------------------------------------


def header(*values: bytes, name: bytes = b"x-avap-auth") -> Headers:
    return tuple((name, value) for value in values)


RIGHT = KEY.encode()
WRONG_KEYS: dict[str, Headers] = {
    "missing": (),
    "empty": header(b""),
    "wrong": header(b"wrong-key-of-enough-length"),
    "twice": header(RIGHT, RIGHT),
    "right and wrong": header(RIGHT, b"wrong"),
    "wrong and right": header(b"wrong", RIGHT),
    "right and empty": header(RIGHT, b""),
    "Bearer twice": header(b"Bearer " + RIGHT, b"Bearer " + RIGHT, name=b"authorization"),
    "joined": header(RIGHT + b"," + RIGHT),
    "not ASCII": header(RIGHT + b"\xff\xfe"),
    "UTF-8": header("ключ".encode()),
    "latin-1": header("clé".encode("latin-1")),
    "Bearer not ASCII": header(b"Bearer \xff" + RIGHT, name=b"authorization"),
    "10 KiB": header(b"k" * 10_000),
}
# RFC 9113 section 8.2.1 forbids these in a field: a reset is as good an answer.
ILLEGAL_KEYS: dict[str, Headers] = {
    "newline": header(FORGERY.encode()),
    "escape": header(f"\x1b[31m{MARK}".encode()),
    "NUL": header(RIGHT + b"\0"),
    "blank before": header(b" " + RIGHT),
    "blank after": header(RIGHT + b" "),
    "capital name": header(RIGHT, name=b"X-Avap-Auth"),
    "newline in name": header(RIGHT, name=b"x-avap-auth\r\nx"),
}


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_an_odd_key_is_a_wrong_key(server: Server, case: str) -> None:
    """Missing, wrong, doubled, not ASCII: UNAUTHENTICATED, from bytes that grpcio would not send."""
    with Raw(server.port) as raw:
        reply = raw.call(GET, framed(KNOWN), WRONG_KEYS[case])
    assert (reply.code, unquote(reply.message), reply.data) == (16, "Invalid Credentials", b"")


@pytest.mark.parametrize("case", ILLEGAL_KEYS)
def test_an_illegal_key_never_opens(server: Server, case: str) -> None:
    """UNAUTHENTICATED, or no answer of the service at all."""
    with Raw(server.port) as raw:
        reply = raw.call(GET, framed(KNOWN), ILLEGAL_KEYS[case])
    assert reply.code in {13, 16} or reply.end in {"reset", "goaway", "closed"}
    assert not reply.data


def test_a_key_among_odd_headers_is_right(server: Server) -> None:
    """What else a client sends, not ASCII or doubled, is none of our business."""
    others = ((b"other", b"\xff\xfe"), (b"other", b"again"), (b"trace-bin", b"/w=="), (b"cookie", b"a=b"))
    with Raw(server.port) as raw:
        assert raw.call(GET, framed(KNOWN), (*RIGHT_KEY, *others)).code == 0


@pytest.mark.parametrize("eager", [False, True], ids=["settings known", "settings not acknowledged"])
def test_a_key_of_a_mebibyte_never_reaches_a_handler(server: Server, eager: bool) -> None:
    """RESOURCE_EXHAUSTED or a closed stream, also from a client that never acknowledges the server's limits."""
    with Raw(server.port, eager=eager) as raw:
        reply = raw.call(GET, framed(KNOWN), header(b"k" * MIB))
    assert reply.code == 8 or (reply.code == -1 and reply.end in {"reset", "goaway", "closed"})


@pytest.mark.parametrize("eager", [False, True], ids=["settings known", "settings not acknowledged"])
def test_a_mebibyte_of_small_headers_is_refused(server: Server, eager: bool) -> None:
    """AVAPD_LIMIT_HEADER_BYTES bounds the whole list, as RFC 9113 section 6.5.2 counts it, and not each field alone."""
    many = tuple((b"h%d" % number, b"v") for number in range(25_000))
    with Raw(server.port, eager=eager) as raw:
        reply = raw.call(GET, framed(KNOWN), (*RIGHT_KEY, *many))
    assert reply.code == 8 or (reply.code == -1 and reply.end in {"reset", "goaway", "closed"})


def test_grpcio_with_a_key_of_a_mebibyte(calls: Calls) -> None:
    """The same through an ordinary client: RESOURCE_EXHAUSTED, or the end of its connection (CVE-2024-27316)."""
    outcome = calls.call("/avap.DefinitionEngine/GetCommand", KNOWN, (("x-avap-auth", "k" * MIB),))
    assert outcome.code in {8, 14}


# --- calls that no client makes -----------------------------------------------------------------------------


BOMB = gzip.compress(b"\x0a\x80\x80\x80\x10" + b"n" * (32 * MIB))
GZIP = (*RIGHT_KEY, (b"grpc-encoding", b"gzip"))
HEAD = (
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", GET), (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers"),
)  # fmt: skip
BAD_CALLS: dict[str, tuple[dict[str, Any], set[int]]] = {
    # What is called, and the codes that may come; -1 is a stream or connection that the server ended without one.
    "no message": ({"body": b""}, {12, 13, -1}),
    "three bytes": ({"body": b"\0\0\0"}, {12, 13, -1}),
    "length too long": ({"body": framed(KNOWN, length=100)}, {12, 13, -1}),
    "length of 4 GiB": ({"body": framed(KNOWN, length=0xFFFF_FFFF)}, {8, -1}),
    "length too short": ({"body": framed(KNOWN, length=3)}, {12, 13, -1}),
    "compressed with nothing": ({"body": framed(KNOWN, flag=1)}, {0, 12, 13, -1}),  # grpcio 1.83 takes it as it is
    "bad gzip": ({"body": framed(b"zzzz", flag=1), "metadata": GZIP}, {12, 13, -1}),
    "gzip bomb": ({"body": framed(BOMB, flag=1), "metadata": GZIP}, {8, 12, -1}),
    "unknown encoding": ({"body": framed(b"z", 1), "metadata": (*RIGHT_KEY, (b"grpc-encoding", b"x"))}, {12, 13, -1}),
    "bad timeout": ({"metadata": (*RIGHT_KEY, (b"grpc-timeout", b"banana"))}, {3, 13, -1}),
    "no time": ({"metadata": (*RIGHT_KEY, (b"grpc-timeout", b"0n"))}, {4, 5, -1}),
    "no slash": ({"path": b"avap.DefinitionEngine/GetCommand"}, {12, -1}),
    "star": ({"path": b"*"}, {12, -1}),
    "empty path": ({"path": b""}, {12, -1}),
    "slash": ({"path": b"/"}, {12, -1}),
    "forged path": ({"path": b"/" + quote(FORGERY).encode()}, {12, -1}),
    "raw forged path": ({"path": b"/" + FORGERY.encode()}, {12, -1}),
    "path with query": ({"path": GET + b"?a=b"}, {12, -1}),
    "no method": ({"pseudo": HEAD[1:]}, {-1}),
    "no path": ({"pseudo": (*HEAD[:2], *HEAD[3:])}, {-1}),
    "two paths": ({"pseudo": (*HEAD[:2], (b":path", b"/x"), *HEAD[2:])}, {5, 12, 13, -1}),
    "method GET": ({"pseudo": ((b":method", b"GET"), *HEAD[1:])}, {12, 13, -1}),
    "pseudo-header last": ({"pseudo": (*HEAD[1:], HEAD[0])}, {5, 12, 13, -1}),
    "unknown pseudo-header": ({"pseudo": (*HEAD, (b":x", b"y"))}, {5, 12, 13, -1}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_ends(server: Server, case: str) -> None:
    """With an error of the right kind or a closed stream; never with silence, which would hold a stream and a drain."""
    call, codes = BAD_CALLS[case]
    with Raw(server.port, seconds=3) as raw:
        reply = raw.call(**{"body": framed(b"\x0a\x01?"), **call})
    assert reply.end != "silent"
    assert reply.code in codes, reply


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_writes_no_line(server: Server, case: str) -> None:
    """A client without a key cannot fill the log."""
    before = server.log
    with Raw(server.port, seconds=0.5) as raw:
        raw.call(**{"body": framed(b"\x0a\x01?"), "metadata": (), **BAD_CALLS[case][0]})
    assert server.log == before


@pytest.mark.parametrize("path", [b"/\xff\xfe", b"/avap.DefinitionEngine/\xc3\x28", b"\xed\xa0\x80"], ids=repr)
def test_a_path_that_is_no_utf_8_is_one_bad_call(database: Database, serve: Callable[..., Server], path: bytes) -> None:
    """The server goes on: its connections, its ports and its workers. No key is needed to send this."""
    server = serve(database.reader_url).wait_serving()
    pids = server.workers()
    for _ in range(4):
        with Raw(server.port, seconds=2) as raw:
            reply = raw.call(path, metadata=())
        assert reply.end != "silent"
    assert_serving(server)
    assert server.workers() == pids
    assert_no_forgery(server.log)


# --- bytes that are no HTTP/2 -------------------------------------------------------------------------------


HELLO = bytes.fromhex("16030100a10100009d0303") + bytes(range(152))
SETTINGS = PREFACE + frame(4, 0, 0)
BAD_BYTES = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/1.1 upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "TLS hello": HELLO,
    "half a preface": PREFACE[:10],
    "nothing": b"",
    "zeros": bytes(1000),
    "noise": random.Random(2).randbytes(10_000),
    "noise after the preface": PREFACE + random.Random(3).randbytes(10_000),
    "frame of 16 MiB": SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1000),
    "data on stream 0": SETTINGS + frame(0, 0, 0, b"x"),
    "headers on an even stream": SETTINGS + frame(1, 5, 2, b"\x82"),
    "bad HPACK": SETTINGS + frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    "endless continuation": SETTINGS + frame(1, 1, 1, b"\x82") + frame(9, 0, 1, b"\x00\x01a\x01b" * 2000) * 50,
    "settings of 5 bytes": SETTINGS + frame(4, 0, 0, b"12345"),
    "window of 0": SETTINGS + frame(8, 0, 0, bytes(4)),
    "window overflow": SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "push promise": SETTINGS + frame(5, 4, 1, b"\0\0\0\2\x82"),
    "1000 pings": SETTINGS + frame(6, 0, 0, bytes(8)) * 1000,
    "1000 resets": SETTINGS + b"".join(frame(3, 0, number, bytes(4)) for number in range(1, 2001, 2)),
    "1000 settings": SETTINGS + frame(4, 0, 0, bytes.fromhex("000300000064")) * 1000,
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bytes_that_are_no_call_harm_nobody(server: Server, calls: Calls, case: str) -> None:
    """Others are answered meanwhile, and the connection is closed at the latest when the other side is done."""
    with Raw(server.port, seconds=5) as raw:
        raw.send(BAD_BYTES[case])
        assert calls.get("known").code == 0
        with contextlib.suppress(OSError):  # the server was first
            raw.socket.shutdown(socket.SHUT_WR)
        raw.read_to_end()


@pytest.mark.parametrize("case", ["HTTP/1.1", "TLS hello", "zeros", "noise"])
def test_who_speaks_no_http_2_is_disconnected(server: Server, case: str) -> None:
    """At once, without waiting for the other side."""
    with Raw(server.port, seconds=5) as raw:
        raw.send(BAD_BYTES[case])
        raw.read_to_end()


def test_half_open_connections_keep_nobody_out(server: Server) -> None:
    """Three hundred clients that never finish their preface, and everyone else is answered."""
    held = [Raw(server.port) for _ in range(300)]
    try:
        for raw in held:
            raw.send(PREFACE[:10])
        assert_serving(server)
    finally:
        for raw in held:
            raw.close()


def test_an_rst_flood_costs_nobody_else(server: Server, calls: Calls) -> None:
    """Rapid reset (CVE-2023-44487): thousands of calls opened and reset at once; the others go on."""
    block = b"\x83\x86\x44\x01/\x41\x01x\x5f\x10application/grpc"  # POST http / x application/grpc
    burst = b"".join(frame(1, 4, n, block) + frame(3, 0, n, b"\0\0\0\x08") for n in range(1, 6001, 2))
    with Raw(server.port, seconds=5) as raw:
        raw.send(SETTINGS + burst)
        assert calls.get("known").code == 0


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.fixture
def insert(database: Database, server: Server) -> Iterator[Callable[..., None]]:
    """Inserts rows, waits until what is served has changed, and takes them out again."""
    version = server.status()["version_hash"]

    def work(*rows: tuple[Any, ...]) -> None:
        last = server.status()["version_hash"]
        database.insert(rows)
        server.wait_served(lambda status: status["version_hash"] != last)

    yield work
    database.execute("TRUNCATE obex_dapl_functions")
    database.insert(ROWS)
    server.wait_hash(version, 20)


def rejected(server: Server, reason: str) -> float:
    return server.metric("avap_definitions_rejected", reason=reason)


def test_every_name_a_text_column_holds_is_served(calls: Calls, insert: Callable[..., None]) -> None:
    """Newlines, terminal escapes, quotes, emoji, other scripts, a hundred characters of four bytes each."""
    names = [
        FORGERY,
        "\x1b[2J",
        "new\nline",
        "'\"`$(id)",
        "🎉" * 100,
        "ñ 日本語",
        " ",
        "\t",
        "\u202egnp",
        "a\u0301",
        "\x7f",
        "n" * 101,
    ]
    insert(*((name, None, None, f"# {number}\n") for number, name in enumerate(names)))
    for number, name in enumerate(names):
        command = calls.command(name)
        assert (command.name, command.code) == (name, f"# {number}\n".encode())
    assert {command.name for command in calls.catalog().commands} == {*names, "known", HUNDRED}


def test_a_name_of_a_mebibyte_in_the_table_harms_no_other(calls: Calls, insert: Callable[..., None]) -> None:
    """The rest of the table is served as ever."""
    insert(("n" * MIB, None, None, "x"), ("other", None, None, "y"))
    assert calls.command("other").code == b"y"


def test_rows_without_name_or_code_are_skipped_and_counted(
    server: Server, calls: Calls, insert: Callable[..., None]
) -> None:
    """NULL name, empty name and NULL code; the good rows beside them are served."""
    insert(
        (None, None, None, "x"), (None, None, None, None), ("", "[]", "function", "x"),
        ("no code", "[]", "function", None), ("good", None, None, "x"),
    )  # fmt: skip
    assert calls.catalog().total_count == 3
    assert calls.get("no code").code == calls.get("").code == 5
    assert (rejected(server, "no_name"), rejected(server, "no_code")) == (3, 1)
    assert server.status()["rejected"]["no_name"] == 3


def test_null_and_empty_columns_have_their_defaults(calls: Calls, insert: Callable[..., None]) -> None:
    """NULL type is `function`, NULL interface is `[]`, empty code is a definition."""
    insert(("nulls", None, None, "x"), ("empties", "", "", ""))
    for name, code in (("nulls", b"x"), ("empties", b"")):
        command = calls.command(name)
        expected = ("function", "[]", code, hashlib.sha256(code).hexdigest())
        assert (command.type, command.interface_json, command.code, command.hash) == expected


def test_of_rows_with_one_name_the_highest_id_wins(
    server: Server, calls: Calls, database: Database, insert: Callable[..., None]
) -> None:
    """Whatever order the table returns them in; they are told once, not at each poll, and without a forged line."""
    twice = "twice" + FORGERY
    insert((twice, None, None, "first"), (twice, None, None, "second"), ("twice", None, None, "x"))
    database.execute("UPDATE obex_dapl_functions SET description = 'moved' WHERE code = 'first'")
    polls = server.metric("avap_sync_total", result="unchanged")
    wait_until(lambda: server.metric("avap_sync_total", result="unchanged") >= polls + 3)
    assert calls.command(twice).code == b"second"
    assert rejected(server, "duplicate_name") == 1
    warnings = [line for line in server.events() if line["msg"].startswith("Duplicate Names")]
    assert len(warnings) == 1
    assert (warnings[0]["level"], warnings[0]["count"]) == ("WARN", 1)
    assert MARK in str(warnings[0])


def test_a_row_without_code_does_not_hide_an_older_one(calls: Calls, insert: Callable[..., None]) -> None:
    """A skipped row is no candidate: the highest id with code wins."""
    insert(("twice", None, None, "old"), ("twice", None, None, None))
    assert calls.command("twice").code == b"old"


@pytest.mark.parametrize("letter", ["x", "ñ"])
def test_code_of_exactly_the_limit_is_served_and_a_byte_more_is_not(
    server: Server, calls: Calls, database: Database, insert: Callable[..., None], letter: str
) -> None:
    """AVAPD_MAX_DEFINITION_BYTES counts bytes: 16 MiB go through, 16 MiB and one byte are skipped and counted."""
    exact = letter * (CODE_LIMIT // len(letter.encode()))
    insert(("limit", None, None, exact), ("over", None, None, exact + "x"))
    wait_until(lambda: calls.get("limit").code == 0)
    command = calls.command("limit")
    assert (len(command.code), command.hash) == (CODE_LIMIT, hashlib.sha256(command.code).hexdigest())
    assert calls.get("over").code == 5
    assert rejected(server, "too_large") == 1
    database.execute("UPDATE obex_dapl_functions SET code = 'x' WHERE name = 'over'")
    wait_until(lambda: calls.get("over").code == 0)
    assert rejected(server, "too_large") == 0


def test_an_interface_above_the_limit_is_skipped(server: Server, calls: Calls, insert: Callable[..., None]) -> None:
    """The other large column counts alike."""
    insert(("over", "[" + " " * CODE_LIMIT + "]", None, "x"), ("good", None, None, "x"))
    assert calls.get("over").code == 5
    assert rejected(server, "too_large") == 1


def test_an_empty_table_is_a_catalog(
    server: Server, calls: Calls, database: Database, insert: Callable[..., None]
) -> None:
    """No commands, the hash of nothing, NOT_FOUND for every name; health stays SERVING."""
    database.execute("DELETE FROM obex_dapl_functions")
    nothing = hashlib.sha256(b"").hexdigest()
    server.wait_hash(nothing)
    catalog = calls.catalog()
    assert (len(catalog.commands), catalog.total_count, catalog.version_hash) == (0, 0, nothing)
    assert calls.get("known") == Outcome(5, "Command 'known' not found", b"")
    assert calls.health() == "SERVING"
    assert server.metric("avap_cache_size") == 0
    database.insert(ROWS)
    wait_until(lambda: calls.get("known").code == 0)


def test_an_empty_table_is_enough_to_start(database: Database, postgres_url: str, serve: Callable[..., Server]) -> None:
    """The first rows are served when they come."""
    empty = Database(postgres_url)
    server = serve(empty.reader_url).wait_serving()
    with server.calls() as calls:
        assert calls.catalog().total_count == 0
        empty.insert(ROWS)
        wait_until(lambda: calls.get("known").code == 0)
    assert server.stop() == 0
    empty.drop()


@pytest.mark.parametrize(
    "row",
    [
        ("name", None, None, "x" * MIB),
        ("name", "x" * MIB, None, "x"),
        (None, None, None, "x" * MIB),
        ("", None, None, "x" * MIB),
        (None, "x" * MIB, None, None),
        ("name", "x" * MIB, None, None),
        ("name", None, "x" * MIB, "x"),
    ],
    ids=["code", "interface", "code without name", "code of an empty name", "interface without both",
         "interface without code", "type"],
)  # fmt: skip
def test_no_row_passes_the_limit_of_the_table(postgres_url: str, row: tuple[str | None, ...]) -> None:
    """AVAPD_MAX_CATALOG_BYTES bounds what is fetched, whichever columns are NULL: all is refused, or little comes."""
    database = Database(postgres_url)
    database.execute("ALTER TABLE obex_dapl_functions ALTER COLUMN type TYPE text")
    database.insert([row] * 4)
    source = Source(
        database.reader_url, schema="public", seconds=10, max_definition_bytes=CODE_LIMIT, max_bytes=2 * MIB
    )
    try:
        rows = asyncio.run(source.read(compiled=False))
    except CatalogTooLargeError:
        return
    finally:
        database.drop()
    fetched = sum(len(text or "") for row in rows.functions for text in (row.name, row.type, row.interface, row.code))
    assert fetched <= 2 * MIB


def test_readable_logs_cannot_be_forged_either(postgres_url: str, serve: Callable[..., Server]) -> None:
    """In development a log line is text, and a name from the table still ends no line and colours no terminal."""
    database = Database(postgres_url)
    database.insert([("twice" + FORGERY[:60], None, None, "x")] * 2)
    server = serve(database.reader_url, env={"AVAPD_ENV": "development", "AVAPD_WORKERS": "1"})
    log = wait_until(lambda: server.log if "Duplicate Names" in server.log else "")
    assert MARK in log
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", log)
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line) for line in log.rstrip("\n").split("\n"))
    database.drop()


# --- secrets ------------------------------------------------------------------------------------------------


SECRETS = {
    "API_KEY": "canary-api-key-51f0",
    "SIGNING_KEY": "canary-signing-key-9a7e",
    "PGPASSWORD": "canary-pg-password-77c1",
}
PASSWORD = "canary-database-password-3b2d"


def with_password(url: str) -> str:
    return url.replace("avapd_reader@", f"avapd_reader:{PASSWORD}@", 1)


def told(server: Server) -> str:
    """Everything that can be read from outside: log, HTTP, command lines, and the environment of every worker."""
    pages = [body for _, body in map(server.http, ("/metrics", "/status", "/livez", "/readyz"))]
    family = server.family()
    lines = [" ".join(process.cmdline()) for process in family]
    environs = [str(process.environ()) for process in family if process.pid != server.process.pid]
    return "\n".join([server.log, *pages, *lines, *environs])


def assert_no_secret(text: str) -> None:
    for name, secret in {**SECRETS, "DATABASE_URL": PASSWORD}.items():
        digest = hashlib.sha256(secret.encode()).hexdigest()
        assert secret not in text, name
        assert digest not in text, f"digest of {name}"


def test_no_secret_is_told_to_anyone(postgres_url: str, serve: Callable[..., Server]) -> None:
    """Through good and bad calls, failed reads, a dying worker, SIGHUP, SIGUSR2 and the end."""
    database = Database(postgres_url)
    database.insert(ROWS)
    env = {"AVAPD_ENV": "production", **SECRETS, "AVAP_INTERNAL_KEY": SECRETS["SIGNING_KEY"]}
    server = serve(with_password(database.reader_url), env=env).wait_serving()
    with server.calls(SECRETS["API_KEY"]) as calls, server.calls(SECRETS["API_KEY"] + "é".encode().hex()) as wrong:
        assert calls.command("known").code.startswith(b"AVAP")
        assert wrong.get("known") == DENIED
        calls.call("/avap.DefinitionEngine/Nothing", b"\xff")
    with Raw(server.port) as raw:
        raw.call(GET, framed(KNOWN), header(SECRETS["API_KEY"].encode() + b"\xff"))
    database.execute("ALTER TABLE obex_dapl_functions RENAME TO elsewhere")
    wait_until(lambda: server.events("Refresh Failed"))
    assert_no_secret(told(server))
    database.execute("ALTER TABLE elsewhere RENAME TO obex_dapl_functions")
    server.process.send_signal(signal.SIGHUP)
    psutil.Process(server.workers()[0]).send_signal(signal.SIGABRT)
    wait_until(lambda: server.metric("avap_worker_restarts_total") == 1 and server.events("Keys Reloaded"), 20)
    server.wait_serving()
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: server.events("Workers Replaced"), 40)
    assert_no_secret(told(server))
    assert server.stop() == 0
    assert_no_secret(server.log)
    database.drop()


def test_a_worker_knows_no_database(postgres_url: str, serve: Callable[..., Server]) -> None:
    """Its environment holds no DATABASE_URL, no PG* and no key, under any name it was given."""
    database = Database(postgres_url)
    given = {
        **SECRETS, "PGHOST": "canary-host", "PGUSER": "canary-user", "PGSSLKEY": "/canary", "AVAPD_NOTE": "canary",
        "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8",
    }  # fmt: skip
    server = serve(with_password(database.reader_url), env=given).wait_serving()
    for pid in server.workers():
        environ = psutil.Process(pid).environ()
        assert not [name for name in environ if name.startswith(("PG", "DATABASE", "API", "SIGNING", "AVAP", "NODE"))]
        assert "canary" not in str(environ)
        assert environ["LANG"] == "C.UTF-8"
        assert "canary" not in " ".join(psutil.Process(pid).cmdline())
    database.drop()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://avapd_reader:{PASSWORD}@127.0.0.1:1/none",
        f"postgresql://avapd_reader:{PASSWORD}@no-such-host.invalid/none",
        f"postgresql://avapd_reader:{PASSWORD}@127.0.0.1:1/none?sslmode=verify-full&sslrootcert=/nothing",
        f"postgresql://avapd_reader:{PASSWORD}@127.0.0.1:1/none?sslmode=nonsense",
        f"postgresql://avapd_reader@127.0.0.1:1/none?password={PASSWORD}&sslpassword={PASSWORD}",
        f"postgresql://avapd_reader:{PASSWORD}@[::1/none",
    ],
    ids=["refused", "no host", "no certificate", "bad sslmode", "in the query", "bad host"],
)
def test_a_database_that_fails_betrays_no_password(serve: Callable[..., Server], url: str) -> None:
    """Neither in the log nor on a page, whatever is wrong with the connection string."""
    server = serve(url, env={**SECRETS, "AVAPD_WORKERS": "1", "AVAPD_ENV": "production"})
    wait_until(lambda: server.events("Refresh Failed") or server.process.poll() is not None)
    assert_no_secret(told(server) if server.process.poll() is None else server.log)
    assert PASSWORD[:12] not in server.log


def test_the_answers_hold_no_secret(server: Server, calls: Calls) -> None:
    """Nor do errors name files, modules or settings of the server."""
    requests = itertools.product(("GetCommand", "SyncCatalog", "Nothing"), (b"\xff", b"", b"\x0a\x01?"))
    text = " ".join(str(calls.call(f"/avap.DefinitionEngine/{method}", body)) for method, body in requests)
    assert not re.search(r"avapd|python|\.py|File \"|/proc|postgres|google|0x[0-9a-f]{6}", text, re.IGNORECASE)
    assert KEY not in text
