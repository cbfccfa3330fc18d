"""HPACK (RFC 7541): the examples of its appendix, and rows A31, A32 and C15 of the checklist."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.representations import (
    ENTRIES,
    FIRST_ENTRY,
    INSERT,
    NEVER,
    PLAIN,
    entry,
    indexed,
    integer,
    literal,
    size_update,
    string,
)

from avapd.wire import huffman
from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.hpack import SIZE_UPDATE_ZERO, Decoder, Field, encode
from avapd.wire.hpack_tables import STATIC

GET, HTTP, ROOT, HOST = (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), b"www.example.com"
HTTPS, INDEX, AUTHORITY = (b":scheme", b"https"), (b":path", b"/index.html"), (b":authority", HOST)
NO_CACHE, CUSTOM = (b"cache-control", b"no-cache"), (b"custom-key", b"custom-value")
FOUND, MOVED, OK = (b":status", b"302"), (b":status", b"307"), (b":status", b"200")
PRIVATE, LOCATION = (b"cache-control", b"private"), (b"location", b"https://www.example.com")
DATE, LATER = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"), (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")
GZIP = (b"content-encoding", b"gzip")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")

REQUESTS: list[tuple[list[Field], list[Field], int]] = [
    ([GET, HTTP, ROOT, AUTHORITY], [AUTHORITY], 57),
    ([GET, HTTP, ROOT, AUTHORITY, NO_CACHE], [NO_CACHE, AUTHORITY], 110),
    ([GET, HTTPS, INDEX, AUTHORITY, CUSTOM], [CUSTOM, NO_CACHE, AUTHORITY], 164),
]
RESPONSES: list[tuple[list[Field], list[Field], int]] = [
    ([FOUND, PRIVATE, DATE, LOCATION], [LOCATION, DATE, PRIVATE, FOUND], 222),
    ([MOVED, PRIVATE, DATE, LOCATION], [MOVED, LOCATION, DATE, PRIVATE], 222),
    ([OK, PRIVATE, LATER, LOCATION, GZIP, COOKIE], [COOKIE, GZIP, LATER], 215),
]
# Blocks of one connection, and after each the fields, the dynamic table and its size.
SEQUENCES = {
    "C.3": (
        4096,
        """828684410f7777772e6578616d706c652e636f6d

        828684be58086e6f2d6361636865

        828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565""",
        REQUESTS,
    ),
    "C.4": (
        4096,
        """828684418cf1e3c2e5f23a6ba0ab90f4ff

        828684be5886a8eb10649cbf

        828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf""",
        REQUESTS,
    ),
    "C.5": (
        256,
        """4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54
        6e1768747470733a2f2f7777772e6578616d706c652e636f6d

        4803333037c1c0bf

        88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48
        514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31""",
        RESPONSES,
    ),
    "C.6": (
        256,
        """488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff
        6e919d29ad171863c78f0b97c8e9ae82ae43d3

        4883640effc1c0bf

        88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af
        27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007""",
        RESPONSES,
    ),
}
# Appendix C.2 and what it does to the table.
SINGLE = {
    "400a637573746f6d2d6b65790d637573746f6d2d686561646572": ((b"custom-key", b"custom-header"), 1),
    "040c2f73616d706c652f70617468": ((b":path", b"/sample/path"), 0),
    "100870617373776f726406736563726574": ((b"password", b"secret"), 0),
    "82": (GET, 0),
}


def table(decoder: Decoder) -> list[Field]:
    """The dynamic table, newest entry first."""
    if decoder._replays:
        decoder._settle()
    return decoder._table[FIRST_ENTRY:]


def refused(block: bytes, decoder: Decoder | None = None) -> str:
    """The reason for which a block is refused, which must be a COMPRESSION_ERROR of the connection."""
    with pytest.raises(ConnectionFault) as caught:
        (decoder or Decoder()).decode(block)
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR
    assert caught.value.debug.isascii()
    return caught.value.debug


# --- the examples of the RFC -----------------------------------------------------------------------------


@pytest.mark.parametrize("section", SEQUENCES)
def test_the_sequences_of_appendix_c(section: str) -> None:
    """Requests and responses, coded or not, with evictions or without, leave the lists and tables the RFC shows."""
    size, blocks, expected = SEQUENCES[section]
    decoder = Decoder(size)
    for block, (fields, entries, used) in zip(blocks.split("\n\n"), expected, strict=True):
        assert decoder.decode(bytes.fromhex(block)).fields == tuple(fields)
        assert table(decoder) == entries
        assert decoder._used == used


@pytest.mark.parametrize("block", SINGLE)
def test_the_single_fields_of_appendix_c(block: str) -> None:
    """Appendix C.2: each form of a field, and whether it is inserted."""
    decoder = Decoder()
    field, entries = SINGLE[block]
    decoded = decoder.decode(bytes.fromhex(block))
    assert decoded.fields == (field,)
    assert table(decoder) == [field] * entries


def test_the_static_table_is_that_of_appendix_a() -> None:
    """Each of the 61 entries is the one the hpack package copied."""
    assert hpack.table.HeaderTable.STATIC_TABLE == STATIC
    for index, field in enumerate(STATIC, 1):
        assert Decoder().decode(indexed(index)).fields == (field,)


# --- A31, C15: what is an error --------------------------------------------------------------------------


def test_a31_index_zero() -> None:
    """Index 0 stands for nothing (section 6.1)."""
    assert "index 0" in refused(b"\x80")


@pytest.mark.parametrize("entries", [0, 1, 65, 66, 70])
def test_a31_index_beyond_the_table(entries: int) -> None:
    """An index is good up to the last entry and an error behind it, for fields and for names (section 2.3.3)."""
    before = b"".join(literal(b"n%d" % number, b"") for number in range(entries))
    last = FIRST_ENTRY - 1 + entries
    for index in (last + 1, last + 2, 1 << 20):
        for wrong in (indexed(index), *(literal(index, b"v", kind) for kind in (INSERT, PLAIN, NEVER))):
            decoder = Decoder()
            assert len(decoder.decode(before + indexed(last) + literal(last, b"v", PLAIN)).fields) == entries + 2
            assert "index of no entry" in refused(wrong, decoder)


def test_a31_index_of_an_entry_that_was_evicted() -> None:
    """What has left the table cannot be named any more, not even in the block that pushed it out."""
    decoder = Decoder()
    decoder.decode(entry(100, b"old"))
    assert decoder.decode(entry(3996, b"new") + indexed(FIRST_ENTRY + 1)).fields[1][0] == b"old"
    refused(entry(101, b"newest") + indexed(FIRST_ENTRY + 1), decoder)


@pytest.mark.parametrize("size", [4097, 5000, 1 << 28])
def test_a31_size_update_beyond_the_maximum(size: int) -> None:
    """The table may have 4,096 bytes, as nothing else was advertised, and not one more (section 6.3)."""
    assert Decoder().decode(size_update(4096)).fields == ()
    assert "beyond the maximum" in refused(size_update(size))


@pytest.mark.parametrize("before", [indexed(2), literal(b"a", b"b"), literal(1, b"b", NEVER), size_update(0) + b"\x82"])
@pytest.mark.parametrize("size", [0, 100, 4096])
def test_a31_size_update_behind_a_field(before: bytes, size: int) -> None:
    """A size update stands at the start of a block or is an error (section 4.2)."""
    assert "inside a block" in refused(before + size_update(size))


def test_a31_three_size_updates() -> None:
    """Two tell all there is to tell (section 4.2)."""
    assert Decoder().decode(size_update(0) + size_update(4096)).fields == ()
    assert "third" in refused(size_update(0) + size_update(50) + size_update(100))


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"\x00", "padding"), (b"\xff", "padding"), (b"\x07\xff", "padding"), (b"\xff\xff\xff\xff", "end-of-string")],
)
def test_a31_huffman(text: bytes, reason: str) -> None:
    """Padding of eight bits, or not all ones, and the end-of-string symbol are errors in every string (section 5.2)."""
    wrong = integer(len(text), 7, 0x80) + text
    for block in (
        b"\x00" + wrong + string(b""),
        b"\x10\x01a" + wrong,
        b"\x41" + wrong,
        b"\x7e" + wrong,
        b"\x7f\x01" + wrong,
    ):
        assert reason in refused(ENTRIES + block)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("kind", [INSERT, PLAIN, NEVER])
@pytest.mark.parametrize("name", [b"name", b"n" * 300, 1, 40, FIRST_ENTRY, FIRST_ENTRY + 1, FIRST_ENTRY + 66])
@pytest.mark.parametrize("value", [b"", b"value", b"v" * 300])
def test_a31_cut_off(name: bytes | int, value: bytes, kind: tuple[int, int], coded: bool) -> None:
    """A literal that ends early is an error wherever it is cut, also when the whole of it is well known."""
    whole = literal(name, value, kind, coded=coded)
    for _ in range(3):
        assert Decoder().decode(ENTRIES + whole).fields[-1][1] == value
    cuts = {*range(1, min(len(whole), 12)), len(whole) // 2, len(whole) - 1} - {len(whole)}
    for end in cuts:
        refused(ENTRIES + whole[:end])


TEXT, CODED = b"v" * 127, huffman.encode(b"0" * 203)
# First bytes that say that an integer goes on, and what stands behind an integer of the least possible value.
INTEGERS = {
    "ff": b"",
    "3f": b"",
    "7f": b"\0",
    "0f": b"\0",
    "1f": b"\0",
    "007f": TEXT + b"\0",
    "00ff": CODED + b"\0",
    "417f": TEXT,
    "41ff": CODED,
    "7e7f": TEXT,
    "7eff": CODED,
}


def with_integer(first: str, rest: str) -> bytes:
    """A block with that integer, whose indexes are those of entries."""
    return (b"" if first == "3f" else ENTRIES) + bytes.fromhex(first + rest)


@pytest.mark.parametrize("first", INTEGERS)
@pytest.mark.parametrize("rest", ["", "80", "ffff", "80808080"])
def test_a31_an_integer_cut_off(first: str, rest: str) -> None:
    """An integer that would go on where the block ends is an error (section 5.1)."""
    refused(with_integer(first, rest))


@pytest.mark.parametrize("first", INTEGERS)
@pytest.mark.parametrize("rest", ["8080808001", "ffffffff00", "ffffffff0f", "ffffffff7f"])
def test_a31_an_integer_above_2_28(first: str, rest: str) -> None:
    """An integer above 2^28 is an error of its own, before anything is done with it."""
    assert "integer" in refused(with_integer(first, rest) + bytes(300))


@pytest.mark.parametrize("first", INTEGERS)
@pytest.mark.parametrize("zeros", range(7))
def test_c15_an_integer_of_more_than_five_bytes(first: str, zeros: int) -> None:
    """Five bytes may follow the first, those included that only lengthen it; six are an error for the same value."""
    block = with_integer(first, "80" * zeros + "00") + INTEGERS[first]
    if zeros < 5:
        Decoder().decode(block)
    else:
        assert "integer" in refused(block)


# --- A32: what is none -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "left", "then"),
    [
        ((), [b"new", b"old"], [b"x", b"new", b"old"]),
        ((4096,), [b"new", b"old"], [b"x", b"new", b"old"]),
        ((100,), [b"new", b"old"], [b"x", b"new"]),
        ((99, 4096), [b"new"], [b"x", b"new"]),
        ((99, 99), [b"new"], [b"x"]),
        ((0, 4096), [], [b"x"]),
        ((31, 60), [], [b"x"]),
        ((4096, 59), [b"new"], []),
        ((0,), [], []),
    ],
)
def test_a32_size_updates_at_the_start(sizes: tuple[int, ...], left: list[bytes], then: list[bytes]) -> None:
    """None, one or two of them are taken: the least evicts, the last holds (section 4.2)."""
    decoder = Decoder()
    decoder.decode(entry(60, b"old") + entry(40, b"new"))
    assert decoder.decode(b"".join(map(size_update, sizes)) + indexed(2)).fields == (GET,)
    assert [name for name, _ in table(decoder)] == left
    decoder.decode(entry(60))
    assert [name for name, _ in table(decoder)] == then


def test_a32_a_size_update_alone() -> None:
    """A block may hold nothing else, or nothing at all."""
    assert Decoder().decode(size_update(0)).fields == Decoder().decode(b"").fields == ()


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", [b"secret", 23, FIRST_ENTRY])
def test_a32_never_indexed(name: bytes | int, coded: bool) -> None:
    """A never-indexed literal is a field like any other, and leaves the table alone (section 6.2.3)."""
    decoder = Decoder()
    decoder.decode(literal(b"secret", b""))
    version = decoder.version
    for _ in range(3):
        (_, value), *_ = decoder.decode(literal(name, b"v", NEVER, coded=coded)).fields
        assert value == b"v"
    assert (table(decoder), decoder.version) == ([(b"secret", b"")], version)


@pytest.mark.parametrize("kind", [INSERT, PLAIN, NEVER])
@pytest.mark.parametrize("number", [0, 1, 2, 13, 14, 60, 64, 65, 69])
def test_a32_names_of_entries(number: int, kind: tuple[int, int]) -> None:
    """A literal may take its name from any entry, whatever bytes its index needs."""
    index = FIRST_ENTRY + 69 - number
    assert Decoder().decode(ENTRIES + literal(index, b"v", kind)).fields[-1] == (b"n%d" % number, b"v")


@pytest.mark.parametrize("index", [126, 127, 128, 131])
def test_a32_indexes_of_two_bytes(index: int) -> None:
    """Entries behind the 65th, which need a second byte, are found as the others are."""
    assert Decoder().decode(ENTRIES + indexed(index)).fields[-1] == (b"n%d" % (131 - index), b"")


@pytest.mark.parametrize("size", [4096, 4097, 9000])
def test_a32_an_entry_larger_than_the_table(size: int) -> None:
    """It is a field, and empties the table without an error (section 4.4); one that just fits is alone in it."""
    decoder = Decoder()
    decoder.decode(entry(100) + entry(200))
    (field,) = decoder.decode(entry(size)).fields
    assert len(field[0]) + len(field[1]) + 32 == size
    assert table(decoder) == ([field] if size == 4096 else [])
    decoder.decode(entry(50))
    assert decoder._used == (50 if size > 4046 else size + 50)


@pytest.mark.parametrize("size", [3996, 3997, 4096, 5000])
def test_a32_an_entry_that_evicts_the_one_it_is_named_after(size: int) -> None:
    """The name is taken before anything is evicted (section 4.4)."""
    decoder = Decoder()
    decoder.decode(entry(101, b"name"))
    (field,) = decoder.decode(literal(FIRST_ENTRY, b"v" * (size - 36))).fields
    assert field == (b"name", b"v" * (size - 36))
    assert table(decoder) == ([field] if size <= 4096 else [])


# --- what we send ----------------------------------------------------------------------------------------

NAMES = st.sampled_from([name for name, _ in STATIC]) | st.binary(max_size=200)


@given(st.lists(st.sampled_from(STATIC) | st.tuples(NAMES, st.binary(max_size=200)), max_size=20))
def test_what_is_encoded_is_decoded_by_others_and_ourselves(fields: list[Field]) -> None:
    """Any list comes back, from the hpack package too, and no table is touched."""
    block = encode(fields)
    theirs = hpack.Decoder()
    assert [tuple(field) for field in theirs.decode(SIZE_UPDATE_ZERO + block, raw=True)] == fields
    ours = Decoder().decode(block)
    assert list(ours.fields) == fields
    assert ours.portable
    assert ours.inserts == ()


def test_an_answer_is_as_short_as_it_can_be_without_a_table() -> None:
    """Known fields take a byte, known names one or two."""
    assert encode([OK]) == b"\x88"
    assert encode([(b"content-type", b"application/grpc")]) == b"\x0f\x10\x10application/grpc"
    assert encode([(b"grpc-status", b"0")]) == b"\x00\x0bgrpc-status\x010"


@given(st.lists(st.tuples(NAMES, st.binary(max_size=200)), max_size=20), st.booleans())
def test_what_the_hpack_package_encodes_is_decoded(fields: list[Field], huffman_coded: bool) -> None:
    """Its encoder, which indexes all it can, is understood block after block."""
    theirs, ours = hpack.Encoder(), Decoder(max_list=1 << 20)
    for _ in range(3):
        assert list(ours.decode(theirs.encode(fields, huffman=huffman_coded)).fields) == fields
        assert table(ours) == list(theirs.header_table.dynamic_entries)
