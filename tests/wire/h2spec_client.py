"""What the cases of h2spec share: its client, its requests, and what it accepts as an answer.

h2spec 2.6.0 (github.com/summerwind/h2spec) is the judge of HTTP/2 servers. Its server cases stand in h2spec_generic.py,
h2spec_http2.py and h2spec_hpack.py by their numbers: the same bytes, the same outcomes accepted. A case is what it
shows, what it sends, and an outcome. h2spec waits for a closed socket; here the connection says that it is closed.
"""

from __future__ import annotations

from collections.abc import Callable

import hpack
from wire.peer import Frame, Peer
from wire.raw import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Field,
    continuation,
    headers,
    settings,
)  # fmt: skip

ZEROS = bytes(8)
H2SPEC = b"h2spec\0\0"

COMMON: tuple[Field, ...] = (
    (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"127.0.0.1:50051"),
)  # fmt: skip
POST: tuple[Field, ...] = ((b":method", b"POST"), *COMMON[1:])


def dummies(count: int) -> tuple[Field, ...]:
    """Long headers: four of them, even in Huffman code, are nearly a frame."""
    return tuple((b"x-dummy%d" % number, b"x" * 4000) for number in range(count))


class Client:
    """A connection after the handshake. `step`: how many bytes reach the server at a time, 0 for all."""

    def __init__(self, step: int = 0, *, handshake: bool = True) -> None:
        self._step = step
        self._encoder = hpack.Encoder()
        self.peer = Peer(settings_={4: 65_535}, open_=handshake)
        self._seen = len(self.peer.frames) if handshake else 0

    def send(self, *parts: bytes) -> None:
        self.peer.send(*parts, step=self._step)

    def block(self, fields: tuple[Field, ...] = COMMON) -> bytes:
        """A header block of the connection's one encoder."""
        return self._encoder.encode(list(fields))

    def request(self, fields: tuple[Field, ...] = COMMON, *, stream: int = 1, end: bool = True) -> bytes:
        """The HEADERS of a request, complete unless `end` is False."""
        return headers(stream, self.block(fields), end=end)

    @property
    def news(self) -> list[Frame]:
        """The frames that came since the handshake, or since the last `first`."""
        return self.peer.frames[self._seen :]

    def first(self, kind: int) -> Frame:
        """The next frame of a kind; those before it are never looked at again."""
        for at, one in enumerate(self.peer.frames[self._seen :], self._seen):
            if one.kind == kind:
                self._seen = at + 1
                return one
        raise AssertionError(f"no frame of type {kind} in {self.news}")


Send = Callable[[Client], bytes | None]  # the bytes to send, or None when it has sent them itself
Outcome = Callable[[Client], None]
Case = tuple[str, Send, Outcome]


def begun(client: Client, fields: tuple[Field, ...] = COMMON, *, end: bool = False) -> bytes:
    """HEADERS whose block is not finished."""
    return headers(1, client.block(fields), end=end, flags=0)


def more(client: Client, *, end: bool = True, stream: int = 1) -> bytes:
    """CONTINUATION with one long header."""
    return continuation(stream, client.block(dummies(1)), flags=END_HEADERS if end else 0)


def post_and(*frames: bytes, fields: tuple[Field, ...] = POST) -> Send:
    """A POST that is not complete, then frames."""
    return lambda client: client.request(fields, end=False) + b"".join(frames)


def get_and(*frames: bytes, end: bool = True) -> Send:
    """A GET, then frames."""
    return lambda client: client.request(end=end) + b"".join(frames)


def answered(client: Client) -> None:
    """The request on stream 1 got HEADERS."""
    assert client.first(HEADERS).stream == 1


def data(client: Client) -> None:
    """DATA came."""
    client.first(DATA)


def one_byte(client: Client) -> None:
    """DATA came, and it was as long as the window of one."""
    assert len(client.first(DATA).payload) == 1


def acknowledged(client: Client) -> None:
    """The SETTINGS were acknowledged."""
    assert client.first(SETTINGS).flags & ACK


def pong(payload: bytes) -> Outcome:
    """The PING was answered with the same bytes, so the connection lives."""

    def check(client: Client) -> None:
        one = client.first(PING)
        assert one.flags & ACK
        assert one.payload == payload

    return check


def pong_or_closed(payload: bytes) -> Outcome:
    def check(client: Client) -> None:
        if not client.peer.closed:
            pong(payload)(client)

    return check


def stream_closed(client: Client) -> None:
    """The answer is complete, or the stream was reset without an error."""
    assert any(
        (one.kind in {DATA, HEADERS} and one.flags & END_STREAM) or (one.kind == RST_STREAM and one.code == 0)
        for one in client.news
    )


def stream_error(*codes: int) -> Outcome:
    """RST_STREAM or GOAWAY with one of the codes; or the connection was closed."""

    def check(client: Client) -> None:
        errors = [one.code for one in client.news if one.kind in {RST_STREAM, GOAWAY}]
        assert client.peer.closed or set(errors) & set(codes), client.news

    return check


def connection_error(*codes: int) -> Outcome:
    """GOAWAY with one of the codes; or the connection was closed."""

    def check(client: Client) -> None:
        errors = [one.code for one in client.news if one.kind == GOAWAY]
        assert client.peer.closed or set(errors) & set(codes), client.news

    return check


def closed(client: Client) -> None:
    """The connection was closed."""
    assert client.peer.closed


def goaway_seen(client: Client) -> None:
    """GOAWAY came, whatever its code."""
    client.first(GOAWAY)


def error_of_kind(kind: int, code: int) -> Outcome:
    """The first RST_STREAM, or the first GOAWAY, has this code."""

    def check(client: Client) -> None:
        assert client.first(kind).code == code

    return check


def with_settings(values: dict[int, int] | list[tuple[int, int]]) -> Callable[[Client], None]:
    """Send SETTINGS and see them acknowledged, before anything else."""

    def send(client: Client) -> None:
        client.send(settings(values))
        acknowledged(client)

    return send
