"""Who may call: the check of the client's key.

The key is compared as a SHA-256 digest of its bytes with `hmac.compare_digest`: fixed length, no early end, no
difference between a nearly right key and a wrong one, and no TypeError for what is not ASCII. Every accepted key is
compared every time. Rules for what a client sends: `x-avap-auth` counts if it is there at all, else `authorization:
Bearer`; the one that counts must be there exactly once. Fails closed: whatever is odd is a wrong key.

An `x-avap-auth` that passed is remembered, since it comes with every call of its client. Being looked up in a set tells
nothing of a wrong one: Python compares strings only when their (secretly seeded) hashes are equal.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

HEADER = "x-avap-auth"
AUTHORIZATION = "authorization"


class Keyring:
    """The accepted keys, as SHA-256 digests."""

    def __init__(self, digests_hex: Iterable[str]) -> None:
        self._digests = [bytes.fromhex(digest) for digest in digests_hex]
        self._passed: set[str | bytes] = set()

    def accepts(self, key: bytes) -> bool:
        """Whether this is one of the keys."""
        digest = hashlib.sha256(key).digest()
        right = False
        for accepted in self._digests:
            right |= hmac.compare_digest(digest, accepted)
        return right

    def allows(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether request metadata (lower-case names) carries an accepted key."""
        named: list[str | bytes] = []
        bearers: list[str | bytes] = []
        for name, value in metadata:
            if name == HEADER:
                named.append(value)
            elif name == AUTHORIZATION:
                bearers.append(value)
        if named:
            return len(named) == 1 and (named[0] in self._passed or self._pass(named[0]))
        if len(bearers) != 1:
            return False
        scheme, _, key = _raw(bearers[0]).partition(b" ")
        return scheme.lower() == b"bearer" and self.accepts(key)

    def _pass(self, value: str | bytes) -> bool:
        right = self.accepts(_raw(value))
        if right:
            self._passed.add(value)
        return right


class Anyone(Keyring):
    """Accepts every call, with a key or without: development on loopback, when AVAPD_ANONYMOUS asks for it."""

    def __init__(self) -> None:
        super().__init__(())

    def allows(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:  # noqa: ARG002
        """Yes."""
        return True


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
