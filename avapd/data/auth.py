"""Who may call: the check of the client's key.

The key is compared as a SHA-256 digest of its bytes with `hmac.compare_digest`: fixed length, no early end, no
difference between a nearly right key and a wrong one, and no TypeError for what is not ASCII. Every accepted key is
compared every time. Rules for what a client sends: `x-avap-auth` counts if it is there at all, else `authorization:
Bearer`; the one that counts must be there exactly once. Fails closed: whatever is odd is a wrong key.

A key that has come to its end is none, also when the master is gone, for each worker looks at the clock itself. An
`x-avap-auth` that passed is remembered, since it comes with every call of its client. Being looked up in a set tells
nothing of a wrong one: Python compares strings only when their (secretly seeded) hashes are equal.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from math import inf
from typing import NamedTuple

HEADER = "x-avap-auth"
AUTHORIZATION = "authorization"


class Key(NamedTuple):
    """One key as the master tells it; config/keys.py has the meaning of the fields."""

    name: str
    digest: str
    expires: float = 0.0
    rate: float = 0.0
    column: int = 0


_NOBODY = Key("anonymous", "")


class Keyring:
    """The accepted keys, as SHA-256 digests; `expires` is when the first of them ends, in seconds of the epoch."""

    def __init__(self, keys: Iterable[Key], now: float = 0.0) -> None:
        """Those of `keys` that have not ended by `now`."""
        accepted = [key for key in keys if not key.expires or key.expires > now]
        self.expires = min((key.expires for key in accepted if key.expires), default=inf)
        self._keys = [(bytes.fromhex(key.digest), key) for key in accepted]
        self._passed: dict[str | bytes, Key] = {}

    def find(self, key: bytes) -> Key | None:
        """The accepted key that this is."""
        digest = hashlib.sha256(key).digest()
        found = None
        for accepted, known in self._keys:
            if hmac.compare_digest(digest, accepted):
                found = known
        return found

    def has(self, key: Key) -> bool:
        """Whether a key that was accepted once is so still, whatever its name is now."""
        return any(key.digest == known.digest for _, known in self._keys)

    def allows(self, metadata: Iterable[tuple[str, str | bytes]]) -> Key | None:
        """The accepted key that request metadata (lower-case names) carries."""
        named: list[str | bytes] = []
        bearers: list[str | bytes] = []
        for name, value in metadata:
            if name == HEADER:
                named.append(value)
            elif name == AUTHORIZATION:
                bearers.append(value)
        if named:
            return (self._passed.get(named[0]) or self._pass(named[0])) if len(named) == 1 else None
        if len(bearers) != 1:
            return None
        scheme, _, key = _raw(bearers[0]).partition(b" ")
        return self.find(key) if scheme.lower() == b"bearer" else None

    def _pass(self, value: str | bytes) -> Key | None:
        found = self.find(_raw(value))
        if found is not None:
            self._passed[value] = found
        return found


class Anyone(Keyring):
    """Accepts every call, with a key or without: development on loopback, when AVAPD_ANONYMOUS asks for it."""

    def __init__(self) -> None:
        super().__init__(())

    def has(self, key: Key) -> bool:  # noqa: ARG002
        """Yes."""
        return True

    def allows(self, metadata: Iterable[tuple[str, str | bytes]]) -> Key | None:  # noqa: ARG002
        """A key that is nobody's."""
        return _NOBODY


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
