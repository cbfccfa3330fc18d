"""What people's own clients get, and what a call of theirs costs the server.

The same servers and catalog as in the bench `engine`, asked by the clients that people have: *ghz* (grpc-go, with its
default deadline, so that each header block differs), and closed loops on *grpcio* (grpc.aio), *grpc-js* and *grpc-go*,
each call with a deadline of 20 s. 10 connections with 10 calls under way on each, from the client core. Node compiles
while it runs: *grpc-js* calls for 4 s, its slow start included.

These clients need more CPU for a call than a fast server does. Where *client's CPU* is about one core, *calls* measures
the client, and all fast servers look alike; what can be compared then is *calls per CPU second* of the server, and
*client's CPU* divided by *calls* tells what a call costs whoever makes it.
"""

from __future__ import annotations

from typing import Final

from bench.frame import Bench, Plot, Run
from bench.loads import programs
from bench.loads.drive import Client
from bench.questions.saturation import COLUMNS, Case, ratio, saturate
from bench.servers.build import MissingToolError
from bench.servers.contestants import GRPC_GO, GRPC_JS, TONIC, WIRE, service
from bench.servers.database import READER, filled

_CONTESTANTS: Final = (WIRE, GRPC_JS, GRPC_GO, TONIC)
_CLIENTS: Final[dict[str, Client]] = {
    "ghz": programs.ghz, "grpcio": programs.grpcio, "grpc-js": programs.grpc_js, "grpc-go": programs.grpc_go
}  # fmt: skip
_BUILDS: Final = {
    "ghz": programs.ghz_path, "grpc-js": programs.grpc_js_program, "grpc-go": programs.grpc_go_program
}  # fmt: skip
_SECONDS: Final = {"grpc-js": 4.0}
_DEFINITIONS: Final = 10_000
_ANSWER_BYTES: Final = 2_048


def run(run: Run) -> None:
    """Each client against each server."""
    run.parameters |= {"answer_bytes": _ANSWER_BYTES}
    cases = []
    for name in (name for name in _CLIENTS if run.wants(name, tuple(_CLIENTS))):
        try:
            if name in _BUILDS:
                _BUILDS[name]()
        except MissingToolError as error:
            run.skip(f"client {name}", str(error))
        else:
            cases.append(Case(name, _CONTESTANTS, client=_CLIENTS[name], seconds=_SECONDS.get(name)))
    with (
        filled(run, _DEFINITIONS, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), _DEFINITIONS, _ANSWER_BYTES) as served,
    ):
        saturate(run, served, cases)


BENCH: Final = Bench(
    name="clients",
    title="what people's own clients get",
    method=__doc__,
    cases=tuple(_CLIENTS),
    contestants=_CONTESTANTS,
    columns=COLUMNS,
    bars=tuple(
        ratio(client, "per CPU second of the server", over=other, figure="per_cpu_second")
        for client in _CLIENTS
        for other in (GRPC_GO, TONIC, GRPC_JS)
    ),
    plots=(
        Plot(
            name="server", title="Calls per CPU second of the server, by client", kind="bars",
            figures=("per_cpu_second",), axis="calls per CPU second of the server", log=True,
        ),
    ),
    run=run,
)  # fmt: skip
