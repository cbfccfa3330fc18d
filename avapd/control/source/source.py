"""The source: one look at the tables, which costs one row when nothing has changed.

    fingerprint ──as before──► nothing
         │ differs ──► marks of the buckets that differ ──► the content of what is new there
         └ none to compare with, or no xmin ──► everything

Schema-qualified names and a fixed search_path: a table of the same name in another schema changes nothing. Sizes are
asked before rows travel, so that a table can be refused by its size, and a single oversized row is left on the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from avapd.control.source import tables
from avapd.control.source.connection import Database
from avapd.control.source.tables import (
    BYTECODE,
    TABLE,
    Changed,
    CompiledRow,
    Fingerprint,
    Mark,
    Rows,
    Size,
    SourceRow,
    differing,
)
from avapd.errors import CatalogTooLargeError, SnapshotError, SourceShapeError


class Wanted(NamedTuple):
    """Whose content is needed: rows of the first table by id, of the second by name."""

    ids: list[int]
    names: list[str]


# Given the buckets that differ and the marks of their rows, of the first and of the second table.
Choose = Callable[[frozenset[int], list[Mark], frozenset[int], list[Mark]], Wanted]
# Told the size of what would be fetched, and of everything, None when that is only looked at row by row; raises
# SnapshotError where there is no room for it.
Afford = Callable[[Size, Size | None], None]
_XMIN: Final = {"stamp": "stamp", "system": ", xmin::text::bigint AS stamp"}
_NO_XMIN: Final = {"stamp": "0", "system": ""}


class Source:
    """A PostgreSQL database. `seconds` is the deadline of a look, `max_rows` and `max_bytes` bound what may come."""

    def __init__(
        self, url: str, *, schema: str, seconds: float, max_definition_bytes: int, max_bytes: int,
        max_rows: int = 1 << 62, ca_file: str = "",
    ) -> None:  # fmt: skip
        self.database = Database(url, seconds, ca_file)
        self._schema = '"' + schema.replace('"', '""') + '"'
        self._max_definition_bytes = max_definition_bytes
        self._max_bytes = max_bytes
        self._max_rows = max_rows

    async def read(self, *, compiled: bool, afford: Afford = lambda _part, _whole: None) -> Rows:
        """Read everything; `avap_bytecode` only when `compiled` asks for it and the table is there.

        Raises SourceUnreachableError, SourceForbiddenError, SourceShapeError, CatalogTooLargeError, or what `afford`
        raises.
        """
        return await self.database.read(lambda connection: self._read(connection, afford, compiled=compiled))

    async def changes(
        self, known: Fingerprint, choose: Choose, *, compiled: bool, afford: Afford = lambda _part, _whole: None
    ) -> Changed | None:
        """What has changed since `known`; None when nothing has. `choose` tells whose content is needed.

        Raises as `read` does.
        """
        return await self.database.read(
            lambda connection: self._changes(connection, known, choose, afford, compiled=compiled)
        )

    async def fingerprint(self, *, compiled: bool) -> Fingerprint | None:
        """Only the fingerprint; None where rows have no xmin. Raises as `read` does."""

        async def work(connection: Any) -> Fingerprint | None:
            with_compiled = compiled and await self._readable(connection, BYTECODE)
            stamped = await self._stamped(connection, compiled=with_compiled)
            _, found = await self._fingerprint(connection, compiled=with_compiled, stamped=stamped)
            return found

        return await self.database.read(work)

    async def describe(self) -> dict[str, Any]:
        """What `avapd check` shows of the source: version, role, rights, columns, row counts. Raises as `read` does."""
        return await self.database.read(self._describe)

    # --- a look ---------------------------------------------------------------------------------------------

    async def _read(self, connection: Any, afford: Afford, *, compiled: bool) -> Rows:
        compiled = compiled and await self._readable(connection, BYTECODE)
        stamped = await self._stamped(connection, compiled=compiled)
        whole, fingerprint = await self._fingerprint(connection, compiled=compiled, stamped=stamped)
        afford(whole, whole)
        how = _XMIN if stamped else _NO_XMIN
        records = await connection.fetch(self._sql(tables.ROWS, **how), self._max_definition_bytes)
        functions = [_row(record) for record in records]
        _check_texts(functions)
        packages: list[CompiledRow] = []
        if compiled:
            stamp = "xmin::text::bigint" if stamped else "0"
            query = self._sql(tables.COMPILED, BYTECODE, stamp=stamp)
            packages = _packages(await connection.fetch(query, self._max_definition_bytes))
        return Rows(functions, packages, fingerprint)

    async def _changes(
        self, connection: Any, known: Fingerprint, choose: Choose, afford: Afford, *, compiled: bool
    ) -> Changed | None:
        compiled = compiled and await self._readable(connection, BYTECODE)
        whole, now = await self._fingerprint(connection, compiled=compiled, stamped=True)
        if now is None or now == known:
            return None
        buckets = differing(known.functions, now.functions)
        compiled_buckets = differing(known.compiled or {}, now.compiled or {})
        limit = self._max_definition_bytes
        afford(Size(whole.rows * len(buckets) // max(1, len(now.functions)), 0), None)
        query = tables.MARKS_OF_FEW if len(buckets) <= tables.FEW_BUCKETS else tables.MARKS
        marks = await self._marks(connection, query, TABLE, limit, list(buckets))
        of_compiled = []
        if compiled and compiled_buckets:
            of_compiled = await self._marks(connection, tables.COMPILED_MARKS, BYTECODE, list(compiled_buckets))
        wanted = choose(buckets, marks, compiled_buckets, of_compiled)
        await self._afford(connection, wanted, whole, afford)
        records = await connection.fetch(self._sql(tables.ROWS_BY_ID, **_XMIN), limit, wanted.ids) if wanted.ids else []
        functions = [_row(record) for record in records]
        _check_texts(functions)
        packages: list[CompiledRow] = []
        if compiled and wanted.names:
            query = self._sql(tables.COMPILED_BY_NAME, BYTECODE, stamp="xmin::text::bigint")
            packages = _packages(await connection.fetch(query, limit, wanted.names))
        return Changed(now, buckets, marks, compiled_buckets, of_compiled, functions, packages)

    async def _afford(self, connection: Any, wanted: Wanted, whole: Size, afford: Afford) -> None:
        """Ask whether there is room for what is wanted; its size is only looked up where everything would not fit."""
        try:
            afford(whole, whole)
        except SnapshotError:
            query = self._sql(tables.SIZES_BY_ID, octets=tables.FUNCTION_OCTETS)
            afford(Size(*await connection.fetchrow(query, wanted.ids)), whole)

    async def _marks(self, connection: Any, query: str, table: str, *arguments: Any) -> list[Mark]:
        return [Mark(*record) for record in await connection.fetch(self._sql(query, table), *arguments)]

    async def _fingerprint(self, connection: Any, *, compiled: bool, stamped: bool) -> tuple[Size, Fingerprint | None]:
        """The size of everything, and the fingerprint; None where rows have no xmin. Raises CatalogTooLargeError."""
        rows, octets, functions = await self._sums(connection, TABLE, tables.FUNCTION_OCTETS, stamped=stamped)
        if octets > self._max_bytes:
            raise CatalogTooLargeError(f"{TABLE} holds {octets} bytes in {rows} rows, the maximum is {self._max_bytes}")
        if rows > self._max_rows:
            raise CatalogTooLargeError(
                f"{TABLE} holds {rows} rows, the maximum is {self._max_rows}",
                hint="raise AVAPD_MAX_DEFINITIONS if that many are meant",
            )
        packages, more = None, 0
        if compiled:
            _, more, packages = await self._sums(connection, BYTECODE, tables.BYTECODE_OCTETS, stamped=stamped)
            if octets + more > self._max_bytes:
                raise CatalogTooLargeError(
                    f"{TABLE} and {BYTECODE} hold {octets + more} bytes, the maximum is {self._max_bytes}"
                )
        size = Size(rows, octets + more)
        return size, Fingerprint(rows, octets, functions, packages) if stamped else None

    async def _sums(
        self, connection: Any, table: str, octets: str, *, stamped: bool
    ) -> tuple[int, int, dict[int, str]]:
        query = tables.FINGERPRINT if stamped else tables.SIZES
        record = await connection.fetchrow(self._sql(query, table, octets=octets))
        buckets = dict(zip(record[2], record[3], strict=True)) if stamped else {}
        return record[0], record[1], buckets

    def _sql(self, query: str, table: str = TABLE, **more: str) -> str:
        return query.format(schema=self._schema, table=table, bucket=tables.BUCKET, **more)

    async def _stamped(self, connection: Any, *, compiled: bool) -> bool:
        """Whether rows have an xmin: those of ordinary and partitioned tables have, those of views have not."""
        query = "SELECT relkind IN ('r', 'p', 'm') FROM pg_class WHERE oid = to_regclass($1)"
        names = [f"{self._schema}.{table}" for table in (TABLE, BYTECODE)[: 1 + compiled]]
        return all([await connection.fetchval(query, name) for name in names])

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


def _row(record: Any) -> SourceRow:
    id_, stamp, name, type_, interface, code, large = record
    return SourceRow(id_, name, type_, interface, code, large, stamp)


def _packages(records: list[Any]) -> list[CompiledRow]:
    if any(not isinstance(record["bytecode"], bytes) for record in records[:1]):
        raise SourceShapeError(f"column bytecode of {BYTECODE} is not bytea")
    return [
        CompiledRow(record["command_name"], record["bytecode"], record["source_hash"], record["id"], record["stamp"])
        for record in records
    ]


def _check_texts(rows: list[SourceRow]) -> None:
    """The column types are the table owner's; bytea or json columns would come as other Python types."""
    for column in ("name", "type", "interface", "code"):
        values = (getattr(row, column) for row in rows)
        value = next((value for value in values if value is not None), "")
        if not isinstance(value, str):
            raise SourceShapeError(f"column {column} of {TABLE} is not text")
