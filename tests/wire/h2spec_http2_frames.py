"""The cases of h2spec's group `http2`, sections 6 to 8 of RFC 7540: each frame, error codes, requests."""

from __future__ import annotations

from wire.h2spec_client import (
    COMMON,
    H2SPEC,
    POST,
    ZEROS,
    Case,
    Client,
    Send,
    acknowledged,
    answered,
    begun,
    connection_error,
    data,
    error_of_kind,
    get_and,
    more,
    one_byte,
    pong,
    pong_or_closed,
    post_and,
    stream_error,
    with_settings,
)
from wire.raw import (
    CANCEL,
    DATA,
    END_HEADERS,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Field,
    frame,
    goaway,
    ping,
    priority,
    rst_stream,
    settings,
    window_update,
)
from wire.raw import data as body

_PROTOCOL = connection_error(PROTOCOL_ERROR)
_MALFORMED = stream_error(PROTOCOL_ERROR)
_PRIORITY = priority(1, weight=255)
_HUGE = (1 << 31) - 1
_METHOD, _SCHEME, _PATH, _AUTHORITY = COMMON


def _bad_padding(client: Client) -> bytes:
    block = client.block()
    return frame(1, 0x0D, 1, bytes([len(block) + 2]) + block)


def _malformed(claim: str, *fields: Field) -> Case:
    """A complete request with these fields."""
    return claim, lambda client: client.request(fields), _MALFORMED


def _trailers(*fields: Field) -> Send:
    """A request with trailers that end nothing."""
    return lambda client: client.request(POST, end=False) + body(1, b"test") + client.request(fields, end=False)


def _shrinking_window(client: Client) -> bytes:
    with_settings({4: 3})(client)
    client.send(client.request())
    data(client)
    with_settings({4: 2})(client)  # 3 are sent: the window is now -1
    return window_update(1, 2)


def _growing_window(client: Client) -> bytes:
    with_settings({4: 0})(client)
    return client.request() + settings({4: 1})


def _with_window_of_one(values: list[tuple[int, int]]) -> Send:
    def run(client: Client) -> bytes:
        with_settings(values)(client)
        return client.request()

    return run


