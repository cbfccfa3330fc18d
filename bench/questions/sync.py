"""What a whole catalog costs: SyncCatalog of 30, 1,000 and 10,000 definitions of 2 KB.

Four connections with one call under way on each, from the client core, by h2load with windows that never fill. *MB/s*
counts the messages alone. avapd's wire engine sends the catalog from the snapshot as it lies there; the peers encode it
anew for each call, as their libraries do.

*In gzip* is avapd alone, which sends what it has compressed once to a client that takes it; MB/s are those of the
messages as they are before. Half of each definition's code is then text without a pattern, since what the others are
padded with would shrink to nothing.
"""

from __future__ import annotations

from typing import Final

from avapd.demo.postgres import Postgres
from bench.frame import Bench, Column, Plot, Run
from bench.loads.drive import describe_client
from bench.loads.load import Load
from bench.questions.saturation import COLUMNS, Case, ratio, saturate
from bench.servers.contestants import GRPC_GO, GRPC_JS, GRPCIO, SYNC, TONIC, WIRE, Target, check, service
from bench.servers.database import READER, database, fill, version

_CONTESTANTS: Final = (WIRE, GRPCIO, GRPC_JS, GRPC_GO, TONIC)
_SIZES: Final = {"30 definitions": 30, "1,000 definitions": 1_000, "10,000 definitions": 10_000}
_DEFINITION_BYTES: Final = 2_048
_FOUR: Final = Load(4, 1)
_PLAIN, _IN_GZIP = "10,000 definitions", "10,000 definitions in gzip"
_CASES: Final = (*_SIZES, _IN_GZIP)


def _in_gzip(target: Target, size: int) -> Target:
    """The catalog for a client that takes gzip, as soon as it is there."""
    target = target._replace(path=SYNC, message=b"", answer_bytes=size)
    check(target)  # by grpcio, which takes it so: from here on it is compressed
    assert target.avapd is not None
    sent = target.avapd.wait("Catalog Compressed").fields["bytes"]
    return target._replace(headers={**target.headers, "grpc-accept-encoding": "gzip"}, sent_bytes=sent)


def _mix(postgres: Postgres) -> None:
    """Replace half of each code by hexadecimal digits without a pattern."""
    half = _DEFINITION_BYTES // 2
    digits = f"(SELECT string_agg(md5(id || '/' || n), '') FROM generate_series(1, {half // 32}) AS n)"
    postgres.psql(f"UPDATE obex_dapl_functions SET code = overlay(code placing {digits} from 100 for {half})")


def run(run: Run) -> None:
    """Each size against each server."""
    describe_client(run)
    run.parameters |= {"definition_bytes": _DEFINITION_BYTES}
    with database() as postgres:
        run.versions["postgres"] = version(postgres)
        for name, definitions in _SIZES.items():
            if not run.wants(name, _CASES):
                continue
            fill(postgres, definitions, _DEFINITION_BYTES)
            with service(postgres.url(READER), definitions, _DEFINITION_BYTES) as served:
                size = served.catalog_bytes
                case = Case(
                    name, _CONTESTANTS, _FOUR,
                    change=lambda target, size=size: target._replace(path=SYNC, message=b"", answer_bytes=size),  # type: ignore[misc]
                )  # fmt: skip
                saturate(run, served, [case])
        if run.wants(_IN_GZIP, _CASES):
            fill(postgres, _SIZES[_PLAIN], _DEFINITION_BYTES)
            _mix(postgres)
            with service(postgres.url(READER), _SIZES[_PLAIN], _DEFINITION_BYTES) as served:
                size = served.catalog_bytes
                saturate(run, served, [Case(_IN_GZIP, (WIRE,), _FOUR, change=lambda target: _in_gzip(target, size))])


BENCH: Final = Bench(
    name="sync",
    title="what a whole catalog costs",
    method=__doc__,
    cases=_CASES,
    contestants=_CONTESTANTS,
    columns=(Column(figure="mb_per_second", head="messages", unit="MB/s"), *COLUMNS),
    bars=(
        *(
            ratio(case, f"ahead of {other}", 1, over=other, figure="mb_per_second")
            for case in _SIZES
            for other in (GRPCIO, GRPC_JS, GRPC_GO, TONIC)
        ),
        ratio(_IN_GZIP, "ahead of the same as it is", 1, over=WIRE, over_case=_PLAIN, figure="per_cpu_second"),
    ),
    plots=(
        Plot(
            name="catalogs", title="Whole catalogs from one core", kind="bars", figures=("mb_per_second",),
            axis="MB/s", log=True, cases=tuple(_SIZES),
        ),
    ),
    run=run,
)  # fmt: skip
