"""The cases of h2spec's group `generic`: what every server must accept."""

from __future__ import annotations

import itertools

from wire.h2spec_client import (
    COMMON,
    H2SPEC,
    POST,
    ZEROS,
    Case,
    Client,
    acknowledged,
    answered,
    data,
    pong,
    pong_or_closed,
    stream_closed,
)
from wire.raw import (
    CANCEL,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITISED,
    SETTINGS,
    continuation,
    frame,
    goaway,
    headers,
    ping,
    priority,
    rst_stream,
    settings,
    window_update,
)
from wire.raw import data as body

_OPEN = settings({4: 0})  # a window of nothing keeps an answer, and so its stream, open


def preface(client: Client) -> None:
    """The server's SETTINGS are the first thing it says."""
    fresh = Client(handshake=False)
    fresh.send(PREFACE, settings({4: 65_535}))
    first = fresh.peer.frames[0]
    assert (first.kind, first.flags) == (SETTINGS, 0)


def _priority_on_closed(client: Client) -> bytes:
    client.send(client.request())
    stream_closed(client)
    return priority(1, weight=255) + ping(ZEROS)


def _continued(client: Client, *cuts: int) -> bytes:
    """A request whose block is cut into HEADERS and CONTINUATION frames."""
    block, cuts = client.block(), (0, *cuts, 1 << 20)
    parts = [block[start:end] for start, end in itertools.pairwise(cuts)]
    frames = [headers(1, parts[0], end=True, flags=0)]
    frames += [continuation(1, part, flags=0) for part in parts[1:-1]]
    return b"".join(frames) + continuation(1, parts[-1])


def _with_trailers(client: Client) -> bytes:
    start = client.request((*POST, (b"trailer", b"x-test")), end=False)
    return start + body(1, b"test") + client.request(((b"x-test", b"ok"),))


def _post(client: Client) -> bytes:
    return client.request(POST, end=False)


def _then(rest: str) -> Case:
    """A request whose block ends with these bytes."""
    return (
        f"a header written as {rest} is accepted",
        lambda client: headers(1, client.block() + bytes.fromhex(rest), end=True),
        answered,
    )


def _after(start: str) -> Case:
    """A request whose block begins with these bytes."""
    return (
        f"a table size update {start} is accepted",
        lambda client: headers(1, bytes.fromhex(start) + client.block(), end=True),
        answered,
    )


_AGENT, _AGENT_HUFFMAN = "0a757365722d6167656e7406683273706563", "87b505b161cc5a93849c48aca4"  # user-agent: h2spec
_TEST, _TEST_HUFFMAN = "06782d7465737406683273706563", "85f2b24a84ff849c48aca4"  # x-test: h2spec
_ALL_SETTINGS = {1: 4096, 2: 1, 3: 100, 4: 65_535, 5: 16_384, 6: 100}

