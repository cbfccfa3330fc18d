"""The key check: one way in, and it fails closed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avapd.data.auth import Key, Keyring

KEYS = ("first-key-of-enough-length", "second-key-of-enough-length")
RING = Keyring(Key(key[:6], hashlib.sha256(key.encode()).hexdigest()) for key in KEYS)
RIGHT, OTHER = KEYS
Metadata = list[tuple[str, str | bytes]]
any_text = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "metadata",
    [
        [("x-avap-auth", "{}")],
        [("authorization", "Bearer {}")],
        [("authorization", "bearer {}")],
        [("authorization", "BEARER {}")],
        [("user-agent", "x"), ("x-avap-auth", "{}"), ("te", "trailers")],
        [("authorization", "Basic eDp5"), ("x-avap-auth", "{}")],
    ],
)
def test_a_right_key_opens(key: str, metadata: Metadata) -> None:
    """Every accepted key, in either header, whatever else is sent."""
    assert RING.allows([(name, str(value).format(key)) for name, value in metadata])


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("x-avap-auth", "")],
        [("x-avap-auth", RIGHT[:-1])],
        [("x-avap-auth", RIGHT + "x")],
        [("x-avap-auth", RIGHT.upper())],
        [("x-avap-auth", f" {RIGHT}")],
        [("x-avap-auth", f"{RIGHT} ")],
        [("x-avap-auth", f"{RIGHT},{OTHER}")],
        [("x-avap-auth", f"Bearer {RIGHT}")],
        [("x-avap-auth", hashlib.sha256(RIGHT.encode()).hexdigest())],
        [("x-avap-auth", RIGHT), ("x-avap-auth", RIGHT)],
        [("x-avap-auth", RIGHT), ("x-avap-auth", "wrong")],
        [("x-avap-auth", "wrong"), ("x-avap-auth", RIGHT)],
        [("x-avap-auth", "wrong"), ("authorization", f"Bearer {RIGHT}")],
        [("authorization", RIGHT)],
        [("authorization", f"Basic {RIGHT}")],
        [("authorization", f"Bearer  {RIGHT}")],
        [("authorization", f"Bearer{RIGHT}")],
        [("authorization", f"Bearer\t{RIGHT}")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {RIGHT}"), ("authorization", f"Bearer {RIGHT}")],
        [("x-avap-auth-bin", RIGHT)],
        [("X-Avap-Auth", RIGHT)],
        [("api-key", RIGHT)],
    ],
    ids=repr,
)
def test_everything_odd_is_a_wrong_key(metadata: Metadata) -> None:
    """Missing, nearly right, doubled, in another header, or in the second header when the first is there."""
    assert not RING.allows(metadata)


def test_a_key_of_a_mebibyte_is_only_a_wrong_key() -> None:
    """The comparison is of digests, whatever the length."""
    assert not RING.allows([("x-avap-auth", "x" * (1 << 20))])


@given(
    st.lists(st.tuples(st.sampled_from(["x-avap-auth", "authorization", "other"]), any_text | st.binary()), max_size=4)
)
@example([("x-avap-auth", "\ud800")])
@example([("authorization", "Bearer \udfff")])
@settings(deadline=None)
def test_whatever_is_sent_is_refused_and_never_an_error(metadata: Metadata) -> None:
    """Non-ASCII, bytes, lone surrogates: not the right key, hence no; an exception would become another status."""
    assert not RING.allows(metadata)


@given(any_text)
@settings(deadline=None)
def test_a_right_key_beside_noise_in_the_other_header_opens(noise: str) -> None:
    """`x-avap-auth` alone counts when it is there."""
    assert RING.allows([("authorization", noise), ("x-avap-auth", RIGHT), ("authorization", noise)])


@given(st.binary())
@settings(deadline=None)
def test_a_key_may_come_as_bytes(noise: bytes) -> None:
    """As grpcio hands over what is no text."""
    assert RING.find(RIGHT.encode())
    assert RING.allows([("x-avap-auth", RIGHT.encode())])
    assert bool(RING.find(noise)) is (noise.decode("latin-1") in KEYS)


def test_no_keys_means_nobody() -> None:
    """An empty ring accepts nothing, the empty key least of all."""
    ring = Keyring([])
    assert not ring.find(b"")
    assert not ring.allows([("x-avap-auth", "")])
    assert not ring.allows([])
