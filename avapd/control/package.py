"""The AVAP code package (contract part 3): source code with a signature that an interpreter can check.

    0  magic b"AVAP" | 4  version uint16 big-endian (1) | 6  payload length uint32 big-endian
    10 HMAC-SHA256(key, bytes 0 to 9 + payload) | 42 payload

The signature covers the head too, so neither version nor length can be changed.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

from avapd.errors import PackageError

MAGIC: Final = b"AVAP"
VERSION: Final = 1
_HEAD: Final = struct.Struct(">4sHI")
_SIGNATURE: Final = 32
OVERHEAD: Final = _HEAD.size + _SIGNATURE


def sign(payload: bytes, key: bytes) -> bytes:
    """The package of a payload."""
    head = _HEAD.pack(MAGIC, VERSION, len(payload))
    return head + hmac.digest(key, head + payload, "sha256") + payload


def source_in(code: bytes) -> bytes:
    """The source in what is served as code: that of a package, or the code itself. Checks nothing."""
    return code[OVERHEAD:] if code.startswith(MAGIC) and len(code) >= OVERHEAD else code


def payload_of(package: bytes, key: bytes) -> bytes:
    """The payload of a package. Raises PackageError unless magic, version, length and signature are right."""
    if len(package) < OVERHEAD or not package.startswith(MAGIC):
        raise PackageError("not an AVAP code package")
    head, signature, payload = package[: _HEAD.size], package[_HEAD.size : OVERHEAD], package[OVERHEAD:]
    _magic, version, length = _HEAD.unpack(head)
    if version != VERSION:
        raise PackageError(f"package version {version}, this version reads {VERSION}")
    if length != len(payload):
        raise PackageError(f"the package announces {length} bytes and holds {len(payload)}")
    if not hmac.compare_digest(signature, hmac.digest(key, head + payload, "sha256")):
        raise PackageError("wrong signature")
    return payload
