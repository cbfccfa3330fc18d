"""Part A.4 of the checklist, the fields: which requests are malformed."""

from __future__ import annotations

import pytest
from wire.application import DENY, TALK, UNAUTHENTICATED
from wire.peer import Peer
from wire.raw import PROTOCOL_ERROR, Field, data, fields, framed, headers, literals, window_update

METHOD, SCHEME, PATH, AUTHORITY, *REST = fields()


def answer(*head: Field, body: bytes = framed(b"x")) -> Peer:
    """A complete call with these headers and this body on stream 1, and a good one after it."""
    peer = Peer()
    peer.send(headers(1, literals(head)), data(1, body, end=True))
    assert peer.call(b"y", stream=3).messages == [b"reply to y"]
    return peer


def refused(*head: Field, body: bytes = framed(b"x")) -> bool:
    """Whether the stream was reset with PROTOCOL_ERROR, and nothing but the stream."""
    peer = answer(*head, body=body)
    return (peer.reply(1).reset, peer.reply(1).headers, peer.error) == (PROTOCOL_ERROR, [], None)


NAMES = [
    b"X-Upper",
    b"x-uppeR",
    b"x y",
    b" x",
    b"x ",
    b"x\t",
    b"x\0",
    b"x\x7f",
    b"x\x80",
    b"x\xff",
    b"\xc3\xa9",
    b"x:y",
    b"",
]
NAMES += [b"x\r", b"x\n", b"\x01"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a34_names(name: bytes) -> None:
    """A34: a name with upper case, blanks, controls, bytes above 0x7e, a colon inside, or nothing."""
    assert refused(*fields(), (name, b"ok"))
    assert refused(*fields()[:4], (name, b"ok"), *REST)


VALUES = [b"a\0b", b"\0", b"a\rb", b"a\nb", b"a\r\nb: c", b" a", b"a ", b"\ta", b"a\t", b" ", b"\t"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", [b"x-test", b"user-agent", b"content-type", b":path", b":authority"])
def test_a34_values(name: bytes, value: bytes) -> None:
    """A34: a value with NUL, CR or LF in it, or a blank at either end."""
    head = [field for field in fields() if field[0] != name]
    place = 0 if name.startswith(b":") else len(head)
    assert refused(*head[:place], (name, value), *head[place:])


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a34_the_value_of_a_timeout(value: bytes) -> None:
    """A34: what is malformed for HTTP is not yet malformed gRPC."""
    assert refused(*fields(), (b"grpc-timeout", value))


@pytest.mark.parametrize("value", [b"", b"a b", b"a\tb", b"\x80\xff", b"\x01\x7f", b"!#$%&'*+-.^_`|~"], ids=repr)
def test_a34_values_that_are_legal(value: bytes) -> None:
    """A34: everything else is, the empty value and bytes above 0x7f included."""
    assert answer(*fields(), (b"x-test", value), (b"x-test", value)).reply(1).status == 0


PSEUDO = {
    "unknown": (*fields(), (b":test", b"ok"))[::-1],
    "unknown, first": ((b":test", b"ok"), *fields()),
    "of answers": ((b":status", b"200"), *fields()),
    "protocol": ((b":protocol", b"websocket"), *fields()),
    "two methods": (METHOD, *fields()),
    "two schemes": (SCHEME, *fields()),
    "two paths": (PATH, *fields()),
    "other path": ((b":path", b"/other"), *fields()),
    "after regular": (METHOD, SCHEME, AUTHORITY, *REST, PATH),
    "authority after regular": (METHOD, SCHEME, PATH, *REST, AUTHORITY),
    "after unknown regular": (METHOD, SCHEME, PATH, (b"x-test", b"1"), AUTHORITY, *REST),
    "no method": (SCHEME, PATH, AUTHORITY, *REST),
    "no scheme": (METHOD, PATH, AUTHORITY, *REST),
    "no path": (METHOD, SCHEME, AUTHORITY, *REST),
    "empty method": ((b":method", b""), SCHEME, PATH, AUTHORITY, *REST),
    "empty scheme": (METHOD, (b":scheme", b""), PATH, AUTHORITY, *REST),
    "empty path": (METHOD, SCHEME, (b":path", b""), AUTHORITY, *REST),
    "upper case": ((b":METHOD", b"POST"), SCHEME, PATH, AUTHORITY, *REST),
    "colon alone": ((b":", b"x"), *fields()),
    "nothing": (),
}


@pytest.mark.parametrize("name", PSEUDO)
def test_a34_pseudo_headers(name: str) -> None:
    """A34: each of the four once at most, three of them not empty, before all others, and no other one."""
    assert refused(*PSEUDO[name])


@pytest.mark.parametrize(
    "field",
    [
        (b"connection", b"keep-alive"), (b"connection", b""), (b"proxy-connection", b"close"), (b"keep-alive", b"9"),
        (b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c"),
        (b"te", b"gzip"), (b"te", b"trailers, deflate"), (b"te", b"Trailers"), (b"te", b""),
    ],
    ids=repr,
)  # fmt: skip
def test_a34_fields_of_a_connection(field: Field) -> None:
    """A34: what belongs to HTTP/1 connections, and any te but `trailers`."""
    assert refused(*fields(), field)


@pytest.mark.parametrize(
    "field", [(b":path", b"/"), (b":status", b"200"), (b"X-Upper", b"1"), (b"x", b"a\nb"), (b"connection", b"close")]
)
def test_a34_trailers(field: Field) -> None:
    """A34: trailers hold no pseudo-header, and nothing else that headers may not."""
    peer = Peer()
    peer.send(headers(1, literals(fields())), data(1, framed(b"x")), headers(1, literals([field]), end=True))
    assert (peer.reply(1).reset, peer.closed) == (PROTOCOL_ERROR, False)
    assert peer.call(b"y", stream=3).status == 0


def test_a34_again_and_again() -> None:
    """A34: a malformed request is never remembered as a good one."""
    peer = Peer()
    for stream in range(1, 81, 4):
        peer.send(headers(stream, literals([*fields(), (b"x-test", b" ")])), data(stream, framed(b"x"), end=True))
        assert peer.reply(stream).reset == PROTOCOL_ERROR
        assert peer.call(b"y", stream=stream + 2).status == 0


BODY = framed(b"x")
LENGTH = len(BODY)


@pytest.mark.parametrize(
    "value", [b"7", b"5", b"0", b"", b"+6", b"-6", b"6.0", b"0x6", b"6 6", b"6,6", b"\xb2", b"9" * 40]
)
def test_a35_content_length_must_be_right(value: bytes) -> None:
    """A35: digits only, and the number of bytes of DATA: PROTOCOL_ERROR for the stream."""
    assert refused(*fields(), (b"content-length", value), body=BODY)


def test_a35_copies_must_agree() -> None:
    """A35: all copies are compared."""
    right, wrong = (b"content-length", b"%d" % LENGTH), (b"content-length", b"7")
    assert refused(*fields(), right, wrong)
    assert refused(*fields(), wrong, right)
    assert answer(*fields(), right, right).reply(1).status == 0


@pytest.mark.parametrize("value", [b"%d" % LENGTH, b"0%d" % LENGTH, b"000%d" % LENGTH])
def test_a35_a_right_length_is_served(value: bytes) -> None:
    """A35: h2load and connect-go send it; padding does not count, and the DATA may come in parts."""
    peer = Peer()
    peer.send(headers(1, literals(fields(metadata=[(b"content-length", value)]))))
    peer.send(data(1, BODY[:2], padding=3), data(1, b"", padding=9), data(1, BODY[2:]), data(1, b"", end=True))
    assert peer.reply(1).messages == [b"reply to x"]


def test_a35_too_much_is_seen_at_once() -> None:
    """A35: more DATA than announced is refused before the end; less, at the end, by END_STREAM or by trailers."""
    length = (b"content-length", b"%d" % LENGTH)
    head = headers(1, literals(fields(TALK, [length])))
    for rest, reset in (
        ([data(1, BODY + b"?")], True),
        ([data(1, BODY), data(1, b"?")], True),
        ([data(1, BODY[:-1])], False),
        ([data(1, BODY[:-1], end=True)], True),
        ([data(1, BODY[:-1]), data(1, b"", end=True)], True),
        ([data(1, BODY[:-1]), headers(1, literals([(b"x", b"y")]), end=True)], True),
        ([data(1, BODY), headers(1, literals([(b"x", b"y")]), end=True)], False),
    ):
        peer = Peer()
        peer.send(head, *rest)
        assert peer.reply(1).reset == (PROTOCOL_ERROR if reset else None), rest
        assert not peer.closed


@pytest.mark.parametrize(("value", "reset"), [(b"0", None), (b"6", PROTOCOL_ERROR)])
def test_a35_end_stream_on_headers_means_nothing_comes(value: bytes, reset: int | None) -> None:
    """A35: with END_STREAM on HEADERS the length must be 0."""
    peer = Peer()
    peer.send(headers(1, literals(fields(metadata=[(b"content-length", value)])), end=True))
    assert peer.reply(1).reset == reset
    assert peer.reply(1).ended == (reset is None)


@pytest.mark.parametrize(
    "block", [literals([(b"x-trailer", b"1")]), b"", literals(fields())], ids=["one", "no", "head"]
)
def test_a36_a_second_block_must_end_the_request(block: bytes) -> None:
    """A36: HEADERS on an open stream without END_STREAM are PROTOCOL_ERROR, for the stream or the connection."""
    peer = Peer()
    peer.send(headers(1, literals(fields())), data(1, framed(b"x")), headers(1, block))
    assert PROTOCOL_ERROR in {peer.reply(1).reset, peer.error}
    assert not peer.reply(1).headers


def test_a36_trailers_may_be_empty() -> None:
    """A36, B26: an empty block with END_STREAM ends the request as well as any."""
    peer = Peer()
    peer.send(headers(1, literals(fields())), data(1, framed(b"x")), headers(1, b"", end=True))
    assert peer.reply(1).messages == [b"reply to x"]


def test_a37_two_authorities_are_malformed() -> None:
    """A37: PROTOCOL_ERROR, equal or not."""
    assert refused(AUTHORITY, *fields())
    assert refused((b":authority", b"other"), *fields())


@pytest.mark.parametrize(
    "head",
    [
        (METHOD, SCHEME, PATH, (b"host", b"localhost"), *REST),
        (METHOD, SCHEME, PATH, *REST),
        (*fields(), (b"host", b"other")),
        (METHOD, SCHEME, PATH, (b":authority", b""), *REST),
    ],
    ids=["host", "neither", "both", "empty"],
)
def test_a37_host_stands_in_for_authority(head: tuple[Field, ...]) -> None:
    """A37, F27: host without :authority is served, host besides :authority is ignored; neither decides anything."""
    assert answer(*head).reply(1).status == 0
    assert answer(*head, DENY).reply(1).status == UNAUTHENTICATED


def test_a34_a_malformed_request_costs_the_stream_alone() -> None:
    """A34, A20: what was on its way after the reset is dropped quietly."""
    peer = Peer()
    peer.send(headers(1, literals([*fields(), (b"x", b"\n")])))
    assert peer.reply(1).reset == PROTOCOL_ERROR
    peer.send(data(1, b"12345"), window_update(1, 9), data(1, b"", end=True))
    assert peer.call(b"y", stream=3).status == 0
