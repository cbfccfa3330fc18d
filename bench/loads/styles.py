"""Header blocks as real clients and proxies write them, for calls of our own.

`data/header-blocks.json.gz` holds the HPACK blocks of 300 consecutive calls for each of fifteen clients and proxies,
captured on the wire. Path and key in them are samples. What is worth replaying are the habits: which fields a client
refers to by index, which it inserts into the table (once, or again with every call), which it writes out each time, and
which strings it codes with Huffman. `Style` learns them from the captured blocks, field by field, and writes other
values by them. Written by its style, a capture must come out byte for byte: else it was not understood and is refused.
"""

from __future__ import annotations

import enum
import functools
import gzip
import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from hpack.hpack import decode_integer, encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from bench.servers.avapd import BenchError

_CAPTURES: Final = Path(__file__).parents[1] / "data" / "header-blocks.json.gz"
_HUFFMAN: Final = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_TABLE_SIZE: Final = 4096
# A size of 0 and then of 4,096 empties the table, so that a sequence can begin anew on the same connection.
_ANEW: Final = b"\x20\x3f\xe1\x1f"
# The three literals of RFC 7541 section 6.2: first bits, and how many bits are left for the index of the name.
_INSERT, _PLAIN, _NEVER = (0x40, 6), (0x00, 4), (0x10, 4)
_STATIC: Final = 61  # the last index of the static table
_ALL: Final = 1 << 30
_LOOKED_AT: Final = 100  # no more entries of one name fit into the table
_NO_VALUE: Final = b"\0"  # that no field has: finds names only
# A field with so many different values in a capture has another one in each call.
_DRIFTS: Final = 50


class Coded(enum.IntEnum):
    """When a string is coded with Huffman: never, when that makes it shorter, always."""

    NO = 0
    SHORTER = 1
    ALWAYS = 2


class Written(NamedTuple):
    """A field as it stands in a block. `literal` is None where it is an index; `found` tells that it could be one.

    `age` is how many other values of that name were inserted since. `named` is the index of the name, 0 when it is
    written out; the last two tell which strings are Huffman-coded, and whether that was done for its own sake.
    """

    name: bytes
    value: bytes
    literal: tuple[int, int] | None
    found: bool = True
    age: int = 0
    named: int = 0
    coded_name: Coded = Coded.NO
    coded_value: Coded = Coded.NO


class Habit(NamedTuple):
    """How a client writes a field; see Written.

    By index where the value is one of the last `recent` that it inserted for that name, else as that literal. grpc-core
    looks for a deadline among its last five.
    """

    recent: int
    literal: tuple[int, int]
    named: int
    coded_name: Coded
    coded_value: Coded


class Style:
    """The habits of one client in one case, and the fields it sends."""

    def __init__(self, capture: Mapping[str, Any]) -> None:
        self.name = f"{capture['client']}, {capture['case']}"
        raw = [bytes.fromhex(block) for block in capture["blocks"]]
        blocks = list(_read(raw))
        seen: dict[bytes, list[Written]] = {}
        for field in (field for block in blocks for field in block):
            seen.setdefault(field.name, []).append(field)
        self._habits = {name: _habit(fields) for name, fields in seen.items()}
        self._fields = [(field.name, field.value) for field in blocks[-1]]
        self._drifting = {name for name, fields in seen.items() if len({field.value for field in fields}) > _DRIFTS}
        writer = _Writer(self._habits)
        sizes = (_TABLE_SIZE if block.startswith(_ANEW[1:]) else None for block in raw)
        again = [
            (_ANEW[1:] if size else b"") + writer.block([(field.name, field.value) for field in block])
            for size, block in zip(sizes, blocks, strict=True)
        ]
        self.understood = sum(ours == theirs for ours, theirs in zip(again, raw, strict=True)) / len(raw)

    @property
    def drifts(self) -> bool:
        """Whether no block repeats."""
        return bool(self._drifting)

    def sequence(self, count: int, values: Mapping[str, str], seed: int) -> list[bytes]:
        """So many consecutive blocks with these values; those that drift are drawn. The first block begins anew."""
        if self.understood < 1:
            raise BenchError(f"only {self.understood:.0%} of the blocks of {self.name} are understood")
        draw = random.Random(seed)
        wanted = {name.encode(): value.encode() for name, value in values.items()}
        writer = _Writer(self._habits)
        blocks = []
        for _ in range(count):
            fields = [(name, wanted.get(name, value)) for name, value in self._fields]
            blocks.append(
                writer.block([(n, _another(v, draw) if n in self._drifting - set(wanted) else v) for n, v in fields])
            )
        return [_ANEW + blocks[0], *blocks[1:]]


@functools.cache
def style(client: str, case: str = "") -> Style:
    """The style of the client whose name begins so, in the case whose name begins so."""
    for capture in json.loads(gzip.decompress(_CAPTURES.read_bytes()))["cases"]:
        if capture["client"].startswith(client) and capture["case"].startswith(case):
            return Style(capture)
    raise BenchError(f"no capture of {client}, {case}")


