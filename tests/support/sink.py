"""A real HTTP server that takes what avapd sends: audit events, or anything else that comes by POST."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class HttpSink:
    """Keeps each body that it answered well, with its headers.

    `behave` says what becomes of the next POSTs: a status, or `hang` until the sink ends. A sink that was given the
    port of one that ended is the same one come back.
    """

    def __init__(self, port: int = 0, *, certificate: Path | None = None) -> None:
        self.behave: int | str = 200
        self.asked = 0
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}/audit"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                sink.asked += 1
                if sink.behave == "hang":
                    sink._ended.wait()
                    return
                status = int(sink.behave)
                if status == 200:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    sink.taken.append((self.path, headers, body))
                self.send_response(status)
                if status // 100 == 3:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        return Handler

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of all bodies, parsed."""
        return [json.loads(line) for _, _, body in list(self.taken) for line in body.splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [one for one in self.events if one["event"] == event]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
