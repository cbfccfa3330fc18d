"""Part B.1 of the checklist, calls that last: deadlines, cancelling, errors in mid-stream (B11, B24 to B30, B40)."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

import pytest
from wire.application import COUNT, ECHO, REFUSE, SERVICE, TALK, WATCH, Methods
from wire.raw import CONTINUATION, Field, data, fields, framed, headers, literals, request, rst_stream, window_update
from wire.verdicts import Client, ask, seen

from avapd.wire.call import Call
from avapd.wire.grpc import Method

SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]
LATE = SERVICE + b"Late"  # server stream that has said nothing yet


class Late(Methods):
    """With a method more, whose calls the test holds in its hand."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Call] = []
        self.methods[LATE] = Method.server_stream(LATE, self.late)

    def late(self, call: Call, _message: bytes) -> None:
        call.on_cancel = self._lost
        self.held.append(call)


@pytest.fixture
def application() -> Late:
    return Late()


@pytest.fixture
def peer(application: Late) -> Client:
    return Client(application)


def timeout(value: bytes) -> list[Field]:
    return [(b"grpc-timeout", value)]


# --- B11: deadlines -----------------------------------------------------------------------------------------------


def test_b11_a_deadline_ends_a_stream(peer: Client, application: Late) -> None:
    """B11: after headers it is trailers with 4; the handler learns of it and may say no more."""
    assert ask(peer, WATCH, timeout(b"2S")) == ["HEADERS 200", "DATA"]
    peer.wait(1.9)
    assert seen(peer, 1) == ["HEADERS 200", "DATA"]
    peer.wait(0.2)
    assert seen(peer, 1) == ["HEADERS 200", "DATA", "TRAILERS 4"]
    assert application.cancelled == 1
    application.watching[0].send(b"too late")
    application.watching[0].finish()
    assert peer.settle() == []


def test_b11_a_deadline_before_any_message_is_trailers_only(peer: Client, application: Late) -> None:
    """B11: 4 as Trailers-Only while no headers have been sent."""
    assert ask(peer, LATE, timeout(b"100m")) == []
    peer.wait(0.2)
    assert seen(peer, 1) == ["TO 4"]
    assert application.cancelled == 1


@pytest.mark.parametrize("path", [ECHO, WATCH, TALK])
def test_b11_a_client_that_goes_on_is_reset(peer: Client, path: bytes) -> None:
    """B11: RST_STREAM(CANCEL) follows while the client has not half-closed; what it still sends is discarded."""
    assert ask(peer, path, timeout(b"1S"), body=framed(b"12345")[:6], end=False) == []
    peer.wait(1.1)
    assert seen(peer, 1) == ["TO 4", "RST CANCEL"]
    peer.send(data(1, b"2345", end=True))
    assert seen(peer, 1) == ["TO 4", "RST CANCEL"]
    assert peer.application.asked == 0


def test_b11_a_stream_under_way_is_reset_too(peer: Client) -> None:
    """B11: a bidirectional call in full swing gets trailers with 4, then RST_STREAM(CANCEL)."""
    peer.send(headers(1, literals(fields(TALK, timeout(b"1S")))), data(1, framed(b"x")))
    peer.wait(2)
    assert seen(peer, 1) == ["HEADERS 200", "DATA", "TRAILERS 4", "RST CANCEL"]
    assert peer.application.cancelled == 1


def test_b11_an_answer_that_waits_on_a_window_has_a_deadline(application: Late) -> None:
    """B11: DATA that no window lets out is dropped with its call: the status is all that comes."""
    peer = Client(application, settings_={4: 0})
    assert ask(peer, ECHO, timeout(b"1S")) in ([], ["HEADERS 200"])
    peer.wait(1.1)
    assert seen(peer, 1) in (["HEADERS 200", "TRAILERS 4"], ["HEADERS 200", "RST CANCEL"])
    peer.send(window_update(1, 1000))
    assert seen(peer, 1)[-1] in {"TRAILERS 4", "RST CANCEL"}


