"""The source: reads the two tables of contract part 2. The only module that knows asyncpg.

Theory of operation
- One fresh connection per read, thrown away with `terminate()`. It costs about 2 ms, and a connection that a frozen
  peer, a PgBouncer or a failover has poisoned never lives to the next poll.
- One deadline over everything: connect, queries, close. `asyncio.timeout` ends whatever is under way, `terminate`
  never waits.
- One REPEATABLE READ READ ONLY transaction: both tables are read as of one moment. No start-up parameter but the
  application's name and no named statement, so PgBouncer in transaction mode is fine.
- Schema-qualified names and a fixed search_path: a table of the same name in another schema changes nothing.
- Sizes are asked before rows travel, and a single oversized row is left on the server.

Every way a database can fail ends as one of four errors, by whose fault it is; their texts name no secret.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from avapd import __version__
from avapd.errors import (
    CatalogTooLargeError,
    SourceError,
    SourceForbiddenError,
    SourceShapeError,
    SourceUnreachableError,
)
from avapd.log import printable

T = TypeVar("T")
TABLE: Final = "obex_dapl_functions"
BYTECODE: Final = "avap_bytecode"
_SIZES: Final = """
    SELECT count(*) AS rows,
           coalesce(sum(coalesce(octet_length(name), 0)::bigint + coalesce(octet_length(interface), 0)
           + coalesce(octet_length(type), 0) + coalesce(octet_length(code), 0)), 0)::bigint AS bytes
    FROM {schema}.{table}"""
_ROWS: Final = """
    SELECT id, name, type,
           CASE WHEN NOT large THEN interface END, CASE WHEN NOT large THEN code END, large
    FROM (
        SELECT *, greatest(octet_length(interface), octet_length(code), 0) > $1 AS large FROM {schema}.{table}
    ) AS sized"""
_COMPILED: Final = """
    SELECT command_name, bytecode, source_hash FROM {schema}.{table}
    WHERE bytecode IS NOT NULL AND octet_length(bytecode) <= $1"""

_COMPILED_SIZE: Final = """
    SELECT coalesce(sum(octet_length(bytecode)::bigint), 0)::bigint FROM {schema}.{table}
    WHERE octet_length(bytecode) <= $1"""


class SourceRow(NamedTuple):
    """A row of `obex_dapl_functions`; the texts of a `too_large` row were left on the server."""

    id: int
    name: str | None
    type: str | None
    interface: str | None
    code: str | None
    too_large: bool


class CompiledRow(NamedTuple):
    """A row of `avap_bytecode`: a package that was compiled from the source with this SHA-256 (hex)."""

    command_name: str
    bytecode: bytes
    source_hash: str | None


class Rows(NamedTuple):
    """Both tables as of one moment."""

    functions: list[SourceRow]
    compiled: list[CompiledRow]


class Source:
    """A PostgreSQL database. `seconds` is the one deadline of a read."""

    def __init__(self, url: str, *, schema: str, seconds: float, max_definition_bytes: int, max_bytes: int) -> None:
        self._url = url
        self._schema = '"' + schema.replace('"', '""') + '"'
        self._seconds = seconds
        self._max_definition_bytes = max_definition_bytes
        self._max_bytes = max_bytes

    async def read(self, *, compiled: bool) -> Rows:
        """Read everything; `avap_bytecode` only when `compiled` asks for it and the table is there.

        Raises SourceUnreachableError, SourceForbiddenError, SourceShapeError or CatalogTooLargeError.
        """
        return await self._run(lambda connection: self._read(connection, compiled=compiled))

    async def describe(self) -> dict[str, Any]:
        """What `avapd check` shows of the source: version, role, rights, columns, row counts. Raises as `read` does."""
        return await self._run(self._describe)

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        connection = None
        try:
            async with asyncio.timeout(self._seconds):
                connection = await asyncpg.connect(
                    self._url,
                    timeout=self._seconds,
                    command_timeout=self._seconds,
                    statement_cache_size=0,
                    server_settings={"application_name": f"avapd/{__version__}"},
                )
                # Never ended but by `terminate`: a ROLLBACK to a frozen peer would wait for a second deadline.
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await connection.execute("SET LOCAL search_path = pg_catalog")
                return await work(connection)
        except Exception as error:  # noqa: BLE001  # translated, never swallowed
            raise _by_fault(error, self._seconds) from None
        finally:
            if connection is not None:
                connection.terminate()

    async def _read(self, connection: Any, *, compiled: bool) -> Rows:
        names = {"schema": self._schema, "table": TABLE}
        sizes = await connection.fetchrow(_SIZES.format(**names))
        if sizes["bytes"] > self._max_bytes:
            raise CatalogTooLargeError(
                f"{TABLE} holds {sizes['bytes']} bytes in {sizes['rows']} rows, the maximum is {self._max_bytes}"
            )
        records = await connection.fetch(_ROWS.format(**names), self._max_definition_bytes)
        functions = [SourceRow(*record) for record in records]
        _check_texts(functions)
        if not compiled or not await self._readable(connection, BYTECODE):
            return Rows(functions, [])
        names["table"] = BYTECODE
        size = await connection.fetchval(_COMPILED_SIZE.format(**names), self._max_definition_bytes)
        if sizes["bytes"] + size > self._max_bytes:
            raise CatalogTooLargeError(
                f"{TABLE} and {BYTECODE} hold {sizes['bytes'] + size} bytes, the maximum is {self._max_bytes}"
            )
        records = await connection.fetch(_COMPILED.format(**names), self._max_definition_bytes)
        if any(not isinstance(record["bytecode"], bytes) for record in records[:1]):
            raise SourceShapeError(f"column bytecode of {BYTECODE} is not bytea")
        return Rows(functions, [CompiledRow(*record) for record in records])

    async def _readable(self, connection: Any, table: str) -> bool:
        name = f"{self._schema}.{table}"
        query = "SELECT CASE WHEN to_regclass($1) IS NULL THEN NULL ELSE has_table_privilege($1, 'SELECT') END"
        return bool(await connection.fetchval(query, name))

    async def _describe(self, connection: Any) -> dict[str, Any]:
        name = f"{self._schema}.{TABLE}"
        facts = dict(
            await connection.fetchrow(
                """SELECT current_setting('server_version') AS version, current_user AS role,
                   (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
                   to_regclass($1) IS NOT NULL AS table_exists""",
                name,
            )
        )
        if not facts["table_exists"]:
            return facts
        facts["columns"] = await connection.fetch(
            """SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
               WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
            name,
        )
        rights = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
        facts["rights"] = [
            right for right in rights if await connection.fetchval("SELECT has_table_privilege($1, $2)", name, right)
        ]
        facts["bytecode_readable"] = await self._readable(connection, BYTECODE)
        return facts


