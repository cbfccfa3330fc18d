"""The whole road: a row in PostgreSQL is served over gRPC."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from support.database import Database
from support.server import Server
from support.waiting import wait_until

from avapd.pb import avap_pb2


def test_rows_are_served_as_the_contract_says(sample: Database, serve: Callable[..., Server]) -> None:
    """Values, defaults and hashes of both rpcs are those of contract part 1."""
    server = serve(sample.reader_url).wait_serving()
    with server.calls() as calls:
        command = calls.command("si")
        source = "# ñ, 日本語\n".encode()
        assert (command.type, command.interface_json, command.code) == ("function", "[]", source)
        assert command.hash == hashlib.sha256(source).hexdigest()
        catalog = calls.catalog()
    assert [command.name for command in catalog.commands] == ["addVar", "getDate", "si"]
    assert catalog.total_count == 3
    content = avap_pb2.CatalogResponse(commands=catalog.commands).SerializeToString()
    assert catalog.version_hash == hashlib.sha256(content).hexdigest()


def test_an_edit_is_served_after_the_next_poll(sample: Database, serve: Callable[..., Server]) -> None:
    """Changed, added and removed rows arrive; reverting them brings the old hash back, in a new generation."""
    server = serve(sample.reader_url).wait_serving()
    with server.calls() as calls:
        before = calls.catalog().version_hash
        sample.execute("UPDATE obex_dapl_functions SET code = 'x = 2' WHERE name = 'si'")
        wait_until(lambda: calls.command("si").code == b"x = 2")
        sample.execute("UPDATE obex_dapl_functions SET code = $1 WHERE name = 'si'", "# ñ, 日本語\n")
        wait_until(lambda: calls.catalog().version_hash == before)
    server.wait_hash(before)
    published = wait_until(
        lambda: [line for line in server.events("Definitions Broadcasted") if line["generation"] == 3]
    )
    assert (published[0]["added"], published[0]["changed"], published[0]["removed"]) == (0, 1, 0)


def test_boot_logs_its_checkpoints_in_order(sample: Database, serve: Callable[..., Server]) -> None:
    """INIT, CONFIG OK, DB OK, CATALOG OK, WORKERS OK, SERVING."""
    server = serve(sample.reader_url).wait_serving()
    names = ["INIT", "CONFIG OK", "DB OK", "CATALOG OK", "WORKERS OK", "SERVING"]
    assert [line["msg"] for line in server.events() if line["msg"] in names] == names
