"""Generated calls, right and wrong: each part of a call has right and odd forms, and a call has an odd part or two."""

from __future__ import annotations

import base64
import gzip
import random
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wire.raw import literals

from avapd.pb.avap_pb2 import CommandRequest
from support.raw import framed
from support.server import KEY
from support.streams import CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Field, frame

GET, SYNC = b"/avap.DefinitionEngine/GetCommand", b"/avap.DefinitionEngine/SyncCatalog"
CHECK = b"/grpc.health.v1.Health/Check"
RIGHT_KEY = KEY.encode()
MAX_REQUEST = 8192  # what the server of these calls takes
NAMES = ("known", "ñ", "n" * 100)


class Call(NamedTuple):
    """A call: its odd parts by name, and the frames of it, but for the stream's number."""

    odd: tuple[str, ...]
    head: tuple[Field, ...]
    frames: tuple[tuple[int, int, bytes], ...]  # type, flags, payload

    @property
    def size(self) -> int:
        """The octets of its payloads."""
        return sum(len(payload) for _, _, payload in self.frames)

    def on(self, stream: int) -> bytes:
        """The octets of this call on a stream."""
        return b"".join(frame(kind, flags, stream, payload) for kind, flags, payload in self.frames)


class Draft:
    """A call that is being put together."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.pseudo: list[Field] = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", GET), (b":authority", b"localhost"),
        ]  # fmt: skip
        self.type: list[Field] = [(b"content-type", b"application/grpc")]
        self.te: list[Field] = [(b"te", b"trailers")]
        self.timeout: list[Field] = []
        self.encoding: list[Field] = []
        self.key: list[Field] = [(b"x-avap-auth", RIGHT_KEY)]
        self.metadata: list[Field] = []
        self.message = CommandRequest(name=dice.choice(NAMES)).SerializeToString()
        self.body: bytes | None = None  # None: the message, framed
        self.flag = 0
        self.code: Callable[[bytes], bytes] = bytes  # how the message is compressed
        self.cut: list[int] | None = None  # lengths of DATA frames
        self.ends = "DATA"  # or HEADERS, trailers, empty DATA
        self.raw_block: bytes | None = None

    def call(self, odd: Iterable[str]) -> Call:
        """The finished call."""
        head = (*self.pseudo, *self.type, *self.te, *self.timeout, *self.encoding, *self.key, *self.metadata)
        block = self.raw_block if self.raw_block is not None else literals(head)
        body = framed(self.code(self.message), self.flag) if self.body is None else self.body
        return Call(tuple(odd), head, tuple(self._frames(block, body)))

    def _frames(self, block: bytes, body: bytes) -> Iterable[tuple[int, int, bytes]]:
        only = self.ends == "HEADERS"
        pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)] or [b""]
        if len(pieces) == 1 and self.dice.random() < 0.1 and len(block) > 2:
            at = self.dice.randrange(1, len(block))
            pieces = [block[:at], block[at:]]
        flags = END_STREAM if only else 0
        for number, piece in enumerate(pieces):
            last = END_HEADERS if number == len(pieces) - 1 else 0
            yield (CONTINUATION, last, piece) if number else (HEADERS, flags | last, piece)
        if only:
            return
        cut = self.cut if self.cut is not None else [len(body)]
        at = 0
        for size in cut[:-1]:
            yield DATA, 0, body[at : at + size]
            at += size
        while len(body) - at > 16_384:
            yield DATA, 0, body[at : at + 16_384]
            at += 16_384
        yield DATA, END_STREAM if self.ends == "DATA" else 0, body[at:]
        if self.ends == "trailers":
            yield HEADERS, END_STREAM | END_HEADERS, literals([(b"x-trailer", b"1")])
        elif self.ends == "empty DATA":
            yield DATA, END_STREAM, b""


Change = Callable[[Draft], None]


def _path(*paths: bytes) -> Change:
    def change(draft: Draft) -> None:
        draft.pseudo[2] = (b":path", draft.dice.choice(paths))

    return change


def _sync(draft: Draft) -> None:
    draft.pseudo[2] = (b":path", SYNC)
    draft.message = draft.dice.choice([b"", b"", b"\x10\x07", b"\x1a\x03abc"])


def _check(draft: Draft) -> None:
    draft.pseudo[2] = (b":path", CHECK)
    draft.message = draft.dice.choice([b"", b"\x0a\x08liveness", b"\x0a\x15avap.DefinitionEngine"])
    draft.key = draft.dice.choice([draft.key, []])


def _set(part: str, *choices: list[Field]) -> Change:
    def change(draft: Draft) -> None:
        setattr(draft, part, draft.dice.choice(choices))

    return change


def _values(part: str, name: bytes, *values: bytes) -> Change:
    return _set(part, *([(name, value)] for value in values))


def _more(*fields: Field) -> Change:
    def change(draft: Draft) -> None:
        draft.metadata.append(draft.dice.choice(fields))

    return change


def _many(count: int) -> Change:
    def change(draft: Draft) -> None:
        draft.metadata += [(b"x-%d" % number, b"v") for number in range(count)]

    return change


def _pseudo(edit: Callable[[list[Field]], list[Field]]) -> Change:
    def change(draft: Draft) -> None:
        draft.pseudo = edit(draft.pseudo)

    return change


def _message(make: Callable[[random.Random], bytes]) -> Change:
    def change(draft: Draft) -> None:
        draft.message = make(draft.dice)

    return change


def _body(make: Callable[[random.Random, bytes], bytes]) -> Change:
    def change(draft: Draft) -> None:
        draft.body = make(draft.dice, draft.message)

    return change


def _cut(draft: Draft) -> None:
    draft.cut = [draft.dice.randrange(8) for _ in range(draft.dice.randrange(1, 5))]


def _ends(*how: str) -> Change:
    def change(draft: Draft) -> None:
        draft.ends = draft.dice.choice(how)

    return change


def _compressed(encoding: bytes | None, make: Callable[[bytes], bytes]) -> Change:
    def change(draft: Draft) -> None:
        draft.encoding = [] if encoding is None else [(b"grpc-encoding", encoding)]
        draft.flag, draft.code = 1, make

    return change


def _no_end(draft: Draft) -> None:
    draft.ends = "HEADERS"


def _name(text: str) -> bytes:
    return CommandRequest(name=text).SerializeToString()


def _garbage(dice: random.Random) -> bytes:
    noise = dice.randbytes(dice.randrange(1, 40))
    return dice.choice([noise, _name("known") + noise, b"\x0a\x05known"[: dice.randrange(1, 7)]])


def _text(dice: random.Random) -> str:
    letters = dice.choice(["abc", "ñé日本🎉", "%\n\t\r\0\x7f\x1b", " '\"`", "known"])
    return "".join(dice.choices(letters, k=dice.choice([1, 3, 10, 99, 101, 300])))


# What may vary and is right all the same: an outcome must not depend on it.
PLAIN: dict[str, tuple[Change, ...]] = {
    "path": (_path(GET), _path(GET), _path(GET), _sync, _check),
    "type": (_values("type", b"content-type", b"application/grpc", b"application/grpc+proto"),),
    "timeout": (
        _set("timeout", [], [], []), _values("timeout", b"grpc-timeout", b"10S", b"1H", b"30000m", b"99999999u"),
    ),
    "key": (
        _values("key", b"x-avap-auth", RIGHT_KEY),
        _values("key", b"authorization", b"Bearer " + RIGHT_KEY, b"bearer " + RIGHT_KEY),
    ),
    "metadata": (
        _many(0), _many(3), _more((b"user-agent", b"grpc-go/1.0"), (b"traceparent", b"00-00-00-00")),
        _more((b"x-latin", b"\xe9\xff"), (b"cookie", b"a=b; c"), (b"x-empty", b""), (b"grpc-accept-encoding", b"gzip")),
        _more((b"x-trace-bin", base64.b64encode(b"\0\1\2\xff")), (b"x-trace-bin", b"AAEC/w")),
    ),
    "frames": (_ends("DATA"), _ends("empty DATA"), _cut),
}  # fmt: skip

ODD: dict[str, Change] = {
    "unknown method": _path(b"/avap.DefinitionEngine/Delete", b"/avap.Other/GetCommand", b"/x", b"/", b"/a/b/c"),
    "path almost right": _path(GET + b"/", b"/" + GET, GET[:-1], GET.lower(), GET + b"?a=b", GET.replace(b".", b"%2E")),
    "path without slash": _path(GET[1:], b"*"),
    "path empty": _path(b""),
    "path long": _path(b"/" + b"x" * 3000),
    "path not ASCII": _path("/ñ/日本".encode()),
    "method GET": _pseudo(lambda head: [(b":method", b"GET"), *head[1:]]),
    "method PUT": _pseudo(lambda head: [(b":method", b"PUT"), *head[1:]]),
    "no :method": _pseudo(lambda head: head[1:]),
    "no :scheme": _pseudo(lambda head: [head[0], *head[2:]]),
    "no :path": _pseudo(lambda head: [*head[:2], *head[3:]]),
    "no :authority": _pseudo(lambda head: head[:3]),
    "host instead of :authority": _pseudo(lambda head: [*head[:3], (b"host", b"localhost")]),
    "host beside :authority": _more((b"host", b"elsewhere")),
    ":path twice": _pseudo(lambda head: [*head, head[2]]),
    ":method twice": _pseudo(lambda head: [*head, head[0]]),
    "unknown pseudo-header": _pseudo(lambda head: [*head, (b":x", b"y")]),
    "response pseudo-header": _pseudo(lambda head: [*head, (b":status", b"200")]),
    "pseudo-header last": _more((b":path", GET)),
    "type missing": _set("type", []),
    "type of another kind": _values("type", b"content-type", b"text/plain", b"application/json", b""),
    "type like ours": _values("type", b"content-type", b"application/grpcfoo", b"application/grpc-web"),
    "type +json": _values("type", b"content-type", b"application/grpc+json", b"application/grpc+x"),
    "type with parameters": _values("type", b"content-type", b"application/grpc;x=y", b"application/grpc+proto; x"),
    "te missing": _set("te", []),
    "te wrong": _values("te", b"te", b"gzip", b"trailers, gzip", b""),
    "timeout over": _values("timeout", b"grpc-timeout", b"0n", b"0m", b"0S"),
    "timeout malformed": _values("timeout", b"grpc-timeout", b"abc", b"1X", b"", b"-1S", b"S", b"1", b"1s"),
    "timeout of nine digits": _values("timeout", b"grpc-timeout", b"123456789S", b"999999999H"),
    "timeout clamped": _values("timeout", b"grpc-timeout", b"99999999H", b"99999999M"),
    "encoding unknown, not used": _values("encoding", b"grpc-encoding", b"br", b"x"),
    "encoding identity, not used": _values("encoding", b"grpc-encoding", b"identity"),
    "encoding gzip, not used": _values("encoding", b"grpc-encoding", b"gzip"),
    "encoding gzip, used": _compressed(b"gzip", gzip.compress),
    "encoding gzip, bad": _compressed(b"gzip", lambda message: b"zz" + message[2:]),
    "encoding deflate, used": _compressed(b"deflate", zlib.compress),
    "encoding unknown, used": _compressed(b"br", bytes),
    "encoding missing, used": _compressed(None, bytes),
    "encoding identity, used": _compressed(b"identity", bytes),
    "no message": _no_end,
    "no message, empty DATA": _body(lambda _dice, _message: b""),
    "two messages": _body(lambda _dice, message: framed(message) * 2),
    "half a message": _body(lambda dice, message: framed(message)[: dice.randrange(1, len(message) + 5)]),
    "length too long": _body(lambda dice, message: framed(message, length=len(message) + dice.randrange(1, 1000))),
    "length too short": _body(lambda _dice, message: framed(message, length=len(message) // 2)),
    "length over the limit": _body(
        lambda dice, message: framed(message, length=dice.choice([MAX_REQUEST + 1, 1 << 31]))
    ),
    "flag": _body(lambda dice, message: framed(message, dice.choice([2, 3, 128, 255]))),
    "client trailers": _ends("trailers"),
    "name unknown": _message(lambda dice: _name("missing " + _text(dice))),
    "name odd": _message(lambda dice: _name(_text(dice))),
    "name empty": _message(lambda _dice: b""),
    "name long": _message(lambda dice: _name("m" * dice.choice([256, 257, 4000, 7000]))),
    "unknown fields": _message(lambda _dice: b"\x10\x07\x1a\x03abc" + _name("known")),
    "name twice": _message(lambda _dice: _name("other") + _name("known")),
    "varint overlong": _message(lambda _dice: b"\x0a\x85\x80\x00known"),
    "protobuf garbage": _message(_garbage),
    "not UTF-8": _message(lambda _dice: b"\x0a\x02\xc3\x28"),
    "message of the limit": _message(lambda _dice: _name("n" * (MAX_REQUEST - 3))),
    "message over the limit": _message(lambda _dice: _name("n" * (MAX_REQUEST - 2))),
    "key missing": _set("key", []),
    "key wrong": _values("key", b"x-avap-auth", b"wrong-key-of-enough-length", b"", b"\xff\xfe", RIGHT_KEY + b"x"),
    "key twice": _set("key", [(b"x-avap-auth", RIGHT_KEY)] * 2),
    "key in the wrong scheme": _values("key", b"authorization", b"Basic " + RIGHT_KEY, RIGHT_KEY, b"Bearer"),
    "two kinds of key": _set("key", [(b"x-avap-auth", b"wrong"), (b"authorization", b"Bearer " + RIGHT_KEY)]),
    "header name in capitals": _more((b"X-Upper", b"v")),
    "header name with a blank": _more((b"x y", b"v"), (b"x\0", b"v")),
    "header name not ASCII": _more((b"x\xff", b"v"), ("ñ".encode(), b"v")),
    "header name with a colon": _more((b"x:y", b"v")),
    "header name empty": _more((b"", b"v")),
    "header value with a control": _more((b"x", b"a\0b"), (b"x", b"a\nb"), (b"x", b"a\rb")),
    "header value in blanks": _more((b"x", b" v"), (b"x", b"v "), (b"x", b"\tv")),
    "header of a connection": _more((b"connection", b"close"), (b"keep-alive", b"1"), (b"upgrade", b"h2c")),
    "transfer-encoding": _more((b"transfer-encoding", b"chunked")),
    "bad base64": _more((b"x-trace-bin", b"!!!"), (b"x-trace-bin", b"A")),
    "content-length wrong": _more((b"content-length", b"1"), (b"content-length", b"x"), (b"content-length", b"-1")),
    "grpc-internal header": _more((b"grpc-previous-rpc-attempts", b"x"), (b"grpc-status", b"5"), (b"grpc-x", b"y")),
    "header of 20 KB": _more((b"x", b"v" * 20_000)),
    "header of 100 KB": _more((b"x", b"v" * 100_000)),
    "120 headers": _many(110),
    "200 headers": _many(200),
    "600 headers": _many(600),
}


def calls(count: int, seed: int) -> Iterable[Call]:
    """First a call with each odd part alone, then mixed ones: nothing odd, one part (mostly), or two."""
    dice = random.Random(seed)
    for name in ODD:
        yield _make(dice, [name], plain=False)
    names = list(ODD)
    for _ in range(count - len(ODD)):
        share = dice.random()
        odd = dice.sample(names, 0 if share < 0.1 else 1 if share < 0.85 else 2)
        if len({name.split()[0] for name in odd}) == len(odd):  # two of a kind would be one of them
            yield _make(dice, odd, plain=True)


def _make(dice: random.Random, odd: list[str], *, plain: bool) -> Call:
    draft = Draft(dice)
    if plain:
        for choices in PLAIN.values():
            dice.choice(choices)(draft)
    for name in odd:
        ODD[name](draft)
    return draft.call(odd)
