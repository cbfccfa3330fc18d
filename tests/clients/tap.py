"""A relay between a client and a server that keeps what passed, so that a test can ask what happened on the wire."""

from __future__ import annotations

import socket
import threading
from typing import NamedTuple, Self

from support.raw import PREFACE

DATA, HEADERS, RST_STREAM, PING, GOAWAY = 0, 1, 3, 6, 7
ACK = END_STREAM = 1


class Frame(NamedTuple):
    """A frame of HTTP/2 (RFC 9113 section 4.1). What DATA frames carry is not kept."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Direction:
    """What passed one way over one connection."""

    def __init__(self, preface: bytes) -> None:
        self.frames: list[Frame] = []
        self.octets = 0
        self._skip = len(preface)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take in what passes, however it is cut."""
        self.octets += len(data)
        data, at = self._rest + data, self._skip
        while at + 9 <= len(data) and (end := at + 9 + int.from_bytes(data[at : at + 3], "big")) <= len(data):
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFF_FFFF
            self.frames.append(Frame(kind, flags, stream, b"" if kind == DATA else data[at + 9 : end]))
            at = end
        self._skip = max(0, at - len(data))
        self._rest = data[at:]

    def of(self, kind: int) -> list[Frame]:
        """The frames of this kind so far."""
        return [frame for frame in tuple(self.frames) if frame.kind == kind]


class Tap:
    """Listens on `port` for clients of a server on another; `connections` are those so far, each (sent, received)."""

    def __init__(self, server_port: int) -> None:
        self.connections: list[tuple[Direction, Direction]] = []
        self._target = ("127.0.0.1", server_port)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def asked(self, kind: int) -> list[Frame]:
        """The frames of this kind that clients sent, on every connection."""
        return [frame for sent, _ in self.connections for frame in sent.of(kind)]

    def answered(self, kind: int) -> list[Frame]:
        """The frames of this kind that the server sent, on every connection."""
        return [frame for _, received in self.connections for frame in received.of(kind)]

    def octets(self) -> int:
        """How many octets the server has sent, on every connection."""
        return sum(received.octets for _, received in self.connections)

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
            sent, received = Direction(PREFACE), Direction(b"")
            self.connections.append((sent, received))
            self._sockets += client, server
            for source, sink, direction in ((client, server, sent), (server, client, received)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._threads.append(threading.Thread(target=_pump, args=(source, sink, direction), daemon=True))
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


def _pump(source: socket.socket, sink: socket.socket, direction: Direction) -> None:
    """Pass on what comes, and its end; what one side resets, the other sees as an end."""
    try:
        while data := source.recv(65536):
            direction.feed(data)
            sink.sendall(data)
    except OSError:
        _end(source)
    _end(sink)


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return
