"""The snapshot: what is packed is read back as protobuf would have it, and nothing that is not whole is ever read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.stage import files

from avapd.errors import SnapshotError
from avapd.pb.avap_pb2 import CatalogResponse, CommandRequest, CommandResponse
from avapd.shared import memory, snapshot
from avapd.shared.snapshot import ENTRY, HEADER, HEADER_SIZE, Header, View, key_of, pack, varint

Definitions = dict[str, tuple[str, str, bytes]]
SMALL: Definitions = {"addVar": ("function", "[]", b"x = 1\n"), "ñ": ("", '[{"item": "a"}]', b"")}
# Two names with one slot in the smallest index and one tag: only the bytes of the name tell them apart.
TWINS = ("n125816", "n237599")


def serialized(definitions: Definitions) -> list[bytes]:
    """CommandResponses as the protobuf library writes them, in the order of the UTF-8 bytes of their names."""
    return [
        CommandResponse(name=name, type=type_, interface_json=interface, code=code, hash="ab" * 32).SerializeToString()
        for name, (type_, interface, code) in sorted(definitions.items(), key=lambda item: item[0].encode())
    ]


def packed(messages: list[bytes], generation: int = 1) -> bytes:
    """The bytes of an arena."""
    fd = memory.create("test")
    try:
        header = pack(fd, generation, len(messages), messages)
        assert os.fstat(fd).st_size == header.arena_size
        return os.pread(fd, header.arena_size, 0)
    finally:
        os.close(fd)


def opened(arena: bytes, size: int | None = None, *, seal: bool = True) -> View:
    """A verified view of these bytes, as a worker opens it."""
    fd = memory.create("test")
    try:
        memory.write_at(fd, arena, 0)
        if seal:
            memory.seal(fd)
        return View.open(fd, len(arena) if size is None else size)
    finally:
        os.close(fd)


@contextmanager
def viewed(definitions: Definitions, generation: int = 1) -> Iterator[View]:
    """A verified view of a catalog."""
    view = opened(packed(serialized(definitions), generation))
    yield view
    view.close()


def forged(arena: bytes, change: Callable[[bytearray], object] = bool, **fields: Any) -> bytes:
    """An arena with other header fields and `change` made to its bytes, and digests that are right again."""
    raw = bytearray(arena)
    change(raw)
    header = Header(*HEADER.unpack_from(raw))._replace(**fields)
    begin, end = header.records_offset, header.records_offset + header.records_size
    if "version_hash" not in fields:
        header = header._replace(version_hash=hashlib.sha256(raw[begin:end]).digest())
    checksum = snapshot._checksum(header, bytes(raw[HEADER_SIZE:begin]), bytes(raw[end:]))
    HEADER.pack_into(raw, 0, *header._replace(checksum=checksum))
    return bytes(raw)


def entries(arena: bytes) -> dict[int, tuple[int, int, int]]:
    """The used entries of the index by slot: offset, length, tag."""
    slots = Header(*HEADER.unpack_from(arena)).slots
    found = {slot: ENTRY.unpack_from(arena, HEADER_SIZE + slot * ENTRY.size) for slot in range(slots)}
    return {slot: entry for slot, entry in found.items() if entry[0]}


def with_entry(arena: bytes, slot: int, offset: int, length: int, tag: int) -> bytes:
    """The arena with one entry of its index replaced, and right digests."""
    return forged(arena, lambda raw: ENTRY.pack_into(raw, HEADER_SIZE + slot * ENTRY.size, offset, length, tag))


# --- round trip ---------------------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=100)
catalogs = st.dictionaries(
    names, st.tuples(st.text(max_size=20), st.text(max_size=50), st.binary(max_size=200)), max_size=20
)


@given(catalogs, st.integers(0, (1 << 64) - 1))
@example({}, 0)
@example({"x" * 100: ("", "", b""), "日" * 100: ("t", "[]", b"\0" * 70_000)}, 1)
@settings(deadline=None)
def test_every_definition_is_found_and_the_answers_are_protobuf(definitions: Definitions, generation: int) -> None:
    """GetCommand's and SyncCatalog's answers are byte for byte what the protobuf library would send."""
    messages = serialized(definitions)
    keys = sorted((key_of(name) for name in definitions), key=lambda key: CommandRequest.FromString(key).name.encode())
    with viewed(definitions, generation) as view:
        assert (len(view), view.generation) == (len(definitions), generation)
        assert list(view.messages()) == list(zip(keys, messages, strict=True))
        assert [view.get(key) for key in keys] == messages
        commands = CatalogResponse(commands=map(CommandResponse.FromString, messages))
        version = hashlib.sha256(commands.SerializeToString()).hexdigest()
        assert view.version_hash == version
        commands.total_count, commands.version_hash = len(definitions), version
        assert b"".join(view.answer()) == commands.SerializeToString()
        assert view.answer_size == sum(map(len, view.answer()))


@given(catalogs, names)
@settings(deadline=None)
def test_a_name_that_is_not_there_is_not_found(definitions: Definitions, name: str) -> None:
    """Nor is any part of a name that is, nor a key with something behind it."""
    with viewed(definitions) as view:
        assert (view.get(key_of(name)) is not None) == (name in definitions)
        for key in map(key_of, definitions):
            assert view.get(key[:-1]) is None
            assert view.get(key + b"\0") is None


@given(st.binary(max_size=30))
@settings(deadline=None)
def test_any_bytes_may_be_asked_for(key: bytes) -> None:
    """A request is looked up before it is parsed: whatever a client sends, the answer is None or that definition."""
    with viewed(SMALL) as view:
        found = view.get(key)
        assert found is None or bytes(found).startswith(key)


def test_the_empty_key_is_no_definition() -> None:
    """An empty request equals the begin of every record, and asks for none of them."""
    with viewed(SMALL) as view:
        assert [view.get(key) for key in (b"", b"\x0a", b"\x0a\x00", key_of(""))] == [None] * 4


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 9, 100, 1000])
def test_the_index_is_at_most_half_full(count: int) -> None:
    """A power of two of slots, so that a look-up ends soon; every definition is found in it."""
    definitions: Definitions = {f"command_{number}": ("function", "[]", b"") for number in range(count)}
    with viewed(definitions) as view:
        slots = view.header.slots
        assert slots >= max(8, 2 * count)
        assert slots & (slots - 1) == 0
        assert all(view.get(key_of(name)) for name in definitions)
        assert view.get(key_of("missing")) is None


def test_a_catalog_larger_than_a_chunk_is_whole() -> None:
    """Records are written in chunks of a mebibyte; large and small ones cross their borders."""
    definitions: Definitions = {
        f"c{number:03}": ("f", "[]", bytes([number]) * (number * 12_345 % 300_000)) for number in range(60)
    }
    messages = serialized(definitions)
    assert sum(map(len, messages)) > 3 << 20
    with viewed(definitions) as view:
        assert [message for _, message in view.messages()] == messages
        assert CatalogResponse.FromString(b"".join(view.answer())).total_count == 60


def test_names_that_share_a_slot_are_told_apart() -> None:
    """Slots in a row, around the end of the index, with one tag even: only the right definition is returned."""
    mask = 7

    def slot(name: str) -> int:
        return snapshot.hash_of(key_of(name)) & mask

    last = [name for name in (f"name_{number}" for number in range(200)) if slot(name) == mask]
    for group in (last[:4], [*TWINS], [*TWINS, *last[4:6]]):
        with viewed({name: ("t", "[]", name.encode()) for name in group}) as view:
            assert view.header.slots == mask + 1
            for name in group:
                assert CommandResponse.FromString(bytes(view.get(key_of(name)) or b"")).code == name.encode()
            assert all(view.get(key_of(name)) is None for name in last[6:10])
    with viewed({TWINS[0]: ("t", "[]", b"")}) as view:
        assert snapshot.hash_of(key_of(TWINS[0])) >> 32 == snapshot.hash_of(key_of(TWINS[1])) >> 32
        assert view.get(key_of(TWINS[1])) is None


@given(catalogs)
@settings(deadline=None)
def test_the_version_is_of_the_content_alone(definitions: Definitions) -> None:
    """The same rows give the same hash in every generation; another content gives another."""
    with viewed(definitions, 1) as one, viewed(dict(reversed(definitions.items())), 2) as two:
        assert one.version_hash == two.version_hash
        assert one.answer() == two.answer()
    with viewed({**definitions, "one more": ("", "", b"")}) as other:
        assert (other.version_hash == one.version_hash) == (definitions.get("one more") == ("", "", b""))


@given(names)
@example("x" * 127)
@example("x" * 128)
@example("x" * 20_000)
@settings(deadline=None)
def test_a_key_is_the_canonical_request(name: str) -> None:
    """So a request as every protobuf library writes it is looked up without being parsed."""
    assert key_of(name) == CommandRequest(name=name).SerializeToString()


@given(st.integers(0, (1 << 63) - 1))
@settings(deadline=None)
def test_varints_are_protobufs(number: int) -> None:
    """As the library writes a length or a count."""
    from google.protobuf.wrappers_pb2 import UInt64Value  # noqa: PLC0415  # the simplest message with a varint

    assert b"\x08" + varint(number) == (UInt64Value(value=number).SerializeToString() or b"\x08\x00")


# --- what is not whole is refused -----------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused() -> None:
    """In the header, its padding, the index, the records and the tail: there is no byte nobody vouches for."""
    arena = packed(serialized(SMALL))
    accepted = []
    for at in range(len(arena)):
        for bit in range(8):
            raw = bytearray(arena)
            raw[at] ^= 1 << bit
            try:
                opened(bytes(raw)).close()
            except SnapshotError:
                continue
            accepted.append((at, bit))
    assert accepted == []


def test_every_truncation_is_refused() -> None:
    """Whether the short length is announced or the full one."""
    arena = packed(serialized(SMALL))
    for size in range(len(arena)):
        for announced in (size, len(arena)):
            with pytest.raises(SnapshotError):
                opened(arena[:size], announced)
    with pytest.raises(SnapshotError):
        opened(arena + b"\0")


def test_an_unsealed_arena_is_refused() -> None:
    """Its writer could change it after it was verified."""
    with pytest.raises(SnapshotError, match="not sealed"):
        opened(packed(serialized(SMALL)), seal=False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"magic": b"AVAPSNAq"}, "magic"),
        ({"format": 0}, "format 0"),
        ({"format": 2}, "format 2"),
        ({"header_size": 191}, "header"),
        ({"arena_size": 0}, "header"),
        ({"arena_size": (1 << 64) - 1}, "header"),
        ({"definitions": 0}, "index"),
        ({"definitions": 1}, "index"),
        ({"definitions": 3}, "index"),
        ({"definitions": 5}, "header"),
        ({"definitions": (1 << 64) - 1}, "header"),
        ({"slots": 0}, "header"),
        ({"slots": 4}, "header"),
        ({"slots": 12}, "header"),
        ({"slots": 16}, "header"),
        ({"slots": 1 << 63}, "header"),
        ({"records_offset": 0}, "header"),
        ({"records_offset": (1 << 64) - 1}, "header"),
        ({"records_size": 1 << 63}, "header"),
        ({"records_size": 0}, "outside"),
        ({"answer_size": 0}, "header"),
        ({"answer_size": 1 << 63}, "header"),
        ({"version_hash": bytes(32)}, "definitions"),
    ],
    ids=repr,
)
def test_a_forged_header_is_refused(fields: dict[str, Any], reason: str) -> None:
    """Also when its checksum is right: sizes and offsets must fit together."""
    with pytest.raises(SnapshotError, match=reason):
        opened(forged(packed(serialized(SMALL)), **fields))


def test_a_forger_who_changes_nothing_is_accepted() -> None:
    """The forgeries of this file are refused for what they change, not for how they are made."""
    arena = packed(serialized(SMALL))
    assert forged(arena) == arena
    opened(forged(arena, generation=99)).close()


def test_an_entry_that_leaves_the_definitions_is_refused() -> None:
    """Before their begin, beyond their end, or so long that it ends there."""
    arena = packed(serialized(SMALL))
    header = Header(*HEADER.unpack_from(arena))
    begin, end = header.records_offset, header.records_offset + header.records_size
    slot, (offset, length, tag) = next(iter(entries(arena).items()))
    for wrong_offset, wrong_length in (
        (1, length), (begin - 1, length), (end, 1), (end - length + 1, length), (offset, end - offset + 1),
        (offset, (1 << 32) - 1), ((1 << 64) - 1, length), (len(arena), 0), (1 << 63, (1 << 32) - 1),
    ):  # fmt: skip
        with pytest.raises(SnapshotError, match="outside"):
            opened(with_entry(arena, slot, wrong_offset, wrong_length, tag))


def test_an_entry_that_stands_twice_is_refused() -> None:
    """In place of another, or beside both."""
    arena = packed(serialized(SMALL))
    (_, one), (other_slot, _) = entries(arena).items()
    free = next(slot for slot in range(8) if slot not in entries(arena))
    for slot in (other_slot, free):
        with pytest.raises(SnapshotError, match="index holds"):
            opened(with_entry(arena, slot, *one))


def test_a_full_index_is_refused_and_not_searched_for_ever() -> None:
    """Without an empty slot a look-up of a missing name would never end."""
    arena = packed(serialized(SMALL))
    records = Header(*HEADER.unpack_from(arena)).records_offset

    def fill(raw: bytearray) -> None:
        for slot in range(8):
            ENTRY.pack_into(raw, HEADER_SIZE + slot * ENTRY.size, records + slot, 1, 7)

    for definitions in (2, 4, 8):
        with pytest.raises(SnapshotError):
            opened(forged(arena, fill, definitions=definitions))


@given(st.binary(min_size=1, max_size=60), st.data())
@settings(max_examples=300, deadline=None)
def test_records_that_are_no_definitions_never_crash_a_reader(noise: bytes, data: st.DataObject) -> None:
    """Right digests over wrong records: refused when opened or when walked, or walked to their end and no further."""
    arena = packed(serialized(SMALL))
    header = Header(*HEADER.unpack_from(arena))
    at = data.draw(st.integers(header.records_offset, header.records_offset + header.records_size - 1))
    noise = noise[: header.records_offset + header.records_size - at]

    def spoil(raw: bytearray) -> None:
        raw[at : at + len(noise)] = noise

    try:
        view = opened(forged(arena, spoil))
        messages = list(view.messages())
    except SnapshotError:
        return
    assert sum(len(message) for _, message in messages) <= header.records_size
    view.close()


def test_a_refused_arena_leaves_nothing_behind() -> None:
    """No mapping and no descriptor."""
    arena = packed(serialized(SMALL))

    def held() -> tuple[int, int]:
        with Path("/proc/self/maps").open(encoding="ascii") as maps:
            return files(), sum("memfd:test" in line for line in maps)

    before = held()
    for _ in range(20):
        with pytest.raises(SnapshotError):
            opened(forged(arena, version_hash=bytes(32)))
        with pytest.raises(SnapshotError):
            opened(forged(arena, format=9))
    assert held() == before


def test_a_view_outlives_its_descriptor() -> None:
    """A worker closes the descriptor it was given and goes on reading."""
    with viewed(SMALL) as view:
        assert len(list(view.messages())) == 2
