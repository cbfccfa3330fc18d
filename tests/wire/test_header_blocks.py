"""Header blocks in sequence: what is decoded, remembered and replayed is what the hpack package decodes.

Traps F1 and F2 of the checklist: a block that is taken from a memo must leave the table as decoding it would.

The two disagree in one case, and ours is the stricter: the hpack package takes any number of size updates at the start
of a block. RFC 7541 section 4.2 knows two, the smallest size since the last block and the last one; a third can only be
an attempt to make work out of nothing. Both take names that are empty, in upper case, or that hold NUL: HPACK carries
any bytes, and what may stand in a request is judged where requests are (A34, avapd/wire/headers.py).
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from itertools import islice

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.captures import Capture, captures
from wire.representations import ENTRIES, FIRST_ENTRY, INSERT, NEVER, PLAIN, entry, indexed, literal, size_update

from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.hpack import Block, Decoder, Field

CAPTURES = captures()
BLOCKS = int(os.environ.get("AVAPD_TEST_BLOCKS", "20000"))  # 1000000 is what issue 3 asks for: some minutes
LARGE = 1 << 30


def decoder() -> Decoder:
    """One that takes lists of any size, as the oracle below does."""
    return Decoder(max_list=LARGE, max_fields=LARGE)


def table(decoder: Decoder) -> list[Field]:
    """The dynamic table, newest entry first."""
    if decoder._replays:
        decoder._settle()
    return decoder._table[FIRST_ENTRY:]


def found(decode: Callable[[bytes], Block], block: bytes) -> Block | None:
    """What a block is decoded to; None if it is refused, which must be a COMPRESSION_ERROR."""
    try:
        return decode(block)
    except ConnectionFault as fault:
        if fault.code != ErrorCode.COMPRESSION_ERROR:
            raise
        return None


class Oracle:
    """The hpack package."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=LARGE)

    def fields(self, block: bytes) -> list[Field] | None:
        """The fields of a block; None if it is refused."""
        try:
            return [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.HPACKError:
            return None

    @property
    def table(self) -> list[Field]:
        """The dynamic table, newest entry first."""
        return list(self._decoder.header_table.dynamic_entries)


class Plain(Decoder):
    """The same decoder without its fast path."""

    def decode(self, block: bytes) -> Block:
        fields: list[Field] = []
        inserts: list[Field] = []
        at = 0
        self._portable = True
        try:
            while at < len(block):
                at = self._representation(block, at, fields, inserts)
        except (IndexError, ValueError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        return Block(tuple(fields), tuple(inserts), self._portable, 0)


class Remembering:
    """A connection that decodes a block only when it must, as the engine does.

    Portable blocks are remembered for all connections, the others for this one and this version of its table.
    """

    def __init__(self, portable: dict[bytes, Block]) -> None:
        self.decoder = decoder()
        self.hits = 0
        self._portable = portable
        self._settled: dict[tuple[bytes, int], Block] = {}

    def decode(self, block: bytes) -> Block:
        known = self._portable.get(block) or self._settled.get((block, self.decoder.version))
        if known is not None:
            self.hits += 1
            self.decoder.replay(known.inserts)
            return known
        version = self.decoder.version
        decoded = self.decoder.decode(block)
        if decoded.portable:
            self._portable[block] = decoded
        elif self.decoder.version == version:
            self._settled[block, version] = decoded
        return decoded


# --- real clients ----------------------------------------------------------------------------------------

by_client = pytest.mark.parametrize("capture", CAPTURES, ids=[capture.name for capture in CAPTURES])


@by_client
def test_a_captured_connection(capture: Capture) -> None:
    """300 blocks of a real client are decoded as the hpack package decodes them, to the same table after each."""
    oracle, ours = Oracle(), Decoder()
    for block in capture.blocks:
        decoded = ours.decode(block)
        assert list(decoded.fields) == oracle.fields(block)
        assert table(ours) == oracle.table
        assert decoded.size == sum(len(name) + len(value) + 32 for name, value in decoded.fields) <= decoded.at_most


@by_client
def test_f1_a_captured_connection_through_a_memo(capture: Capture) -> None:
    """Blocks that are remembered, and whose inserts are replayed, leave every later block as it was."""
    oracle, ours = Oracle(), Remembering({})
    for number, block in enumerate(capture.blocks):
        assert list(ours.decode(block).fields) == oracle.fields(block)
        if number % 7 == 0:
            assert table(ours.decoder) == oracle.table
    if len(set(capture.blocks)) < 5:
        assert ours.hits > 250


@pytest.mark.parametrize("seed", range(3))
def test_f1_captured_connections_interleaved(seed: int) -> None:
    """45 connections, three of each client, all in different places, share one memo and do not confuse each other."""
    draw = random.Random(seed)
    shared: dict[bytes, Block] = {}
    running = [(Remembering(shared), Oracle(), iter(capture.blocks)) for capture in CAPTURES * 3]
    while running:
        ours, oracle, blocks = connection = draw.choice(running)
        some = [*islice(blocks, draw.randint(1, 20))]
        for block in some:
            assert list(ours.decode(block).fields) == oracle.fields(block)
        assert table(ours.decoder) == oracle.table
        if not some:
            running.remove(connection)


# --- any blocks ------------------------------------------------------------------------------------------

WORDS = (b"", b"a", b"te", b"trailers", b"grpc-timeout", b"x-request-id", b"application/grpc", b"/a.B/C", b"v" * 130)


class Client:
    """Draws blocks that a client could send, and some that none should."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._sent = [block for capture in CAPTURES for block in capture.blocks[:4]]

    def block(self, entries: int) -> bytes:
        """The next block, to a table with so many entries."""
        draw = self._draw
        if draw.random() < 0.15:
            block = draw.choice(self._sent)
        else:
            block = b"".join(self._representation(entries) for _ in range(draw.randrange(8)))
            if draw.random() < 0.03:
                sizes = draw.choices((0, 100, 4000, 4096, 4096, 4096, 4097), k=draw.choice((1, 1, 2, 3)))
                block = b"".join(map(size_update, sizes)) + block
            self._sent[draw.randrange(len(self._sent))] = block
        return self._spoilt(block) if draw.random() < 0.04 else block

    def _representation(self, entries: int) -> bytes:
        draw = self._draw
        last = FIRST_ENTRY - 1 + entries
        index = draw.randint(1, last) if draw.random() < 0.999 else last + draw.randint(1, 3)
        if draw.random() < 0.5:
            return indexed(index)
        name = (index, draw.randint(1, 61), self._string(), self._string())[draw.randrange(4)]
        return literal(name, self._string(), draw.choice((INSERT, INSERT, PLAIN, NEVER)), coded=draw.random() < 0.5)

    def _string(self) -> bytes:
        draw = self._draw
        return draw.choice(WORDS) if draw.random() < 0.7 else draw.randbytes(draw.randrange(40))

    def _spoilt(self, block: bytes) -> bytes:
        draw = self._draw
        spoilt = bytearray(block)
        at = draw.randrange(len(block) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            spoilt[at:at] = draw.randbytes(1)
        elif kind == 1:
            del spoilt[at:]
        elif kind == 2:
            del spoilt[at : at + 1]
        elif kind == 3:
            spoilt[at : at + 1] = draw.randbytes(1)
        else:
            spoilt[at:at] = draw.choice(self._sent)
        return bytes(spoilt)


THREE_UPDATES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]{0,4}[\x00-\x7f]){3}")


def lenient(block: bytes) -> bool:
    """Whether the hpack package may take a block that we refuse: more than two size updates."""
    return THREE_UPDATES.match(block) is not None


@pytest.mark.timeout(3600 if BLOCKS > 100_000 else 120)
def test_any_blocks() -> None:
    """Valid blocks and spoilt ones, to full and empty tables, are decoded or refused as the hpack package does.

    And as the decoder does without its fast path, and a connection that decodes only what it does not remember.
    """
    client = Client(seed=1)
    shared: dict[bytes, Block] = {}
    refused = 0
    oracle, ours, plain, remembering = Oracle(), decoder(), Plain(max_list=LARGE), Remembering(shared)
    for number in range(BLOCKS):
        block = client.block(len(oracle.table))
        expected = oracle.fields(block)
        decoded, plainly, remembered = (found(one.decode, block) for one in (ours, plain, remembering))
        if decoded is None or plainly is None or remembered is None:
            assert decoded is plainly is remembered is None
            assert expected is None or lenient(block)
            refused += 1
            oracle, ours, plain, remembering = Oracle(), decoder(), Plain(max_list=LARGE), Remembering(shared)
            continue
        assert list(decoded.fields) == list(plainly.fields) == list(remembered.fields) == expected, block.hex()
        assert decoded.inserts == plainly.inserts == remembered.inserts
        assert decoded.portable is plainly.portable is remembered.portable
        assert decoded.size <= decoded.at_most
        assert table(ours) == table(plain) == oracle.table
        if number % 3 == 0:
            assert table(remembering.decoder) == oracle.table
        if len(shared) > 1000:
            shared.clear()
    assert 0.01 < refused / BLOCKS < 0.1


@given(st.binary(max_size=100) | st.lists(st.integers(0x20, 0x3F) | st.integers(0, 255), max_size=9).map(bytes))
def test_any_bytes(block: bytes) -> None:
    """Whatever the bytes, they are decoded or refused as the hpack package does."""
    decoded = found(decoder().decode, block)
    assert lenient(block) or Oracle().fields(block) == (list(decoded.fields) if decoded else None)


@pytest.mark.parametrize(
    "field", [(b"", b"v"), (b"Upper-Case", b"v"), (b"nul", b"\0"), (b"a\0b", b""), (b"\xff", b"\xff")]
)
def test_what_is_judged_elsewhere(field: Field) -> None:
    """HPACK carries any bytes; whether they may be a request's is none of its business (A34)."""
    for coded in (False, True):
        block = literal(*field, coded=coded)
        assert Oracle().fields(block) == list(Decoder().decode(block).fields) == [field]


# --- replays ---------------------------------------------------------------------------------------------

SIZES = st.sampled_from([33, 34, 50, 100, 500, 1365, 2048, 4063, 4064, 5000]) | st.integers(33, 300)


@given(st.lists(st.tuples(st.lists(SIZES, max_size=6), st.sampled_from("drru")), max_size=60), st.integers(0, 4096))
def test_f1_replaying_is_decoding(blocks: list[tuple[list[int], str]], limit: int) -> None:
    """Whatever is inserted, in whatever table, and whenever it is looked at: a replay does what decoding does."""
    decoding, replaying = decoder(), decoder()
    for number, (sizes, how) in enumerate(blocks):
        block = b"".join(literal(b"%d" % number, b"v" * (size - 32)) for size in sizes)
        if how == "u":
            block = size_update(limit) + block
        decoded = decoding.decode(block)
        before = replaying.version
        if how == "r":
            replaying.replay(decoded.inserts)
        else:
            assert replaying.decode(block).fields == decoded.fields
        assert (replaying.version > before) is (how == "u" or bool(sizes))
        if number % 5 == 0:
            assert table(replaying) == table(decoding)
    assert table(replaying) == table(decoding)
    assert replaying._used == decoding._used


# --- what a block tells of itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "portable"),
    [
        (b"", True),
        (indexed(2) + indexed(61), True),
        (literal(b"a", b"b"), True),
        (literal(1, b"b") + literal(61, b"b", NEVER) + literal(b"a", b"b", PLAIN, coded=True), True),
        (indexed(FIRST_ENTRY), False),
        (indexed(131), False),
        (literal(FIRST_ENTRY, b"b"), False),
        (literal(FIRST_ENTRY, b"b" * 200), False),
        (literal(FIRST_ENTRY + 1, b"b"), False),
        (literal(131, b"b"), False),
        (literal(FIRST_ENTRY, b"b", PLAIN), False),
        (literal(131, b"b", NEVER), False),
        (size_update(4096), False),
    ],
)
def test_a_block_is_portable_that_needs_no_table(block: bytes, portable: bool) -> None:
    """A name or a field from the dynamic table, or a size update, bind a block to its connection and its place."""
    for _ in range(3):
        decoder = Decoder()
        decoder.decode(ENTRIES)
        assert decoder.decode(block).portable is portable
        assert decoder.decode(indexed(2)).portable


def test_the_version_changes_with_the_table_and_only_then() -> None:
    """Equal versions mean equal tables: so a block may be remembered with the version it was decoded under."""
    decoder = Decoder()
    changing = [entry(50), literal(FIRST_ENTRY, b"v"), literal(b"n", b"v" * 5000), size_update(100), entry(101)]
    for block in changing:
        before = decoder.version
        decoded = decoder.decode(block)
        assert decoder.version > before
        after = decoder.version
        decoder.decode(indexed(2) + literal(b"n", b"v", NEVER))
        assert decoder.version == after
        if decoded.inserts:
            decoder.replay(decoded.inserts)
            assert decoder.version > after
    version = decoder.version
    decoder.replay(())
    assert decoder.version == version


@pytest.mark.parametrize("prefix", [b"\x82", literal(b"a", b"b"), literal(1, b"b", NEVER)])
def test_equal_portable_blocks_are_equal_everywhere(prefix: bytes) -> None:
    """What stands behind a portable block is decoded as if it stood alone: such blocks are a prefix code."""
    for capture in CAPTURES:
        block = capture.blocks[0]
        if decoder().decode(block).portable:
            alone, behind = decoder().decode(block).fields, decoder().decode(prefix + block).fields
            assert behind[1:] == alone
