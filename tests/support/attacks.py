"""Attacks on an HTTP/2 server, each as the octets one connection sends after it has opened; see test_attacks.py."""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

import hpack
from wire.raw import literals  # fmt: skip

from support.odd_calls import GET, RIGHT_KEY
from support.raw import framed
from support.streams import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Field,
    frame,
    settings,
)

WATCH = b"/grpc.health.v1.Health/Watch"
OPENED = PREFACE + settings() + frame(SETTINGS, ACK, 0)
BLOCKED = PREFACE + settings(initial_window_size=0) + frame(SETTINGS, ACK, 0)
HELLO = bytes.fromhex("16030100a10100009d0303") + bytes(range(152))


def head(path: bytes = GET, *more: Field) -> list[Field]:
    """The head of a call without a key, which anyone can send."""
    return [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more,
    ]  # fmt: skip


_HEAD = literals(head())
_WATCH = literals(head(WATCH))
_MALFORMED = literals(head(GET, (b"connection", b"close")))


def _each(make: Callable[[int], bytes], count: int) -> bytes:
    return b"".join(make(number) for number in range(1, 2 * count, 2))


def _watch_and(make: Callable[[int], bytes], count: int = 300) -> bytes:
    """A call that is open for its answers, and then something wrong on it; again and again (MadeYouReset)."""
    return _each(lambda number: _watching(number) + make(number), count)


def _watching(number: int) -> bytes:
    return frame(HEADERS, END_HEADERS, number, _WATCH) + frame(DATA, END_STREAM, number, framed(b""))


def hpack_bomb() -> bytes:
    """One large field in the table, and an octet for each repeat (CVE-2016-6581)."""
    encoder, large = hpack.Encoder(), (b"x", b"y" * 4000)
    blocks = [encoder.encode([*head(), large], huffman=False)]
    blocks += [encoder.encode([*head(), *[large] * 10_000], huffman=False) for _ in range(3)]
    return b"".join(frame(HEADERS, 5, 2 * number + 1, block) for number, block in enumerate(blocks))


def http2_bomb(count: int = 300) -> bytes:
    """Cheap indexed fields by the hundred, in calls whose answers a shut window pins (CVE-2026-47774, -49975)."""
    encoder, pair = hpack.Encoder(), (b"x-bomb", b"y" * 50)
    found = []
    for number in range(1, 2 * count, 2):
        block = encoder.encode([*head(WATCH), *[pair] * 100], huffman=False)
        found.append(frame(HEADERS, END_HEADERS, number, block) + frame(DATA, END_STREAM, number, framed(b"")))
    return b"".join(found)


class Attack(NamedTuple):
    """What is sent (after an opening, unless `raw`), and the error code that ends the connection (None: no GOAWAY)."""

    octets: Callable[[], bytes]
    code: str | None = "ENHANCE_YOUR_CALM"
    opening: bytes = OPENED