CASES: dict[str, Case] = {
    "http2/6.1/1": ("DATA on stream 0", lambda _: body(0, b"test", end=True), _PROTOCOL),
    "http2/6.1/2": (
        "DATA on a stream that is not open",
        lambda client: client.request(POST) + body(1, b"test", end=True),
        stream_error(STREAM_CLOSED),
    ),
    "http2/6.1/3": (
        "DATA with too much padding",
        post_and(frame(DATA, 9, 1, b"\x06Test"), fields=(*POST, (b"content-length", b"4"))),
        _PROTOCOL,
    ),
    "http2/6.2/1": (
        "HEADERS, then PRIORITY, inside a block",
        lambda client: begun(client) + _PRIORITY + more(client),
        _PROTOCOL,
    ),
    "http2/6.2/2": (
        "HEADERS, then another stream's, inside a block",
        lambda client: begun(client) + client.request(stream=3) + more(client),
        _PROTOCOL,
    ),
    "http2/6.2/3": ("HEADERS on stream 0", lambda client: client.request(stream=0), _PROTOCOL),
    "http2/6.2/4": ("HEADERS with too much padding", _bad_padding, _MALFORMED),
    "http2/6.3/1": ("PRIORITY on stream 0", lambda _: priority(0, weight=255), _PROTOCOL),
    "http2/6.3/2": (
        "PRIORITY of 4 bytes",
        get_and(frame(PRIORITY, 0, 1, b"\x80\0\0\x01")),
        stream_error(FRAME_SIZE_ERROR),
    ),
    "http2/6.4/1": ("RST_STREAM on stream 0", lambda _: rst_stream(0, CANCEL), _PROTOCOL),
    "http2/6.4/2": ("RST_STREAM on idle", lambda _: rst_stream(1, CANCEL), _PROTOCOL),
    "http2/6.4/3": (
        "RST_STREAM of 3 bytes",
        get_and(frame(RST_STREAM, 0, 1, bytes(3))),
        stream_error(FRAME_SIZE_ERROR),
    ),
    "http2/6.5/1": (
        "a SETTINGS ACK with a payload",
        lambda _: frame(SETTINGS, 1, 0, b"\0"),
        connection_error(FRAME_SIZE_ERROR),
    ),
    "http2/6.5/2": ("SETTINGS on a stream", lambda _: frame(SETTINGS, 0, 1, bytes.fromhex("000300000064")), _PROTOCOL),
    "http2/6.5/3": (
        "SETTINGS of 3 bytes",
        lambda _: frame(SETTINGS, 0, 0, b"\0\3\0"),
        stream_error(PROTOCOL_ERROR, FRAME_SIZE_ERROR),
    ),
    "http2/6.5.2/1": ("ENABLE_PUSH 2", lambda _: settings({2: 2}), _PROTOCOL),
    "http2/6.5.2/2": (
        "INITIAL_WINDOW_SIZE 2^31",
        lambda _: settings({4: 1 << 31}),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    "http2/6.5.2/3": ("MAX_FRAME_SIZE 2^14 - 1", lambda _: settings({5: 16_383}), _PROTOCOL),
    "http2/6.5.2/4": ("MAX_FRAME_SIZE 2^24", lambda _: settings({5: 1 << 24}), _PROTOCOL),
    "http2/6.5.2/5": ("an unknown setting is ignored", lambda _: settings({0xFF: 1}) + ping(ZEROS), pong(ZEROS)),
    "http2/6.5.3/1": ("SETTINGS apply in order", _with_window_of_one([(4, 100), (4, 1)]), one_byte),
    "http2/6.5.3/2": ("SETTINGS are acknowledged", lambda _: settings({2: 0}), acknowledged),
    "http2/6.7/1": ("PING is answered", lambda _: ping(H2SPEC), pong(H2SPEC)),
    "http2/6.7/2": (
        "a PING ACK is not answered",
        lambda _: ping(b"invalid\0", ack=True) + ping(H2SPEC),
        pong(H2SPEC),
    ),
    "http2/6.7/3": ("PING on a stream", lambda _: frame(PING, 0, 1, ZEROS), _PROTOCOL),
    "http2/6.7/4": ("PING of 6 bytes", lambda _: frame(PING, 0, 0, bytes(6)), connection_error(FRAME_SIZE_ERROR)),
    "http2/6.8/1": ("GOAWAY on a stream", lambda _: frame(GOAWAY, 0, 1, ZEROS), _PROTOCOL),
    "http2/6.9/1": ("WINDOW_UPDATE of 0", lambda _: window_update(0, 0), _PROTOCOL),
    "http2/6.9/2": ("WINDOW_UPDATE of 0 on a stream", get_and(window_update(1, 0), end=False), _MALFORMED),
    "http2/6.9/3": (
        "WINDOW_UPDATE of 3 bytes",
        lambda _: frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"),
        connection_error(FRAME_SIZE_ERROR),
    ),
    "http2/6.9.1/1": ("a window of 1 gets 1 byte", _with_window_of_one([(4, 1)]), one_byte),
    "http2/6.9.1/2": (
        "a connection window above 2^31 - 1",
        lambda _: window_update(0, _HUGE) * 2,
        error_of_kind(GOAWAY, FLOW_CONTROL_ERROR),
    ),
    "http2/6.9.1/3": (
        "a stream window above 2^31 - 1",
        get_and(window_update(1, _HUGE) * 2, end=False),
        error_of_kind(RST_STREAM, FLOW_CONTROL_ERROR),
    ),
    "http2/6.9.2/1": ("a window grows by SETTINGS", _growing_window, one_byte),
    "http2/6.9.2/2": ("a window becomes negative by SETTINGS", _shrinking_window, one_byte),
    "http2/6.9.2/3": (
        "INITIAL_WINDOW_SIZE 2^31, raw",
        lambda _: frame(SETTINGS, 0, 0, bytes.fromhex("000480000000")),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    "http2/6.10/1": (
        "two CONTINUATIONs",
        lambda client: begun(client, end=True) + more(client, end=False) + more(client),
        answered,
    ),
    "http2/6.10/2": (
        "DATA after a CONTINUATION that ends nothing",
        lambda client: begun(client, POST) + more(client, end=False) + body(1, b"test", end=True),
        _PROTOCOL,
    ),
    "http2/6.10/3": (
        "CONTINUATION on stream 0",
        lambda client: begun(client, end=True) + more(client, stream=0),
        _PROTOCOL,
    ),
    "http2/6.10/4": ("CONTINUATION after END_HEADERS", lambda client: client.request() + more(client), _PROTOCOL),
    "http2/6.10/5": (
        "CONTINUATION after the last CONTINUATION",
        lambda client: begun(client, end=True) + more(client) + more(client),
        _PROTOCOL,
    ),
    "http2/6.10/6": (
        "CONTINUATION after DATA",
        lambda client: (
            begun(client, POST) + body(1, b"test", end=True) + more(client, end=False) + more(client, stream=0)
        ),
        _PROTOCOL,
    ),
    "http2/7/1": (
        "GOAWAY with an unknown code",
        lambda _: goaway(code=0xFF) + ping(H2SPEC),
        pong_or_closed(H2SPEC),
    ),
    "http2/7/2": ("RST_STREAM with an unknown code", post_and(rst_stream(1, 0xFF), ping(ZEROS)), pong(ZEROS)),
    "http2/8.1/1": ("a second HEADERS that does not end", _trailers((b"x-test", b"ok")), _MALFORMED),
    "http2/8.1.2/1": _malformed("an uppercase name", *COMMON, (b"X-TEST", b"ok")),
    "http2/8.1.2.1/1": _malformed("an unknown pseudo-header", *COMMON, (b":test", b"ok")),
    "http2/8.1.2.1/2": _malformed("a pseudo-header of answers", *COMMON, (b":status", b"200")),
    "http2/8.1.2.1/3": ("a pseudo-header in trailers", _trailers((b":method", b"POST")), _MALFORMED),
    "http2/8.1.2.1/4": _malformed("a pseudo-header after another", (b"x-test", b"ok"), *COMMON),
    "http2/8.1.2.2/1": _malformed("a connection header", *COMMON, (b"connection", b"keep-alive")),
    "http2/8.1.2.2/2": _malformed(
        "te with more than trailers", *COMMON, (b"trailers", b"test"), (b"te", b"trailers, deflate")
    ),
    "http2/8.1.2.3/1": _malformed("an empty :path", _METHOD, _SCHEME, (b":path", b""), _AUTHORITY),
    "http2/8.1.2.3/2": _malformed("no :method", _PATH, _AUTHORITY),  # h2spec leaves out :scheme, too
    "http2/8.1.2.3/3": _malformed("no :scheme", _METHOD, _PATH, _AUTHORITY),
    "http2/8.1.2.3/4": _malformed("no :path", _METHOD, _SCHEME, _AUTHORITY),
    "http2/8.1.2.3/5": _malformed("two :method", *COMMON, _METHOD),
    "http2/8.1.2.3/6": _malformed("two :scheme", *COMMON, _SCHEME),
    "http2/8.1.2.3/7": _malformed("two :method, the second a path", *COMMON, (b":method", b"/")),
    "http2/8.1.2.6/1": (
        "content-length against one DATA",
        post_and(body(1, b"test", end=True), fields=(*POST, (b"content-length", b"1"))),
        _MALFORMED,
    ),
    "http2/8.1.2.6/2": (
        "content-length against two DATA",
        post_and(body(1, b"test"), body(1, b"test", end=True), fields=(*POST, (b"content-length", b"1"))),
        _MALFORMED,
    ),
    "http2/8.2/1": (
        "PUSH_PROMISE",
        lambda client: frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\3" + client.block()),
        _PROTOCOL,
    ),
}
