"""Both engines answer alike: generated calls, valid and invalid, the same octets to each, and what comes back compared.

Status, message, data, headers and trailers are compared, or the code of RST_STREAM and GOAWAY where there is no status.
Where the engines differ the difference stands in DIFFERENCES with its reason, and in tests/README.md. Everything else
that differs is a failure. AVAPD_TEST_CASES=100000 makes as many calls; that takes some minutes, all of them grpcio's.
"""

from __future__ import annotations

import gzip
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from support.database import Database
from support.odd_calls import MAX_REQUEST, NAMES, ODD, Call, calls
from support.raw import framed
from support.server import Server
from support.streams import Ending, Streams

CASES = int(os.environ.get("AVAPD_TEST_CASES", "2000"))
SEED = int(os.environ.get("AVAPD_TEST_SEED", "1"))
BATCH = 20
CONNECTIONS = 16
ALONE = 2000  # octets of a call that would take too much of the window which many share
README = Path(__file__).parents[1] / "README.md"

OK, PROTOCOL = "200/0", "RST_STREAM PROTOCOL_ERROR"
CALM = "GOAWAY ENHANCE_YOUR_CALM"


Verdicts = dict[str, tuple[set[str], set[str]]]  # by odd part: what grpcio has said to it, and what the wire engine


class Difference(NamedTuple):
    """What grpcio says, what the wire engine says (HTTP status / gRPC status), and why it is right to differ."""

    grpcio: tuple[str, ...]
    wire: tuple[str, ...]
    reason: str