def _check_texts(rows: list[SourceRow]) -> None:
    """The column types are the table owner's; bytea or json columns would come as other Python types."""
    for column in ("name", "type", "interface", "code"):
        values = (getattr(row, column) for row in rows)
        value = next((value for value in values if value is not None), "")
        if not isinstance(value, str):
            raise SourceShapeError(f"column {column} of {TABLE} is not text")


def _by_fault(error: Exception, seconds: float) -> SourceError:
    """The error of ours for whatever asyncpg, the event loop or the operating system raised."""
    if isinstance(error, SourceError):
        return error
    text = printable(str(error) or type(error).__name__, 200)
    for kinds, fault in _FAULTS:
        if isinstance(error, kinds):
            if isinstance(error, TimeoutError):
                text = f"no answer within {seconds:g} s"
            return fault(text)
    return SourceUnreachableError(f"{type(error).__name__}: {text}")


_FAULTS: Final[tuple[tuple[tuple[type[Exception], ...], type[SourceError]], ...]] = (
    (
        (
            asyncpg.InvalidAuthorizationSpecificationError,  # and its subclass for a wrong password
            asyncpg.InsufficientPrivilegeError,
        ),
        SourceForbiddenError,
    ),
    (
        (
            asyncpg.UndefinedTableError,
            asyncpg.UndefinedColumnError,
            asyncpg.UndefinedFunctionError,  # octet_length(integer): a column that is no text
            asyncpg.InvalidSchemaNameError,
            asyncpg.DatatypeMismatchError,
            asyncpg.CharacterNotInRepertoireError,
            UnicodeDecodeError,
        ),
        SourceShapeError,
    ),
    ((TimeoutError, OSError, ssl.SSLError, asyncpg.PostgresError, asyncpg.InterfaceError), SourceUnreachableError),
)
