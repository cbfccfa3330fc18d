"""The replica: a catalog as its client holds it, fed by events, and proved by its hash after each of them.

No network here: whoever has events, from a watch or a whole catalog, applies them. An event that does not lead to the
hash it announces is refused, and the replica stays as it was.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from avapd.client.messages import Definition, VerificationError, definition
from avapd.pb import avap_pb2

_HEAD: Final = 10  # magic, version, length of an AVAP code package (contract part 3)
_SIGNED: Final = 42


class Replica:
    """Definitions by name. With `signing_key` every package is verified before anything of its event is served."""

    def __init__(self, signing_key: str | None = None) -> None:
        self.version_hash = ""
        self.generation = 0
        self._key = signing_key.encode() if signing_key is not None else None
        self._messages: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._messages))

    def get(self, name: str) -> Definition | None:
        """One definition, or None."""
        raw = self._messages.get(name)
        return None if raw is None else definition(avap_pb2.CommandResponse.FromString(raw))

    def apply(self, event: Iterable[Any]) -> frozenset[str]:
        """Take in the messages of one event; the names that changed. Raises VerificationError, and is as before."""
        messages, last = self._messages, None
        touched: set[str] = set()
        for part in event:
            if part.full:
                touched |= messages.keys()
                messages = {}
            elif messages is self._messages:
                messages = dict(messages)
            for command in part.commands:
                self._verify(command)
                messages[command.name] = command.SerializeToString()
                touched.add(command.name)
            for name in part.removed:
                messages.pop(name, None)
                touched.add(name)
            last = part
        if last is None or last.more:
            raise VerificationError("the event has no end")
        found = _hash(messages)
        if found != last.version_hash:
            raise VerificationError(f"the catalog has the hash {found}, the server says {last.version_hash}")
        changed = frozenset(name for name in touched if messages.get(name) != self._messages.get(name))
        self._messages, self.version_hash, self.generation = messages, last.version_hash, last.generation
        return changed

    def _verify(self, command: Any) -> None:
        """The source's hash, and the signature of the package where there is a key."""
        code: bytes = command.code
        if self._key is not None:
            head, signature, payload = code[:_HEAD], code[_HEAD:_SIGNED], code[_SIGNED:]
            if not hmac.compare_digest(signature, hmac.digest(self._key, head + payload, "sha256")):
                raise VerificationError(f"{command.name!r} is not signed with our key")
        elif hashlib.sha256(code).hexdigest() != command.hash and not code.startswith(b"AVAP"):
            raise VerificationError(f"{command.name!r} does not have the hash it announces")

    # --- on disk ----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the catalog as a CatalogResponse, whole or not at all. Raises OSError."""
        commands = b"".join(_framed(self._messages[name]) for name in self)
        end = avap_pb2.CatalogResponse(total_count=len(self), version_hash=self.version_hash).SerializeToString()
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(commands + end)
                file.flush()
                os.fsync(fd)
            Path(draft).replace(path)
        except OSError:
            Path(draft).unlink(missing_ok=True)
            raise

    def load(self, path: Path) -> None:
        """Take a saved catalog. Raises VerificationError when it is not whole, OSError when there is none."""
        try:
            catalog = avap_pb2.CatalogResponse.FromString(path.read_bytes())
        except DecodeError:
            raise VerificationError(f"{path} is no catalog") from None
        self.apply([whole(catalog)])


def whole(catalog: Any) -> Any:
    """A CatalogResponse as the one message of an event."""
    return avap_pb2.CatalogEvent(
        commands=catalog.commands, full=True, total_count=catalog.total_count, version_hash=catalog.version_hash
    )


def _hash(messages: dict[str, bytes]) -> str:
    """SHA-256 over the `commands` field, in the order of the UTF-8 of the names (proto/README.md)."""
    digest = hashlib.sha256()
    for name in sorted(messages):  # code points sort as their UTF-8 does
        digest.update(_framed(messages[name]))
    return digest.hexdigest()


def _framed(message: bytes) -> bytes:
    length, out = len(message), bytearray(b"\x0a")
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + message
