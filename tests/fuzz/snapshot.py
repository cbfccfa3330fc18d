"""Target `snapshot`: no arena, whatever its bytes, makes a reader do anything but read it or raise SnapshotError.

The first byte chooses what the rest is: an arena as it is (0), or a row of patches of a good arena, three bytes of
place and value each (1), or the same with every digest made right again (2 and above), so that what lies behind them
is reached.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os

from avapd.errors import SnapshotError
from avapd.pb.avap_pb2 import CommandResponse
from avapd.shared import memory, snapshot
from avapd.shared.snapshot import HEADER, HEADER_SIZE, Header, View, key_of

_NAMES = ("a", "addVar", "getDate", "ñ")
_NAMES_ASKED = (*_NAMES, "", "missing", "x" * 200)


def run(data: bytes) -> None:
    """Open, walk and ask an arena made of `data`."""
    if not data:
        return
    raw = bytearray(data[1:]) if data[0] == 0 else _patched(data[1:])
    if data[0] > 1:
        _make_right(raw)
    with contextlib.suppress(SnapshotError):
        _read(bytes(raw))


def _patched(patches: bytes) -> bytearray:
    raw = bytearray(_good_arena())
    for at in range(0, len(patches) - 2, 3):
        place = int.from_bytes(patches[at : at + 2], "little")
        raw[place % len(raw)] = patches[at + 2]
    return raw


@functools.cache
def _good_arena() -> bytes:
    messages = [CommandResponse(name=name, type="t", code=b"x" * len(name)).SerializeToString() for name in _NAMES]
    fd = memory.create("fuzz")
    try:
        size = snapshot.pack(fd, 1, len(messages), messages).arena_size
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _make_right(raw: bytearray) -> None:
    """Digests that fit whatever the header says; slices stay within the arena by themselves."""
    header = Header(*HEADER.unpack_from(raw))
    begin, end = header.records_offset, header.records_offset + header.records_size
    header = header._replace(version_hash=hashlib.sha256(raw[begin:end]).digest())
    checksum = snapshot._checksum(header, bytes(raw[HEADER_SIZE:begin]), bytes(raw[end:]))
    HEADER.pack_into(raw, 0, *header._replace(checksum=checksum))


def _read(arena: bytes) -> None:
    fd = memory.create("fuzz")
    try:
        memory.write_at(fd, arena, 0)
        memory.seal(fd)
        view = View.open(fd, len(arena))
    finally:
        os.close(fd)
    try:
        assert sum(map(len, view.answer())) == view.answer_size <= len(arena)
        for name in _NAMES_ASKED:
            key = key_of(name)
            found = view.get(key)  # the master's digests vouch for the lengths in the index, so it may be a short one
            assert found is None or bytes(found).startswith(key[: len(found)])
        messages = list(view.messages())
        assert sum(len(message) for _, message in messages) <= view.header.records_size
    finally:
        view.close()
