"""Watchers of one worker, on the wire engine in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from support.access import access, key_of
from support.stage import snapshot
from wire.verdicts import Client

from avapd.data.health import Health
from avapd.data.service import Service
from avapd.data.streams import Watches
from avapd.data.wire_engine import DefinitionApplication
from avapd.log import Log
from avapd.pb.avap_pb2 import CatalogEvent

KEY = b"test-key-of-enough-length"
WATCH = b"/avap.DefinitionEngine/WatchCatalog"
CROWD = 100


def told(peer: Client) -> list[bytes]:
    """The code that each event brought."""
    peer.settle()
    return [CatalogEvent.FromString(raw).commands[0].code for raw in peer.reply(1).messages]


def test_watchers_are_told_in_turns_and_each_of_the_newest() -> None:
    """A swap returns before all are told; one that comes meanwhile leaves nobody out, and tells nobody twice."""
    service, keys = Service(1 << 20), access(key_of(KEY.decode()))
    watches = Watches(service.feed)
    application: Any = DefinitionApplication(service, watches, keys, Health(), Log("worker"))
    catalogs = [snapshot({"a": code}, generation) for generation, code in enumerate("123", 1)]

    def publish(number: int) -> None:
        before = service.view.version_hash if service.view is not None else ""
        service.swap(catalogs[number].view, before, ["a"])
        watches.swapped()

    async def run() -> None:
        publish(0)
        peers = [Client(application) for _ in range(CROWD)]
        for peer in peers:
            peer.call(b"", WATCH, [(b"x-avap-auth", KEY)])
        assert [told(peer) for peer in peers] == [[b"1"]] * CROWD
        publish(1)
        first = [told(peer) for peer in peers]
        assert 0 < first.count([b"1", b"2"]) < CROWD / 2
        publish(2)
        for _ in range(CROWD):  # turns of the loop
            await asyncio.sleep(0)
        assert {tuple(told(peer)) for peer in peers} == {(b"1", b"2", b"3"), (b"1", b"3")}

    asyncio.run(run())
    for catalog in catalogs:
        catalog.close()
