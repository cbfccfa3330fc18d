"""A relay between a client and a server that keeps what passed, so that a test can ask what happened on the wire."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple, Self

from support.raw import PREFACE

DATA, HEADERS, RST_STREAM, PING, GOAWAY = 0, 1, 3, 6, 7
ACK = END_STREAM = 1


class Frame(NamedTuple):
    """A frame of HTTP/2 (RFC 9113 section 4.1)."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Connection:
    """The bytes of one connection so far, by direction."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.received = bytearray()

    def asked(self) -> list[Frame]:
        """The frames of the client."""
        return list(_frames(bytes(self.sent), len(PREFACE)))

    def answered(self) -> list[Frame]:
        """The frames of the server."""
        return list(_frames(bytes(self.received), 0))


def _frames(data: bytes, at: int) -> Iterator[Frame]:
    while at + 9 <= len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            return
        stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFF_FFFF
        yield Frame(data[at + 3], data[at + 4], stream, data[at + 9 : end])
        at = end


class Tap:
    """Listens on `port` for clients of the server on another; `connections` are those there were, in order."""

    def __init__(self, server_port: int) -> None:
        self.connections: list[Connection] = []
        self._target = ("127.0.0.1", server_port)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def asked(self, kind: int) -> list[Frame]:
        """The frames of this kind that clients sent, on every connection."""
        return [frame for connection in self.connections for frame in connection.asked() if frame.kind == kind]

    def answered(self, kind: int) -> list[Frame]:
        """The frames of this kind that the server sent, on every connection."""
        return [frame for connection in self.connections for frame in connection.answered() if frame.kind == kind]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            connection = Connection()
            self.connections.append(connection)
            self._sockets += client, server
            for source, sink, kept in ((client, server, connection.sent), (server, client, connection.received)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._threads.append(threading.Thread(target=_pump, args=(source, sink, kept), daemon=True))
                self._threads[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # a close alone does not wake a thread in accept
        self._listener.close()
        for end in self._sockets:
            _end(end)
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()


def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    """Pass on what comes, and its end; what one side resets, the other sees as an end."""
    try:
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    except OSError:
        _end(source)
    _end(sink)


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return
