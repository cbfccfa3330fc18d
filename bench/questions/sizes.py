"""What the size of an answer changes: GetCommand for definitions of 200 B, 2 KB, 20 KB and 200 KB.

The same servers and load as in the bench `engine` (h2load, 10 connections x 10 calls). With large answers the copying
of bytes through the kernel is what everybody does alike; *MB/s* counts the messages alone.
"""

from __future__ import annotations

from typing import Final

from avapd.pb import avap_pb2
from avapd.shared.snapshot import key_of
from bench.frame import Bench, Column, Plot, Run
from bench.loads.drive import describe_client
from bench.questions.saturation import COLUMNS, Case, ratio, saturate
from bench.servers.contestants import GRPC_GO, GRPC_JS, GRPCIO, TONIC, WIRE, Service, service
from bench.servers.database import READER, add, filled

_CONTESTANTS: Final = (WIRE, GRPCIO, GRPC_JS, GRPC_GO, TONIC)
_SIZES: Final = {"200 B": 200, "2 KB": 2_000, "20 KB": 20_000, "200 KB": 200_000}
_DEFINITIONS, _DEFINITION_BYTES = 1_000, 1_200


def run(run: Run) -> None:
    """Each size against each server."""
    describe_client(run)
    with filled(run, _DEFINITIONS, _DEFINITION_BYTES) as postgres:
        for name, size in _SIZES.items():
            add(postgres, name, size)
        with service(postgres.url(READER), _DEFINITIONS, _DEFINITION_BYTES) as served:
            saturate(run, served, _cases(run, served))


def _cases(run: Run, served: Service) -> list[Case]:
    catalog = avap_pb2.CatalogResponse.FromString(served.catalog.read_bytes())
    sizes = {command.name: command.ByteSize() for command in catalog.commands if command.name in _SIZES}
    run.parameters["answer_bytes"] = sizes
    return [
        Case(
            name, _CONTESTANTS,
            change=lambda target, name=name: target._replace(message=key_of(name), answer_bytes=sizes[name]),  # type: ignore[misc]
        )
        for name in _SIZES if run.wants(name, tuple(_SIZES))
    ]  # fmt: skip


BENCH: Final = Bench(
    name="sizes",
    title="what the size of an answer changes",
    method=__doc__,
    cases=tuple(_SIZES),
    contestants=_CONTESTANTS,
    columns=(*COLUMNS, Column(figure="mb_per_second", head="messages", unit="MB/s")),
    bars=tuple(
        ratio(case, f"ahead of {other}", 1, over=other)
        for case in _SIZES
        for other in (GRPCIO, GRPC_JS, GRPC_GO, TONIC)
    ),
    plots=(
        Plot(
            name="sizes", title="Calls a second on one core, by size of the answer", kind="lines",
            figures=("per_second",), axis="calls a second", log=True,
        ),
    ),
    run=run,
)  # fmt: skip
