"""The source, on a real PostgreSQL: what it reads, and whose fault it is when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from support.database import Database
from support.server import free_port
from support.stage import files
from support.waiting import wait_until

from avapd.control.source import Rows, Source, SourceRow
from avapd.errors import (
    CatalogTooLargeError,
    SourceError,
    SourceForbiddenError,
    SourceShapeError,
    SourceUnreachableError,
)

MIB = 1 << 20
TABLE = "obex_dapl_functions"


def source(
    url: str, *, schema: str = "public", seconds: float = 5.0, row_bytes: int = MIB, bytes_: int = 64 * MIB
) -> Source:
    return Source(url, schema=schema, seconds=seconds, max_definition_bytes=row_bytes, max_bytes=bytes_)


def read(url: str, *, compiled: bool = False, **options: Any) -> Rows:
    """One read, on an event loop of its own."""
    return asyncio.run(source(url, **options).read(compiled=compiled))


# --- what is read -----------------------------------------------------------------------------------------------


def test_rows_come_as_they_are(database: Database) -> None:
    """NULLs, doubled names and every character; the order does not matter."""
    rows = [
        ("a", "[]", "function", "x = 1"),
        ("a", None, None, "ñ日本\U0001f600\n\t\\"),
        (None, None, None, None),
        ("", "", "", ""),
    ]
    database.insert(rows)
    found = read(database.reader_url)
    assert {row.id for row in found.functions} == {1, 2, 3, 4}
    expected = {
        SourceRow(number, name, type_, interface, code, False)
        for number, (name, interface, type_, code) in enumerate(rows, 1)
    }
    assert {row._replace(stamp=0) for row in found.functions} == expected
    assert all(row.stamp > 0 for row in found.functions)
    assert found.compiled == []


def test_an_empty_table_is_no_error(database: Database) -> None:
    """No rows are an answer."""
    found = read(database.reader_url, compiled=True)
    assert (found.functions, found.compiled) == ([], [])


def test_stored_packages_are_read_when_they_are_wanted(database: Database) -> None:
    """With their source hash; those without bytes are left out."""
    digest = hashlib.sha256(b"x").hexdigest()
    insert = "INSERT INTO avap_bytecode (command_name, bytecode, source_hash) VALUES ($1, $2, $3)"
    for name, bytecode, source_hash in (("a", b"AVAP\x00", digest), ("b", b"", None), ("c", None, digest)):
        database.execute(insert, name, bytecode, source_hash)
    assert read(database.reader_url).compiled == []
    found = read(database.reader_url, compiled=True).compiled
    assert sorted(row[:3] for row in found) == [("a", b"AVAP\x00", digest), ("b", b"", None)]


@pytest.mark.parametrize("change", ["DROP TABLE avap_bytecode", "REVOKE SELECT ON avap_bytecode FROM avapd_reader"])
def test_stored_packages_are_optional(sample: Database, change: str) -> None:
    """Without the table, or without the right to read it, the commands are served all the same."""
    sample.execute(change)
    found = read(sample.reader_url, compiled=True)
    assert len(found.functions) == 3
    assert found.compiled == []


def test_both_tables_are_read_as_of_one_moment_and_nothing_is_written(sample: Database) -> None:
    """The reader needs SELECT and nothing else, even where the owner reads."""
    sample.execute("ALTER ROLE avapd_reader SET default_transaction_read_only = on")
    try:
        assert len(read(sample.reader_url, compiled=True).functions) == 3
        assert len(read(sample.url, compiled=True).functions) == 3
    finally:
        sample.execute("ALTER ROLE avapd_reader RESET ALL")


def test_a_table_of_the_same_name_in_another_schema_changes_nothing(sample: Database) -> None:
    """Whatever the role's search_path says, the schema of the settings is read, with PostgreSQL's own functions."""
    sample.execute("CREATE SCHEMA evil")
    sample.execute(f"CREATE TABLE evil.{TABLE} AS SELECT id, name, interface, type, 'evil' AS code FROM public.{TABLE}")
    sample.execute("CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 1 / 0'")
    sample.execute("GRANT USAGE ON SCHEMA evil TO avapd_reader")
    sample.execute("GRANT SELECT ON ALL TABLES IN SCHEMA evil TO avapd_reader")
    before = read(sample.reader_url)
    sample.execute(f"ALTER ROLE avapd_reader IN DATABASE {sample.name} SET search_path = evil, pg_catalog, public")
    assert sorted(read(sample.reader_url).functions) == sorted(before.functions)
    assert {row.code for row in read(sample.reader_url, schema="evil").functions} == {"evil"}


def test_a_view_is_as_good_as_a_table(sample: Database) -> None:
    """With columns of other text types too."""
    sample.execute("CREATE SCHEMA other")
    sample.execute(
        f"CREATE VIEW other.{TABLE} AS SELECT id::bigint, name::char(6), interface, type::text, code FROM {TABLE}"
    )
    sample.execute("GRANT USAGE ON SCHEMA other TO avapd_reader")
    sample.execute("GRANT SELECT ON ALL TABLES IN SCHEMA other TO avapd_reader")
    assert {row.name for row in read(sample.reader_url, schema="other").functions} == {
        "addVar",
        "getDate"[:6],
        "si    ",
    }


@pytest.mark.parametrize("schema", ['a"b', "a'b; DROP TABLE x", "Ünï", "a.b"])
def test_a_schema_name_is_only_a_name(database: Database, schema: str) -> None:
    """It is quoted, whatever the settings let through."""
    with pytest.raises(SourceShapeError):
        read(database.reader_url, schema=schema)


# --- limits -----------------------------------------------------------------------------------------------------


def test_an_oversized_row_is_left_on_the_server(database: Database) -> None:
    """Its name travels, its texts do not; a row of exactly the limit is read."""
    database.insert(
        [
            ("fits", None, None, "x" * 1000),
            ("code", None, None, "x" * 1001),
            ("interface", "ñ" * 501, None, "x"),
            ("null", None, None, None),
        ]
    )
    rows = {row.name: row for row in read(database.reader_url, row_bytes=1000).functions}
    assert [name for name, row in rows.items() if row.too_large] == ["code", "interface"]
    assert rows["code"].code is rows["code"].interface is rows["interface"].interface is rows["interface"].code is None
    assert rows["fits"].code == "x" * 1000
    assert not rows["null"].too_large


def test_a_table_above_the_maximum_is_refused_before_it_travels(database: Database) -> None:
    """The text names both sizes; the limit itself is allowed."""
    database.insert([("abc", "[]", "function", "x" * 87)])
    assert len(read(database.reader_url, bytes_=100).functions) == 1
    with pytest.raises(CatalogTooLargeError, match="100 bytes in 1 rows, the maximum is 99"):
        read(database.reader_url, bytes_=99)


@pytest.mark.parametrize(
    "row", [(None, "x" * 500, None, "x" * 500), ("a", "x" * 1000, None, None), ("a", None, None, "ñ" * 500)]
)
def test_every_text_that_would_travel_counts(database: Database, row: tuple[str | None, ...]) -> None:
    """Also of rows that will not be served, for want of a name or a code: they travel before that is known."""
    database.insert([row] * 10)
    with pytest.raises(CatalogTooLargeError):
        read(database.reader_url, bytes_=9_000)


def test_stored_packages_count_too(database: Database) -> None:
    """Whatever becomes of them, no more than the maximum is fetched."""
    database.execute(
        "INSERT INTO avap_bytecode (command_name, bytecode, source_hash)"
        " SELECT 'c' || i, decode(repeat('ab', 5000), 'hex'), 'x' FROM generate_series(1, 20) AS i"
    )
    try:
        found = read(database.reader_url, compiled=True, row_bytes=10_000, bytes_=20_000)
    except CatalogTooLargeError:
        return
    assert sum(len(row.bytecode) for row in found.compiled) <= 20_000


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (f"DROP TABLE {TABLE}", SourceShapeError, "does not exist"),
        (f"ALTER TABLE {TABLE} RENAME COLUMN code TO kode", SourceShapeError, "code"),
        (f"ALTER TABLE {TABLE} DROP COLUMN type", SourceShapeError, "type"),
        (f"ALTER TABLE {TABLE} ALTER COLUMN code TYPE bytea USING convert_to(code, 'UTF8')", SourceShapeError, "code"),
        (
            f"ALTER TABLE {TABLE} ALTER COLUMN interface TYPE bytea USING convert_to(interface, 'UTF8')",
            SourceShapeError,
            "interface",
        ),
        (f"ALTER TABLE {TABLE} ALTER COLUMN interface TYPE jsonb USING '[]'::jsonb", SourceShapeError, "jsonb"),
        (f"ALTER TABLE {TABLE} ALTER COLUMN type TYPE int USING 1", SourceShapeError, "type"),
        (f"ALTER TABLE {TABLE} ALTER COLUMN name TYPE int USING 1", SourceShapeError, "integer"),
        (f"REVOKE SELECT ON {TABLE} FROM avapd_reader", SourceForbiddenError, "permission denied"),
        ("REVOKE USAGE ON SCHEMA public FROM public", SourceForbiddenError, "permission denied"),
    ],
    ids=lambda value: value if isinstance(value, str) and "TABLE" in value else None,
)
def test_a_table_that_cannot_be_read_is_told_by_fault(
    sample: Database, change: str, kind: type[SourceError], says: str
) -> None:
    """Missing, renamed, of another type: shape. Not allowed: forbidden. The text says what, the hint what to do."""
    sample.execute(change)
    with pytest.raises(SourceError) as caught:
        read(sample.reader_url)
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("column", ["interface", "type"])
def test_a_column_that_is_no_text_is_found_behind_nulls_too(database: Database, column: str) -> None:
    """That the first row is NULL there says nothing about the second."""
    database.insert([("a", None, None, "x"), ("b", "[]", "function", "x")])
    database.execute(f"ALTER TABLE {TABLE} ALTER COLUMN {column} TYPE bytea USING convert_to({column}, 'UTF8')")
    with pytest.raises(SourceShapeError, match=column):
        read(database.reader_url)


def test_stored_packages_of_another_type_are_told_by_fault(sample: Database) -> None:
    """Text in place of bytea: a shape error, and not a crash of whoever takes it for bytes."""
    sample.execute("ALTER TABLE avap_bytecode ALTER COLUMN bytecode TYPE text USING 'x'")
    sample.execute("INSERT INTO avap_bytecode (command_name, bytecode) VALUES ('si', 'AVAP')")
    try:
        found = read(sample.reader_url, compiled=True).compiled
    except SourceShapeError:
        return
    assert all(isinstance(row.bytecode, bytes) for row in found)


def test_bytes_that_are_no_utf8_are_a_matter_of_shape(postgres_url: str) -> None:
    """A database in SQL_ASCII may hold anything."""
    made = Database(postgres_url, tables=False)
    try:
        made._on_server(f"DROP DATABASE {made.name}")
        made._on_server(f"CREATE DATABASE {made.name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        made.execute(f"CREATE TABLE {TABLE} (id int, name text, interface text, type text, code text)")
        made.execute(f"INSERT INTO {TABLE} VALUES (1, 'a', '[]', 'f', E'caf\\xe9')")
        with pytest.raises(SourceShapeError):
            read(made.url)
    finally:
        made.drop()


def test_a_wrong_login_is_forbidden(database: Database) -> None:
    """A role that does not exist or may not log in."""
    for role in ("nobody_knows", "pg_monitor"):
        with pytest.raises(SourceForbiddenError, match=role):
            read(database.url.replace("//postgres", f"//{role}", 1))


def test_a_role_that_may_not_connect_is_forbidden(database: Database) -> None:
    """CONNECT on the database was taken away."""
    database.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM public")
    with pytest.raises(SourceForbiddenError, match="permission denied for database"):
        read(database.reader_url)


def test_a_database_that_is_not_there_is_unreachable(database: Database) -> None:
    """The hint points to DATABASE_URL."""
    with pytest.raises(SourceUnreachableError, match="does not exist") as caught:
        read(database.url.replace(database.name, "missing_database"))
    assert "DATABASE_URL" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cr3t@127.0.0.1:{}/db",
        "postgresql://u:s3cr3t@no-such-host.invalid/db",
        "postgresql://u:s3cr3t@/db?host=/nowhere&port={}",
    ],
)
def test_nobody_there_is_unreachable(url: str) -> None:
    """Refused, unknown, no such socket; the password is not told."""
    with pytest.raises(SourceUnreachableError) as caught:
        read(url.format(free_port()))
    assert "s3cr3t" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


@pytest.mark.parametrize(
    "query", ["sslmode=nonsense", "sslmode=verify-full&sslrootcert=/nowhere", "target_session_attrs=x", "port=x"]
)
def test_an_option_that_is_nonsense_is_an_error_of_ours(query: str) -> None:
    """Whatever asyncpg makes of it, a SourceError comes out, and no password."""
    with pytest.raises(SourceError) as caught:
        read(f"postgresql://u:s3cr3t@127.0.0.1:{free_port()}/db?{query}")
    assert "s3cr3t" not in str(caught.value)


# --- one deadline -------------------------------------------------------------------------------------------------


def test_a_locked_table_ends_at_the_deadline(sample: Database) -> None:
    """ACCESS EXCLUSIVE blocks every reader; the read ends in time and leaves no session behind."""

    async def test() -> float:
        owner = await asyncpg.connect(sample.url)
        try:
            async with owner.transaction():
                await owner.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
                began = time.monotonic()
                with pytest.raises(SourceUnreachableError, match=r"no answer within 1 s"):
                    await source(sample.reader_url, seconds=1.0).read(compiled=True)
                return time.monotonic() - began
        finally:
            await owner.close()

    assert asyncio.run(test()) < 1.8
    count = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{sample.name}' AND usename = 'avapd_reader'"
    wait_until(lambda: not sample.query(count), what="the session is gone")
    assert len(read(sample.reader_url).functions) == 3


def test_a_peer_that_accepts_and_never_answers_ends_at_the_deadline() -> None:
    """A frozen PostgreSQL, or something else on its port."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        began = time.monotonic()
        with pytest.raises(SourceUnreachableError, match=r"no answer within 0\.3 s"):
            read(f"postgresql://u@127.0.0.1:{frozen.getsockname()[1]}/db?sslmode=disable", seconds=0.3)
        assert time.monotonic() - began < 2.0


