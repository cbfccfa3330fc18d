"""What a call costs that no cache of answers can help: any of a million definitions, and whoever asks in vain.

1,000,000 definitions in RAM. *one name* is one definition again and again, the hit to compare with; *random names* asks
for 100,000 definitions drawn uniformly from all, over and over, *random unknown names* for as many names that nobody
has (NOT_FOUND). *unknown name* is one of them again and again, *wrong key* ends in UNAUTHENTICATED, *unknown method* in
UNIMPLEMENTED: what a mistaken or hostile client costs. 10 connections x 10 calls by the replay client, with header
blocks that repeat, so that only the name is new to the server.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Final

from avapd.shared.snapshot import key_of
from bench.frame import Bench, Plot, Run
from bench.loads.replay import Calls, replayed
from bench.loads.styles import style
from bench.questions.saturation import COLUMNS, Case, ratio, saturate
from bench.servers.avapd import KEY
from bench.servers.build import go, tool, version_of
from bench.servers.contestants import GRPC_GO, SERVICE_PATH, TONIC, WIRE, Target, service
from bench.servers.database import READER, filled, name_of

_CONTESTANTS: Final = (WIRE, GRPC_GO, TONIC)
_DEFINITIONS, _QUICK_DEFINITIONS = 1_000_000, 10_000
_ANSWER_BYTES: Final = 400
_NAMES: Final = 100_000
_NOT_FOUND, _UNIMPLEMENTED, _UNAUTHENTICATED = 5, 12, 16


def _unknown_name(target: Target) -> Target:
    return target._replace(message=key_of("nobody_has_this"), status=_NOT_FOUND, answer_bytes=0)


_ONE, _RANDOM, _RANDOM_UNKNOWN = "one name", "random names", "random unknown names"
_ANSWERS: Final[dict[str, Callable[[Target], Target]]] = {
    _ONE: lambda target: target,
    _RANDOM: lambda target: target,
    _RANDOM_UNKNOWN: _unknown_name,
    "unknown name": _unknown_name,
    "wrong key": lambda target: target._replace(
        headers={"x-avap-auth": "x" * len(KEY)}, status=_UNAUTHENTICATED, answer_bytes=0
    ),
    "unknown method": lambda target: target._replace(
        path=SERVICE_PATH + "GetComment", status=_UNIMPLEMENTED, answer_bytes=0
    ),
}


def run(run: Run) -> None:
    """Each kind of miss against each server. Raises MissingToolError without Go."""
    go("replay")
    run.versions["go"] = version_of(tool("go", ""), "version")
    run.parameters |= {"answer_bytes": _ANSWER_BYTES}
    definitions = _QUICK_DEFINITIONS if run.quick else _DEFINITIONS
    draw = random.Random(1)
    numbers = [draw.randrange(definitions) for _ in range(_NAMES)]
    names = {
        _RANDOM: tuple(key_of(name_of(number)) for number in numbers),
        _RANDOM_UNKNOWN: tuple(key_of(name_of(number + definitions)) for number in numbers),
    }
    steady = style("grpc-go", "no deadline")
    with (
        filled(run, definitions, _ANSWER_BYTES) as postgres,
        service(postgres.url(READER), definitions, _ANSWER_BYTES) as served,
    ):
        saturate(run, served, [
            Case(
                name, _CONTESTANTS, client=functools.partial(replayed, Calls(steady, names.get(name, ()))),
                change=change,
            )
            for name, change in _ANSWERS.items() if run.wants(name, tuple(_ANSWERS))
        ])  # fmt: skip


BENCH: Final = Bench(
    name="miss",
    title="any of a million definitions, and asking in vain",
    method=__doc__,
    cases=tuple(_ANSWERS),
    contestants=_CONTESTANTS,
    columns=COLUMNS,
    bars=(
        *(
            ratio(case, "a refusal is as fast as a hit", 0.9, over_case=_ONE)
            for case in ("unknown name", "wrong key", "unknown method")
        ),
        ratio(_RANDOM_UNKNOWN, "a miss is as fast as a hit", 0.9, over_case=_RANDOM),
        *(ratio(_RANDOM, f"ahead of {other}", 1, over=other) for other in (GRPC_GO, TONIC)),
        *(ratio(_RANDOM_UNKNOWN, f"ahead of {other}", 1, over=other) for other in (GRPC_GO, TONIC)),
    ),
    plots=(
        Plot(
            name="misses", title="Calls a second on one core, 1,000,000 definitions", kind="bars",
            figures=("per_second",), axis="calls a second", contestants=(WIRE, GRPC_GO, TONIC),
        ),
    ),
    run=run,
)  # fmt: skip
