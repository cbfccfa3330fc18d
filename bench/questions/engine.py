"""What one core answers, at saturation: avapd on both engines, and what a user would take instead.

*wire* and *grpcio* are `avapd serve` with one worker: they check the key, look the name up in the mapped catalog
(100,000 definitions) and count the call. *grpc_go* is a server of our own for the same contract, catalog and key on
grpc-go (peers/grpc_go). *bare_aio* is a grpc.aio server on uvloop that returns a constant. *nghttpd* (C) sends a static
file of the same size and a trailer, and knows no keys: the limit.

All run on the server core, one process that answers each. Each round starts all anew (two processes of one program
differ by some percent for as long as they live) and then loads them in turn, case by case, so that what else the
machine does meets all. The client is a closed loop on the client core: *10x10* is 10 connections with 10 calls under
way on each, *1x1* one call at a time. The first seven cases are one call again and again, by h2load; the misses (a
method or a name that nobody has, a wrong key) at 10x10 as well. All others are 10x10 by the replay client
(peers/replay), which only writes what was encoded before. *...'s blocks* asks for a definition with header blocks as
that client or proxy encodes them: learned from captures, which are reproduced byte for byte; grpc-go has another
deadline in each call, so that no block repeats. *random names* asks for any of the definitions, *random unknown names*
for ones that nobody has.

*per CPU second* divides by the CPU time of the answering process: the figure that a shared machine disturbs least.
Where *server's CPU* is well below one core, the server waited: for a client that has no core left (*client's CPU*), or
for the wake-ups between the two cores. Ratios are those of the first to the second; above 1 the first is faster.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from avapd.shared.snapshot import key_of
from bench.frame import Bar, Bench, Column, Run
from bench.loads.drive import CLIENT, Client, Load, client_version, closed_loop, drive
from bench.loads.replay import Calls, replayed
from bench.loads.styles import style
from bench.servers.avapd import KEY
from bench.servers.build import MissingToolError, go, go_version
from bench.servers.contestants import (
    BARE_AIO,
    GRPC_GO,
    GRPCIO,
    NGHTTPD,
    SERVICE_PATH,
    WIRE,
    Service,
    Target,
    check,
    present,
    service,
    started,
)
from bench.servers.database import READER, filled, name_of

_ALL: Final = (WIRE, GRPCIO, GRPC_GO, NGHTTPD, BARE_AIO)
_CHECKING: Final = (WIRE, GRPCIO, GRPC_GO)
_DEFINITIONS, _QUICK_DEFINITIONS = 100_000, 1_000
_ANSWER_BYTES: Final = 2_048
_RANDOM_NAMES: Final = 20_000
_NOT_FOUND, _UNIMPLEMENTED, _UNAUTHENTICATED = 5, 12, 16

_TEN_BY_TEN: Final = Load(10, 10)
_LOADS: Final = {"1x1": Load(1, 1), "50x20": Load(50, 20), "1x100": Load(1, 100)}
_MISSES: Final = ("unknown method", "unknown name", "wrong key")
_CAPTURES: Final = {"grpc-go's blocks": "inherited", "nginx's blocks": "", "HAProxy's blocks": ""}
_RANDOM, _RANDOM_UNKNOWN = "random names", "random unknown names"
_CASES: Final = ("10x10", *_MISSES, *_LOADS, *_CAPTURES, _RANDOM, _RANDOM_UNKNOWN)


class _Case(NamedTuple):
    """Who is loaded how; `change` makes the target from the one that answers a definition."""

    name: str
    contestants: tuple[str, ...]
    load: Load = _TEN_BY_TEN
    client: Client = closed_loop
    change: Callable[[Target], Target] = lambda target: target


def run(run: Run) -> None:
    """Rounds A B C A B C, each case in every round."""
    definitions = _QUICK_DEFINITIONS if run.quick else _DEFINITIONS
    run.parameters |= {"seconds": 1.0 if run.quick else 3.0, "answer_bytes": _ANSWER_BYTES, "client": CLIENT}
    run.versions[CLIENT] = client_version()
    names = present(run, _ALL)
    cases = [case for case in _cases(run, definitions) if run.wants(case.name, _CASES)]
    with (
        filled(run, definitions, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), definitions, _ANSWER_BYTES) as served,
    ):
        for number in run.rounds(full=5, quick=2):
            _round(run, number, served, names, cases)


def _round(run: Run, number: int, served: Service, names: list[str], cases: list[_Case]) -> None:
    with started(run, names, served) as targets:
        for case in cases:
            for name in (name for name in names if name in case.contestants):
                target = case.change(targets[name])
                if target.status:
                    check(target)
                figures = drive(target, case.load, run.parameters["seconds"], run.cores.client, case.client)
                run.record(case.name, number, figures, contestant=name)


def _cases(run: Run, definitions: int) -> Iterator[_Case]:
    yield _Case("10x10", _ALL)
    for name, change in zip(_MISSES, (_unknown_method, _unknown_name, _wrong_key), strict=True):
        yield _Case(name, _CHECKING, change=change)
    for name, load in _LOADS.items():
        yield _Case(name, _ALL, load)
    try:
        go("replay")
    except MissingToolError as error:
        run.skip("replay", str(error))
        return
    run.versions["go"] = go_version()
    for name, deadline in _CAPTURES.items():
        calls = Calls(style(name.partition("'")[0], deadline))
        yield _Case(name, (*_CHECKING, NGHTTPD), client=functools.partial(replayed, calls))
    steady, draw = style("grpc-go", "no deadline"), random.Random(1)
    numbers = [draw.randrange(definitions) for _ in range(_RANDOM_NAMES)]
    known, unknown = (
        functools.partial(replayed, Calls(steady, tuple(key_of(name_of(number + more)) for number in numbers)))
        for more in (0, definitions)
    )
    yield _Case(_RANDOM, _CHECKING, client=known)
    yield _Case(_RANDOM_UNKNOWN, _CHECKING, client=unknown, change=_unknown_name)


def _unknown_method(target: Target) -> Target:
    return target._replace(path=SERVICE_PATH + "GetComment", status=_UNIMPLEMENTED, answer_bytes=0)


def _unknown_name(target: Target) -> Target:
    return target._replace(message=key_of("nobody_has_this"), status=_NOT_FOUND, answer_bytes=0)


def _wrong_key(target: Target) -> Target:
    return target._replace(headers={"x-avap-auth": "x" * len(KEY)}, status=_UNAUTHENTICATED, answer_bytes=0)


def _ratio(
    case: str, says: str, limit: float | None, *, ours: str = WIRE, over: str = "", over_case: str = "",
    figure: str = "per_second",
) -> Bar:  # fmt: skip
    return Bar(
        says=says, case=case, figure=figure, contestant=ours, over=over, over_case=over_case, sense="at least",
        limit=limit,
    )  # fmt: skip


BENCH = Bench(
    name="engine",
    title="what one core answers, on both engines and elsewhere",
    method=__doc__,
    cases=_CASES,
    contestants=_ALL,
    columns=(
        Column(figure="per_second", head="calls", unit="1/s"),
        Column(figure="per_cpu_second", head="calls per CPU second", unit="1/s"),
        Column(figure="mean_ms", head="mean latency", unit="ms", digits=3),
        Column(figure="server_cpu", head="server's CPU", unit="cores", digits=2),
        Column(figure="client_cpu", head="client's CPU", unit="cores", digits=2),
    ),
    bars=(
        _ratio("10x10", "20 times the grpcio engine", 20, over=GRPCIO),
        _ratio("10x10", "4 times grpc-go", 4, over=GRPC_GO),
        _ratio("10x10", "0.7 of nghttpd with a static file", 0.7, over=NGHTTPD),
        *(
            _ratio("10x10", "the same, per CPU second", None, over=other, figure="per_cpu_second")
            for other in (GRPCIO, GRPC_GO, NGHTTPD)
        ),
        _ratio("1x1", "one call at a time, 4 times the grpcio engine", 4, over=GRPCIO),
        _ratio("1x1", "the same, per CPU second", None, over=GRPCIO, figure="per_cpu_second"),
        _ratio("1x1", "one call at a time, ahead of grpc-go", 1, over=GRPC_GO),
        _ratio("1x1", "the same, per CPU second", None, over=GRPC_GO, figure="per_cpu_second"),
        _ratio("grpc-go's blocks", "blocks that never repeat, 10 times the grpcio engine", 10, over=GRPCIO),
        _ratio("nginx's blocks", "nginx in front, 5 times the grpcio engine", 5, over=GRPCIO),
        _ratio("HAProxy's blocks", "HAProxy in front, 5 times the grpcio engine", 5, over=GRPCIO),
        *(_ratio(case, "a miss is as fast as a hit", 0.9, over_case="10x10") for case in _MISSES),
        _ratio(_RANDOM_UNKNOWN, "a miss is as fast as a hit", 0.9, over_case=_RANDOM),
        _ratio("10x10", "the grpcio engine reaches 0.9 of a bare grpc.aio server", 0.9, ours=GRPCIO, over=BARE_AIO),
        _ratio("1x1", "the grpcio engine reaches 0.9 of a bare grpc.aio server", 0.9, ours=GRPCIO, over=BARE_AIO),
    ),
    run=run,
)
