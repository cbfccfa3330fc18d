"""A client in memory for one Connection: it sends any bytes at all, and judges every frame that comes back.

It keeps books of its own, from the bytes it sent alone, and fails the test when a frame breaks them:

| rule | RFC 9113 |
|---|---|
| only whole frames come out, none longer than our MAX_FRAME_SIZE | 4.2 |
| a window, as of the last SETTINGS acknowledged, is never overrun | 6.9.1, 6.9.2 |
| HEADERS and DATA only on streams we opened, not after their end, not after our RST_STREAM was read | 5.1 |
| at most one RST_STREAM a stream, and nothing after it | 5.4.2 |
| every header block decodes, with the hpack package, in the order it came, and within our HEADER_TABLE_SIZE | 4.3 |
| no more SETTINGS are acknowledged than were sent; each PING once, with its own bytes | 6.5.3, 6.7 |
| the last stream of GOAWAY never rises | 6.8 |
| nothing comes once the connection is closed | 5.4.1 |
"""

from __future__ import annotations

import gzip
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import hpack
from wire.application import ECHO, Methods
from wire.raw import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Field,
    request,
    settings,
)  # fmt: skip

from avapd.wire.connection import Connection
from avapd.wire.headers import Routes
from avapd.wire.limits import Limits

TURNS = 100_000  # more turns than any conversation of a test needs: a connection that wants more never ends


class Frame(NamedTuple):
    """A frame that came back."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of a RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[:4] if self.kind == RST_STREAM else self.payload[4:8], "big")


class Reply:
    """What came back on one stream so far."""

    def __init__(self) -> None:
        self.headers: list[Field] = []
        self.trailers: list[Field] = []  # empty for a trailers-only answer, which has it all in `headers`
        self.data = bytearray()
        self.ended = False
        self.reset: int | None = None  # the code of its RST_STREAM
        self.dropped = False  # we have reset it, and the connection knows
        self.credit = 0  # WINDOW_UPDATEs minus DATA: the window is this plus INITIAL_WINDOW_SIZE

    def __getitem__(self, name: bytes) -> bytes:
        """The one value of a header or trailer. KeyError when there is none, or more."""
        found = [value for key, value in self.headers + self.trailers if key == name]
        if len(found) != 1:
            raise KeyError(name, found)
        return found[0]

    @property
    def status(self) -> int:
        """The gRPC status; -1 when there is none."""
        found = [value for key, value in self.headers + self.trailers if key == b"grpc-status"]
        assert len(found) <= 1, f"{len(found)} grpc-status"
        return int(found[0]) if found else -1

    @property
    def messages(self) -> list[bytes]:
        """The gRPC messages that are complete, decompressed where the headers say so."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            flag, length = struct.unpack_from(">BI", self.data, at)
            assert flag == 0 or (flag == 1 and self[b"grpc-encoding"] == b"gzip"), "a compressed message"
            if at + 5 + length > len(self.data):
                break
            body = bytes(self.data[at + 5 : at + 5 + length])
            found.append(gzip.decompress(body) if flag else body)
            at += 5 + length
        return found


