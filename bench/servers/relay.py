"""A relay in front of PostgreSQL that counts what it sends: how many bytes a poll fetches is told by nobody else."""

from __future__ import annotations

import socket
import threading
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

_CHUNK: Final = 1 << 18


class Relay:
    """Listens on loopback for as long as it is entered; `received` bytes came from the server so far."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        host = parts.hostname or query["host"][0]
        port = parts.port or int(query.get("port", ["5432"])[0])
        self._server: tuple[str, int] | str = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.received = 0
        self.url = parts._replace(
            netloc=f"{parts.username}@127.0.0.1:{self._listener.getsockname()[1]}", query=""
        ).geturl()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if isinstance(self._server, str):
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
            else:
                server = socket.create_connection(self._server)
            threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client), kwargs={"count": True}, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, *, count: bool = False) -> None:
        try:
            while data := source.recv(_CHUNK):
                self.received += len(data) if count else 0
                sink.sendall(data)
        except OSError:  # avapd ends its connections without a word
            return
        finally:
            for end in (source, sink):
                end.close()