_HTTP = "RFC 9113 section 8.1.1: a malformed request must not be served"
_BEFORE = "grpcio never answers a Health.Check that ends before its message"
# By the odd part of a call; see support/odd_calls.py. Where both sides are the same, only the message differs.
DIFFERENCES: dict[str, Difference] = {
    "path empty": Difference(("200/12",), (PROTOCOL,), "RFC 9113 section 8.3.1: `:path` must not be empty (B4)"),
    "method GET": Difference(("RST_STREAM INTERNAL_ERROR",), ("405/13",), "says what is wrong, as grpc-go does (B6)"),
    "method PUT": Difference(("RST_STREAM INTERNAL_ERROR",), ("405/13",), "the same (B6)"),
    "no :method": Difference(("RST_STREAM INTERNAL_ERROR",), (PROTOCOL,), _HTTP),
    "no :scheme": Difference(("RST_STREAM INTERNAL_ERROR",), (PROTOCOL,), _HTTP),
    "no :path": Difference(("RST_STREAM INTERNAL_ERROR",), (PROTOCOL,), _HTTP),
    "no :authority": Difference(("RST_STREAM INTERNAL_ERROR",), (OK, "200/5"), "RFC 9113 allows it to be left out"),
    ":path twice": Difference((OK, "200/5", "200/16"), (PROTOCOL,), _HTTP),
    ":method twice": Difference((OK, "200/5"), (PROTOCOL,), _HTTP),
    "unknown pseudo-header": Difference(("200/13",), (PROTOCOL,), _HTTP),
    "response pseudo-header": Difference((OK, "200/5"), (PROTOCOL,), _HTTP),
    "pseudo-header last": Difference((OK, "200/5", "200/13"), (PROTOCOL,), _HTTP),
    "type missing": Difference((OK, "200/5"), ("415",), "PROTOCOL-HTTP2: 415 for what is no gRPC (B5)"),
    "type of another kind": Difference((OK, "200/5"), ("415",), "the same (B5)"),
    "type like ours": Difference((OK, "200/5"), ("415",), "the same: `application/grpc-web` is another protocol (B5)"),
    "type +json": Difference((OK, "200/5"), ("415",), "the same: an answer in protobuf would be no JSON (B5)"),
    "te missing": Difference(("RST_STREAM INTERNAL_ERROR",), (OK, "200/5"), "served as by grpc-go and -java (B8)"),
    "te wrong": Difference(("200/13",), (PROTOCOL,), "RFC 9113 section 8.2.2 (B8)"),
    "timeout malformed": Difference(("200/13",), ("200/13",), "another message"),
    "timeout of nine digits": Difference((OK, "200/5"), ("200/13",), "PROTOCOL-HTTP2 allows eight (B10)"),
    "encoding unknown, not used": Difference(("200/13",), ("200/12",), "compression.md: 12, and what is known (B18)"),
    "encoding gzip, bad": Difference(("200/13",), ("200/13",), "another message"),
    "encoding deflate, used": Difference((OK, "200/5"), ("200/12",), "identity and gzip are enough (B17)"),
    "encoding unknown, used": Difference(("200/13",), ("200/12",), "compression.md: 12, and what is known (B17)"),
    "encoding missing, used": Difference((OK, "200/5"), ("200/13",), "compression.md: 13 (B16)"),
    "encoding identity, used": Difference((OK, "200/5"), ("200/13",), "the same (B16)"),
    "no message": Difference(("silent",), ("200/12",), _BEFORE),
    "no message, empty DATA": Difference(("silent",), ("200/12",), _BEFORE),
    "two messages": Difference((OK, "200/5"), ("200/12",), "statuscodes.md: 12 for a wrong number (B13)"),
    "half a message": Difference(("200/12", "silent"), ("200/13",), "it had begun: 13 as grpc-go (B14)"),
    "length too long": Difference(("200/12", "silent"), ("200/13",), "the same (B14)"),
    "length too short": Difference((OK, "200/5", "200/13"), ("200/12",), "a second message begins (B13)"),
    "length over the limit": Difference(("200/8",), ("200/8",), "another message"),
    "message over the limit": Difference(("200/8",), ("200/8",), "another message"),
    "flag": Difference((OK, "200/5"), ("200/13",), "grpcio takes the message for an empty one (B19)"),
    "header name in capitals": Difference(("200/13",), (PROTOCOL,), _HTTP),
    "header name with a blank": Difference(("200/13",), (PROTOCOL,), _HTTP),
    "header name not ASCII": Difference(("200/13",), (PROTOCOL,), _HTTP),
    "header name with a colon": Difference(("200/13",), (PROTOCOL,), _HTTP),
    "header name empty": Difference(("200/13",), (PROTOCOL,), _HTTP),
    "header value with a control": Difference((OK, "200/5"), (PROTOCOL,), _HTTP),
    "header value in blanks": Difference((OK, "200/5"), (PROTOCOL,), _HTTP),
    "header of a connection": Difference((OK, "200/5"), (PROTOCOL,), "RFC 9113 section 8.2.2"),
    "transfer-encoding": Difference((OK, "200/5"), (PROTOCOL,), "RFC 9113 section 8.2.2"),
    "bad base64": Difference(("200/13",), (OK, "200/5"), "nobody reads it (B23)"),
    "content-length wrong": Difference((OK, "200/5"), (PROTOCOL,), "RFC 9113 section 8.1.1"),
    "grpc-internal header": Difference(("200/13",), (OK, "200/5"), "nobody reads it (B37)"),
    "header of 20 KB": Difference(("200/8",), ("200/8",), "another message"),
    "header of 100 KB": Difference(("200/8",), (CALM,), "four times the limit is an attack (C14)"),
    "200 headers": Difference((OK, "200/5"), ("200/8",), "128 fields, so that small ones cannot cost much (C14)"),
    "600 headers": Difference(("200/8",), (CALM,), "four times the limit is an attack (C14)"),
}
# Of two reasons to refuse a call grpcio tells this one, whatever the other is; rarely its answer is faster.
EARLY = {"timeout over"}


@pytest.fixture(scope="module")
def ports(postgres_url: str) -> Iterator[dict[str, int]]:
    """A server on each engine, with the same table."""
    database = Database(postgres_url)
    database.insert([(name, None, None, f"# {name}\n") for name in NAMES])
    env = {"AVAPD_WORKERS": "1", "AVAPD_LIMIT_REQUEST_BYTES": str(MAX_REQUEST), "AVAPD_SILENCE_SECONDS": "60"}
    with (
        Server(database.reader_url, env={**env, "AVAPD_ENGINE": "grpcio"}) as grpcio,
        Server(database.reader_url, env={**env, "AVAPD_ENGINE": "wire"}) as wire,
    ):
        yield {"grpcio": grpcio.wait_serving().port, "wire": wire.wait_serving().port}
    database.drop()


