"""What the rpcs mean, without any engine: bytes in, a status and bytes out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd.data.service import DENIED, NOT_FOUND, SERVICE, Service, unimplemented
from avapd.pb.avap_pb2 import CatalogResponse, CommandRequest, CommandResponse
from avapd.shared import memory
from avapd.shared.board import METHODS, STATUS_OF_CODE
from avapd.shared.snapshot import View, pack
from avapd.wire.grpc import INTERNAL, OK, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, Answer, Body

NAMES = ("addVar", "ñ日本", "x" * 200)


def view_of(*names: str, generation: int = 1, code: bytes = b"x = 1") -> View:
    """A verified view of a catalog with these names."""
    messages = [CommandResponse(name=name, type="function", code=code).SerializeToString() for name in sorted(names)]
    fd = memory.create("test")
    try:
        header = pack(fd, generation, len(messages), messages)
        return View.open(fd, header.arena_size)
    finally:
        os.close(fd)


@pytest.fixture
def service() -> Iterator[Service]:
    """A service with a catalog."""
    made = Service(max_answer_bytes=1 << 20)
    view = view_of(*NAMES)
    assert made.swap(view) is None
    yield made
    view.close()


def get(service: Service, name: str) -> Answer:
    return service.get_command(CommandRequest(name=name).SerializeToString())


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_answered_by_its_name(service: Service, name: str) -> None:
    """By the canonical request and by any other way of writing it."""
    raw = name.encode()
    requests = [
        CommandRequest(name=name).SerializeToString(),
        CommandRequest(name="other").SerializeToString() + CommandRequest(name=name).SerializeToString(),
        b"\x10\x01" + CommandRequest(name=name).SerializeToString(),
        CommandRequest(name=name).SerializeToString() + b"\x1a\x03abc",
        b"\x0a" + bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7 | 0x80, 0]) + raw,
    ]
    for request in requests:
        answer = service.get_command(request)
        assert (answer.code, answer.message) == (0, "")
        assert CommandResponse.FromString(answer.whole()).name == name


@pytest.mark.parametrize("name", ["", "missing", "addvar", "addVar ", "addVa", "addVarr", "\0", "a\nb", "'", "ñ"])
def test_an_unknown_name_is_not_found_and_named(service: Service, name: str) -> None:
    """NOT_FOUND with the contract's words; names are exact."""
    assert get(service, name) == Answer(5, f"Command '{name}' not found", b"")


def test_a_long_name_is_cut_in_the_message(service: Service) -> None:
    """Clients refuse trailers over 8 KiB: 256 characters are shown, four bytes each and percent-encoded at worst."""
    answer = get(service, "日" * 20_000)
    assert answer.code == 5
    assert answer.message == f"Command '{'日' * 256}…' not found"
    assert len(get(service, "\U0001f600" * 20_000).message.encode()) * 3 < 8192


@pytest.mark.parametrize(
    "request_", [b"\x0a", b"\x0a\x05ab", b"\x0a\x01\xff", b"\xff", b"\x00\x00", b"\x0c", b"addVar"]
)
def test_what_is_no_request_is_an_internal_error_that_says_so(service: Service, request_: bytes) -> None:
    """INTERNAL by the contract, and no stack trace."""
    assert service.get_command(request_) == Answer(13, "Request is not a valid avap.CommandRequest", b"")


def test_the_catalog_is_answered_whole(service: Service) -> None:
    """Sorted by name, with count and hash; unknown fields in the request are no error."""
    for request in (b"", b"\x0a\x03abc", b"\x10\x01"):
        answer = service.sync_catalog(request)
        assert answer.code == 0
        catalog = CatalogResponse.FromString(answer.whole())
        assert [command.name for command in catalog.commands] == sorted(NAMES)
        assert (catalog.total_count, catalog.version_hash) == (3, service.view.version_hash if service.view else "")


@pytest.mark.parametrize("request_", [b"\x0a", b"\xff", b"\x0c", b"\x0a\x05ab"])
def test_what_is_no_empty_is_an_internal_error(service: Service, request_: bytes) -> None:
    """It names the message it is not."""
    assert service.sync_catalog(request_) == Answer(13, "Request is not a valid avap.Empty", b"")


def test_without_a_catalog_everything_is_unavailable() -> None:
    """UNAVAILABLE, so that clients try again; nothing is revealed, not even whether the request was valid."""
    service = Service(1 << 20)
    for answer in (
        get(service, "a"),
        service.get_command(b"\xff"),
        service.sync_catalog(b""),
        service.sync_catalog(b"\xff"),
    ):
        assert answer == Answer(14, "No catalog loaded yet", b"")