@contextlib.asynccontextmanager
async def freezing_proxy(url: str, word: bytes) -> AsyncIterator[str]:
    """A connection string to a proxy that forwards until a client's message holds `word`, and then falls silent."""
    query = parse_qs(urlsplit(url).query)
    path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if word in data:
                    await asyncio.Event().wait()
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_unix_connection(path)
        writers.extend((writer, upstream))
        tasks.extend(asyncio.create_task(pipe(*ends)) for ends in ((reader, upstream), (upstream_reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"postgresql://postgres@127.0.0.1:{port}{urlsplit(url).path}?sslmode=disable"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("word", [b"BEGIN", b"search_path", b"octet_length", b"greatest", b"bytecode"])
def test_a_peer_that_freezes_in_the_middle_ends_at_the_deadline(sample: Database, word: bytes) -> None:
    """At every step of a read: one deadline over connect, queries and close, not one for each."""

    async def test() -> float:
        async with freezing_proxy(sample.url, word) as url:
            began = time.monotonic()
            with pytest.raises(SourceUnreachableError):
                await source(url, seconds=1.0).read(compiled=True)
            return time.monotonic() - began

    assert asyncio.run(test()) < 1.8  # a second deadline would make it 2


# --- nothing is left ------------------------------------------------------------------------------------------------


def test_failing_reads_leave_no_descriptor_and_no_task(sample: Database) -> None:
    """Fifty of each kind: refused, frozen, wrong database, forbidden table."""
    sample.execute(f"REVOKE SELECT ON {TABLE} FROM avapd_reader")

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=200) as frozen:
            urls = [
                (f"postgresql://u@127.0.0.1:{free_port()}/db", 1.0),
                (f"postgresql://u@127.0.0.1:{frozen.getsockname()[1]}/db?sslmode=disable", 0.01),
                (sample.url.replace(sample.name, "missing_database"), 1.0),
                (sample.reader_url, 1.0),
            ]
            counts = []
            for _ in range(50):
                for url, seconds in urls:
                    with pytest.raises(SourceError):
                        await source(url, seconds=seconds).read(compiled=True)
                await asyncio.sleep(0)
                counts.append((files(), len(asyncio.all_tasks())))
            assert counts[-1] == counts[4]

    asyncio.run(test())


def test_fifty_good_reads_leave_nothing_either(sample: Database) -> None:
    """Each has a connection of its own, and ends it, here and on the server."""

    async def test() -> None:
        reader = source(sample.reader_url)
        counts = []
        for _ in range(50):
            await reader.read(compiled=True)
            await asyncio.sleep(0)
            counts.append((files(), len(asyncio.all_tasks())))
        assert counts[-1] == counts[4]

    asyncio.run(test())
    count = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{sample.name}' AND usename = 'avapd_reader'"
    wait_until(lambda: not sample.query(count), what="the sessions are gone")


# --- what `avapd check` shows ----------------------------------------------------------------------------------------


def test_a_source_describes_itself(sample: Database) -> None:
    """Role, rights and columns, for the reader and for a superuser."""
    facts = asyncio.run(source(sample.reader_url).describe())
    assert (facts["role"], facts["superuser"], facts["table_exists"], facts["rights"]) == (
        "avapd_reader",
        False,
        True,
        ["SELECT"],
    )
    assert [column["attname"] for column in facts["columns"]][:3] == ["id", "name", "interface"]
    assert facts["bytecode_readable"]
    owner = asyncio.run(source(sample.url).describe())
    assert owner["superuser"]
    assert "DELETE" in owner["rights"]
    sample.execute(f"DROP TABLE {TABLE}, avap_bytecode")
    assert not asyncio.run(source(sample.reader_url).describe())["table_exists"]