ATTACKS: dict[str, Attack] = {
    "Rapid Reset": Attack(
        lambda: _each(lambda n: frame(HEADERS, END_HEADERS, n, _HEAD) + frame(RST_STREAM, 0, n, b"\0\0\0\x08"), 3000)
    ),
    "Rapid Reset of streams": Attack(
        lambda: _each(lambda n: _watching(n) + frame(RST_STREAM, 0, n, b"\0\0\0\x08"), 3000)
    ),
    "MadeYouReset: window of 0": Attack(
        lambda: _watch_and(lambda n: frame(WINDOW_UPDATE, 0, n, bytes(4))), "PROTOCOL_ERROR"
    ),
    "MadeYouReset: window overflow": Attack(
        lambda: _watch_and(lambda n: frame(WINDOW_UPDATE, 0, n, b"\x7f\xff\xff\xff"))
    ),
    "MadeYouReset: PRIORITY length": Attack(
        lambda: _watch_and(lambda n: frame(PRIORITY, 0, n, bytes(4))), "FRAME_SIZE_ERROR"
    ),
    "MadeYouReset: PRIORITY on itself": Attack(
        lambda: _watch_and(lambda n: frame(PRIORITY, 0, n, struct.pack(">IB", n, 1))), "PROTOCOL_ERROR"
    ),
    "MadeYouReset: HEADERS after the end": Attack(
        lambda: _watch_and(lambda n: frame(HEADERS, 5, n, _HEAD)), "STREAM_CLOSED"
    ),
    "MadeYouReset: DATA after the end": Attack(
        lambda: _watch_and(lambda n: frame(DATA, 0, n, b"x")), "STREAM_CLOSED"
    ),
    "malformed requests": Attack(lambda: _each(lambda n: frame(HEADERS, 5, n, _MALFORMED), 3000)),
    "CONTINUATION flood": Attack(
        lambda: frame(HEADERS, 0, 1, _HEAD) + frame(CONTINUATION, 0, 1, literals([(b"a", b"b")])) * 10_000
    ),
    "CONTINUATION flood, empty": Attack(lambda: frame(HEADERS, 0, 1, _HEAD) + frame(CONTINUATION, 0, 1) * 10_000),
    "HPACK bomb": Attack(hpack_bomb),
    "HTTP/2 bomb": Attack(http2_bomb, opening=BLOCKED),
    "varint padding": Attack(
        lambda: frame(HEADERS, 5, 1, _HEAD + b"\xff" + b"\x80" * 10_000 + b"\x00"), "COMPRESSION_ERROR"
    ),
    "string beyond the block": Attack(
        lambda: frame(HEADERS, 5, 1, _HEAD + b"\x00\x01x\x7f\xff\xff\xff\x7f" + bytes(1000)), "COMPRESSION_ERROR"
    ),
    "headers of length 0": Attack(lambda: frame(HEADERS, 5, 1, _HEAD + b"\x00\x00\x00" * 5000)),
    "PING flood": Attack(lambda: frame(PING, 0, 0, bytes(8)) * 10_000),
    "SETTINGS flood": Attack(lambda: settings(initial_window_size=65_535) * 10_000),
    "SETTINGS of many entries": Attack(lambda: frame(SETTINGS, 0, 0, b"\0\4\0\0\xff\xff" * 2000)),
    "empty DATA flood": Attack(lambda: frame(HEADERS, END_HEADERS, 1, _HEAD) + frame(DATA, 0, 1) * 10_000),
    "PRIORITY flood": Attack(lambda: frame(PRIORITY, 0, 3, struct.pack(">IB", 1, 1)) * 10_000),
    "unknown frames": Attack(lambda: frame(0xBE, 0, 0, b"x") * 10_000),
    "WINDOW_UPDATE flood": Attack(lambda: frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 10_000),
    "ACK flood": Attack(lambda: frame(PING, ACK, 0, bytes(8)) * 10_000),
    "too many streams": Attack(lambda: _each(_watching, 3000)),
    "frame of 16 MiB": Attack(lambda: b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(100_000), "FRAME_SIZE_ERROR"),
    "noise": Attack(lambda: random.Random(3).randbytes(100_000), "FRAME_SIZE_ERROR"),
    "noise without a preface": Attack(lambda: random.Random(4).randbytes(100_000), None, b""),
    "TLS hello": Attack(lambda: HELLO, None, b""),
    "HTTP/1.1": Attack(lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", None, b""),
    "HTTP/1.1 upgrade": Attack(
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", None, b"",
    ),
}  # fmt: skip


class Result(NamedTuple):
    """What an attack came to: octets each way, and after how many seconds the server had closed (None: it had not)."""

    sent: int
    received: bytes
    closed_after: float | None

    @property
    def code(self) -> int | None:
        """The error code of the last GOAWAY."""
        at, found = 0, None
        while at + 9 <= len(self.received):
            length, kind = int.from_bytes(self.received[at : at + 3], "big"), self.received[at + 3]
            if kind == GOAWAY:
                found = int.from_bytes(self.received[at + 13 : at + 17], "big")
            at += 9 + length
        return found


def assault(port: int, octets: bytes, *, seconds: float = 3.0) -> Result:
    """Send as fast as the server takes it and read what comes, until it closes or the time is over."""
    began, at, received = time.monotonic(), 0, bytearray()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        while (left := began + seconds - time.monotonic()) > 0:
            readable, writable, _ = select.select([sock], [sock] if at < len(octets) else [], [], left)
            try:
                if writable:
                    at += sock.send(octets[at : at + (1 << 18)])
                if readable:
                    more = sock.recv(1 << 18)
                    if not more:
                        return Result(at, bytes(received), time.monotonic() - began)
                    received += more
            except BlockingIOError:
                continue
            except ConnectionError:
                return Result(at, bytes(received), time.monotonic() - began)
    return Result(at, bytes(received), None)


def authorised(path: bytes = GET) -> list[Field]:
    """The head of a call with the right key."""
    return head(path, (b"x-avap-auth", RIGHT_KEY))