def test_an_empty_catalog_is_a_catalog() -> None:
    """No definitions, and that is an answer."""
    service = Service(1 << 20)
    view = view_of()
    service.swap(view)
    answer = service.sync_catalog(b"")
    assert answer.code == 0
    assert len(CatalogResponse.FromString(answer.whole()).commands) == 0
    assert get(service, "a").code == 5
    view.close()


def test_the_largest_answer_is_allowed_and_a_byte_more_is_not() -> None:
    """RESOURCE_EXHAUSTED names both sizes and StreamCatalog; the limit holds for both methods."""
    view = view_of("a", code=bytes(5000))
    one, all_ = len(view.get(b"\x0a\x01a") or b""), view.answer_size
    for limit, codes_ in ((all_, (0, 0)), (all_ - 1, (0, 8)), (one, (0, 8)), (one - 1, (8, 8))):
        service = Service(limit)
        service.swap(view)
        answers = get(service, "a"), service.sync_catalog(b"")
        assert tuple(answer.code for answer in answers) == codes_
        for answer, size in zip(answers, (one, all_), strict=True):
            if answer.code:
                assert "StreamCatalog" in answer.message
                assert str(size) in answer.message
                assert str(limit) in answer.message
                assert answer.payload == b""
    view.close()


def test_a_swap_changes_every_answer_at_once() -> None:
    """The old view comes back to whoever swapped; nothing of it is answered any more."""
    service = Service(1 << 20)
    one, two = view_of("a", "b", generation=1), view_of("b", "c", generation=2, code=b"new")
    service.swap(one)
    assert service.swap(two) is one
    one.close()
    assert get(service, "a").code == 5
    assert CommandResponse.FromString(get(service, "b").whole()).code == b"new"
    assert CatalogResponse.FromString(service.sync_catalog(b"").whole()).version_hash == two.version_hash
    two.close()


def in_gzip(service: Service) -> Body | None:
    """What a client that takes gzip is sent as it is; None for the plain answer."""
    answer = service.sync_catalog(b"")
    return answer.compressed() if answer.compressed is not None else None


def test_a_compressed_catalog_is_wanted_once_and_kept_until_the_swap() -> None:
    """Not before a client takes it; once in a generation, however often; what comes for another one is not taken."""
    wanted: list[int] = []
    service = Service(1 << 20, wanted.append)
    one, two = view_of("a", generation=1), view_of("b", generation=2)
    assert not service.take_compressed(0, b"before there is a catalog")
    service.swap(one)
    service.sync_catalog(b"")
    assert wanted == []
    assert [in_gzip(service) for _ in range(3)] == [None] * 3
    assert wanted == [1]
    assert service.take_compressed(1, b"of one")
    assert [in_gzip(service) for _ in range(3)] == [b"of one"] * 3
    service.swap(two)
    assert not service.take_compressed(1, b"of one")
    assert in_gzip(service) is None
    assert wanted == [1, 2]
    one.close()
    two.close()


def test_what_is_never_sent_compressed_is_never_wanted() -> None:
    """A definition, a refusal, a catalog that is too large for an answer."""
    service = Service(1 << 20)
    view = view_of("a", code=bytes(5000))
    assert service.sync_catalog(b"").compressed is None
    service.swap(view)
    assert get(service, "a").compressed is None
    assert service.sync_catalog(b"\xff").compressed is None
    small = Service(100)
    small.swap(view)
    assert small.sync_catalog(b"").compressed is None
    view.close()


@given(st.binary(max_size=50))
@settings(deadline=None)
def test_no_request_raises(request_: bytes) -> None:
    """Whatever the bytes are, there is an answer, with a code that has a column on the board."""
    service = Service(1 << 20)
    view = view_of(*NAMES)
    service.swap(view)
    for method in service.methods.values():
        answer = method(request_)
        assert answer.code in STATUS_OF_CODE
        assert (answer.code == 0) == (answer.message == "")
    view.close()


def test_methods_and_codes_have_their_places_on_the_board() -> None:
    """Every method is counted under its own name, every code this service answers with under its status."""
    assert set(Service(1).methods) < set(METHODS)
    assert SERVICE == "avap.DefinitionEngine"
    for code in (
        OK,
        NOT_FOUND,
        RESOURCE_EXHAUSTED,
        UNIMPLEMENTED,
        INTERNAL,
        UNAVAILABLE,
    ):
        assert code in STATUS_OF_CODE
    assert DENIED[:3] == (16, "Invalid Credentials", b"")


def test_an_unknown_method_is_named_and_cut() -> None:
    """UNIMPLEMENTED; a path of any length makes a short message."""
    assert unimplemented("/avap.DefinitionEngine/getCommand") == Answer(
        12,
        "Method '/avap.DefinitionEngine/getCommand' not found",
        b"",
    )
    assert len(unimplemented("/" + "x" * 10_000).message) < 300
