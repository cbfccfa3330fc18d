"""The doors of one port of the grpcio engine, by slot, and what they show when they speak TLS."""

from __future__ import annotations

import socket
from typing import Any

import grpc

from avapd.data.grpcio_listener import Door
from avapd.data.tls import Identity, Shown


class Doors:
    """A door for each slot; each may be opened on whichever slot's socket has to be served."""

    def __init__(self, doors: list[Door]) -> None:
        self._shut = doors
        self.open_slots: dict[int, tuple[Door, socket.socket]] = {}

    def open(self, slot: int, listener: socket.socket) -> None:
        """Accept connections of a slot; `listener` is closed when the door is shut."""
        self.shut(slot)
        door = self._shut.pop()
        door.open(listener)
        self.open_slots[slot] = (door, listener)

    def shut(self, slot: int) -> None:
        """Accept no more connections of a slot."""
        if slot in self.open_slots:
            door, listener = self.open_slots.pop(slot)
            door.shut()
            listener.close()
            self._shut.append(door)

    def shut_all(self) -> None:
        """Accept no more connections."""
        for slot in list(self.open_slots):
            self.shut(slot)

    def ports(self) -> set[int]:
        """The local ports of what is open."""
        return {listener.getsockname()[1] for _, listener in self.open_slots.values()}


def credentials_of(identity: Identity | None) -> Any:
    """Credentials that show what `identity` holds when a handshake begins; None without TLS. For one door alone."""
    if identity is None:
        return None
    known = identity.shown

    def newest() -> Any:
        """None when grpcio has it already; called in a thread of grpcio's."""
        nonlocal known
        if known is identity.shown:
            return None
        known = identity.shown
        return _configuration(known)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(known), newest, require_client_authentication=bool(known.client_ca)
    )


def _configuration(shown: Shown) -> Any:
    # Key and chain each find their own blocks in the one text.
    return grpc.ssl_server_certificate_configuration([(shown.pem, shown.pem)], shown.client_ca or None)
