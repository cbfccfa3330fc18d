"""The request parser is the protobuf library, in what it accepts, what it refuses and what it finds."""

from __future__ import annotations

import random

import pytest
from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avapd.data.request import check_empty, name_in
from avapd.pb.avap_pb2 import CommandRequest, Empty
from avapd.shared.snapshot import varint

LOOPS = 20_000
NAMES = ["", "a", "addVar", "ñ日本語", "x" * 200, "\0"]


def library(request: bytes) -> str | None:
    """The name as the protobuf library finds it, None when it refuses the request."""
    try:
        return CommandRequest.FromString(request).name
    except DecodeError:
        return None


def ours(request: bytes) -> str | None:
    """The name as we find it, None when we refuse the request."""
    try:
        return name_in(request)
    except ValueError:
        return None


def accepts_empty(request: bytes) -> tuple[bool, bool]:
    """Whether this is an Empty to the library, and to us."""
    try:
        Empty.FromString(request)
    except DecodeError:
        theirs = False
    else:
        theirs = True
    try:
        check_empty(request)
    except ValueError:
        return theirs, False
    return theirs, True


def long_varint(number: int, size: int) -> bytes:
    """A varint of `size` bytes, longer than it needs to be."""
    groups = [number >> 7 * at & 0x7F for at in range(size)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def some_varint(dice: random.Random) -> bytes:
    """A varint of any kind: small, border, over-long, over 64 bits, endless."""
    number = dice.choice(
        [0, 1, 2, 7, 100, 127, 128, 300, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63), (1 << 64) - 1]
    )
    kind = dice.random()
    if kind < 0.7:
        return varint(number)
    if kind < 0.95:
        return long_varint(dice.choice([number, number & 0x7F]), dice.randint(1, 11))
    return b"\xff" * dice.randint(1, 12)


def some_tag(dice: random.Random) -> bytes:
    """A tag of any field number and wire type, sometimes over-long."""
    number = dice.choice([0, 1, 1, 1, 2, 15, 16, 2047, 2048, 19_000, (1 << 29) - 1, 1 << 29, (1 << 61) - 1])
    tag = number << 3 | dice.choice([0, 1, 2, 2, 2, 3, 4, 5, 6, 7])
    return varint(tag) if dice.random() < 0.8 else long_varint(tag, dice.randint(1, 11))


