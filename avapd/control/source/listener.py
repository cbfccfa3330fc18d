"""Notifications: a connection that listens, so that a change need not wait for the next poll.

It only hurries the poll, which stays the truth: a channel that is dead, missing or silently dropped (PgBouncer in
transaction mode, a read replica) costs at most one interval. Whoever connects anew looks at once, since what was said
meanwhile is lost. What speaks on the channel is `trigger`, put into the database by `avapd db install-notify`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from avapd.control.source.connection import Database, by_fault
from avapd.control.source.tables import BYTECODE, TABLE
from avapd.log import Log

_RETRY_FIRST, _RETRY_MOST = 1.0, 60.0
# A silent drop is noticed by then: the connection is asked whether it is there.
_ASK_SECONDS: Final = 30.0
_TRIGGER: Final = """
CREATE OR REPLACE FUNCTION {schema}.avapd_notify() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_notify('{channel}', '');
    RETURN NULL;
END $$;
"""
# One for each statement, not for each row; those of one transaction are folded into one by PostgreSQL.
_ON_TABLE: Final = """
DROP TRIGGER IF EXISTS avapd_notify ON {schema}.{table};
CREATE TRIGGER avapd_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.avapd_notify();
"""


def trigger(schema: str, channel: str, *, compiled: bool) -> str:
    """The SQL that makes changes of the tables known; `compiled` when there is an `avap_bytecode`. Can be repeated."""
    quoted = '"' + schema.replace('"', '""') + '"'
    tables = (TABLE, BYTECODE)[: 1 + compiled]
    parts = [_TRIGGER.format(schema=quoted, channel=channel.replace("'", "''"))]
    return "".join([*parts, *(_ON_TABLE.format(schema=quoted, table=table) for table in tables)]).lstrip()


class Notifications:
    """Listens on a channel for as long as it runs; `heard` is called whenever something may have changed.

    `listening` tells whether there is a connection now. Without a channel it does nothing.
    """

    def __init__(self, database: Database, channel: str, heard: Callable[[], None], log: Log) -> None:
        self.listening = False
        self._database = database
        self._channel = channel
        self._heard = heard
        self._log = log
        self._told = False

    async def run(self) -> None:
        """Listen, and connect again after a while whenever that ends."""
        if not self._channel:
            await asyncio.get_running_loop().create_future()
        wait = _RETRY_FIRST
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001  # translated and told; the poll goes on meanwhile
                self._tell(error)
            finally:
                self.listening = False
            if asyncio.get_running_loop().time() - began > _ASK_SECONDS:
                wait = _RETRY_FIRST
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311
            wait = min(2 * wait, _RETRY_MOST)

    async def _listen(self) -> None:
        """Until the connection ends. Raises what ended it."""
        connection = None
        try:
            async with asyncio.timeout(self._database.seconds):
                connection = await self._database.connect()
                await connection.add_listener(self._channel, self._hear)
            self.listening = True
            self._told = False
            self._heard()
            while True:
                await asyncio.sleep(_ASK_SECONDS)
                await connection.fetchval("SELECT 1", timeout=self._database.seconds)
        finally:
            if connection is not None:
                connection.terminate()

    def _hear(self, _connection: Any, _pid: int, _channel: str, _payload: str) -> None:
        self._heard()

    def _tell(self, error: Exception) -> None:
        """Once per outage: the poll tells of the database itself."""
        if not self._told:
            self._told = True
            fault = by_fault(error, self._database.seconds)
            hint = "changes wait for the next poll"
            self._log.warn("Not Listening", reason=fault.reason, error=str(fault), hint=hint)
