"""TLS in front of the wire engine: what is shown to clients, and the handshakes of new connections.

    a few accepted in each turn of the loop ──► handshake with the newest certificate ──h2──► WireProtocol, on TLS

Each handshake takes the context that is the newest when it begins, so a renewed certificate disturbs no connection.
Nothing of HTTP/2 exists for a connection before its client is known to be good: handshakes are bounded in time, in
number (the oldest gives way, for who is slow is not who wants to call), and in how many begin at once, since the
signature of one costs as much as many calls.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple, cast

from avapd.log import Log, Throttle
from avapd.shared import memory
from avapd.wire.limits import Limits

PROTOCOL: Final = "h2"
_AT_ONCE: Final = 4
_PAUSE_SECONDS: Final = 0.5
# How long a client may take to read what is on its way when we close, and to say that it has understood.
_SHUTDOWN_SECONDS: Final = 5.0
_TELL_SECONDS: Final = 10.0


class Shown(NamedTuple):
    """A chain with its key and the clients' authorities (or nothing), as PEM, and both as OpenSSL has them."""

    pem: bytes
    client_ca: bytes
    context: ssl.SSLContext


class Identity:
    """What this worker shows: `shown`, once it is `known`. Replaced as a whole, for grpcio reads it in its threads."""

    shown: Shown

    def __init__(self) -> None:
        self.known = asyncio.Event()

    def take(self, fd: int, client_ca: str) -> None:
        """Show what this memory holds from now on. Raises OSError (ssl.SSLError is one) and changes nothing then."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(memory.path_of(fd))
        context.set_alpn_protocols([PROTOCOL])
        # A resumed session would not be asked for the client's certificate, and no other worker could resume it.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        if client_ca:
            context.load_verify_locations(cadata=client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self.shown = Shown(os.pread(fd, os.fstat(fd).st_size, 0), client_ca.encode(), context)
        self.known.set()


class _Gate(asyncio.Protocol):
    """What a connection is until its handshake is done; then it gives way to what `protocol` makes, or to nothing."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], refused: Callable[[], None]) -> None:
        self._protocol = protocol
        self._refused = refused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        secured = cast("asyncio.Transport", transport)
        if secured.get_extra_info("ssl_object").selected_alpn_protocol() != PROTOCOL:
            self._refused()
            secured.close()
            return
        protocol = self._protocol()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)


class Handshakes:
    """Accepts on listening sockets; `protocol` makes what takes over a connection when its handshake has succeeded."""

    def __init__(self, identity: Identity, limits: Limits, protocol: Callable[[], asyncio.Protocol], log: Log) -> None:
        self._identity = identity
        self._limits = limits
        self._protocol = protocol
        self._log = log
        self._throttle = Throttle(_TELL_SECONDS)
        self._loop = asyncio.get_running_loop()
        self.under_way: dict[asyncio.Task[None], None] = {}  # in the order in which they began

    def listen(self, listener: socket.socket) -> None:
        """Accept connections."""
        self._loop.add_reader(listener, self._accept, listener)

    def deafen(self, listener: socket.socket) -> None:
        """Accept no more, and close the socket."""
        self._loop.remove_reader(listener)
        listener.close()

    def _accept(self, listener: socket.socket) -> None:
        """Take a few; the others wait in the kernel until the next turn, and calls are answered between."""
        for _ in range(_AT_ONCE):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor left, most likely: trying at once would only burn the CPU
                self._log.error("Cannot Accept", error=error.strerror)
                self._loop.remove_reader(listener)
                self._loop.call_later(_PAUSE_SECONDS, self._listen_again, listener)
                return
            connection.setblocking(False)
            self._begin(connection)

    def _listen_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self.listen(listener)

    def _begin(self, connection: socket.socket) -> None:
        if len(self.under_way) >= self._limits.handshakes:
            oldest = next(iter(self.under_way))
            self.under_way.pop(oldest)
            oldest.cancel()
        task = self._loop.create_task(self._shake(connection))
        self.under_way[task] = None
        task.add_done_callback(lambda done: self.under_way.pop(done, None))

    async def _shake(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: _Gate(self._protocol, self._tell), connection, ssl=self._identity.shown.context,
                ssl_handshake_timeout=self._limits.handshake_seconds, ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            )  # fmt: skip
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError | None = None) -> None:
        """One line for many: any client can cause them."""
        held = self._throttle.passes(monotonic())
        if held is not None:
            self._log.info("Handshake Failed", reason=_reason(error), others=held)

    def abort(self) -> None:
        """Cut who is not through."""
        for task in list(self.under_way):
            task.cancel()


def _reason(error: OSError | None) -> str:
    if error is None:
        return f"the client does not offer {PROTOCOL} (ALPN)"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not TLS").lower().replace("_", " ")
    return "no answer in time" if isinstance(error, ConnectionAbortedError) else "the client went away"
