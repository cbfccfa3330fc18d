"""The cases of h2spec's group `http2`, sections 3 to 5 of RFC 7540: connection, frames, header blocks, streams."""

from __future__ import annotations

from wire.h2spec_client import (
    COMMON,
    ZEROS,
    Case,
    Client,
    Send,
    answered,
    begun,
    closed,
    connection_error,
    dummies,
    get_and,
    goaway_seen,
    more,
    pong,
    post_and,
    stream_closed,
    stream_error,
)
from wire.h2spec_generic import preface
from wire.raw import (
    CANCEL,
    COMPRESSION_ERROR,
    FRAME_SIZE_ERROR,
    MAX_CONCURRENT_STREAMS,
    PING,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    continuation,
    frame,
    headers,
    ping,
    priority,
    rst_stream,
    settings,
    window_update,
)
from wire.raw import data as body

_PROTOCOL = connection_error(PROTOCOL_ERROR)
_MALFORMED = stream_error(PROTOCOL_ERROR)
_UNKNOWN = frame(0x16, 0, 0, ZEROS)
_PRIORITY = priority(1, weight=255)


def _after_the_end(send: Send) -> Send:
    """Send it once the answer is complete."""

    def run(client: Client) -> bytes | None:
        client.send(client.request())
        stream_closed(client)
        return send(client)

    return run


def _same_block_again(client: Client) -> None:
    again = client.request()
    client.send(again)
    stream_closed(client)
    client.send(again)


def _bad_preface(client: Client) -> None:
    client.peer = Client(handshake=False).peer
    client.send(b"INVALID CONNECTION PREFACE\r\n\r\n")


def _one_too_many(client: Client) -> bytes:
    """A stream more than allowed, none of which can end for want of a window."""
    allowed = client.peer.server_settings[MAX_CONCURRENT_STREAMS]
    block = client.block()
    streams = range(1, 2 * allowed + 2, 2)
    return settings({4: 0}) + b"".join(headers(stream, block, end=True) for stream in streams)


CASES: dict[str, Case] = {
    "http2/3.5/1": ("a client's preface is met with SETTINGS", lambda _: b"", preface),
    "http2/3.5/2": ("an invalid preface", _bad_preface, _PROTOCOL),
    "http2/4.1/1": ("an unknown type is ignored", lambda _: _UNKNOWN + ping(ZEROS), pong(ZEROS)),
    "http2/4.1/2": ("undefined flags are ignored", lambda _: frame(PING, 0x16, 0, ZEROS), pong(ZEROS)),
    "http2/4.1/3": ("the reserved bit is ignored", lambda _: frame(PING, 0x16, 1 << 31, ZEROS), pong(ZEROS)),
    "http2/4.2/1": ("DATA of 2^14 bytes", post_and(body(1, b"x" * 16_384, end=True)), answered),
    "http2/4.2/2": (
        "DATA of 2^14 + 1 bytes",
        post_and(body(1, b"x" * 16_385, end=True)),
        stream_error(FRAME_SIZE_ERROR),
    ),
    "http2/4.2/3": (
        "HEADERS of more than 2^14 bytes",
        lambda client: client.request(COMMON + dummies(5)),
        connection_error(FRAME_SIZE_ERROR),
    ),
    "http2/4.3/1": (
        "a block that is cut off",
        lambda _: frame(1, 5, 1, b"\x40"),
        connection_error(COMPRESSION_ERROR),
    ),
    "http2/4.3/2": ("PRIORITY inside a block", lambda client: begun(client) + _PRIORITY + more(client), _PROTOCOL),
    "http2/4.3/3": (
        "another stream's HEADERS inside a block",
        lambda client: begun(client) + client.request(stream=3) + more(client),
        _PROTOCOL,
    ),
    "http2/5.1/1": ("DATA on idle", lambda _: body(1, b"test", end=True), _PROTOCOL),
    "http2/5.1/2": ("RST_STREAM on idle", lambda _: rst_stream(1, CANCEL), _PROTOCOL),
    "http2/5.1/3": ("WINDOW_UPDATE on idle", lambda _: window_update(1, 100), _PROTOCOL),
    "http2/5.1/4": ("CONTINUATION on idle", lambda client: continuation(1, client.block()), _PROTOCOL),
    "http2/5.1/5": (
        "DATA on half-closed (remote)",
        get_and(body(1, b"test", end=True)),
        stream_error(STREAM_CLOSED),
    ),
    "http2/5.1/6": (
        "HEADERS on half-closed (remote)",
        lambda client: client.request() + client.request(),
        stream_error(STREAM_CLOSED),
    ),
    "http2/5.1/7": (
        "CONTINUATION on half-closed (remote)",
        lambda client: headers(1, block := client.block(), end=True) + continuation(1, block),
        stream_error(STREAM_CLOSED, PROTOCOL_ERROR),
    ),
    "http2/5.1/8": (
        "DATA after RST_STREAM",
        get_and(rst_stream(1, CANCEL), body(1, b"test", end=True), end=False),
        stream_error(STREAM_CLOSED),
    ),
    "http2/5.1/9": (
        "HEADERS after RST_STREAM",
        lambda client: client.request(end=False) + rst_stream(1, CANCEL) + client.request(),
        stream_error(STREAM_CLOSED),
    ),
    "http2/5.1/10": (
        "CONTINUATION after RST_STREAM",
        lambda client: client.request(end=False) + rst_stream(1, CANCEL) + more(client),
        stream_error(STREAM_CLOSED, PROTOCOL_ERROR),
    ),
    "http2/5.1/11": (
        "DATA on closed",
        _after_the_end(lambda _: body(1, b"test", end=True)),
        stream_error(STREAM_CLOSED),
    ),
    "http2/5.1/12": ("HEADERS on closed", _same_block_again, connection_error(STREAM_CLOSED)),
    "http2/5.1/13": (
        "CONTINUATION on closed",
        _after_the_end(more),
        connection_error(STREAM_CLOSED, PROTOCOL_ERROR),
    ),
    "http2/5.1.1/1": ("an even stream", lambda client: client.request(stream=2), _PROTOCOL),
    "http2/5.1.1/2": (
        "a stream below the last",
        lambda client: client.request(stream=5) + client.request(stream=3),
        _PROTOCOL,
    ),
    "http2/5.1.2/1": ("one stream too many", _one_too_many, stream_error(PROTOCOL_ERROR, REFUSED_STREAM)),
    "http2/5.3.1/1": (
        "HEADERS that depend on themselves",
        lambda client: frame(1, 0x25, 1, b"\0\0\0\1\xff" + client.block()),
        _MALFORMED,
    ),
    "http2/5.3.1/2": ("PRIORITY that depends on itself", lambda _: priority(1, 1, weight=255), _MALFORMED),
    "http2/5.4.1/1": ("a connection error closes", lambda _: frame(PING, 0, 3, ZEROS), closed),
    "http2/5.4.1/2": (
        "a connection error is told by GOAWAY",
        lambda _: frame(PING, 0, 3, ZEROS),
        goaway_seen,
    ),
    "http2/5.5/1": ("an extension frame is ignored", lambda _: _UNKNOWN + ping(ZEROS), pong(ZEROS)),
    "http2/5.5/2": (
        "an extension frame inside a block",
        lambda client: begun(client, end=True) + _UNKNOWN,
        _PROTOCOL,
    ),
}
