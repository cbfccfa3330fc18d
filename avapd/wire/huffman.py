"""The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).

The code is canonical: codes of one length are consecutive, in the order of their symbols, and a longer code continues
where the shorter ones ended. So the symbols of each length are the whole of appendix B.

Decoding takes a byte at a time. A state is what is left of an unfinished code: its length and its bits. In a state a
byte leads to a *cell*: the symbols it completes, and the row of cells of the next state. Cells are made when first
needed: importing costs nothing, headers need some KB, and who sends every byte in every state makes it 7 MB, once, for
a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

_EOS: Final = 256
_SYMBOLS: Final[dict[int, bytes]] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\0$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf"
    b"\xc5\xe7\xef",
    24: b"\x09\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
    b"\x7f\xdc\xf9",
    30: b"\n\r\x16",
}

_State = tuple[int, int]
_Row = list["_Cell | None"]
_Cell = tuple[bytes, _Row]


def _codes() -> Iterator[tuple[int, int, int]]:
    """Every symbol with the length and the bits of its code; the end-of-string symbol comes last."""
    code = length = 0
    for longer, symbols in _SYMBOLS.items():
        code <<= longer - length
        length = longer
        for symbol in symbols:
            yield symbol, length, code
            code += 1
    yield _EOS, length, code


_CODES: Final = {symbol: (length, code) for symbol, length, code in _codes()}
_BY_CODE: Final = {state: symbol for symbol, state in _CODES.items()}
_BEGIN: Final = (0, 0)
_ROWS: Final[dict[_State, _Row]] = {}
_STATES: Final[dict[int, _State]] = {}  # of rows, by their identity


def _row(state: _State) -> _Row:
    """The cells of a state by byte. The one behind them, for the end of the string, is there if it may end here."""
    row = _ROWS.get(state)
    if row is None:
        row = _ROWS[state] = [None] * 257
        _STATES[id(row)] = state
        length, code = state
        # Padding is the beginning of the end-of-string symbol, which is all ones, and shorter than a byte.
        if length < 8 and code == (1 << length) - 1:
            row[_EOS] = b"", row
    return row


@cache
def _follow(state: _State, nibble: int) -> tuple[bytes, _State]:
    """The symbols that four bits complete in a state, and the state they lead to."""
    length, code = state
    symbols = b""
    for shift in (3, 2, 1, 0):
        length, code = length + 1, code << 1 | nibble >> shift & 1
        symbol = _BY_CODE.get((length, code))
        if symbol == _EOS:
            raise ValueError("Huffman: the end-of-string symbol inside a string")
        if symbol is not None:  # at most one: the shortest codes have five bits
            symbols = bytes((symbol,))
            length, code = _BEGIN
    return symbols, (length, code)


def _make(row: _Row, byte: int) -> _Cell:
    """Make a cell. Raises ValueError at the end-of-string symbol."""
    first, state = _follow(_STATES[id(row)], byte >> 4)
    second, state = _follow(state, byte & 0x0F)
    cell = row[byte] = first + second, _row(state)
    return cell


_FIRST: Final = _row(_BEGIN)


def decode(data: bytes) -> bytes:
    """The string that `data` stands for, at most 8/5 as long. Raises ValueError, with the reason, if it is none."""
    row = _FIRST
    parts = []
    for byte in data:
        try:
            symbols, row = row[byte]  # type: ignore[misc]  # None, no cell yet, is the TypeError
        except TypeError:
            symbols, row = _make(row, byte)
        parts.append(symbols)
    if row[_EOS] is None:
        raise ValueError("Huffman: padding that does not begin the end-of-string symbol")
    return b"".join(parts)


def encode(data: bytes) -> bytes:
    """`data` in the code, padded with ones."""
    length = code = 0
    for byte in data:
        more, bits = _CODES[byte]
        length, code = length + more, code << more | bits
    padding = -length % 8
    return (code << padding | (1 << padding) - 1).to_bytes((length + padding) // 8, "big")
