"""Wrong keys, counted by the address they come from.

The key of a call is looked at first, always: who has a right one is served, whatever else comes from the same address.
Only what is refused anyway is refused in another way once it is too much: with RESOURCE_EXHAUSTED, without a word on
the key, and ready made. One worker counts for itself, so an address may have as many failures with each.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final
from urllib.parse import unquote

from avapd.wire.limits import Bucket

ADDRESSES: Final = 4_096
_MAPPED: Final = bytes(10) + b"\xff\xff"


def block_of(host: str) -> bytes:
    """Whose an address is: one IPv4 address, also when it comes mapped into IPv6, or an IPv6 /64. Empty if unknown."""
    with contextlib.suppress(OSError):
        if ":" not in host:
            return socket.inet_pton(socket.AF_INET, host)
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return packed[12:] if packed.startswith(_MAPPED) else packed[:8]
    return b""


def address_of(peer: str) -> bytes:
    """Whose address it is that grpcio calls `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    return block_of(unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]"))


class Failures:
    """An allowance for each address; of more than `ADDRESSES` the one that failed longest ago is forgotten."""

    def __init__(self, most: float, per_second: float) -> None:
        self._most = most
        self._per_second = per_second
        self._buckets: dict[bytes, Bucket] = {}

    def spend(self, address: bytes, now: float, times: int = 1) -> bool:
        """Count wrong keys; False when they are too many."""
        bucket = self._buckets.pop(address, None) or Bucket(self._most, self._per_second, now)
        if len(self._buckets) >= ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[address] = bucket
        return all(bucket.spend(now) for _ in range(min(times, int(self._most) + 1)))

    def __len__(self) -> int:
        return len(self._buckets)
