"""The replica: what does not have its hash or its signature is never taken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from avapd.client import Replica, VerificationError
from avapd.client.replica import whole
from avapd.control import package
from avapd.pb.avap_pb2 import CatalogEvent, CatalogResponse, CommandResponse

KEY = "signing key"


def command(name: str, source: str, key: str | None = None) -> CommandResponse:
    raw = source.encode()
    code = raw if key is None else package.sign(raw, key.encode())
    return CommandResponse(name=name, type="t", code=code, hash=hashlib.sha256(raw).hexdigest())


def catalog(*commands: CommandResponse) -> CatalogResponse:
    version = hashlib.sha256(CatalogResponse(commands=commands).SerializeToString()).hexdigest()
    return CatalogResponse(commands=commands, total_count=len(commands), version_hash=version)


def hash_of(*commands: CommandResponse) -> str:
    version: str = catalog(*commands).version_hash
    return version


def test_changes_are_taken_and_named() -> None:
    """New, changed, gone; what is sent again unchanged is no change."""
    replica = Replica()
    a, b, other = command("a", "1"), command("b", "1"), command("a", "2")
    assert replica.apply([whole(catalog(a, b))]) == {"a", "b"}
    event = CatalogEvent(commands=[other, b], removed=["x"], version_hash=hash_of(other, b))
    assert replica.apply([event]) == {"a"}
    assert replica.apply([CatalogEvent(removed=["b"], version_hash=hash_of(other))]) == {"b"}
    assert list(replica) == ["a"]
    found = replica.get("a")
    assert found is not None
    assert found.code == b"2"
    assert replica.get("b") is None


@pytest.mark.parametrize(
    "event",
    [
        [],
        [CatalogEvent(commands=[command("a", "2")], version_hash="0" * 64)],
        [CatalogEvent(removed=["a"], more=True)],
        [CatalogEvent(commands=[CommandResponse(name="a", code=b"2", hash="0" * 64)])],
    ],
)
def test_what_does_not_add_up_changes_nothing(event: list[CatalogEvent]) -> None:
    """Another hash, no end, a definition that is not what it says: refused, and the replica is as before."""
    replica = Replica()
    replica.apply([whole(catalog(command("a", "1")))])
    before = replica.version_hash
    with pytest.raises(VerificationError):
        replica.apply(event)
    found = replica.get("a")
    assert found is not None
    assert (found.code, replica.version_hash) == (b"1", before)


def test_with_a_key_only_what_is_signed_is_taken() -> None:
    """Our key, and no other; plain source neither."""
    good = command("a", "1", KEY)
    replica = Replica(KEY)
    replica.apply([whole(catalog(good))])
    for bad in (command("a", "2", "another key"), command("a", "2")):
        with pytest.raises(VerificationError, match="not signed"):
            replica.apply([whole(catalog(bad))])
    assert replica.version_hash == hash_of(good)


def test_the_copy_on_disk_is_verified_too(tmp_path: Path) -> None:
    """Saved and loaded it is the same; flipped, cut or foreign it is refused."""
    path = tmp_path / "folder" / "catalog"
    replica = Replica()
    replica.apply([whole(catalog(command("a", "1"), command("ñ", "2")))])
    replica.save(path)
    again = Replica()
    again.load(path)
    assert (list(again), again.version_hash) == (["a", "ñ"], replica.version_hash)
    raw = path.read_bytes()
    for bad in (raw[:-1], raw[:10], raw.replace(b"1", b"3"), b"", b"\xff" * 20):
        path.write_bytes(bad)
        with pytest.raises(VerificationError):
            Replica().load(path)
    with pytest.raises(OSError, match="No such file"):
        Replica().load(tmp_path / "nothing")