def test_b11_each_call_has_its_own_deadline(peer: Client) -> None:
    """B11: in whatever order they came, calls end when their own time is over, and others stay."""
    for number, value in enumerate((b"3S", b"1S", b"2000m", b"10H")):
        assert ask(peer, WATCH, timeout(value)) == ["HEADERS 200", "DATA"], number
    ended = []
    for _ in range(40):
        before = {stream for stream in (1, 3, 5, 7) if peer.reply(stream).ended}
        peer.wait(0.1)
        ended += [stream for stream in (1, 3, 5, 7) if peer.reply(stream).ended and stream not in before]
    assert ended == [3, 5, 1]


# --- B25, B26: the client's end -----------------------------------------------------------------------------------


def test_b25_a_cancelled_call_says_nothing_more(peer: Client, application: Late) -> None:
    """B25: after RST_STREAM the handler is told once, and what it still says goes nowhere."""
    ask(peer, WATCH)
    assert peer.send(rst_stream(1)) == []
    assert application.cancelled == 1
    application.watching[0].send(b"x")
    application.watching[0].finish(13, "x")
    assert peer.settle() == []
    assert peer.send(rst_stream(1)) == []
    assert application.cancelled == 1
    assert ask(peer) == SERVED


def test_b25_a_request_that_is_taken_back_is_never_asked(peer: Client) -> None:
    """B25: RST_STREAM in the middle of the request."""
    ask(peer, ECHO, body=framed(b"12345")[:7], end=False)
    assert peer.send(rst_stream(1)) == []
    assert peer.application.asked == 0


@pytest.mark.parametrize("trailer", [(b"x-checksum", b"1"), (b"grpc-status", b"0"), None])
def test_b26_client_trailers_are_an_end(peer: Client, trailer: Field | None) -> None:
    """B26: HEADERS(END_STREAM) after DATA end the request, whatever they hold."""
    peer.send(headers(1, literals(fields())), data(1, framed(b"x")))
    assert seen(peer, 1) == []
    peer.send(headers(1, literals([trailer] if trailer else []), end=True))
    assert seen(peer, 1) == SERVED


def test_b26_client_trailers_end_a_conversation(peer: Client) -> None:
    """B26: the receiver of a bidirectional call hears an end."""
    peer.send(headers(1, literals(fields(TALK))), data(1, framed(b"x")), headers(1, b"", end=True))
    assert seen(peer, 1) == SERVED


# --- B27, B28: errors before and after the headers ----------------------------------------------------------------


def test_b27_an_error_after_headers_is_trailers(peer: Client, application: Late) -> None:
    """B27: one HEADERS(END_STREAM) with status and message, and no second `:status`."""
    ask(peer, WATCH)
    application.watching[0].finish(13, "broken")
    peer.settle()
    assert seen(peer, 1) == ["HEADERS 200", "DATA", "TRAILERS 13"]
    assert peer.reply(1).trailers == [(b"grpc-status", b"13"), (b"grpc-message", b"broken")]


def test_b28_headers_wait_for_the_first_message(peer: Client, application: Late) -> None:
    """B28: a call that ends before it is Trailers-Only, which is what lets a client try again."""
    assert ask(peer, LATE) == []
    application.held[0].finish(14, "not now")
    peer.settle()
    assert seen(peer, 1) == ["TO 14"]
    assert ask(peer, LATE) == []
    application.held[1].send(b"x")
    peer.settle()
    assert seen(peer, 3) == ["HEADERS 200", "DATA"]


def test_b28_a_stream_without_messages_may_end_well(peer: Client) -> None:
    """B28: OK as Trailers-Only, for a server stream and for a conversation."""
    assert ask(peer, COUNT, body=framed(b"0")) == ["TO 0"]
    assert ask(peer, TALK, body=None) == ["TO 0"]


