"""Header blocks, representation by representation (RFC 7541 section 6), right or wrong."""

from __future__ import annotations

from hpack.hpack import encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

# A literal's first bits, and how many bits are left for the index of its name.
INSERT, PLAIN, NEVER = (0x40, 6), (0x00, 4), (0x10, 4)
FIRST_ENTRY = 62  # the index of the entry inserted last


def integer(number: int, bits: int, first: int = 0) -> bytes:
    """An integer with a prefix of so many bits, below the bits `first` (section 5.1)."""
    octets = encode_integer(number, bits)
    octets[0] |= first
    return bytes(octets)


def string(data: bytes, *, coded: bool = False) -> bytes:
    """A string (section 5.2), Huffman-coded or not."""
    if coded:
        data = _HUFFMAN.encode(data)
    return integer(len(data), 7, 0x80 if coded else 0) + data


def indexed(index: int) -> bytes:
    """A field by index (section 6.1)."""
    return integer(index, 7, 0x80)


def literal(name: bytes | int, value: bytes, kind: tuple[int, int] = INSERT, *, coded: bool = False) -> bytes:
    """A literal (section 6.2) with its name written out or by index."""
    first, bits = kind
    if isinstance(name, int):
        return integer(name, bits, first) + string(value, coded=coded)
    return integer(0, bits, first) + string(name, coded=coded) + string(value, coded=coded)


def size_update(size: int) -> bytes:
    """A dynamic table size update (section 6.3)."""
    return integer(size, 5, 0x20)


def entry(size: int, name: bytes = b"x") -> bytes:
    """A literal that inserts an entry of that size (section 4.1)."""
    return literal(name, b"v" * (size - 32 - len(name)))


ENTRIES = b"".join(literal(b"n%d" % number, b"") for number in range(70))  # a block that inserts indexes 62 to 131
