"""What came back on a stream, in the words of the tables that say what must: `TO 12`, `RST NO_ERROR`, `GOAWAY …`."""

from __future__ import annotations

from collections.abc import Iterable

from wire.application import ECHO
from wire.peer import Peer
from wire.raw import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    Field,
    data,
    fields,
    framed,
    headers,
    literals,
)  # fmt: skip

from avapd.wire.errors import ErrorCode

TYPE = (b"content-type", b"application/grpc")


class Client(Peer):
    """A peer whose transport tells the connection when all it wrote has left, as long as it is `writable`."""

    def _judge(self) -> None:
        super()._judge()
        if self.writable:
            self.connection.flushed()

    def feed(self, octets: bytes) -> None:
        """Octets and nothing more: what comes of them stays in `connection.out`."""
        self.sent += octets
        self._book_sent()
        del self.sent[: self._parsed]
        self._parsed = 0
        self.connection.receive(octets, self.now)


def ask(
    peer: Peer,
    path: bytes = ECHO,
    metadata: Iterable[Field] = (),
    *,
    head: Iterable[Field] | None = None,
    body: bytes | None = framed(b"x"),
    end: bool = True,
) -> list[str]:
    """A call on the next stream: any head, any body (None: END_STREAM stands on HEADERS). What came back on it."""
    stream, peer.next_stream = peer.next_stream, peer.next_stream + 2
    block = literals(fields(path, metadata) if head is None else head)
    if body is None:
        peer.send(headers(stream, block, end=end))
    else:
        peer.send(headers(stream, block), data(stream, body, end=end))
    return seen(peer, stream)


def seen(peer: Peer, stream: int) -> list[str]:
    """What came back on a stream so far, a word for each frame; GOAWAY counts for every stream.

    | word | frame |
    |---|---|
    | `TO 12` | Trailers-Only: HEADERS(END_STREAM), `:status` 200 (else it is named: `405 TO 13`), gRPC content type |
    | `HEADERS 200`, `HEADERS 415` | HEADERS without END_STREAM |
    | `HEADERS 405 ES` | HEADERS(END_STREAM) without grpc-status |
    | `DATA`, `DATA ES` | DATA |
    | `TRAILERS 0` | HEADERS(END_STREAM) after HEADERS, without `:status` |
    | `RST CANCEL`, `GOAWAY PROTOCOL_ERROR` | with the error code |
    """
    words = []
    blocks = iter((peer.reply(stream).headers, peer.reply(stream).trailers))
    for one in peer.frames:
        if one.kind == GOAWAY:
            words.append(f"GOAWAY {ErrorCode(one.code).name}")
        elif one.stream != stream:
            continue
        elif one.kind == HEADERS:
            words.append(_answer(next(blocks), ended=bool(one.flags & END_STREAM)))
        elif one.kind == DATA:
            words.append("DATA ES" if one.flags & END_STREAM else "DATA")
        elif one.kind == RST_STREAM:
            words.append(f"RST {ErrorCode(one.code).name}")
    return words


def _answer(block: list[Field], *, ended: bool) -> str:
    found = dict(block)
    assert len(found) == len(block), f"a field stands twice: {block}"
    status, code = found.get(b":status"), found.get(b"grpc-status")
    if status is None:
        assert ended, "trailers that end nothing"
        assert code is not None, "trailers without grpc-status"
        return f"TRAILERS {int(code)}"
    assert block[0][0] == b":status", "a pseudo-header after a field (RFC 9113 section 8.3)"
    if code is None:
        return f"HEADERS {int(status)}{' ES' if ended else ''}"
    assert ended, "grpc-status in headers that are not the end"
    assert TYPE in block, "a gRPC status without its content type"
    return f"{'' if status == b'200' else f'{int(status)} '}TO {int(code)}"
