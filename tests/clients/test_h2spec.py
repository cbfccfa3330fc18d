"""h2spec, the conformance suite of HTTP/2 servers, in its strict mode, against the wire engine.

No server is known to pass all of it (nghttpd fails one of 147); grpcio, which is not ours to mend, fails 91. Its cases
stand in tests/wire as well, as frames of our own, for machines without Go.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest
from clients.tools import go_tool
from support.database import Database
from support.server import Server

pytestmark = pytest.mark.timeout(600)  # the first run builds h2spec; a server that does not answer costs it 150 s

PACKAGE = "github.com/summerwind/h2spec/cmd/h2spec"
# Release 2.6.0. Its module path lacks the /v2 that Go wants, so that the release has no name for Go but this.
NEWEST, NEWEST_CASES = "v1.5.1-0.20220625142712-af83a65f0b62", 147
# Of release 2.2.1, which go/go.mod pins: for machines whose module proxy lacks the other. It lacks hpack/2.3.3/2.
PINNED_CASES = 146


class H2spec(NamedTuple):
    """The program and how many cases it has in strict mode."""

    program: Path
    cases: int


@pytest.fixture(scope="module")
def h2spec() -> H2spec:
    try:
        return H2spec(go_tool(PACKAGE, NEWEST), NEWEST_CASES)
    except pytest.skip.Exception:
        return H2spec(go_tool(PACKAGE), PINNED_CASES)


@pytest.fixture(scope="module")
def server(h2spec: H2spec, postgres_url: str) -> Iterator[Server]:
    database = Database(postgres_url)
    with Server(database.reader_url, env={"AVAPD_ENGINE": "wire"}) as made:
        yield made.wait_serving()
    database.drop()


def test_every_case_of_h2spec_passes(h2spec: H2spec, server: Server, tmp_path: Path) -> None:
    """None fails, none is skipped, and none is missing."""
    report = tmp_path / "h2spec.xml"
    done = subprocess.run(
        [
            h2spec.program, "--strict", "--timeout", "1", "--junit-report", report,
            "--host", "127.0.0.1", "--port", str(server.port), "--path", "/avap.DefinitionEngine/GetCommand",
        ],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    failures, cases = [], ET.parse(report).findall(".//testcase")
    for case in cases:
        if len(case):
            told = " | ".join(" ".join(child.itertext()).strip().replace("\n", " or ") for child in case)
            failures.append(f"{case.get('package')} {case.get('classname')}: {case[0].tag}: {told}")
    assert not failures, f"{len(failures)} of {len(cases)}\n" + "\n".join(failures)
    assert (len(cases), done.returncode) == (h2spec.cases, 0), done.stdout