def _another(value: bytes, draw: random.Random) -> bytes:
    """Other digits, of which the first two keep the size of the number."""
    return value[:2] + re.sub(rb"\d", lambda _: b"%d" % draw.randrange(10), value[2:])


def _habit(fields: list[Written]) -> Habit:
    """A field's habit: what the client did when it had the choice; an index where it never had."""
    literals = [field for field in fields if field.literal is not None]
    if not literals:
        return Habit(recent=_ALL, literal=_INSERT, named=0, coded_name=Coded.SHORTER, coded_value=Coded.SHORTER)
    last = literals[-1]
    assert last.literal is not None
    indexed = [field.age for field in fields if field.literal is None]
    passed_over = any(field.found for field in literals)
    return Habit(
        recent=max(indexed, default=-1) + 1 if passed_over else _ALL,
        literal=last.literal,
        named=max(field.named for field in literals),
        coded_name=max(field.coded_name for field in literals),
        coded_value=max(field.coded_value for field in literals),
    )


# --- reading ------------------------------------------------------------------------------------------------


def _read(blocks: list[bytes]) -> Iterator[list[Written]]:
    """The fields of consecutive blocks of one connection."""
    table = HeaderTable()
    inserted: dict[bytes, list[bytes]] = {}
    for block in blocks:
        fields, rest = [], block
        while rest:
            field, rest = _field(table, rest)
            if field is not None:
                fields.append(field._replace(age=_age(inserted.get(field.name, []), field.value)))
                if field.literal is _INSERT:
                    inserted.setdefault(field.name, []).append(field.value)
        yield fields


def _age(inserted: list[bytes], value: bytes) -> int:
    """How many values were inserted after this one; as many as there are when it never was."""
    return inserted[::-1].index(value) if value in inserted else len(inserted)


def _field(table: HeaderTable, block: bytes) -> tuple[Written | None, bytes]:
    first = block[0]
    if first & 0x80:
        index, used = decode_integer(block, 7)
        name, value = table.get_by_index(index)
        return Written(name, value, None), block[used:]
    if first & 0xE0 == 0x20:
        table.maxsize, used = decode_integer(block, 5)
        return None, block[used:]
    literal = _INSERT if first & 0x40 else _NEVER if first & 0x10 else _PLAIN
    index, used = decode_integer(block, literal[1])
    block, coded_name = block[used:], Coded.NO
    if index:
        name = table.get_by_index(index)[0]
    else:
        name, coded_name, block = _text(block)
    value, coded_value, block = _text(block)
    match = table.search(name, value)
    if literal is _INSERT:
        table.add(name, value)
    found = match is not None and match[2] is not None
    return Written(name, value, literal, found, 0, index, coded_name, coded_value), block


def _text(block: bytes) -> tuple[bytes, Coded, bytes]:
    length, used = decode_integer(block, 7)
    raw, rest = block[used : used + length], block[used + length :]
    if not block[0] & 0x80:
        return raw, Coded.NO, rest
    text = bytes(decode_huffman(raw))
    return text, Coded.SHORTER if len(raw) < len(text) else Coded.ALWAYS, rest


# --- writing ------------------------------------------------------------------------------------------------


class _Writer:
    """One direction of one connection: blocks by habits, with the table that the other side has."""

    def __init__(self, habits: Mapping[bytes, Habit]) -> None:
        self._habits = habits
        self._table = HeaderTable()
        self._inserted: dict[bytes, list[bytes]] = {}

    def block(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        return b"".join(self._field(name, value) for name, value in fields)

    def _field(self, name: bytes, value: bytes) -> bytes:
        habit = self._habits[name]
        inserted = self._inserted.setdefault(name, [])
        match = self._table.search(name, value) if _age(inserted[-_LOOKED_AT:], value) < habit.recent else None
        if match is not None and match[2] is not None:
            return _integer(match[0], 7, 0x80)
        bits, width = habit.literal
        index = self._name(name, habit.named) if habit.named else 0
        head = _integer(index, width, bits) + (b"" if index else _string(name, habit.coded_name))
        if habit.literal == _INSERT:
            self._table.add(name, value)
            inserted.append(value)
        return head + _string(value, habit.coded_value)

    def _name(self, name: bytes, captured: int) -> int:
        """The index of a name: the captured one where it is static, else the newest in the table; 0 for none."""
        if captured <= _STATIC:
            return captured
        match = self._table.search(name, _NO_VALUE)
        return match[0] if match else 0


def _integer(value: int, bits: int, first: int) -> bytes:
    encoded = encode_integer(value, bits)
    encoded[0] |= first
    return bytes(encoded)


@functools.lru_cache(1024)
def _string(text: bytes, coded: Coded) -> bytes:
    short = _HUFFMAN.encode(text) if coded else text
    if coded == Coded.ALWAYS or len(short) < len(text):
        return _integer(len(short), 7, 0x80) + short
    return _integer(len(text), 7, 0) + text
