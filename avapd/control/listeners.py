"""The listening sockets: one for each worker slot, all on one port, owned by the master.

The kernel spreads new connections over the sockets of a SO_REUSEPORT group by a hash of the addresses (socket(7)).
Since the master keeps each open, a connection that arrives while a slot's worker is being replaced waits in the
accept queue and is not refused.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

from avapd.errors import SocketError

BACKLOG: Final = 4096  # the kernel takes the smaller of this and net.core.somaxconn


def claim(host: str, port: int) -> socket.socket | None:
    """Hold a name that only one avapd of this network namespace can have, as long as the socket lives.

    SO_REUSEPORT would let a second one take half of the first one's clients without a word. Workers do not inherit
    the name, so those a dead master left behind stand in nobody's way. Raises SocketError. Linux only (unix(7)).
    """
    if sys.platform != "linux":
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(f"\0avapd-{port}")
    except OSError:
        sock.close()
        raise SocketError(f"cannot listen on {host} port {port}: another avapd serves there") from None
    return sock


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Listening sockets for `count` slots. Raises SocketError when the address or the port cannot be had."""
    host = host.strip("[]")
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        for _ in range(count):
            sockets.append(_listen(family, address))
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
    except (OSError, UnicodeError) as error:
        for sock in sockets:
            sock.close()
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise SocketError(f"cannot listen on {host} port {port}: {reason}") from None
    return sockets


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # `[::]` means every address, IPv4 included
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