def some_fields(dice: random.Random, depth: int = 0) -> bytes:
    """A few fields, mostly well-formed."""
    out = bytearray()
    for _ in range(dice.randint(0, 4)):
        kind = dice.random()
        if kind < 0.35:
            text = dice.choice(
                [name.encode() for name in NAMES]
                + [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ab\xc3"]
            )
            length = varint(len(text)) if dice.random() < 0.8 else long_varint(len(text), dice.randint(2, 10))
            out += b"\x0a" + length + text
        elif kind < 0.5 and depth < 5:
            number = dice.choice([1, 2, 5, 2000])
            end = number if dice.random() < 0.9 else number + 1
            out += varint(number << 3 | 3) + some_fields(dice, depth + 1) + varint(end << 3 | 4)
        elif kind < 0.9:
            tag = dice.choice([1, 2, 3, 3000]) << 3 | dice.choice([0, 1, 2, 5])
            body = {0: some_varint(dice), 1: bytes(8), 2: varint(3) + b"\xff\x00a", 5: bytes(4)}[tag & 7]
            out += varint(tag) + body
        else:
            out += some_tag(dice) + some_varint(dice)
    return bytes(out)


def mutated(request: bytes, dice: random.Random) -> bytes:
    """A request with a byte changed, taken out, put in or cut behind."""
    raw = bytearray(request)
    for _ in range(dice.randint(0, 2)):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(4):
            case 0 if at < len(raw):
                raw[at] = dice.randrange(256)
            case 1 if at < len(raw):
                del raw[at]
            case 2:
                raw.insert(at, dice.randrange(256))
            case _:
                del raw[at:]
    return bytes(raw)


def test_the_oracle_is_the_library_that_grpc_uses() -> None:
    """It is upb in C; the pure Python parser differs from it in corners."""
    assert api_implementation.Type() == "upb"


@pytest.mark.parametrize("kind", ["noise", "fields", "mutants"])
def test_many_thousand_requests_are_read_as_the_library_reads_them(kind: str) -> None:
    """Random bytes, random fields, and mutants of them: not one is read differently."""
    dice = random.Random(f"avapd {kind}")
    different = []
    accepted = 0
    for _ in range(LOOPS):
        if kind == "noise":
            request = dice.randbytes(dice.randint(0, 12))
        else:
            request = some_fields(dice)
            if kind == "mutants":
                request = mutated(request, dice)
        expected = library(request)
        accepted += expected is not None
        if ours(request) != expected or len(set(accepts_empty(request))) == 2:
            different.append((request.hex(" "), expected, ours(request), accepts_empty(request)))
    assert different == [], f"{len(different)} differ; {different[:5]}"
    assert accepted > LOOPS // 100, "the requests must not all be nonsense"


@given(st.binary(max_size=100))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_read_as_the_library_reads_them(request: bytes) -> None:
    """The same name or the same refusal."""
    assert ours(request) == library(request)
    theirs, mine = accepts_empty(request)
    assert theirs == mine


@given(
    st.lists(st.tuples(st.integers(0, (1 << 32) + 7), st.integers(0, (1 << 64) - 1), st.integers(1, 11)), max_size=5)
)
@settings(max_examples=1000, deadline=None)
@example([(0, 0, 1)])
def test_any_tag_and_varint_is_read_as_the_library_reads_it(fields: list[tuple[int, int, int]]) -> None:
    """Numbers at every size, as short as they can be and longer."""
    request = b"".join(varint(tag) + long_varint(number, size) for tag, number, size in fields)
    assert ours(request) == library(request)


@given(st.text(max_size=200), st.text(max_size=20))
@settings(deadline=None)
def test_a_request_holds_its_last_name(first: str, last: str) -> None:
    """As every protobuf library has it; an empty name counts as well."""
    one, two = (b"\x0a" + varint(len(name.encode())) + name.encode() for name in (first, last))
    assert name_in(one) == first
    assert name_in(one + two) == last == library(one + two)
    assert name_in(b"\x10\x05" + one + b"\x1a\x00") == first


@pytest.mark.parametrize("depth", [1, 2, 32, 63, 64, 65, 98, 99, 100, 101, 102, 1000, 60_000])
@pytest.mark.parametrize("number", [1, 2])
def test_nesting_is_as_deep_as_the_librarys(depth: int, number: int) -> None:
    """Groups in groups: the same depth is the first to be refused, and no depth is a crash."""
    request = varint(number << 3 | 3) * depth + varint(number << 3 | 4) * depth
    assert ours(request) == library(request)
    assert ours(request[:-1]) is None is library(request[:-1])
    theirs, mine = accepts_empty(request)
    assert theirs == mine


@pytest.mark.parametrize("size", list(range(1, 12)))
@pytest.mark.parametrize("place", ["tag", "length", "value", "unknown length"])
def test_over_long_varints_are_taken_as_far_as_the_library_takes_them(size: int, place: str) -> None:
    """A varint may be longer than it needs to be; how long depends on where it stands."""
    request = {
        "tag": long_varint(0x0A, size) + b"\x01a",
        "length": b"\x0a" + long_varint(1, size) + b"a",
        "value": b"\x10" + long_varint(1, size),
        "unknown length": b"\x12" + long_varint(1, size) + b"a",
    }[place]
    assert ours(request) == library(request)


@pytest.mark.parametrize("length", [1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) + 1, (1 << 63), (1 << 64) - 1, 1 << 64])
def test_a_length_beyond_the_end_is_refused(length: int) -> None:
    """Also one that would be small after an overflow."""
    for tag in (b"\x0a", b"\x12"):
        request = tag + varint(length) + b"abc"
        assert ours(request) is None is library(request)


@pytest.mark.parametrize("field", ["00 00", "02 00", "05 61 62 63 64", "03 04", "80 00 00"])
@pytest.mark.parametrize("form", ["{}", "13 {} 14", "0b {} 0c", "13 13 {} 14 14"])
def test_the_illegal_field_number_zero_is_treated_as_the_library_treats_it(field: str, form: str) -> None:
    """Refused among the fields of a message that has some; let pass in an unknown group and in an Empty."""
    request = bytes.fromhex(form.format(field))
    assert ours(request) == library(request)
    theirs, mine = accepts_empty(request)
    assert theirs == mine


@pytest.mark.parametrize("last", [0, 1, 2, 0x19, 0x7F])
@pytest.mark.parametrize("form", ["10 {}", "08 {}", "13 10 {} 14", "{} 01", "0a {}", "12 {}"])
def test_a_varint_over_64_bits_is_treated_as_the_library_treats_it(form: str, last: int) -> None:
    """Its tenth byte has room for more than is left: cut as a value, refused as a tag or a length."""
    request = bytes.fromhex(form.format((b"\xff" * 9 + bytes([last])).hex()))
    assert ours(request) == library(request)
    theirs, mine = accepts_empty(request)
    assert theirs == mine
