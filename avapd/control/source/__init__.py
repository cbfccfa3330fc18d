"""The source: reads the two tables of contract part 2, whole or what has changed. The only room that knows asyncpg."""

from avapd.control.source.source import Source
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
)

__all__ = ["BYTECODE", "TABLE", "Changed", "CompiledRow", "Fingerprint", "Mark", "Rows", "Size", "Source", "SourceRow"]