CASES: dict[str, Case] = {
    "generic/1/1": ("a client's preface is met with SETTINGS", lambda _: b"", preface),
    "generic/2/1": ("PRIORITY on an idle stream", lambda _: priority(1, weight=255) + ping(ZEROS), pong(ZEROS)),
    "generic/2/2": (
        "WINDOW_UPDATE on a half-closed stream",
        lambda client: _OPEN + client.request() + window_update(1, 1),
        data,
    ),
    "generic/2/3": (
        "PRIORITY on a half-closed stream",
        lambda client: _OPEN + client.request() + priority(1, weight=255) + window_update(1, 1),
        data,
    ),
    "generic/2/4": (
        "RST_STREAM on a half-closed stream",
        lambda client: client.request() + rst_stream(1, CANCEL) + ping(ZEROS),
        pong_or_closed(ZEROS),
    ),
    "generic/2/5": ("PRIORITY on a closed stream", _priority_on_closed, pong(ZEROS)),
    "generic/3.1/1": ("a DATA frame", lambda client: _post(client) + body(1, b"test", end=True), answered),
    "generic/3.1/2": (
        "two DATA frames",
        lambda client: _post(client) + body(1, b"test") + body(1, b"test", end=True),
        answered,
    ),
    "generic/3.1/3": (
        "a padded DATA frame",
        lambda client: _post(client) + body(1, b"test", end=True, padding=5),
        answered,
    ),
    "generic/3.2/1": ("a HEADERS frame", lambda client: client.request(), answered),
    "generic/3.2/2": (
        "a padded HEADERS frame",
        lambda client: frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\x08" + client.block(COMMON) + bytes(8)),
        answered,
    ),
    "generic/3.2/3": (
        "a HEADERS frame with priority",
        lambda client: frame(HEADERS, END_STREAM | END_HEADERS | PRIORITISED, 1, b"\0\0\0\0\xff" + client.block()),
        answered,
    ),
    "generic/3.3/1": ("PRIORITY 1", lambda client: priority(1, weight=0) + client.request(), answered),
    "generic/3.3/2": ("PRIORITY 256", lambda client: priority(1, weight=255) + client.request(), answered),
    "generic/3.3/3": (
        "PRIORITY with a dependency",
        lambda client: priority(3, 1, weight=0) + client.request(),
        answered,
    ),
    "generic/3.3/4": (
        "PRIORITY, exclusive",
        lambda client: priority(1, 1 << 31, weight=0) + client.request(),
        answered,
    ),
    "generic/3.3/5": (
        "PRIORITY for a higher stream opens nothing",
        lambda client: priority(3, weight=255) + client.request(),
        answered,
    ),
    "generic/3.4/1": (
        "RST_STREAM",
        lambda client: client.request(end=False) + rst_stream(1, CANCEL) + ping(ZEROS),
        pong(ZEROS),
    ),
    "generic/3.5/1": ("SETTINGS with every value", lambda _: settings(_ALL_SETTINGS), acknowledged),
    "generic/3.7/1": ("PING", lambda _: ping(H2SPEC), pong(H2SPEC)),
    "generic/3.8/1": ("GOAWAY", lambda _: goaway(debug=b"h2spec") + ping(H2SPEC), pong_or_closed(H2SPEC)),
    "generic/3.9/1": ("WINDOW_UPDATE of the connection", lambda _: window_update(0, 1) + ping(ZEROS), pong(ZEROS)),
    "generic/3.9/2": (
        "WINDOW_UPDATE of a stream",
        lambda client: client.request() + window_update(1, 1),
        answered,
    ),
    "generic/3.10/1": ("a CONTINUATION", lambda client: _continued(client, 5), answered),
    "generic/3.10/2": ("two CONTINUATIONs", lambda client: _continued(client, 5, 10), answered),
    "generic/4/1": ("a GET", lambda client: client.request(), answered),
    "generic/4/2": ("a HEAD", lambda client: client.request(((b":method", b"HEAD"), *COMMON[1:])), answered),
    "generic/4/3": ("a POST", lambda client: _post(client) + body(1, b"test", end=True), answered),
    "generic/4/4": ("a POST with trailers", _with_trailers, answered),
    "generic/5/1": _then("ba"),
    "generic/5/2": _then("40" + _AGENT_HUFFMAN),
    "generic/5/3": _then("40" + _AGENT),
    "generic/5/4": _then("40" + _TEST),
    "generic/5/5": _then("40" + _TEST_HUFFMAN),
    "generic/5/6": _then("00" + _AGENT),
    "generic/5/7": _then("00" + _AGENT_HUFFMAN),
    "generic/5/8": _then("00" + _TEST),
    "generic/5/9": _then("00" + _TEST_HUFFMAN),
    "generic/5/10": _then("10" + _AGENT),
    "generic/5/11": _then("10" + _AGENT_HUFFMAN),
    "generic/5/12": _then("10" + _TEST_HUFFMAN),
    "generic/5/13": _then("10" + _TEST_HUFFMAN),
    "generic/5/14": _after("3f61"),
    "generic/5/15": _after("3f613fe11f"),
}
