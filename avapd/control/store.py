"""The store: what outlives a restart, in `AVAPD_SNAPSHOT_DIR`. Never needed to run, never in the way of it.

    catalog-<generation>.avapd     the last three catalogs that every worker took
    undo-<generation>.avapd        the history: one line of JSON, then what undoes that publication
    switches.json                  what the operator has decided
    attempts.json                  catalogs that were served from here by a start that has not proved itself yet

A catalog file is a header, then the serialized CatalogResponse:

    0    magic 8s | format u32 | header size u32 | generation u64 | definitions u64 | answer size u64 | saved u64
    48   version_hash 32s | HMAC-SHA256 32s | SHA-256 32s

The SHA-256 is that of the header, with itself and the HMAC zeroed; the header names `version_hash`, which is the
SHA-256 of the definitions: every byte is covered. The HMAC, under SIGNING_KEY, is over the same; without a key it is
zeros. What is truncated, flipped, foreign or of a newer format is set aside with an ERROR and never served. A file that
two starts died on is passed over for the one before.

Everything is written to a temporary file, synced, renamed. A full disk costs a WARN and a counter.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import os
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import orjson
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from avapd.control.guard import Switches
from avapd.control.history import KEPT, Entry
from avapd.control.packer import Snapshot
from avapd.errors import AvapdError, SnapshotError
from avapd.log import Log
from avapd.shared.snapshot import messages_in, tail_of

MAGIC: Final = b"AVAPDISK"
FORMAT: Final = 1
HEAD: Final = struct.Struct("<8s II QQQQ 32s 32s 32s")
CATALOGS_KEPT: Final = 3
_DEATHS_MOST: Final = 2
_SUFFIX: Final = ".avapd"
_BAD: Final = ".bad"

Load = Callable[[int, Iterator[bytes]], Awaitable[Entry | None]]


class Head:
    """The header of a catalog file."""

    def __init__(self, raw: bytes, key: bytes | None) -> None:
        """Read and check it. Raises SnapshotError."""
        if len(raw) < HEAD.size:
            raise SnapshotError("truncated")
        magic, format_, size, *numbers, self.version_hash, mac, checksum = HEAD.unpack_from(raw)
        self.generation, self.definitions, self.answer_size, self.saved = numbers
        if magic != MAGIC:
            raise SnapshotError("not a catalog of avapd")
        if format_ != FORMAT:
            raise SnapshotError(f"format {format_}, this version reads {FORMAT}")
        plain = raw[: HEAD.size - 64] + bytes(64)
        if size != HEAD.size or hashlib.sha256(plain).digest() != checksum:
            raise SnapshotError("the checksum does not match")
        if not hmac.compare_digest(mac, _mac(plain, key)):
            raise SnapshotError("signed with another key, or with none")

    @staticmethod
    def made(snap: Snapshot, key: bytes | None, saved: int) -> bytes:
        """The header of a file that holds this snapshot."""
        view = snap.view
        version_hash = bytes.fromhex(view.version_hash)
        plain = HEAD.pack(
            MAGIC, FORMAT, HEAD.size, view.generation, len(view), view.answer_size, saved, version_hash, bytes(32),
            bytes(32),
        )  # fmt: skip
        return plain[: HEAD.size - 64] + _mac(plain, key) + hashlib.sha256(plain).digest()


def _mac(plain: bytes, key: bytes | None) -> bytes:
    return bytes(32) if key is None else hmac.digest(key, plain, "sha256")


def read_catalog(path: Path, key: bytes | None) -> tuple[Head, bytes]:
    """The header and the records of a catalog file. Raises SnapshotError or OSError."""
    raw = path.read_bytes()
    head = Head(raw, key)
    tail = tail_of(head.definitions, head.version_hash)
    end = HEAD.size + head.answer_size - len(tail)
    if len(raw) != HEAD.size + head.answer_size or raw[end:] != tail:
        raise SnapshotError("truncated")
    records = raw[HEAD.size : end]
    if hashlib.sha256(records).digest() != head.version_hash:
        raise SnapshotError("the checksum does not match")
    return head, records


class Store(Collector):
    """A folder. `failures` counts what could not be written, also in the metrics."""

    def __init__(self, folder: str, signing_key: str | None, log: Log) -> None:
        self.failures = 0
        self.served = ""  # the file that was served at the start
        self._folder = Path(folder)
        self._key = signing_key.encode() if signing_key is not None else None
        self._log = log
        self._waiting: dict[str, Callable[[], None]] = {}
        self._writer: asyncio.Task[None] | None = None

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance, as of all our collectors."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """How often the disk refused."""
        yield CounterMetricFamily("avap_store_failures", "Files that could not be written to the folder", self.failures)

    # --- writing, in the background, newest wins --------------------------------------------------------------

    def keep_catalog(self, snap: Snapshot, generation: int) -> None:
        """Write a catalog that was checked and that every worker took. Returns at once."""
        pieces = snap.view.answer()  # they hold the memory, whatever becomes of the snapshot
        head = Head.made(snap, self._key, int(time.time()))
        self._later("catalog", lambda: self._write_catalog(f"catalog-{generation:020}{_SUFFIX}", (head, *pieces)))

    def keep_entry(self, entry: Entry) -> None:
        """Write an entry of the history. Returns at once."""
        self._later(f"undo {entry.generation}", lambda: self._write_undo(entry))

    def keep_switches(self, switches: Switches) -> None:
        """Write what the operator has decided; before it is said to be done."""
        fields = dataclasses.asdict(switches)
        fields["approved"] = sorted(switches.approved)
        fields["denied"] = {
            name: None if message is None else base64.b64encode(message).decode()
            for name, message in switches.denied.items()
        }
        self._try("switches.json", lambda: self._write("switches.json", [orjson.dumps(fields)]))

    async def stop(self) -> None:
        """Write what waits."""
        if self._writer is not None:
            await self._writer

    def _later(self, what: str, write: Callable[[], None]) -> None:
        self._waiting[what] = write
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())

    async def _write_waiting(self) -> None:
        while self._waiting:
            what = next(iter(self._waiting))
            await asyncio.to_thread(self._try, what, self._waiting.pop(what))

    def _try(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.failures += 1
            self._log.warn("Not Kept on Disk", what=what, error=error.strerror, hint="see AVAPD_SNAPSHOT_DIR")

    def _write_catalog(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        self._write(name, pieces)
        for old in self._catalogs()[CATALOGS_KEPT:]:
            old.unlink(missing_ok=True)

    def _write_undo(self, entry: Entry) -> None:
        head = orjson.dumps(entry.facts()) + b"\n"
        self._write(f"undo-{entry.generation:020}{_SUFFIX}", (head, hashlib.sha256(entry.undo).digest(), entry.undo))
        for old in sorted(self._folder.glob(f"undo-*{_SUFFIX}"), reverse=True)[KEPT:]:
            old.unlink(missing_ok=True)

    def _write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """All or nothing, readable by us alone. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._folder / f".{name}.draft"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            draft.rename(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # --- reading, at the start --------------------------------------------------------------------------------

    def switches(self) -> Switches:
        """What the operator decided before; nothing when that cannot be read."""
        try:
            fields = orjson.loads((self._folder / "switches.json").read_bytes())
            fields["approved"] = set(fields["approved"])
            fields["denied"] = {
                name: None if text is None else base64.b64decode(text) for name, text in fields["denied"].items()
            }
            return Switches(**fields)
        except FileNotFoundError:
            return Switches()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._set_aside(self._folder / "switches.json", error)
            return Switches()

    def history(self) -> list[Entry]:
        """The entries that earlier runs left, oldest first, as far as they follow on each other."""
        entries: list[Entry] = []
        for path in sorted(self._folder.glob(f"undo-*{_SUFFIX}")):
            try:
                entry = _read_entry(path)
                entries = [entry] if entry.first else [*entries, entry]
            except (OSError, ValueError, TypeError, SnapshotError) as error:
                self._set_aside(path, error)
                entries.clear()
        return entries[-KEPT:]

    def recall(self) -> dict[bytes, bytes]:
        """The definitions of the newest catalog that is whole, by key: they were checked before they were kept."""
        for path in self._catalogs():
            try:
                _, records = read_catalog(path, self._key)
                return dict(messages_in(records, 0, len(records)))
            except (SnapshotError, OSError) as error:
                self._set_aside(path, error)
        return {}

    async def serve(self, load: Load) -> bool:
        """Serve the newest catalog that is whole and that no two starts died on; whether there was one."""
        attempts = self._attempts()
        for path in self._catalogs():
            if attempts.get(path.name, 0) >= _DEATHS_MOST:
                self._log.error("Catalog on Disk Passed Over", file=path.name, reason="two starts died on it")
                continue
            try:
                head, records = await asyncio.to_thread(read_catalog, path, self._key)
            except (SnapshotError, OSError) as error:
                self._set_aside(path, error)
                continue
            attempts[path.name] = attempts.get(path.name, 0) + 1
            self._try("attempts.json", lambda: self._write("attempts.json", [orjson.dumps(attempts)]))
            if await load(head.definitions, _messages(records)) is not None:
                self.served = path.name
                self._log.warn("Serving From Disk", file=path.name, saved=head.saved, count=head.definitions)
            else:  # the table was faster
                self.settled()
            return True
        return False

    def settled(self) -> None:
        """The start has proved itself."""
        with contextlib.suppress(OSError):
            (self._folder / "attempts.json").unlink(missing_ok=True)

    def _attempts(self) -> dict[str, int]:
        try:
            found: dict[str, int] = orjson.loads((self._folder / "attempts.json").read_bytes())
            return {name: int(count) for name, count in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _catalogs(self) -> list[Path]:
        return sorted(self._folder.glob(f"catalog-*{_SUFFIX}"), reverse=True)

    def _set_aside(self, path: Path, error: Exception) -> None:
        reason = str(error) if isinstance(error, AvapdError) else type(error).__name__
        self._log.error("File Set Aside", file=path.name, reason=reason, hint=f"it is kept as {path.name}{_BAD}")
        with contextlib.suppress(OSError):
            path.rename(path.with_name(path.name + _BAD))


def _read_entry(path: Path) -> Entry:
    line, _, rest = path.read_bytes().partition(b"\n")
    digest, undo = rest[:32], rest[32:]
    if hashlib.sha256(undo).digest() != digest:
        raise SnapshotError("the checksum does not match")
    return Entry(**orjson.loads(line), undo=undo)


def _messages(records: bytes) -> Iterator[bytes]:
    return (message for _, message in messages_in(records, 0, len(records)))
