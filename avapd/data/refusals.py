"""Who was refused, for the audit: summed up by reason and address, and told at most once a second.

Wrong keys may come by the hundred thousand a second, from as many addresses as somebody likes: a few addresses are
named each second, and the rest is counted together.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from avapd.shared.channel import Refusals as Told

# The events of the audit, by the status that the platform's alerts use: no right key; beyond a limit (rate, size).
REASONS: Final = {401: "auth_failed", 429: "limited"}
ADDRESSES: Final = 16


class Refusals:
    """The refusals since `take` was last called."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}

    def note(self, reason: str, peer: str, times: int = 1, key: str = "") -> None:
        """So many calls were refused to an address. `key` is the name of the key, never the key."""
        entry = (reason, peer, key)
        if entry not in self._counts and len(self._counts) >= ADDRESSES:
            entry = (reason, "", "")
        self._counts[entry] = self._counts.get(entry, 0) + times

    def take(self) -> Told | None:
        """What there is to tell; it begins anew."""
        if not self._counts:
            return None
        told = Told(entries=[[*entry, count] for entry, count in self._counts.items()])
        self._counts = {}
        return told


def address(peername: object) -> str:
    """The address of a peer as sockets name it; IPv4 as such, also where the socket is of IPv6."""
    text = str(peername[0]) if isinstance(peername, tuple) and peername else ""
    return text.removeprefix("::ffff:")


def address_in(peer: str) -> str:
    """The address of a peer as grpcio names it: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0]
    return address((host.strip("[]"),))
