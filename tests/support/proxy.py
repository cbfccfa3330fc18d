"""A TCP proxy in front of a database that can misbehave in every way a network can."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Self

from support.database import Database


class Proxy:
    """Forwards to `target` until told otherwise: `mode` is forward, freeze, slow, reset or refuse."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._mode = "forward"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def become(self, mode: str) -> None:
        """Change the behaviour, for the connections there are as well."""
        with self._lock:
            before, self._mode = self._mode, mode
            if mode in {"reset", "refuse"}:
                for pair in self._pairs:
                    for end in pair:
                        _reset(end)
                self._pairs.clear()
            if mode == "refuse" and before != "refuse":
                self._listener.shutdown(socket.SHUT_RDWR)  # a close alone does not wake a thread in accept
                self._listener.close()
            elif before == "refuse" and mode != "refuse":
                self._listener = socket.create_server(("127.0.0.1", self.port))
                threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        listener = self._listener
        while not self._ended.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self._mode == "reset":
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 if self._mode == "slow" else 65536):
                while self._mode == "freeze" and not self._ended.wait(0.02):
                    pass
                if self._mode == "slow" and self._ended.wait(0.2):
                    return
                sink.sendall(data)
        except OSError:
            return
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        self._ended.set()
        self.become("refuse")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def proxied(database: Database, proxy: Proxy) -> str:
    """The reader's connection string through the proxy."""
    return f"postgresql://avapd_reader@127.0.0.1:{proxy.port}/{database.name}"


def _reset(sock: socket.socket) -> None:
    """Close with a RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    except OSError:
        return