# --- B29, B30, B36: status and message ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("é % \n tab", b"%C3%A9 %25 %0A tab"),
        ("plain ASCII, with ~ and !", b"plain ASCII, with ~ and !"),
        ("\x00\x1f\x7f", b"%00%1F%7F"),
        ("日本", b"%E6%97%A5%E6%9C%AC"),
        ("100%41", b"100%2541"),
        ("\r\ngrpc-status: 0", b"%0D%0Agrpc-status: 0"),
    ],
)
def test_b29_the_message_is_percent_encoded(peer: Client, text: str, encoded: bytes) -> None:
    """B29: UTF-8, then everything outside 0x20 to 0x7E and `%` itself."""
    assert ask(peer, REFUSE, body=framed(text.encode())) == ["TO 5"]
    assert peer.reply(1)[b"grpc-message"] == encoded
    assert unquote_to_bytes(encoded).decode() == text
    assert encoded.decode() == quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~")


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "日" * 5000, "🎉" * 4000, "%" * 5000, "\n" * 2000 + "x"])
def test_b29_b36_a_long_message_is_cut(peer: Client, text: str) -> None:
    """B29, B36: at 1.5 KiB of text, between two characters; the header list stays below 8 KiB."""
    assert ask(peer, REFUSE, body=framed(text.encode())) == ["TO 5"]
    shown = unquote_to_bytes(peer.reply(1)[b"grpc-message"])
    assert 1400 < len(shown) <= 1536
    assert text.startswith(shown.decode())
    assert sum(len(name) + len(value) + 32 for name, value in peer.reply(1).headers) < 8192


def test_b29_the_longest_message_fits_in_one_frame(peer: Client) -> None:
    """B36: even 1 KiB of percent signs travels without a CONTINUATION, which some clients limit."""
    ask(peer, REFUSE, body=framed(b"%" * 5000))
    assert not peer.of(CONTINUATION)


def test_b30_there_is_one_status_and_nothing_to_contradict_it(peer: Client, application: Late) -> None:
    """B30: no answer of ours carries grpc-status-details-bin; the fields are those of the table and no others."""
    ask(peer, REFUSE)
    ask(peer, b"/unknown")
    ask(peer, WATCH)
    application.watching[0].finish(3, "x")
    peer.settle()
    allowed = {b":status", b"content-type", b"grpc-status", b"grpc-message"}
    for reply in peer.replies.values():
        assert {name for name, _ in reply.headers + reply.trailers} <= allowed


def test_b30_a_status_beyond_the_known_travels_as_it_is(peer: Client, application: Late) -> None:
    """B30: the transport does not judge what a handler says."""
    ask(peer, LATE)
    application.held[0].finish(16, "who are you")
    peer.settle()
    assert seen(peer, 1) == ["TO 16"]


# --- B24: too many headers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [True, False])
def test_b24_headers_above_the_soft_limit_are_refused(peer: Client, end: bool) -> None:
    """B24: 8, and the block was decoded in full: what it put into the table is there for the next call."""
    many = [*fields(), *((b"x-%d" % number, b"y" * 1000) for number in range(16)), (b"x-last", b"here")]
    block = peer.block(many)
    assert len(block) < 16_384
    peer.send(headers(1, block, end=end))
    assert seen(peer, 1) == (["TO 8"] if end else ["TO 8", "RST NO_ERROR"])
    peer.send(headers(3, peer.block([*fields(), (b"x-last", b"here")])), data(3, framed(b"x"), end=True))
    assert seen(peer, 3) == SERVED


# --- B40: messages that are ready together ------------------------------------------------------------------------


def test_b40_messages_ready_together_share_a_frame(peer: Client) -> None:
    """B40: two hundred small messages are one DATA frame, and not two hundred, which tonic takes for a flood."""
    assert ask(peer, COUNT, body=framed(b"200")) == SERVED
    assert peer.reply(1).messages == [b"message %d" % number for number in range(200)]


def test_b40_so_do_messages_that_waited_for_a_window(application: Late) -> None:
    """B40: what was held back leaves in as few frames as the window allows."""
    peer = Client(application, settings_={4: 0})
    peer.send(request(1, b"", WATCH))
    for number in range(200):
        application.watching[0].send(b"later %d" % number)
    peer.settle()
    peer.send(window_update(1, 65_535))
    assert seen(peer, 1) == ["HEADERS 200", "DATA"]
    assert len(peer.reply(1).messages) == 201
