"""The tables: what is asked of them, and what comes back.

The fingerprint. A row's `xmin`, the transaction that wrote it, changes with every change of the row. `hashint8extended`
mixes it with the id to 64 bits, and these are added up in 256 buckets, by turns of 256 ids: one row comes back,
whatever the size of the table. Equal sums of equally many rows mean an equal table; where a bucket differs, its rows
are looked at one by one: first their marks (id, xmin, name), then the content of those that are new or changed. Where
few buckets differ, the primary key leads to their ids (100,000 rows: 2 ms; 17 to read the table again).

`OFFSET 0` keeps the planner from grouping whole rows: it expects a bucket for every row, and would sort the table on
disk (100,000 rows: 240 ms and more, 57 ms with it).
"""

from __future__ import annotations

from typing import Final, NamedTuple

TABLE: Final = "obex_dapl_functions"
BYTECODE: Final = "avap_bytecode"
# A few buckets are found by ranges of ids; of more, the whole table is read at once.
FEW_BUCKETS: Final = 16
BUCKET: Final = "((id >> 8) & 255)::int"

FINGERPRINT: Final = """
    SELECT coalesce(sum(rows), 0)::bigint, coalesce(sum(octets), 0)::bigint,
           coalesce(array_agg(bucket), '{{}}'), coalesce(array_agg(mark::text), '{{}}')
    FROM (
        SELECT bucket, count(*) AS rows, sum(mark) AS mark, sum(octets) AS octets
        FROM (
            SELECT {bucket} AS bucket, hashint8extended(id, xmin::text::bigint) AS mark, {octets} AS octets
            FROM {schema}.{table} OFFSET 0
        ) AS marks GROUP BY 1
    ) AS buckets"""
FUNCTION_OCTETS: Final = (
    "coalesce(octet_length(name), 0)::bigint + coalesce(octet_length(interface), 0)"
    " + coalesce(octet_length(type), 0) + coalesce(octet_length(code), 0)"
)
BYTECODE_OCTETS: Final = "coalesce(octet_length(bytecode), 0)::bigint"
# What a table has that is none (a view, a foreign table), so that nothing tells one version of a row from another.
SIZES: Final = """
    SELECT count(*), coalesce(sum({octets}), 0)::bigint FROM {schema}.{table}"""
SIZES_BY_ID: Final = SIZES + " WHERE id = ANY($1::bigint[])"

_COLUMNS: Final = """id, {stamp} AS stamp, name, type,
           CASE WHEN NOT large THEN interface END, CASE WHEN NOT large THEN code END, large
    FROM (
        SELECT *{system}, greatest(octet_length(interface), octet_length(code), 0) > $1 AS large
        FROM {schema}.{table}
    ) AS sized"""
ROWS: Final = "SELECT " + _COLUMNS
ROWS_BY_ID: Final = ROWS + " WHERE id = ANY($2::bigint[])"
_MARK: Final = """
    SELECT id, xmin::text::bigint, name,
           CASE WHEN greatest(octet_length(interface), octet_length(code), 0) > $1 THEN 'too_large'
                WHEN code IS NULL THEN 'no_code' END
    FROM {schema}.{table}"""
MARKS: Final = _MARK + " WHERE {bucket} = ANY($2::int[])"
MARKS_OF_FEW: Final = (
    """
    SELECT found.* FROM unnest($2::int[]) AS bucket,
        (SELECT min(id)::bigint >> 16 AS low, max(id)::bigint >> 16 AS high FROM {schema}.{table}) AS ids,
        generate_series(low, high) AS turn, LATERAL (SELECT (turn << 16) + (bucket << 8) AS first) AS range,
        LATERAL ("""  # noqa: S608  # no value is put into it
    + _MARK
    + " WHERE id >= first AND id < first + 256) AS found"
)
COMPILED: Final = """
    SELECT id, {stamp} AS stamp, command_name, bytecode, source_hash FROM {schema}.{table}
    WHERE bytecode IS NOT NULL AND octet_length(bytecode) <= $1"""
COMPILED_BY_NAME: Final = COMPILED + " AND command_name = ANY($2::text[])"
COMPILED_MARKS: Final = """
    SELECT id, xmin::text::bigint, command_name, NULL
    FROM {schema}.{table} WHERE {bucket} = ANY($1::int[])"""


class Size(NamedTuple):
    """How much there is of a table, or of some of its rows."""

    rows: int
    octets: int


class SourceRow(NamedTuple):
    """A row of `obex_dapl_functions`; the texts of a `too_large` row were left on the server.

    `stamp` is the row's xmin, 0 where there is none.
    """

    id: int
    name: str | None
    type: str | None
    interface: str | None
    code: str | None
    too_large: bool
    stamp: int = 0


class CompiledRow(NamedTuple):
    """A row of `avap_bytecode`: a package that was compiled from the source with this SHA-256 (hex)."""

    command_name: str
    bytecode: bytes
    source_hash: str | None
    id: int = 0
    stamp: int = 0


class Mark(NamedTuple):
    """A row without its content. `reason` tells why it cannot be served, if it cannot."""

    id: int
    stamp: int
    name: str | None
    reason: str | None


class Fingerprint(NamedTuple):
    """What tells one state of the tables from another: a sum for each bucket, as text.

    `compiled` is None where the second table is not read.
    """

    rows: int
    octets: int
    functions: dict[int, str]
    compiled: dict[int, str] | None


class Rows(NamedTuple):
    """Both tables as of one moment. Without `fingerprint` the next look has to read everything again."""

    functions: list[SourceRow]
    compiled: list[CompiledRow]
    fingerprint: Fingerprint | None = None


class Changed(NamedTuple):
    """What has changed since a fingerprint, as of one moment.

    `marks` and `compiled_marks` are all rows of the buckets that differ; `functions` and `compiled` the content that
    was asked for.
    """

    fingerprint: Fingerprint
    buckets: frozenset[int]
    marks: list[Mark]
    compiled_buckets: frozenset[int]
    compiled_marks: list[Mark]
    functions: list[SourceRow]
    compiled: list[CompiledRow]


def differing(before: dict[int, str], after: dict[int, str]) -> frozenset[int]:
    """The buckets that are not the same."""
    return frozenset(bucket for bucket in before.keys() | after.keys() if before.get(bucket) != after.get(bucket))
