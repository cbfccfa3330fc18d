"""TLS in front of a PostgreSQL, as a server of its own has it: for clients that must verify what they talk to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Final, Self

_SSL_REQUEST: Final = bytes.fromhex("00000008 04d2162f")


class Guarded:
    """Answers SSLRequest (PostgreSQL 54.2.11) with `answer`; after `S` there is TLS, and behind it the Unix socket.

    The wheel's PostgreSQL is built without OpenSSL, so the handshake is Python's. `heard` is whatever came in clear
    text, `login` whether anything but a handshake ever came through.
    """

    def __init__(self, socket_path: str, leaf: ssl.SSLContext, answer: bytes = b"S") -> None:
        self._path = socket_path
        self._context = leaf
        self._answer = answer
        self.heard = b""
        self.login = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            request = client.recv(8)
            self.heard += request
            client.sendall(self._answer)
            if request != _SSL_REQUEST or self._answer != b"S":
                while data := client.recv(4096):
                    self.heard += data
                return
            with self._context.wrap_socket(client, server_side=True) as secured:
                self._join(secured)

    def _join(self, secured: ssl.SSLSocket) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(self._path)

            def back() -> None:
                with contextlib.suppress(OSError):
                    while data := server.recv(65536):
                        secured.sendall(data)

            threading.Thread(target=back, daemon=True).start()
            while data := secured.recv(65536):
                self.login = True
                server.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
