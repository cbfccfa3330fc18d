"""What the header blocks of real clients and proxies cost the server, client by client.

A call is often known by its header block alone, if that repeats byte for byte. With some clients it does; others refer
to a table that changes, write another deadline each time, or order their fields at random. Each case asks for one
definition, 10 connections x 10 calls, with header blocks as that client or proxy encodes them: learned from captures,
which are reproduced byte for byte (bench/loads/styles.py). The replay client only writes what was encoded before, so
that the server is the limit. Where a capture has a deadline that is inherited, as calls made while another is served
have, every block differs: *grpc-go* is the hardest then, since every field and every deadline goes into the table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from bench.frame import Bench, Plot, Run
from bench.loads.replay import Calls, replayed
from bench.loads.styles import style
from bench.questions.saturation import COLUMNS, Case, ratio, saturate
from bench.servers.build import go, tool, version_of
from bench.servers.contestants import GRPC_GO, GRPCIO, TONIC, WIRE, service
from bench.servers.database import READER, filled

_CONTESTANTS: Final = (WIRE, GRPC_GO, TONIC, GRPCIO)
_SLOW_TOO: Final = ("grpc-go, inherited", "nginx in front", "HAProxy in front")
_DEFINITIONS: Final = 10_000
_ANSWER_BYTES: Final = 2_048
# Client and case as the captures name them, by the beginning.
_CAPTURES: Final = {
    "grpc-core, no deadline": ("grpc-core", "no deadline"),
    "grpc-core, inherited": ("grpc-core", "inherited"),
    "grpc-go, no deadline": ("grpc-go", "no deadline"),
    "grpc-go, 2 s": ("grpc-go", "fixed"),
    "grpc-go, inherited": ("grpc-go", "inherited"),
    "grpc-java, inherited": ("grpc-java", ""),
    "grpc-js, inherited": ("grpc-js", ""),
    "tonic, 2 s": ("tonic", ""),
    "grpclib, 2 s": ("grpclib", ""),
    "h2load": ("h2load", ""),
    "nginx in front": ("nginx", ""),
    "HAProxy in front": ("HAProxy", ""),
    "Caddy in front": ("Caddy", ""),
    "nghttpx in front": ("nghttpx 1", ""),
    "Envoy-like in front": ("nghttpx adding", ""),
}


def run(run: Run) -> None:
    """Each capture against each server. Raises MissingToolError without Go."""
    go("replay")
    run.versions["go"] = version_of(tool("go", ""), "version")
    run.parameters |= {"answer_bytes": _ANSWER_BYTES}
    with (
        filled(run, _DEFINITIONS, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _ANSWER_BYTES) as served,
    ):
        saturate(run, served, _cases(run))


def _cases(run: Run) -> Iterator[Case]:
    for name, capture in _CAPTURES.items():
        if run.wants(name, tuple(_CAPTURES)):
            contestants = _CONTESTANTS if name in _SLOW_TOO else _CONTESTANTS[:-1]
            yield Case(name, contestants, client=functools.partial(replayed, Calls(style(*capture))))


BENCH: Final = Bench(
    name="blocks",
    title="what the header blocks of real clients cost",
    method=__doc__,
    cases=tuple(_CAPTURES),
    contestants=_CONTESTANTS,
    columns=COLUMNS,
    bars=(
        ratio("grpc-go, inherited", "blocks that never repeat, 10 times the grpcio engine", 10, over=GRPCIO),
        ratio("nginx in front", "nginx in front, 5 times the grpcio engine", 5, over=GRPCIO),
        ratio("HAProxy in front", "HAProxy in front, 5 times the grpcio engine", 5, over=GRPCIO),
        *(
            ratio(name, f"ahead of {other}", 1, over=other)
            for name in ("grpc-go, inherited", "grpc-core, inherited", "Envoy-like in front")
            for other in (GRPC_GO, TONIC)
        ),
    ),
    plots=(
        Plot(
            name="clients", title="Calls a second on one core, by whose header blocks they have", kind="bars",
            figures=("per_second",), axis="calls a second", contestants=(WIRE, GRPC_GO, TONIC),
        ),
    ),
    run=run,
)  # fmt: skip