def play(port: int, played: Sequence[Call]) -> list[Ending]:
    """How each call ends, in their order."""
    batches = [played[at : at + BATCH] for at in range(0, len(played), BATCH)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:  # grpcio takes its time over much that is odd, and no CPU
        return [ending for endings in pool.map(lambda batch: together(port, batch), batches) for ending in endings]


def together(port: int, batch: Sequence[Call]) -> list[Ending]:
    """How calls end that share a connection; large ones, and those of one that went down, are made again alone."""
    streams = {at: 2 * at + 1 for at, call in enumerate(batch) if call.size < ALONE}
    found: dict[int, Ending] = {}
    with Streams(port, seconds=0.3) as client:
        client.send(b"".join(batch[at].on(stream) for at, stream in streams.items()))
        endings = client.endings(list(streams.values()))
        if not client.closed and not client.goaway:
            found = {at: endings[stream] for at, stream in streams.items() if endings[stream].end != "silent"}
    return [found[at] if at in found else alone(port, call) for at, call in enumerate(batch)]


def alone(port: int, call: Call) -> Ending:
    """How a call ends that has a connection to itself."""
    with Streams(port, seconds=2.0) as client:
        client.send(call.on(1))
        return client.endings([1])[1]


def verdict(ending: Ending) -> str:
    """An ending without its text: HTTP status / gRPC status, or how it ended without."""
    if ending.end != "answer":
        return ending.end
    status, code = ending.field(b":status").decode(), ending.field(b"grpc-status").decode()
    return f"{status}/{code}" if code else status


def as_clients_see_it(ending: Ending) -> Ending:
    """Without what makes no difference: codings that the server takes, an empty message, the order of fields, gzip."""
    silent = {(b"grpc-message", b""), (b"grpc-encoding", b"gzip")}
    fields = (field for field in ending.fields if field[0] != b"grpc-accept-encoding" and field not in silent)
    data = ending.data
    if data[:1] == b"\1":
        assert ending.field(b"grpc-encoding") == b"gzip"
        data = framed(gzip.decompress(data[5:]))
    return ending._replace(fields=tuple(sorted(fields)), data=data)


@pytest.mark.timeout(1200)
def test_the_engines_answer_alike(ports: dict[str, int]) -> None:
    """The same to every call, but for the closed list of differences, each of which really exists."""
    played = list(calls(CASES, SEED))
    theirs, ours = play(ports["grpcio"], played), play(ports["wire"], played)
    verdicts: Verdicts = defaultdict(lambda: (set(), set()))
    for call, their, our in zip(played, theirs, ours, strict=True):
        if len(call.odd) == 1:
            verdicts[call.odd[0]][0].add(verdict(their))
            verdicts[call.odd[0]][1].add(verdict(our))
    unexplained, used = [], set()
    for call, their, our in zip(played, theirs, ours, strict=True):
        if as_clients_see_it(their) == as_clients_see_it(our):
            continue
        reasons = {part for part in call.odd if part in DIFFERENCES}
        if len(call.odd) == 1:
            part = call.odd[0]
            faster = part in EARLY and verdict(our) == "200/4"
            explained = faster or (bool(reasons) and differs_as_listed(DIFFERENCES[part], their, our))
        else:
            explained = mixed(call.odd, verdicts, their, our)
        used |= reasons if explained and len(call.odd) == 1 else set()
        if not explained:
            unexplained.append((call.odd, verdict(their), verdict(our), their, our, call.head))
    assert not unexplained, f"{len(unexplained)} of {len(played)}:\n" + "\n".join(map(str, unexplained[:5]))
    assert used == set(DIFFERENCES), "a listed difference did not occur"


def mixed(odd: tuple[str, ...], verdicts: Verdicts, their: Ending, our: Ending) -> bool:
    """Whether each engine says to two odd parts what it says to one of them, and there is a reason to differ."""
    if verdict(their) == verdict(our) == "200/8":  # two things of a legal size are too large together
        return True
    if not any(part in DIFFERENCES or part in EARLY for part in odd):
        return False
    if verdict(our) == "405" and odd[0].split()[0] != odd[1].split()[0]:  # another method and no gRPC: B7
        return {part.split()[0] for part in odd} == {"method", "type"}
    return all(any(verdict(ending) in verdicts[part][side] for part in odd) for side, ending in enumerate((their, our)))


def differs_as_listed(difference: Difference, their: Ending, our: Ending) -> bool:
    return verdict(their) in difference.grpcio and verdict(our) in difference.wire


def test_the_list_names_odd_parts_only() -> None:
    """Nothing that is right is listed as different."""
    assert set(DIFFERENCES) <= set(ODD)


def test_the_readme_tells_the_differences() -> None:
    """tests/README.md holds this list."""
    rows = [
        f"| {part} | {' or '.join(difference.grpcio)} | {' or '.join(difference.wire)} | {difference.reason} |"
        for part, difference in DIFFERENCES.items()
    ]
    missing = [row for row in rows if row not in README.read_text(encoding="utf-8")]
    assert not missing, "\n".join(missing)
