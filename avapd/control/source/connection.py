"""Connections to PostgreSQL, each under one deadline, and whose fault it is when there is none.

- One fresh connection per read, thrown away with `terminate()`. It costs about 2 ms, and a connection that a frozen
  peer, a PgBouncer or a failover has poisoned never lives to the next poll.
- One deadline over everything: connect, queries, close. `asyncio.timeout` ends whatever is under way, `terminate`
  never waits.
- One REPEATABLE READ READ ONLY transaction: both tables are read as of one moment. No start-up parameter but the
  application's name and no named statement, so PgBouncer in transaction mode is fine.

Every way a database can fail ends as one of four errors, by whose fault it is; their texts name no secret.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import asyncpg

from avapd import __version__
from avapd.errors import SnapshotError, SourceError, SourceForbiddenError, SourceShapeError, SourceUnreachableError
from avapd.log import printable

T = TypeVar("T")


class Database:
    """How to reach a database. `seconds` is the deadline of whatever is done with it.

    With `ca_file` its certificate must be signed by that authority for the name in `url`; the file is read with each
    connection, so a renewed one needs no restart.
    """

    def __init__(self, url: str, seconds: float, ca_file: str = "") -> None:
        self._url = _verifying(url, ca_file) if ca_file else url
        self.seconds = seconds

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do `work` with a connection, in a transaction that reads one moment. Raises SourceError."""

        async def within(connection: Any) -> T:
            # Never ended but by `terminate`: a ROLLBACK to a frozen peer would wait for a second deadline.
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            await connection.execute("SET LOCAL search_path = pg_catalog")
            return await work(connection)

        return await self.run(within)

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do `work` with a connection of its own. Raises SourceError, and what `work` raises as SnapshotError."""
        connection = None
        try:
            async with asyncio.timeout(self.seconds):
                connection = await self.connect()
                return await work(connection)
        except SnapshotError:
            raise
        except Exception as error:  # noqa: BLE001  # translated, never swallowed
            raise by_fault(error, self.seconds) from None
        finally:
            if connection is not None:
                connection.terminate()

    async def connect(self) -> Any:
        """A connection, the caller's to end. Raises whatever asyncpg raises; see `by_fault`."""
        return await asyncpg.connect(
            self._url,
            timeout=self.seconds,
            command_timeout=self.seconds,
            statement_cache_size=0,
            server_settings={"application_name": f"avapd/{__version__}"},
        )


def _verifying(url: str, ca_file: str) -> str:
    """The connection string with `sslmode=verify-full` and the authority's file; asyncpg does the rest."""
    parts = urlsplit(url)
    kept = [pair for pair in parts.query.split("&") if pair.partition("=")[0] not in {"", "sslmode", "sslrootcert"}]
    return parts._replace(query="&".join((*kept, "sslmode=verify-full", f"sslrootcert={quote(ca_file)}"))).geturl()


def by_fault(error: Exception, seconds: float) -> SourceError:
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
