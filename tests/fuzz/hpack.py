"""Target `hpack`: block after block on one connection, decoded as the `hpack` package decodes them, or refused alike.

Each block is two bytes of length and itself. A second decoder is only told what the first one's blocks inserted: it
must decode the next block alike, for that is how a block that was seen before is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import hpack

from avapd.wire.errors import ConnectionFault, ErrorCode
from avapd.wire.hpack import Block, Decoder, encode

_ROUND_TRIP = 4096


def run(data: bytes) -> None:
    """Feed the blocks in `data` until one is refused."""
    ours, told = Decoder(), Decoder()
    theirs = hpack.Decoder(max_header_list_size=1 << 20)
    for block in _blocks(data):
        expected = _theirs(theirs, block)
        found = _ours(ours, block)
        again = _ours(told, block) if _updates(block) or not isinstance(found, Block) else _replayed(told, found, block)
        if not isinstance(found, Block):
            assert found == again
            assert found in {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}
            assert expected is None or found == ErrorCode.ENHANCE_YOUR_CALM or _stricter(block, expected)
            return
        assert isinstance(again, Block)
        assert list(found.fields) == expected
        assert (again.fields, again.inserts) == (found.fields, found.inserts)
        assert found.size == sum(len(name) + len(value) + 32 for name, value in found.fields)
        if found.portable:
            assert Decoder().decode(block).fields == found.fields
        if len(block) < _ROUND_TRIP:
            assert Decoder(max_list=1 << 20).decode(encode(found.fields)).fields == found.fields


def _blocks(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : end]
        at = end


def _ours(decoder: Decoder, block: bytes) -> Block | ErrorCode:
    try:
        return decoder.decode(block)
    except ConnectionFault as fault:
        return fault.code


def _replayed(decoder: Decoder, block: Block, raw: bytes) -> Block:
    """What a decoder makes of a block: every other block is decoded, the rest is only replayed."""
    if len(raw) & 1:
        return decoder.decode(raw)
    decoder.replay(block.inserts)
    return block


def _theirs(decoder: hpack.Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        return None


def _updates(block: bytes) -> bool:
    return bool(block) and block[0] & 0xE0 == 0x20


def _stricter(block: bytes, expected: list[tuple[bytes, bytes]]) -> bool:
    """Whether we may refuse what they take: a third size update, or an integer of more than five bytes."""
    return _updates(block) or _has_long_integer(block) or len(expected) > 512


def _has_long_integer(block: bytes) -> bool:
    run = 0
    for byte in block:
        run = run + 1 if byte >= 0x80 else 0
        if run >= 5:
            return True
    return False