class Peer:
    """One connection and the client's books of it. `frames` is all that came, `received` and `sent` are the bytes.

    `open_`: the preface, our SETTINGS and the ACK of the server's have been exchanged. `connection`: one that is there.
    """

    def __init__(
        self,
        application: Methods | None = None,
        limits: Limits | None = None,
        *,
        settings_: Mapping[int, int] | None = None,
        open_: bool = True,
        connection: Connection | None = None,
    ) -> None:
        self.application = application or Methods()
        self.now = 1000.0
        self.connection = connection or Connection(Routes(self.application, limits or Limits()), self.now)
        self.frames: list[Frame] = []
        self.sent, self.received = bytearray(), bytearray()
        self.writable = True  # whether the transport takes more, and has written what it took
        self.encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self.replies: dict[int, Reply] = {}
        self.initial_window, self.max_frame_size = 65_535, 16_384  # ours, as far as the server has acknowledged them
        self.server_settings: dict[int, int] = {}
        self.last_stream = (1 << 31) - 1  # of the last GOAWAY
        self.credit = 65_535  # what the server may still send on the whole connection
        self.upload = 65_535  # what we may still send on the whole connection
        self.upload_credit: dict[int, int] = {}  # WINDOW_UPDATEs of the server for a stream
        self.next_stream = 1
        self._settings: deque[list[tuple[int, int]]] = deque()  # sent, not acknowledged
        self._pings: deque[bytes] = deque()
        self._judged, self._parsed = 0, len(PREFACE)  # how much of `received` and of `sent` is in the books
        self._block: tuple[int, int, bytes] | None = None  # stream, flags and start of an unfinished header block
        self._was_closed = False
        self._settle()
        if open_:
            self.send(PREFACE, settings(settings_ or {}), settings(ack=True))

    # What the client does.

    def send(self, *parts: bytes, step: int = 0) -> list[Frame]:
        """Any bytes, `step` at a time (0: in one piece), and what came back."""
        whole, before = b"".join(parts), len(self.frames)
        for at in range(0, len(whole), step or max(len(whole), 1)):
            piece = whole[at : at + (step or len(whole))]
            self.sent += piece
            dropped = self._book_sent()
            self.connection.receive(piece, self.now)
            self._settle()
            if not self.connection.pending:
                for stream in dropped:
                    self.reply(stream).dropped = True
        return self.frames[before:]

    def call(
        self, message: bytes = b"", path: bytes = ECHO, metadata: Iterable[Field] = (), *, stream: int | None = None
    ) -> Reply:
        """A good call on a stream, by default the next, and what is there of its reply."""
        stream = stream or self.next_stream
        self.next_stream = stream + 2
        self.send(request(stream, message, path, metadata))
        return self.reply(stream)

    def wait(self, seconds: float) -> list[Frame]:
        """Let time pass; the connection wakes whenever it asked to."""
        end, before, ticks = self.now + seconds, len(self.frames), 0
        while not self.connection.closed and self.connection.wake_at <= end:
            ticks = ticks + 1 if self.connection.wake_at <= self.now else 0
            assert ticks < 20, "tick after tick at the same time"
            self.now = max(self.now, self.connection.wake_at)
            self.connection.tick(self.now)
            self._settle()
        self.now = end
        return self.frames[before:]

    def drain(self) -> list[Frame]:
        """The server wants to go."""
        before = len(self.frames)
        self.connection.drain(self.now)
        self._settle()
        return self.frames[before:]

    def settle(self) -> list[Frame]:
        """After the application did something by itself."""
        before = len(self.frames)
        self._settle()
        return self.frames[before:]

    def block(self, of: Iterable[Field]) -> bytes:
        """A header block of this connection's one encoder, which fills the table."""
        return self.encoder.encode(list(of))

    # What came back.

    def reply(self, stream: int) -> Reply:
        return self.replies.setdefault(stream, Reply())

    def of(self, kind: int, stream: int | None = None) -> list[Frame]:
        """All frames of a kind that came, on any stream or on one."""
        return [one for one in self.frames if one.kind == kind and stream in {None, one.stream}]

    @property
    def closed(self) -> bool:
        return self.connection.closed

    @property
    def error(self) -> int | None:
        """The code of the last GOAWAY; None when there was none."""
        gone = self.of(GOAWAY)
        return gone[-1].code if gone else None

    def window(self, stream: int) -> int:
        """What the server may still send on a stream."""
        return self.initial_window + self.reply(stream).credit

    # The books.

    def _settle(self) -> None:
        """Let the connection work until it waits for us; judge what it says."""
        for _ in range(TURNS):
            self._judge()
            if self.connection.closed:
                return
            if self.connection.pending:
                self.connection.resume(self.now)
            elif self.connection.ready and self.writable:
                self.connection.pump(self.now)
            else:
                return
        raise AssertionError(f"after {TURNS} turns the connection still wants more")

    def _book_sent(self) -> list[int]:
        """Take account of the frames that are complete in what we sent; which streams we reset."""
        dropped: list[int] = []
        while self._parsed + 9 <= len(self.sent):
            at = self._parsed + 9
            length = int.from_bytes(self.sent[self._parsed : self._parsed + 3], "big")
            if at + length > len(self.sent):
                break
            kind, flags, stream = struct.unpack_from(">BBI", self.sent, self._parsed + 3)
            payload, stream = bytes(self.sent[at : at + length]), stream & 0x7FFFFFFF
            self._parsed = at + length
            if kind == HEADERS:
                self.reply(stream)
            elif kind == DATA:
                self.upload -= length
            elif kind == RST_STREAM:
                dropped.append(stream)
            elif kind == SETTINGS and not flags & ACK and length % 6 == 0:
                self._settings.append(list(struct.iter_unpack(">HI", payload)))
            elif kind == PING and not flags & ACK:
                self._pings.append(payload)
            elif kind == WINDOW_UPDATE and length == 4:
                increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
                if stream:
                    self.reply(stream).credit += increment
                else:
                    self.credit += increment
        return dropped

    def _judge(self) -> None:
        """Read what the connection wrote."""
        out = b"".join(self.connection.out)
        self.connection.out.clear()
        if self.writable:
            self.connection.flushed()
        assert not (out and self._was_closed), "bytes after the end"
        self._was_closed = self.connection.closed
        self.received += out
        while self._judged < len(self.received):
            assert self._judged + 9 <= len(self.received), "half a frame header came out"
            at = self._judged + 9
            length = int.from_bytes(self.received[self._judged : self._judged + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", self.received, self._judged + 3)
            assert at + length <= len(self.received), "half a frame came out"
            assert length <= self.max_frame_size, (
                f"a frame of {length} bytes against MAX_FRAME_SIZE {self.max_frame_size}"
            )
            one = Frame(kind, flags, stream, bytes(self.received[at : at + length]))
            self._judged = at + length
            self._book(one)
            self.frames.append(one)

    def _book(self, one: Frame) -> None:
        """Take account of one frame of the server."""
        if self._block is not None:
            assert (one.kind, one.stream) == (CONTINUATION, self._block[0]), f"{one} inside a header block"
        match one.kind:
            case k if k in {HEADERS, CONTINUATION, DATA}:
                self._book_answer(one)
            case k if k == RST_STREAM:
                reply = self.replies[one.stream]
                assert reply.reset is None, "a second RST_STREAM"
                assert len(one.payload) == 4
                reply.reset = one.code
            case k if k == SETTINGS and one.flags & ACK:
                self._apply(self._settings.popleft())
            case k if k == SETTINGS:
                self.server_settings.update(struct.iter_unpack(">HI", one.payload))
            case k if k == PING and one.flags & ACK:
                assert one.payload == self._pings.popleft(), "an ACK of another PING"
            case k if k == WINDOW_UPDATE:
                increment = int.from_bytes(one.payload, "big")
                assert 0 < increment < 1 << 31
                if one.stream:
                    assert self.replies[one.stream].reset is None, "WINDOW_UPDATE after RST_STREAM"
                    self.upload_credit[one.stream] = self.upload_credit.get(one.stream, 0) + increment
                else:
                    self.upload += increment
            case k if k == GOAWAY:
                last = int.from_bytes(one.payload[:4], "big")
                assert last <= self.last_stream, f"GOAWAY takes streams back that it gave up: {last}"
                self.last_stream = last
            case k:
                assert k == PING, f"no server sends {one}"

    def _apply(self, acknowledged: list[tuple[int, int]]) -> None:
        """Our SETTINGS count from their ACK on."""
        for key, value in acknowledged:
            if key == INITIAL_WINDOW_SIZE:
                self.initial_window = value
            elif key == MAX_FRAME_SIZE:
                self.max_frame_size = value
            elif key == HEADER_TABLE_SIZE:  # a smaller table must be acknowledged by the next block (RFC 7541, 4.2)
                self._decoder.max_allowed_table_size = value

    def _book_answer(self, one: Frame) -> None:
        """HEADERS, CONTINUATION or DATA."""
        reply = self.replies[one.stream]
        assert not reply.ended, f"{one} after the end of its stream"
        assert reply.reset is None, f"{one} after RST_STREAM"
        assert not reply.dropped, f"{one} on a stream that we reset"
        if one.kind == DATA:
            reply.data += one.payload
            if one.payload:
                reply.credit -= len(one.payload)
                self.credit -= len(one.payload)
                assert self.credit >= 0, f"the connection's window is overrun by {-self.credit}"
                assert self.window(one.stream) >= 0, f"window of stream {one.stream} overrun: {self.window(one.stream)}"
            reply.ended = bool(one.flags & END_STREAM)
            return
        _, flags, start = self._block or (0, one.flags, b"")
        self._block = None if one.flags & END_HEADERS else (one.stream, flags, start + one.payload)
        if self._block is None:
            decoded = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(start + one.payload, raw=True)]
            if reply.headers:
                assert flags & END_STREAM, "a second header block that ends nothing"
                reply.trailers = decoded
            else:
                reply.headers = decoded
            reply.ended = bool(flags & END_STREAM)
