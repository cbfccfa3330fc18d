"""The Huffman code (RFC 7541 section 5.2, appendix B), with the hpack package as oracle."""

from __future__ import annotations

import subprocess
import sys

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given
from hypothesis import strategies as st

from avapd.wire import huffman

ORACLE = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

# Appendix C.4 and C.6.
EXAMPLES = {
    "f1e3c2e5f23a6ba0ab90f4ff": b"www.example.com",
    "a8eb10649cbf": b"no-cache",
    "25a849e95ba97d7f": b"custom-key",
    "25a849e95bb8e8b4bf": b"custom-value",
    "6402": b"302",
    "640eff": b"307",
    "aec3771a4b": b"private",
    "d07abe941054d444a8200595040b8166e082a62d1bff": b"Mon, 21 Oct 2013 20:13:21 GMT",
    "9d29ad171863c78f0b97c8e9ae82ae43d3": b"https://www.example.com",
    "9bd9ab": b"gzip",
}


def bits(text: str) -> bytes:
    """Bytes from ones and zeros; blanks are for the reader."""
    text = text.replace(" ", "")
    assert len(text) % 8 == 0
    return int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize("symbol", range(256))
def test_every_code_is_that_of_the_appendix(symbol: int) -> None:
    """Each symbol has the code that the hpack package copied from appendix B."""
    assert huffman._CODES[symbol] == (REQUEST_CODES_LENGTH[symbol], REQUEST_CODES[symbol])
    assert huffman.decode(huffman.encode(bytes([symbol]))) == bytes([symbol])


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_examples_of_the_rfc(code: str) -> None:
    """The strings of appendix C.4 and C.6 are coded and decoded as it says."""
    assert huffman.decode(bytes.fromhex(code)) == EXAMPLES[code]
    assert huffman.encode(EXAMPLES[code]).hex() == code


@given(st.binary(max_size=200))
@example(b"")
@example(bytes(range(256)))
def test_what_is_coded_can_be_decoded(data: bytes) -> None:
    """Any bytes come back, and are coded as the hpack package codes them."""
    code = huffman.encode(data)
    assert code == ORACLE.encode(data)
    assert huffman.decode(code) == data


@given(st.binary(max_size=60))
@example(b"")
@example(b"\xff")
@example(b"\xff\xff")
def test_any_bytes_are_decoded_as_the_hpack_package_decodes_them(code: bytes) -> None:
    """Whatever the bytes, both find the same string or refuse them."""
    try:
        expected: bytes | None = decode_huffman(code)
    except hpack.HPACKDecodingError:
        expected = None
    try:
        found: bytes | None = huffman.decode(code)
    except ValueError:
        found = None
    assert found == expected


@given(st.binary(max_size=60) | st.text("012aceiost", max_size=60).map(str.encode))
def test_a_string_is_at_most_eight_fifths_of_its_code(data: bytes) -> None:
    """The bound that the decoder's own bound of memory rests on."""
    code = huffman.encode(data)
    assert len(huffman.decode(code)) * 5 <= len(code) * 8


@pytest.mark.parametrize("length", range(1, 8))
def test_padding_up_to_seven_ones_is_taken(length: int) -> None:
    """A string may end in the first one to seven bits of the end-of-string symbol."""
    # "0" and "1" have codes of five bits, " " one of six: together they leave any number of bits free.
    text = next(
        b"0" * zeros + b" " * blanks
        for zeros in range(8)
        for blanks in range(8)
        if (5 * zeros + 6 * blanks) % 8 == 8 - length
    )
    assert huffman.decode(huffman.encode(text)) == text


@pytest.mark.parametrize("text", ["11111111", "00000 111 11111111", "11111111 11111111", "1" * 24])
def test_a31_padding_of_more_than_seven_bits_is_refused(text: str) -> None:
    """A whole byte of padding, or more, is an error (RFC 7541 section 5.2)."""
    with pytest.raises(ValueError, match="padding"):
        huffman.decode(bits(text))


@pytest.mark.parametrize("text", ["00000 000", "00000 110", "00000 011", "010100 10", "00000 00001 111110"])
def test_a31_padding_that_is_not_all_ones_is_refused(text: str) -> None:
    """Padding has the bits of the end-of-string symbol, or is an error (RFC 7541 section 5.2)."""
    with pytest.raises(ValueError, match="padding"):
        huffman.decode(bits(text))


@pytest.mark.parametrize("before", ["", "00000", "00000 00001", "010100 00000 00000"])
@pytest.mark.parametrize("after", ["", "00000 000"])
def test_a31_the_end_of_string_symbol_inside_a_string_is_refused(before: str, after: str) -> None:
    """The 30 ones of the end-of-string symbol are an error wherever they stand (RFC 7541 section 5.2)."""
    text = (before + "1" * 30 + after).replace(" ", "")
    with pytest.raises(ValueError, match="end-of-string"):
        huffman.decode(bits(text + "1" * (-len(text) % 8)))


def test_what_decoding_learns_is_bounded() -> None:
    """Every byte in every state, the most an attacker can send, leaves under 8 MB behind; importing under 1 MB."""
    code = """
import collections, functools, typing, tracemalloc
tracemalloc.start()
from avapd.wire import huffman
imported = tracemalloc.get_traced_memory()[0]
rows = [huffman._FIRST]
for row in rows:
    for byte in range(256):
        try:
            _, then = huffman._make(row, byte)
        except ValueError:
            continue
        if not any(then is known for known in rows):
            rows.append(then)
assert len(rows) == 256
print(imported, tracemalloc.get_traced_memory()[0])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    imported, most = map(int, done.stdout.split())
    assert imported < 1e6
    assert most < 8e6
