"""What a whole catalog costs: SyncCatalog of 30, 1,000 and 10,000 definitions of 2 KB.

Four connections with one call under way on each, from the client core, by h2load with windows that never fill. *MB/s*
counts the messages alone. avapd's wire engine sends the catalog from the snapshot as it lies there; the peers encode it
anew for each call, as their libraries do.
"""

from __future__ import annotations

from typing import Final

from bench.frame import Bench, Column, Plot, Run
from bench.loads.drive import describe_client
from bench.loads.load import Load
from bench.questions.saturation import COLUMNS, Case, ratio, saturate
from bench.servers.contestants import GRPC_GO, GRPC_JS, GRPCIO, SYNC, TONIC, WIRE, service
from bench.servers.database import READER, database, fill, version

_CONTESTANTS: Final = (WIRE, GRPCIO, GRPC_JS, GRPC_GO, TONIC)
_SIZES: Final = {"30 definitions": 30, "1,000 definitions": 1_000, "10,000 definitions": 10_000}
_DEFINITION_BYTES: Final = 2_048
_FOUR: Final = Load(4, 1)


def run(run: Run) -> None:
    """Each size against each server."""
    describe_client(run)
    run.parameters |= {"definition_bytes": _DEFINITION_BYTES}
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        for name, definitions in _SIZES.items():
            if not run.wants(name, tuple(_SIZES)):
                continue
            fill(postgres, definitions, _DEFINITION_BYTES)
            with service(postgres.url(READER), definitions, _DEFINITION_BYTES) as served:
                size = served.catalog_bytes
                case = Case(
                    name, _CONTESTANTS, _FOUR,
                    change=lambda target, size=size: target._replace(path=SYNC, message=b"", answer_bytes=size),  # type: ignore[misc]
                )  # fmt: skip
                saturate(run, served, [case])


BENCH: Final = Bench(
    name="sync",
    title="what a whole catalog costs",
    method=__doc__,
    cases=tuple(_SIZES),
    contestants=_CONTESTANTS,
    columns=(Column(figure="mb_per_second", head="messages", unit="MB/s"), *COLUMNS),
    bars=tuple(
        ratio(case, f"ahead of {other}", 1, over=other, figure="mb_per_second")
        for case in _SIZES
        for other in (GRPCIO, GRPC_JS, GRPC_GO, TONIC)
    ),
    plots=(
        Plot(
            name="catalogs", title="Whole catalogs from one core", kind="bars", figures=("mb_per_second",),
            axis="MB/s", log=True,
        ),
    ),
    run=run,
)  # fmt: skip
