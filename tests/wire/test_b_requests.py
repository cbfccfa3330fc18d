"""Part B.1 of the checklist, the head of a request: which are served, and what the others get (B2 to B10)."""

from __future__ import annotations

import pytest
from wire.application import ECHO, TALK
from wire.raw import Field, data, fields, framed, headers, literals
from wire.verdicts import Client, ask, seen

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]


def with_field(name: bytes, *values: bytes) -> list[Field]:
    """The head of a good call with other values of one field, or without it."""
    return [
        pair for field in fields() for pair in ([(name, value) for value in values] if field[0] == name else [field])
    ]


@pytest.fixture
def peer() -> Client:
    return Client()


# --- B2, B3, B4: the path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"/test.Service/Nothing", b"/test.Other/Echo", b"test.Service/Echo", b"//test.Service/Echo",
        b"/test.Service//Echo", b"/test.service/echo", b"/TEST.SERVICE/ECHO", b"/test.Service/Echo/",
        b"/test.Service/Echo?a=b", b"/test%2EService/Echo", b"/test.Service%2FEcho", b"/test.Service/./Echo",
        b"/x/../test.Service/Echo", b"/", b"/one", b"*", b"//", b"/\xff\xfe", b"http://localhost/test.Service/Echo",
        b"/test.Service/Echo#x", b"/" + b"x" * 8000,
    ],
    ids=lambda path: ascii(path[:30])[1:],
)  # fmt: skip
def test_b2_b3_only_the_exact_path_is_served(peer: Client, path: bytes) -> None:
    """B2, B3: every other path is unimplemented, and never a handler."""
    assert ask(peer, path, body=None) == ["TO 12"]
    assert ask(peer, path) == ["TO 12", "RST NO_ERROR"]
    assert peer.application.asked == 0


@pytest.mark.parametrize("path", [b"/test.Service/Nothing", b"nothing"])
def test_b2_an_early_answer_lets_the_client_go(peer: Client, path: bytes) -> None:
    """B2: while the client has not half-closed, RST_STREAM(NO_ERROR) follows the trailers, and only then."""
    stream = peer.next_stream
    answer = ask(peer, path, body=framed(b"x"), end=False)
    assert answer == ["TO 12", "RST NO_ERROR"]
    peer.send(data(stream, b"in flight", end=True))  # A22: it could not know
    assert seen(peer, stream) == answer


def test_b4_an_empty_or_missing_path_is_malformed(peer: Client) -> None:
    """B4: RST_STREAM(PROTOCOL_ERROR), and the connection goes on."""
    for head in (with_field(b":path", b""), with_field(b":path")):
        assert ask(peer, head=head) == ["RST PROTOCOL_ERROR"]
    assert ask(peer) == SERVED


# --- B5, B6, B7: content type and method --------------------------------------------------------------------------


GRPC_TYPES = (
    b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8",
    b"application/grpc+proto; x=y", b"application/grpc;",
)  # fmt: skip
OTHER_TYPES = (
    b"text/plain", b"application/json", b"application/grpcfoo", b"application/grpc-web", b"application/grpc-web+proto",
    b"application/grpc+json", b"application/grpc+proto2", b"application/GRPC", b"Application/grpc", b"application/grp",
    b"application/proto", b"application/grpc,x", b"",
)  # fmt: skip


@pytest.mark.parametrize("value", GRPC_TYPES)
def test_b5_grpc_in_all_its_spellings_is_served(peer: Client, value: bytes) -> None:
    """B5: with or without `+proto`, with or without parameters; the answer says `application/grpc`."""
    assert ask(peer, head=with_field(b"content-type", value)) == SERVED
    assert peer.reply(1)[b"content-type"] == b"application/grpc"


@pytest.mark.parametrize("value", [*OTHER_TYPES, None], ids=repr)
def test_b5_another_content_type_is_415(peer: Client, value: bytes | None) -> None:
    """B5: HTTP 415 with a short text and no gRPC status, once the client has ended its request and not before."""
    head = with_field(b"content-type", *([] if value is None else [value]))
    peer.send(headers(1, literals(head)))
    assert seen(peer, 1) == []
    peer.send(data(1, framed(b"x")))
    assert seen(peer, 1) == []
    peer.send(data(1, b"", end=True))
    assert seen(peer, 1) == ["HEADERS 415", "DATA ES"]
    assert peer.reply(1)[b"content-type"].startswith(b"text/plain")
    assert 0 < len(peer.reply(1).data) < 200
    assert peer.application.asked == 0


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD", b"OPTIONS", b"post", b"Post", b"CONNEC"])
def test_b6_grpc_by_another_method_is_405(peer: Client, method: bytes) -> None:
    """B6: Trailers-Only with `:status` 405 and grpc-status 13, then RST_STREAM(NO_ERROR) if the client goes on."""
    assert ask(peer, head=with_field(b":method", method), body=None) == ["405 TO 13"]
    assert ask(peer, head=with_field(b":method", method)) == ["405 TO 13", "RST NO_ERROR"]
    assert peer.application.asked == 0


@pytest.mark.parametrize("path", [b"/", b"/healthz", ECHO])
def test_b7_a_browser_gets_405_with_a_text(peer: Client, path: bytes) -> None:
    """B7: GET without a gRPC content type; HEAD gets the same without the text."""
    head = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost")]
    assert ask(peer, head=head, body=None) == ["HEADERS 405", "DATA ES"]
    assert peer.reply(1)[b"content-type"].startswith(b"text/plain")
    assert 0 < len(peer.reply(1).data) < 200
    assert ask(peer, head=[(b":method", b"HEAD"), *head[1:]], body=None) == ["HEADERS 405 ES"]


