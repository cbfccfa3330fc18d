"""The AVAP code package: exactly the bytes of contract part 3, and not one of them may change."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd.control import package
from avapd.errors import PackageError

KEY = b"signing key"


@given(st.binary(max_size=500), st.binary(min_size=1, max_size=80))
@settings(deadline=None)
def test_a_package_holds_its_payload(payload: bytes, key: bytes) -> None:
    """`sign` and `payload_of` are a pair under one key."""
    assert package.payload_of(package.sign(payload, key), key) == payload


def test_the_bytes_are_those_of_the_contract() -> None:
    """Magic, version and length big-endian, HMAC-SHA256 over header and payload, payload."""
    payload = "x = 'ñ'\n".encode()
    head = b"AVAP" + b"\x00\x01" + b"\x00\x00\x00\x09"
    signature = hmac.new(KEY, head + payload, hashlib.sha256).digest()
    assert package.sign(payload, KEY) == head + signature + payload
    assert package.OVERHEAD == 42


def test_every_flipped_bit_is_refused() -> None:
    """In the header, the signature and the payload."""
    signed = package.sign(b"x = 1\n", KEY)
    for at in range(len(signed)):
        for bit in range(8):
            raw = bytearray(signed)
            raw[at] ^= 1 << bit
            with pytest.raises(PackageError):
                package.payload_of(bytes(raw), KEY)


def test_every_truncation_and_addition_is_refused() -> None:
    """The length in the header is the length there is."""
    signed = package.sign(b"x = 1\n", KEY)
    for size in range(len(signed)):
        with pytest.raises(PackageError):
            package.payload_of(signed[:size], KEY)
    with pytest.raises(PackageError):
        package.payload_of(signed + b"\0", KEY)


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_noise_is_no_package(noise: bytes) -> None:
    """Also behind the right magic."""
    for data in (noise, b"AVAP" + noise, b"AVAP\x00\x01" + len(noise).to_bytes(4, "big") + bytes(32) + noise):
        with pytest.raises(PackageError):
            package.payload_of(data, KEY)


@given(st.binary(min_size=1, max_size=64))
@settings(deadline=None)
def test_a_package_of_another_key_is_refused(key: bytes) -> None:
    """Nearly the same key is another key."""
    signed = package.sign(b"x", KEY)
    for other in (key, KEY + b"x", KEY[:-1], KEY.upper()):
        if other != KEY:
            with pytest.raises(PackageError, match="signature"):
                package.payload_of(signed, other)
