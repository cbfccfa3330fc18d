"""The errors of avapd, ordered by whose fault they are.

Each error carries the exit code that a command ends with when it cannot go on (contract part 8) and a
hint that tells the operator what to do. Texts never hold a secret: errors that come from the outside are
reduced to a name and a short reason where they are caught.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Exit(enum.IntEnum):
    """Exit codes, a vocabulary of their own (sysexits.h)."""

    OK = 0
    FAILED = 1
    UNAVAILABLE = 69
    INTERNAL = 70
    CONFIG = 78


class AvapdError(Exception):
    """Anything avapd raises on purpose.

    `hint` says what to do about it; it may be empty.
    """

    exit_code: ClassVar[Exit] = Exit.INTERNAL
    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


# --- the operator's: settings ------------------------------------------------------------------------


class ConfigError(AvapdError):
    """One or more settings are missing or malformed; `problems` names each of them, without its value."""

    exit_code = Exit.CONFIG

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class CertificateError(AvapdError):
    """A certificate, its key or the clients' authorities cannot be used; the text names the setting."""

    exit_code = Exit.CONFIG
    hint = "`avapd check` looks at them; a renewed pair is read by itself, or at once on SIGHUP"


# --- the database's ----------------------------------------------------------------------------------


class SourceError(AvapdError):
    """The source could not be read this time. The last catalog stays; the next poll tries again."""

    exit_code = Exit.UNAVAILABLE
    reason: ClassVar[str] = "error"


class SourceUnreachableError(SourceError):
    """Nobody answers, in time or at all: refused, reset, frozen, blackholed, slow, shutting down."""

    reason = "unreachable"
    hint = "check that PostgreSQL runs and that DATABASE_URL names the right host, port and database"


class SourceForbiddenError(SourceError):
    """The role may not log in or may not read the table."""

    reason = "forbidden"
    hint = "grant the role of DATABASE_URL: CONNECT, USAGE on the schema, SELECT on obex_dapl_functions"


class SourceShapeError(SourceError):
    """The table or a column is missing, or holds what cannot be text."""

    reason = "shape"
    hint = "compare the table with avapd/README.md, `avapd check` shows what is missing"


class CatalogTooLargeError(SourceError):
    """The table is larger than the configured maximum; nothing of it was published."""

    reason = "too_large"
    hint = "raise AVAPD_MAX_CATALOG_BYTES if memory allows it (`avapd check` does the arithmetic)"


# --- the host's --------------------------------------------------------------------------------------


class SocketError(AvapdError):
    """A listening socket could not be had."""

    exit_code = Exit.UNAVAILABLE
    hint = "another process holds the port, or the address is not of this host"


class CrashLoopError(AvapdError):
    """Workers die again and again before they can serve."""

    hint = "read the workers' last lines above; they say what each could not do"


# --- ours: bytes that are not what they must be --------------------------------------------------------


class SnapshotError(AvapdError):
    """An arena was refused: wrong size, seals, magic, format, checksum, or an offset out of range."""


class ChannelError(AvapdError):
    """A message between master and worker that neither of them would send."""


class PackageError(AvapdError):
    """Bytes that are not a valid AVAP code package under this key."""
