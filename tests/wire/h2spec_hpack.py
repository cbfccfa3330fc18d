"""The cases of h2spec's group `hpack`: blocks that must not decode."""

from __future__ import annotations

from wire.h2spec_client import Case, connection_error
from wire.raw import COMPRESSION_ERROR, headers


def _bad(claim: str, *, start: str = "", rest: str = "") -> Case:
    """A request whose block begins or ends with these bytes."""
    return (
        claim,
        lambda client: headers(1, bytes.fromhex(start) + client.block() + bytes.fromhex(rest), end=True),
        connection_error(COMPRESSION_ERROR),
    )


_NAME = "0085f2b24a84ff"  # x-test, Huffman, without indexing

CASES: dict[str, Case] = {
    "hpack/2.3.3/1": _bad("an index beyond both tables", rest="c6"),
    "hpack/2.3.3/2": _bad("a name index beyond both tables", rest="7f0700"),
    "hpack/4.2/1": _bad("a table size update at the end of a block", rest="21"),
    "hpack/5.2/1": _bad("Huffman padding of more than 7 bits", rest=_NAME + "8449509fff"),
    "hpack/5.2/2": _bad("Huffman padding of zeros", rest=_NAME + "83495090"),
    "hpack/5.2/3": _bad("EOS inside a Huffman string", rest=_NAME + "874951fffffffa7f"),
    "hpack/6.1/1": _bad("index 0", rest="80"),
    "hpack/6.3/1": _bad("a table size above SETTINGS_HEADER_TABLE_SIZE", start="3fe21f"),
}
