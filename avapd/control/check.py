"""`avapd check`: would this start, and would it hold? A finding names what was looked at, how it is, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from avapd.config import Config
from avapd.control import certificates, host
from avapd.control.catalog import Catalog
from avapd.control.quarantine import Held, Screening
from avapd.control.source import TABLE, Rows, Source
from avapd.control.validator import Validator, validator_of
from avapd.errors import CertificateError, SourceError
from avapd.log import printable
from avapd.shared.snapshot import ENTRY, HEADER_SIZE

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"
_COLUMNS: Final = ("id", "name", "interface", "type", "code")
_ENOUGH_FILES: Final = 65_536
# Measured by bench/memory.py: a worker's private memory, and the master's peak while it loads, in multiples of the
# catalog.
WORKER_BYTES: Final = 60 << 20
MASTER_BYTES: Final = 100 << 20
PEAK_FACTOR: Final = 3.5


class Finding(NamedTuple):
    """One line of the report: `status` is `ok`, `warn` or `fail`."""

    check: str
    status: str
    found: str


async def check(config: Config, source: Source) -> list[Finding]:
    """Look at everything that a start needs; never raises for what it finds."""
    findings = [Finding("settings", OK, f"{config.environment}, engine {config.engine}")]
    findings += [Finding("settings", WARN, warning) for warning in config.warnings()]
    findings += _certificates(config)
    findings += _files()
    try:
        facts = await source.describe()
    except SourceError as error:
        findings.append(Finding("database", FAIL, f"{error}; {error.hint}"))
        return findings
    findings += _database(facts)
    if not all(finding.status != FAIL for finding in findings):
        return findings
    try:
        rows = await source.read(compiled=config.signing_key is not None)
    except SourceError as error:
        findings.append(Finding("rows", FAIL, f"{error}; {error.hint}"))
        return findings
    workers = config.workers or len(host.usable_cpus())
    with contextlib.closing(validator_of(config, children=len(host.usable_cpus()))) as validator:
        return findings + await asyncio.to_thread(_catalog, config, rows, workers, validator)


def _certificates(config: Config) -> list[Finding]:
    if not config.tls:
        return []
    try:
        bundle = certificates.prove(certificates.read(config))
    except CertificateError as error:
        return [Finding("certificates", FAIL, str(error))]
    left = {name: int((at - time.time()) // 86_400) for name, at in bundle.expires.items()}
    status = WARN if bundle.due else OK
    found = ", ".join(f"{name.replace('_', ' ')} for {days} days" for name, days in left.items())
    return [Finding("certificates", status, f"good: {found}")]


def _files() -> list[Finding]:
    limit = host.file_limit()
    status = OK if limit < 0 or limit >= _ENOUGH_FILES else WARN
    advice = "" if status == OK else f"; {_ENOUGH_FILES} are wanted, a connection takes one (ulimit -Hn)"
    return [Finding("open files", status, f"hard limit {limit}{advice}")]


def _database(facts: dict[str, Any]) -> list[Finding]:
    findings = [Finding("database", OK, f"PostgreSQL {facts['version']}, role {facts['role']}")]
    if not facts["table_exists"]:
        return [*findings, Finding("table", FAIL, f"{TABLE} does not exist in the schema (AVAPD_DATABASE_SCHEMA)")]
    columns = {column["attname"]: column["type"] for column in facts["columns"]}
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        findings.append(Finding("table", FAIL, f"{TABLE} lacks: {', '.join(missing)}"))
    else:
        findings.append(Finding("table", OK, f"{TABLE} has {', '.join(_COLUMNS)}"))
    if "SELECT" not in facts["rights"]:
        findings.append(Finding("role", FAIL, f"{facts['role']} may not SELECT from {TABLE}; GRANT it"))
    writes = [right for right in facts["rights"] if right != "SELECT"]
    if facts["superuser"] or writes:
        may = "is a superuser" if facts["superuser"] else "may " + ", ".join(writes)
        findings.append(Finding("role", WARN, f"{facts['role']} {may}; a read-only role is enough (deploy/postgres)"))
    else:
        findings.append(Finding("role", OK, f"{facts['role']} is read-only"))
    found = "is read" if facts["bytecode_readable"] else "is absent or not readable; packages are made at load"
    findings.append(Finding("avap_bytecode", OK, found))
    return findings


def _catalog(config: Config, rows: Rows, workers: int, validator: Validator) -> list[Finding]:
    catalog = Catalog(rows, config.signing_key)
    screening = Screening(validator, lambda _key: None, {})
    size = sum(len(message) + 6 for message in screening.messages(catalog.take(), catalog.too_large))
    # As shared/snapshot.py lays it out: header, index at most half full, records.
    size += HEADER_SIZE + (1 << max(3, (2 * len(catalog) - 1).bit_length())) * ENTRY.size
    findings = [
        Finding(
            "rows",
            OK if len(catalog) else WARN,
            f"{len(rows.functions)} rows, {len(catalog)} definitions, {_mib(size)}",
        )
    ]
    findings += [
        Finding("rows", WARN, f"{count} x {reason.replace('_', ' ')}")
        for reason, count in catalog.rejected.items()
        if count
    ]
    if catalog.duplicates:
        shown = ", ".join(repr(name) for name in catalog.duplicates[:5])
        findings.append(Finding("rows", WARN, f"names that stand twice, the highest id is served: {shown}"))
    return [*findings, *_faulty(screening.found, len(catalog)), _memory(size, workers, config.max_answer_bytes)]


def _faulty(found: Mapping[str, Held], count: int) -> list[Finding]:
    if not found:
        return []
    shown = "; ".join(f"{printable(one.name, 100)!r}: {one.error}" for one in sorted(found.values())[:5])
    text = f"{len(found)} definitions of {count} fail validation and would not be served: {shown}"
    return [Finding("rows", FAIL if len(found) >= count else WARN, text)]


def needed_memory(catalog: int, workers: int, max_answer: int) -> int:
    """Bytes that a catalog of this size needs, at the peak of a refresh: master, workers, old and new snapshot.

    The old one may be there in gzip too, which is never larger, if `max_answer` lets it out as one answer at all.
    """
    compressed = catalog if catalog <= max_answer else 0
    return int(MASTER_BYTES + workers * WORKER_BYTES + PEAK_FACTOR * catalog + 2 * catalog + compressed)


def _memory(size: int, workers: int, max_answer: int) -> Finding:
    needed = needed_memory(size, workers, max_answer)
    limit = host.memory_limit()
    allowed, name = (limit, "the cgroup limit") if limit is not None else (host.memory_total(), "the host's memory")
    found = f"{_mib(needed)} needed at the peak for {workers} workers, {name} is {_mib(allowed)}"
    if needed > allowed:
        return Finding("memory", FAIL, found + "; raise it or lower AVAPD_WORKERS")
    return Finding("memory", OK if needed <= 0.7 * allowed else WARN, found)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
