"""The listening sockets: one port, one queue for each slot, and nothing open when it cannot be had."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest
from support.stage import files

from avapd.control.listeners import open_listeners
from avapd.errors import SocketError


@contextlib.contextmanager
def opened(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """Listeners, closed at the end."""
    listeners = open_listeners(host, port, count)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=5)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::]", "::", "[::1]", "localhost"])
@pytest.mark.parametrize("count", [1, 4])
def test_every_slot_listens_on_the_same_port(host: str, count: int) -> None:
    """Each socket is listening, non-blocking, closed on exec, and has a port in common with the others."""
    with opened(host, 0, count) as listeners:
        assert len(listeners) == count
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        for listener in listeners:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert not listener.getblocking()
            assert not listener.get_inheritable()


def test_every_address_means_both_families() -> None:
    """`[::]` takes IPv4 as well."""
    with opened("[::]", 0, 1) as (listener,):
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            connect(host, port).close()


def test_connections_spread_over_the_slots_and_wait_there() -> None:
    """Nobody accepts, nobody is refused: the kernel has put them into several queues."""
    with opened("127.0.0.1", 0, 4) as listeners:
        port = listeners[0].getsockname()[1]
        clients = [connect("127.0.0.1", port) for _ in range(64)]
        waiting = select.select(listeners, [], [], 5)[0]
        assert len(waiting) > 1
        accepted = 0
        for listener in listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    accepted += 1
        assert accepted == len(clients)
        for client in clients:
            client.close()


def test_a_port_of_somebody_else_is_an_error_of_ours() -> None:
    """It names address and port, and tells the operator what to look for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SocketError, match=f"127.0.0.1 port {port}: Address already in use") as caught:
            open_listeners("127.0.0.1", port, 2)
        assert caught.value.hint
        assert int(caught.value.exit_code) == 69


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid", "a..b", "x" * 300, "ñ.invalid"])
def test_an_address_that_cannot_be_had_is_an_error_of_ours(host: str) -> None:
    """Not of this host, unknown, or no address at all."""
    with pytest.raises(SocketError, match="cannot listen on"):
        open_listeners(host, 50051, 2)


def test_nothing_stays_open_when_a_later_socket_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sockets before it are closed."""
    before = files()
    real = socket.socket.listen
    calls = []

    def listen(self: socket.socket, backlog: int) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise OSError(98, "Address already in use")
        real(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    with pytest.raises(SocketError):
        open_listeners("127.0.0.1", 0, 4)
    monkeypatch.undo()
    calls.clear()
    assert files() == before
