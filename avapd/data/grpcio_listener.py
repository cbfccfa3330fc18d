"""Doors: how a grpcio server accepts from a listening socket that somebody else owns.

The master owns one listening socket per slot, so that a worker's death loses no connection: what is in the accept
queue waits for the next worker. grpcio has no call to serve an existing socket. But a listener of its own is nothing
more than a descriptor in an epoll set, and a descriptor can be pointed at another socket:

    1. let grpcio open a listener on an ephemeral loopback port; 2. find its descriptor, and in /proc/self/fdinfo the
    epoll registration (descriptor, events, the pointer grpcio wants back); 3. to open the door: take the registration
    out, dup2 the master's socket over the descriptor, put the registration back.

From then on grpcio accepts from the master's socket. The third step can be done at any time, also while serving, and
is undone by pointing the descriptor at a *blank*, one end of a silent socketpair. Undoing it comes before the server
stops: grpcio shuts its listeners down, and shutdown(2) on the master's socket would end it for every process that
shares it. A door is blank from the beginning, so the ephemeral port is closed before anyone could call it.

The same knowledge serves the farewell. `stop` of a grpcio server sends GOAWAY and refuses calls in one step, so a call
that crosses the GOAWAY is lost (CANCELLED). `say_goaway` therefore writes a first GOAWAY with the highest stream id
(RFC 9113 section 6.8) to every connection: clients take new calls elsewhere while this server still answers what is on
its way.

Linux only (procfs, epoll). Proved with grpcio 1.80 to 1.83 in tests/data/test_grpcio_listener.py; `Door` raises
SocketError when a later grpcio no longer works this way, so a worker then fails at boot, with words, and never serves
half.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from avapd.errors import SocketError

_CTL_ADD, _CTL_DEL = 1, 2  # sys/epoll.h
_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes in the send queue that were not sent yet
# Length 8, type GOAWAY, no flags, stream 0, last stream id 2^31-1, NO_ERROR.
_GOAWAY = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")


class _Event(ctypes.Structure):
    """struct epoll_event; packed on x86-64 only (epoll_ctl(2), sys/epoll.h)."""

    _pack_ = 1 if os.uname().machine in {"x86_64", "amd64"} else 8
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


class _Registration(NamedTuple):
    epoll: int
    events: int
    data: int


class Door:
    """One place of a grpcio server through which connections can come. Make it before the server starts."""

    def __init__(self, server: Any, credentials: Any = None) -> None:
        """Add a door to a `grpc.aio` server, with TLS if there are credentials.

        Raises SocketError when this grpcio does not work as described above.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        here = "127.0.0.1:0"
        port = server.add_secure_port(here, credentials) if credentials is not None else server.add_insecure_port(here)
        self._fd = _listener_on(port)
        self._registration = _registration_of(self._fd)
        self._blank = socket.socketpair()
        self._point_at(self._blank[0])

    def open(self, listener: socket.socket) -> None:
        """Accept connections from this socket from now on; a connection that already waits is accepted at once."""
        self._point_at(listener)

    def shut(self) -> None:
        """Accept no more. The socket keeps listening for whoever else holds it."""
        self._point_at(self._blank[0])

    def _point_at(self, sock: socket.socket) -> None:
        epoll, events, data = self._registration
        event = ctypes.byref(_Event(events, data))
        # Out first: the registration belongs to the open socket, not to the number, and the socket may live on
        # elsewhere.
        self._libc.epoll_ctl(epoll, _CTL_DEL, self._fd, event)
        os.dup2(sock.fileno(), self._fd, inheritable=False)
        if self._libc.epoll_ctl(epoll, _CTL_ADD, self._fd, event) != 0:
            raise SocketError(f"grpcio's listener cannot be moved: {os.strerror(ctypes.get_errno())}")


def connections_on(ports: set[int]) -> list[int]:
    """The descriptors of the accepted connections on these local ports."""
    return [fd for fd, sock in _sockets(ports) if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]


def say_goaway(ports: set[int]) -> int:
    """Write a GOAWAY to every connection on these local ports; how many got it.

    A connection with unsent bytes may be in the middle of a frame: it is left to the GOAWAY of the server's own stop.
    """
    told = 0
    for fd, sock in _sockets(ports):
        with contextlib.suppress(OSError):  # a listener, or reset by the client just now
            sock.getpeername()
            (unsent,) = struct.unpack("i", fcntl.ioctl(fd, _SIOCOUTQNSD, bytes(4)))
            if unsent == 0:
                told += sock.send(_GOAWAY, socket.MSG_DONTWAIT) == len(_GOAWAY)
    return told


def _sockets(ports: set[int]) -> Iterator[tuple[int, socket.socket]]:
    """The TCP sockets of this process on these local ports: descriptor, and a duplicate to look at, closed after."""
    for fd in _numbers("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:  # closed since the listing
            continue
        with sock:
            if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.getsockname()[1] in ports:
                yield fd, sock


def _numbers(folder: str) -> list[int]:
    return [int(entry.name) for entry in Path(folder).iterdir()]


def _listener_on(port: int) -> int:
    for fd, sock in _sockets({port}):
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return fd
    raise SocketError("grpcio's listener was not found among the descriptors")


def _registration_of(listener: int) -> _Registration:
    for fd in _numbers("/proc/self/fdinfo"):
        try:
            if str(Path(f"/proc/self/fd/{fd}").readlink()) != "anon_inode:[eventpoll]":
                continue
            lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
        except OSError:  # closed since the listing
            continue
        for line in lines:
            # A line of proc_pid_fdinfo(5) reads: tfd: 20 events: 8000001d data: 5618ab33fc40 pos:0 ino:… sdev:…
            words = line.split()
            if words[:1] == ["tfd:"] and int(words[1]) == listener:
                return _Registration(fd, int(words[3], 16), int(words[5], 16))
    raise SocketError("grpcio's listener is in no epoll set")
