"""However the network cuts what a client sends, the connection says the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.conversations import ENDINGS, FEW, FOUND, conversations, recorded, said, same

from avapd.wire.connection import Connection
from avapd.wire.limits import Limits

SMALL = Limits(quantum_frames=1, write_bytes=2000)  # every read is worked off in many turns
LIMITS = st.sampled_from([Limits(), FEW, SMALL])
CUTS = st.lists(st.integers(0, 1 << 20), min_size=1, max_size=30)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "limits", [Limits(), SMALL, Limits(streams=4)], ids=["defaults", "small quantum", "few streams"]
)
def test_every_byte_alone_gives_the_same_output(ending: str, limits: Limits) -> None:
    """The recorded conversation, with each of its ends, comes out the same at once and byte by byte."""
    segments = [*recorded(), ENDINGS[ending]]
    whole = said(Connection, limits, [], segments, [])
    assert len(whole.frames) > 200
    same(whole, said(Connection, limits, [], segments, list(range(max(map(len, segments))))))


@settings(max_examples=40, deadline=None, phases=FOUND)
@given(cuts=CUTS, ending=st.sampled_from(list(ENDINGS)), limits=LIMITS)
def test_any_split_of_the_recorded_conversation_gives_the_same_output(
    cuts: list[int], ending: str, limits: Limits
) -> None:
    """So it does when it is cut anywhere."""
    segments = [*recorded(), ENDINGS[ending]]
    same(said(Connection, limits, [], segments, []), said(Connection, limits, [], segments, cuts))


@settings(max_examples=100, deadline=None, phases=FOUND)
@given(segments=conversations(), cuts=CUTS, limits=LIMITS)
def test_any_split_gives_the_same_output(segments: list[bytes], cuts: list[int], limits: Limits) -> None:
    """So does any conversation."""
    same(said(Connection, limits, [], segments, []), said(Connection, limits, [], segments, cuts))
