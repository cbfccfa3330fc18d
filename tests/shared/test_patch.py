"""The patch: nothing of it is believed before it was verified."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import pytest

from avapd.errors import SnapshotError
from avapd.pb.avap_pb2 import CommandResponse
from avapd.shared import memory, patch, snapshot
from avapd.shared.patch import PATCH_HEADER, Edit, PatchedView
from avapd.shared.snapshot import Landmarks, View, key_of


def message(name: str, code: str) -> bytes:
    return CommandResponse(name=name, type="t", interface_json="[]", code=code.encode()).SerializeToString()


class Arenas:
    """A base of three definitions, and a patch that changes one, adds one and takes one away."""

    def __init__(self) -> None:
        landmarks = Landmarks()
        self.base_fd = memory.create("test-base")
        messages = [message(name, name) for name in ("a", "c", "e")]
        header = snapshot.pack(self.base_fd, 7, 3, messages, landmarks)
        self.base = View(memory.map_sealed(self.base_fd, header.arena_size))
        a, c = self.base.place_of(key_of("a")), self.base.place_of(key_of("c"))
        assert a is not None
        assert c is not None
        edits = [
            Edit(key_of("a"), message("a", "changed"), *a),
            Edit(key_of("b"), message("b", "new"), c[0], c[0]),
            Edit(key_of("c"), None, *c),
        ]
        self.fd = memory.create("test-patch")
        made = patch.pack_patch(self.fd, 8, self.base, edits, landmarks.digest_before(a[0]))
        self.raw = os.pread(self.fd, made.arena_size, 0)

    def sealed(self, raw: bytes) -> int:
        """A descriptor of a sealed arena with these octets."""
        fd = memory.create("test-broken", len(raw))
        memory.write_at(fd, raw, 0)
        memory.seal(fd)
        return fd

    def opened(self, raw: bytes) -> PatchedView:
        """These octets, mapped and verified as a patch on the base."""
        fd = self.sealed(raw)
        try:
            return PatchedView.open(self.base, fd, len(raw))
        finally:
            os.close(fd)


@pytest.fixture
def arenas() -> Iterator[Arenas]:
    made = Arenas()
    yield made
    os.close(made.base_fd)
    os.close(made.fd)


def test_a_patch_reads_as_the_catalog_it_makes(arenas: Arenas) -> None:
    """Changed, added and gone; the rest is the base's."""
    view = arenas.opened(arenas.raw)
    assert [CommandResponse.FromString(bytes(octets)).name for _, octets in view.messages()] == ["a", "b", "e"]
    assert CommandResponse.FromString(bytes(view.get(key_of("a")) or b"")).code == b"changed"
    assert view.get(key_of("c")) is None
    assert view.get(key_of("e")) == message("e", "e")
    assert view.get(b"") is view.get(b"\x0a\x00") is None
    assert (view.generation, len(view)) == (8, 3)
    assert dict(view.changed()) == {
        key_of("a"): message("a", "changed"), key_of("b"): message("b", "new"), key_of("c"): None
    }  # fmt: skip


def test_every_flipped_bit_is_noticed(arenas: Arenas) -> None:
    """Whatever single octet is another one, the patch is refused."""
    draw = random.Random(1)
    for at in range(len(arenas.raw)):
        broken = bytearray(arenas.raw)
        broken[at] ^= 1 << draw.randrange(8)
        with pytest.raises(SnapshotError):
            arenas.opened(bytes(broken))


def test_every_cut_is_noticed(arenas: Arenas) -> None:
    """A patch that ends early, or goes on, is refused."""
    for size in (*range(1, len(arenas.raw), 13), len(arenas.raw) - 1):
        with pytest.raises(SnapshotError):
            arenas.opened(arenas.raw[:size])
    with pytest.raises(SnapshotError):
        arenas.opened(arenas.raw + b"\0")


def test_a_patch_on_another_base_is_refused(arenas: Arenas) -> None:
    """Also when only the content of the base differs, not its number."""
    other = memory.create("test-other")
    header = snapshot.pack(other, 7, 1, [message("a", "x")])
    base = View(memory.map_sealed(other, header.arena_size))
    with pytest.raises(SnapshotError, match="a patch on generation 7"):
        PatchedView.open(base, arenas.fd, len(arenas.raw))
    os.close(other)


def test_an_unsealed_patch_is_refused(arenas: Arenas) -> None:
    """Somebody could still write to it."""
    fd = memory.create("test-open", len(arenas.raw))
    memory.write_at(fd, arenas.raw, 0)
    with pytest.raises(SnapshotError, match="not sealed"):
        PatchedView.open(arenas.base, fd, len(arenas.raw))
    os.close(fd)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"magic": b"AVAPSNAP"}, "magic"),
        ({"format": 2}, "format 2"),
        ({"base_generation": 6}, "generation 6"),
        ({"slots": 9}, "sizes and offsets"),
        ({"slots": 1 << 62}, "sizes and offsets"),
        ({"splices": 1 << 40}, "sizes and offsets"),
        ({"records_offset": 0}, "sizes and offsets"),
        ({"records_size": 1 << 60}, "sizes and offsets"),
        ({"definitions": 4}, "splices|definitions"),
        ({"answer_size": 1}, "splices"),
    ],
)
def test_a_header_that_lies_under_a_right_checksum_is_refused(
    arenas: Arenas, fields: dict[str, object], says: str
) -> None:
    """Bounds and counts are checked, not only digests."""
    header = patch.PatchHeader(*PATCH_HEADER.unpack_from(arenas.raw, 0))._replace(**fields)  # type: ignore[arg-type]
    body = arenas.raw[192:]
    header = header._replace(checksum=patch._checksum(header, body))
    with pytest.raises(SnapshotError, match=says):
        arenas.opened(PATCH_HEADER.pack(*header).ljust(192, b"\0") + body)


def test_an_arena_too_short_for_a_header_is_refused(arenas: Arenas) -> None:
    """Before anything is read of it."""
    with pytest.raises(SnapshotError, match="too short"):
        PatchedView(arenas.base, mmap.mmap(-1, 100))
