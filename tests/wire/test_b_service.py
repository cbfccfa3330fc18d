"""Part B.1 of the checklist, what avapd serves: requests, health, reflection, the end (B21, B31 to B35)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from support.access import access, key_of
from wire.application import ECHO, LARGE, TALK, WATCH
from wire.raw import GOAWAY, PING, data, fields, framed, headers, literals, ping, rst_stream
from wire.verdicts import Client, ask, seen

from avapd.data.health import Health
from avapd.data.reflection import methods
from avapd.data.service import Service
from avapd.data.streams import Watches
from avapd.data.wire_engine import DefinitionApplication
from avapd.log import Log
from avapd.pb.avap_pb2 import CommandRequest, CommandResponse
from avapd.shared import memory
from avapd.shared.snapshot import View, pack
from avapd.wire.grpc import RESOURCE_EXHAUSTED, trailers_only
from avapd.wire.limits import Limits

KEY = b"test-key-of-enough-length"
RIGHT = [(b"x-avap-auth", KEY)]
GET, SYNC = b"/avap.DefinitionEngine/GetCommand", b"/avap.DefinitionEngine/SyncCatalog"
HEALTH = b"/grpc.health.v1.Health/"
REFLECTIONS = [
    b"/grpc.reflection.%s.ServerReflection/ServerReflectionInfo" % version for version in (b"v1", b"v1alpha")
]
SERVED = ["HEADERS 200", "DATA", "TRAILERS 0"]


@pytest.fixture
def health() -> Health:
    made = Health()
    for name in ("", "avap.DefinitionEngine", "liveness"):
        made.set(name, serving=True)
    made.set("avapd.freshness", serving=False)
    return made


@pytest.fixture
def peer(health: Health) -> Iterator[Client]:
    """A connection to the real service, with one definition."""
    service = Service(max_answer_bytes=1 << 20)
    fd = memory.create("test")
    message = CommandResponse(name="known", type="function", code=b"x = 1").SerializeToString()
    view = View.open(fd, pack(fd, 1, 1, [message]).arena_size)
    os.close(fd)
    service.swap(view)
    keys = access(key_of(KEY.decode()))
    application: Any = DefinitionApplication(service, Watches(service.feed), keys, health, Log("worker"))
    application.add(methods())
    yield Client(application)
    view.close()


def asked(service: str) -> bytes:
    return framed(health_pb2.HealthCheckRequest(service=service).SerializeToString())


def statuses(peer: Client, stream: int) -> list[str]:
    """The health statuses that came on a stream."""
    found = [health_pb2.HealthCheckResponse.FromString(raw).status for raw in peer.reply(stream).messages]
    return [health_pb2.HealthCheckResponse.ServingStatus.Name(status) for status in found]


# --- B21 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [b"\xff", b"\x0a", b"\x0a\x05abc", b"\x0a\x02\xc3\x28", b"\0\0", b"\x0b"])
def test_b21_no_protobuf_is_internal(peer: Client, request_: bytes) -> None:
    """B21: 13 that says so, first and second time alike; a good request beside it is served."""
    for _ in range(3):
        stream = peer.next_stream
        assert ask(peer, GET, RIGHT, body=framed(request_)) == ["TO 13"]
        assert peer.reply(stream)[b"grpc-message"] == b"Request is not a valid avap.CommandRequest"
    assert ask(peer, GET, RIGHT, body=framed(CommandRequest(name="known").SerializeToString())) == SERVED


def test_b21_the_key_comes_first(peer: Client) -> None:
    """B21: without it nothing of the request is looked at, whatever it is and however often it comes."""
    for body in (
        framed(b"\xff"),
        b"",
        framed(b"", length=9),
        framed(b"x", 7),
        framed(b"x") * 2,
        framed(b"", length=1 << 31),
    ):
        for _ in range(3):
            stream = peer.next_stream
            assert ask(peer, GET, body=body) == ["TO 16"]
            assert peer.reply(stream)[b"grpc-message"] == b"Invalid Credentials"


# --- B31, B39: the end --------------------------------------------------------------------------------------------


def test_b31_new_calls_after_the_last_good_bye_are_ignored() -> None:
    """B31: before it they are served; after it nothing comes, and calls in flight end as they should."""
    peer = Client()
    ask(peer, WATCH)
    assert [one.kind for one in peer.drain()] == [GOAWAY, PING]
    assert ask(peer) == [*SERVED[:0], "GOAWAY NO_ERROR", *SERVED]
    peer.send(ping(peer.of(PING)[-1].payload, ack=True))
    assert [int.from_bytes(one.payload[:4], "big") for one in peer.of(GOAWAY)] == [0x7FFF_FFFF, 3]
    assert ask(peer) == ["GOAWAY NO_ERROR"] * 2
    assert peer.application.asked == 1
    assert not peer.closed
    peer.application.watching[0].send(b"still here")
    peer.application.watching[0].finish()
    peer.settle()
    assert peer.reply(1).status == 0
    assert peer.closed


def test_b31_at_the_end_of_the_grace_calls_are_unavailable() -> None:
    """B31: 14 on each, so that clients try elsewhere."""
    peer = Client()
    ask(peer, WATCH)
    ask(peer, TALK, body=framed(b"12345")[:7], end=False)
    peer.drain()
    peer.wait(31)
    assert (peer.reply(1).status, peer.reply(3).status) == (14, 14)
    assert peer.closed


def test_b31_health_says_so_first(peer: Client, health: Health) -> None:
    """B31: NOT_SERVING, by Check and Watch, while calls are still served; who answers lives (contract part 5)."""
    ask(peer, HEALTH + b"Watch", body=asked(""))
    ask(peer, HEALTH + b"Watch", body=asked("liveness"))
    assert ask(peer, HEALTH + b"Check", body=asked("liveness")) == SERVED
    health.drain()
    peer.settle()
    assert statuses(peer, 1) == ["SERVING", "NOT_SERVING"]
    assert statuses(peer, 3) == ["SERVING"]
    assert ask(peer, GET, RIGHT, body=framed(CommandRequest(name="known").SerializeToString())) == SERVED


# --- B32: overload ------------------------------------------------------------------------------------------------


def test_b32_what_is_too_much_may_be_tried_again() -> None:
    """B32: REFUSED_STREAM says that nothing was begun: every client tries such a call again without being told to."""
    peer = Client(limits=Limits(streams=1))
    ask(peer, WATCH)
    assert ask(peer) == ["RST REFUSED_STREAM"]
    assert peer.application.asked == 0
    peer.send(rst_stream(1))
    assert ask(peer) == SERVED


def test_b32_calls_are_shed_when_they_are_too_late() -> None:
    """B32: 8 and when to come back, for methods that are shed, known by heart or not; their marks are told once."""
    peer = Client()
    later = (b"grpc-retry-pushback-ms", b"1000")
    peer.application.methods[ECHO].shed = trailers_only(RESOURCE_EXHAUSTED, "too late", RESOURCE_EXHAUSTED, later)
    for _ in range(4):
        assert ask(peer) == SERVED
    served = peer.application.asked
    peer.connection.shed(True)
    for body in (framed(b"x"), framed(b"x"), framed(b"never asked before")):
        stream = peer.next_stream
        assert ask(peer, body=body) == ["TO 8"]
        assert later in peer.reply(stream).headers
    assert ask(peer, metadata=[(b"x-mark", b"one")]) == ["TO 8"]
    assert peer.application.marks[-1].outcomes == [RESOURCE_EXHAUSTED]
    assert peer.application.asked == served
    assert ask(peer, LARGE, body=framed(b"5")) == SERVED
    peer.connection.shed(False)
    assert ask(peer) == SERVED


# --- B33, B34: health ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "avap.DefinitionEngine", "liveness", "avapd.freshness"])
def test_b33_check_answers_known_names(peer: Client, name: str) -> None:
    """B33: without a key, SERVING or NOT_SERVING, both OK."""
    for _ in range(3):
        stream = peer.next_stream
        assert ask(peer, HEALTH + b"Check", body=asked(name)) == SERVED
        assert statuses(peer, stream) == ["NOT_SERVING" if name == "avapd.freshness" else "SERVING"]


def test_b33_check_of_an_unknown_name_is_not_found(peer: Client) -> None:
    """B33: 5 and no status."""
    assert ask(peer, HEALTH + b"Check", body=asked("nothing")) == ["TO 5"]


def test_b33_list_names_them_all(peer: Client) -> None:
    """B33: gRFC A90."""
    assert ask(peer, HEALTH + b"List", body=framed(b"")) == SERVED
    assert all(
        name in bytes(peer.reply(1).data) for name in (b"liveness", b"avapd.freshness", b"avap.DefinitionEngine")
    )


def test_b34_watch_tells_at_once_and_then_changes_only(peer: Client, health: Health) -> None:
    """B34: a status that is set to what it was is not told again; the stream ends by the client."""
    assert ask(peer, HEALTH + b"Watch", body=asked("")) == ["HEADERS 200", "DATA"]
    for serving in (True, True, False, False, True):
        health.set("", serving=serving)
        peer.settle()
    assert statuses(peer, 1) == ["SERVING", "NOT_SERVING", "SERVING"]
    assert peer.send(rst_stream(1)) == []
    health.set("", serving=False)
    assert peer.settle() == []


def test_b34_watch_of_an_unknown_name_stays_open(peer: Client, health: Health) -> None:
    """B34: SERVICE_UNKNOWN is a message, and the status comes when the name is known."""
    assert ask(peer, HEALTH + b"Watch", body=asked("later")) == ["HEADERS 200", "DATA"]
    health.set("later", serving=True)
    peer.settle()
    assert statuses(peer, 1) == ["SERVICE_UNKNOWN", "SERVING"]


def test_b34_a_watcher_that_does_not_read_gets_the_newest(health: Health, peer: Client) -> None:
    """B34: a shut window makes no queue: after a thousand changes there is one message to send."""
    slow = Client(peer.application, settings_={4: 0})
    ask(slow, HEALTH + b"Watch", body=asked(""))
    for number in range(1001):
        health.set("", serving=bool(number & 1))
        slow.settle()
    slow.send(b"\0\0\4\x08\0\0\0\0\1\0\0\1\0")
    assert statuses(slow, 1) in (["SERVING", "NOT_SERVING"], ["NOT_SERVING"])


def test_b34_watches_end_when_the_server_does(peer: Client, health: Health) -> None:
    """B34: 14, so that a drain does not wait for them."""
    ask(peer, HEALTH + b"Watch", body=asked(""))
    health.end_watches()
    peer.settle()
    assert seen(peer, 1) == ["HEADERS 200", "DATA", "TRAILERS 14"]


# --- B35: reflection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REFLECTIONS)
def test_b35_reflection_answers_in_order(peer: Client, path: bytes) -> None:
    """B35: each question has its answer with the question in it; what is not found is an answer too (5), not an end."""
    questions = [
        {"list_services": ""}, {"file_containing_symbol": "avap.DefinitionEngine"}, {"file_by_filename": "none.proto"},
        {"file_containing_symbol": "no.Such"}, {"file_containing_symbol": "grpc.health.v1.Health"},
    ]  # fmt: skip
    requests = [reflection_pb2.ServerReflectionRequest(host="here", **question) for question in questions]
    peer.send(headers(1, literals(fields(path))))
    for request in requests:
        peer.send(data(1, framed(request.SerializeToString())))
    peer.send(data(1, b"", end=True))
    answers = [reflection_pb2.ServerReflectionResponse.FromString(raw) for raw in peer.reply(1).messages]
    assert [answer.original_request for answer in answers] == requests
    kinds = [answer.WhichOneof("message_response") for answer in answers]
    found, missing = "file_descriptor_response", "error_response"
    assert kinds == ["list_services_response", found, missing, missing, found]
    assert {answers[2].error_response.error_code, answers[3].error_response.error_code} == {5}
    assert peer.reply(1).status == 0


def test_b35_another_version_is_unimplemented(peer: Client) -> None:
    """B35: 12 is what makes a client try the other one."""
    assert ask(peer, b"/grpc.reflection.v2.ServerReflection/ServerReflectionInfo", body=None) == ["TO 12"]