def test_b7_a_browser_hears_nothing_before_its_end(peer: Client) -> None:
    """B7: as with B5, the answer waits for END_STREAM, so h2spec's requests with a body find their stream open."""
    peer.send(headers(1, literals(with_field(b":method", b"GET")[:4])))
    assert seen(peer, 1) == []
    peer.send(data(1, b"x", end=True))
    assert seen(peer, 1) == ["HEADERS 405", "DATA ES"]


# --- B8: te -------------------------------------------------------------------------------------------------------


def test_b8_te_may_be_missing(peer: Client) -> None:
    """B8: served, as by grpc-go and grpc-java; proxies lose it."""
    assert ask(peer, head=with_field(b"te")) == SERVED


@pytest.mark.parametrize("value", [b"gzip", b"trailers, deflate", b"Trailers", b""])
def test_b8_any_other_te_is_malformed(peer: Client, value: bytes) -> None:
    """B8, A34: a `te` that is not `trailers` is RST_STREAM(PROTOCOL_ERROR) (RFC 9113 section 8.2.2)."""
    assert ask(peer, head=with_field(b"te", value)) == ["RST PROTOCOL_ERROR"]


# --- B9, B10: the timeout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"0n", b"0u", b"0m", b"0S", b"0M", b"0H", b"1n", b"00000000H"])
def test_b9_no_time_left_is_deadline_exceeded(peer: Client, value: bytes) -> None:
    """B9: 4 and never 13, since real clients send `0n` and `1n` for what has expired."""
    assert ask(peer, metadata=[(b"grpc-timeout", value)], body=None) == ["TO 4"]
    assert ask(peer, metadata=[(b"grpc-timeout", value)]) == ["TO 4", "RST NO_ERROR"]
    assert peer.application.asked == 0


BAD_TIMEOUTS = (
    b"abc", b"1X", b"", b"-1S", b"+1S", b"123456789S", b"000000001S", b"S", b"1", b"1s", b"1.5S", b"1 S", b"0x1S",
    b"1SS", b"\xb2S", b"1_0S", b"1h",
)  # fmt: skip


@pytest.mark.parametrize("value", BAD_TIMEOUTS, ids=repr)
def test_b10_a_malformed_timeout_is_internal(peer: Client, value: bytes) -> None:
    """B10: 13 `malformed grpc-timeout`."""
    assert ask(peer, metadata=[(b"grpc-timeout", value)], body=None) == ["TO 13"]
    assert ask(peer, metadata=[(b"grpc-timeout", value)]) == ["TO 13", "RST NO_ERROR"]
    assert b"malformed grpc-timeout" in peer.reply(1)[b"grpc-message"]
    assert peer.application.asked == 0


@pytest.mark.parametrize("value", [b"1S\0", b" 1S", b"1S ", b"1S\r\n"])
@pytest.mark.parametrize("path", [ECHO, b"/unknown"])
def test_b10_a_timeout_that_is_no_field_value_is_malformed(peer: Client, path: bytes, value: bytes) -> None:
    """B10, A34: what no field may hold is RST_STREAM(PROTOCOL_ERROR) here too."""
    assert ask(peer, path, metadata=[(b"grpc-timeout", value)]) == ["RST PROTOCOL_ERROR"]


@pytest.mark.parametrize("value", [b"99999999H", b"99999999M", b"1H", b"99999999S", b"1S", b"1000m", b"00000001S"])
def test_b10_long_timeouts_are_valid(peer: Client, value: bytes) -> None:
    """B10: eight digits of any unit, however far away the deadline is."""
    assert ask(peer, metadata=[(b"grpc-timeout", value)]) == SERVED
    peer.send(headers(3, literals(fields(TALK, [(b"grpc-timeout", value)]))), data(3, framed(b"x")))
    assert seen(peer, 3) == ["HEADERS 200", "DATA"]


# --- B37: what else stands in a head ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        (b"grpc-previous-rpc-attempts", b"1"), (b"grpc-unheard-of", b"\xff"), (b"grpc-tags-bin", b"!"),
        (b"cookie", b"a=b"), (b"x-request-id", b""), (b"user-agent", b"curl"), (b"grpc-accept-encoding", b"br,zstd"),
        (b"host", b"elsewhere"), (b"accept-encoding", b"*"), (b"grpc-status", b"13"), (b"grpc-message", b"no"),
        (b"priority", b"u=1"), (b"via", b"1.1 proxy"), (b"x-forwarded-for", b"::1"),
        (b"grpc-retry-pushback-ms", b"-1"), (b"-", b"-"),
    ],
    ids=lambda field: ascii(field[0])[1:],
)  # fmt: skip
def test_b37_unknown_fields_are_ignored(peer: Client, field: Field) -> None:
    """B37: also when they belong to gRPC, and when they stand twice."""
    assert ask(peer, metadata=[field]) == SERVED
    assert ask(peer, metadata=[field, field]) == SERVED


@pytest.mark.parametrize("value", [b"AAECAw==", b"AAECAw", b"AAEC,Aw==", b"!!!", b"A", b"\x00raw"[1:], b""])
def test_b23_binary_metadata_is_nobodys_business(peer: Client, value: bytes) -> None:
    """B23: a `-bin` field that nothing here reads may hold anything a field may hold."""
    assert ask(peer, metadata=[(b"trace-bin", value)]) == SERVED
