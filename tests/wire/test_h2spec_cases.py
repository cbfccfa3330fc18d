"""The 147 cases of h2spec, frame by frame, for where Go cannot be had."""

from __future__ import annotations

import pytest
from wire import h2spec_generic, h2spec_hpack, h2spec_http2_frames, h2spec_http2_streams
from wire.h2spec_client import Client

MODULES = (h2spec_generic, h2spec_http2_streams, h2spec_http2_frames, h2spec_hpack)
CASES = {name: case for module in MODULES for name, case in module.CASES.items()}


def test_every_case_of_h2spec_is_here() -> None:
    """h2spec 2.6.0 has 44 cases in generic, 95 in http2 and 8 in hpack: 147."""
    groups = [name.split("/")[0] for name in CASES]
    assert [groups.count(group) for group in ("generic", "http2", "hpack")] == [44, 95, 8]
    assert len(CASES) == 147


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "bytewise"])
@pytest.mark.parametrize("name", CASES)
def test_h2spec(name: str, step: int) -> None:
    """The outcome is one that h2spec accepts, also when every byte comes alone."""
    _, send, outcome = CASES[name]
    client = Client(step)
    if sent := send(client):
        client.send(sent)
    outcome(client)
