"""The channel: whole messages with their descriptors, however the bytes arrive, and not one descriptor too many."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stage import files

from avapd.errors import ChannelError
from avapd.shared import channel
from avapd.shared.channel import (
    DESCRIPTORS,
    MAX_MESSAGE,
    Ack,
    Adopt,
    Booted,
    Channel,
    Compressed,
    Drain,
    Keys,
    Load,
    Message,
    Missing,
    Refusals,
    Reject,
    Release,
    Spans,
    Start,
    Want,
)

START = Start(
    slot=1, row=2, rows=8, slots=4, cpu=3, engine="grpcio", environment="test", log_level="INFO",
    keys=[{"name": "a", "digest": "ab" * 32, "rate": 0.5}], catalog=True, spare=False, orphan_seconds=15.0,
    max_stale_seconds=0.0, pre_drain_seconds=0.5, drain_seconds=30.0, max_answer_bytes=1,
    limits={"streams": 100, "age_seconds": 0.5},
)  # fmt: skip
LOAD = Load(generation=7, size=1 << 40)
MESSAGES: list[Message] = [
    START, LOAD, Missing(reasons={"ñ": "why"}), Keys(keys=[]), Keys(keys=[{"name": "a"}, {"name": "b"}]),
    Adopt(slot=2), Release(slot=2), Drain(at_once=True),
    Compressed(generation=3, size=9, checksum="cd" * 32), Want(generation=3),
    Refusals(entries=[["auth_failed", "::1", "", 1 << 40]]),
    Spans(spans=[["GetCommand", 200, "ab", "", 1, 2]], dropped=3),
    Drain(at_once=False), Booted(), Ack(generation=1, seconds=0.25), Reject(generation=2, reason="ñ\n\x00 日本語"),
]  # fmt: skip


def needed(message: Message) -> int:
    """How many descriptors go with a message."""
    return DESCRIPTORS.get(type(message).__name__, 0)


class Pair:
    """Two channels, and files whose descriptors can be sent; `check` proves which file arrived."""

    def __init__(self) -> None:
        self.here, end = Channel.pair()
        self.raw = end
        self.there = Channel(end)
        self._files: list[int] = []

    def descriptors(self, message: Message) -> list[int]:
        """Descriptors to send with a message: each of a file of its own."""
        made = [os.memfd_create("test") for _ in range(needed(message))]
        self._files += made
        return made

    def close(self) -> None:
        self.here.close()
        self.there.close()
        for fd in self._files:
            os.close(fd)
        self._files.clear()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected channels; at the end as many descriptors are open as at the begin."""
    before = files()
    made = Pair()
    yield made
    made.close()
    assert files() <= before, "descriptors leaked"


def take(arrived: list[tuple[Message, list[int]]]) -> list[tuple[Message, list[int]]]:
    """The messages, each with the inodes of its descriptors, which are closed."""
    found = []
    for message, descriptors in arrived:
        found.append((message, [os.fstat(fd).st_ino for fd in descriptors]))
        for fd in descriptors:
            os.close(fd)
    return found


def inodes(descriptors: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in descriptors]


# --- what is sent arrives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_arrives_as_it_was_sent(pair: Pair, message: Message) -> None:
    """Every kind, with the descriptors that belong to it; the sender's stay the sender's."""
    descriptors = pair.descriptors(message)
    pair.here.send(message, *descriptors)
    assert take(pair.there.receive()) == [(message, inodes(descriptors))]
    assert not pair.here.pending


def test_descriptors_that_arrive_are_not_handed_on_to_children(pair: Pair) -> None:
    """As every descriptor that Python makes (PEP 446)."""
    pair.here.send(LOAD, *pair.descriptors(LOAD))
    ((_, (fd,)),) = pair.there.receive()
    inheritable = os.get_inheritable(fd)
    os.close(fd)
    assert not inheritable


def test_nothing_has_arrived_yet() -> None:
    """A channel on which nothing came is simply empty, and never waits."""
    here, end = Channel.pair()
    assert here.receive() == []
    here.close()
    end.close()


def test_messages_keep_their_order_and_their_descriptors(pair: Pair) -> None:
    """Many in one read: each gets its own descriptors, not its neighbour's."""
    sent = []
    for message in MESSAGES * 3:
        descriptors = pair.descriptors(message)
        pair.here.send(message, *descriptors)
        sent.append((message, inodes(descriptors)))
    assert take(pair.there.receive()) == sent


@pytest.mark.parametrize("message", [START, LOAD, Keys(keys=[{"a": 1}]), Booted()], ids=lambda m: type(m).__name__)
def test_a_message_may_be_split_at_every_byte(pair: Pair, message: Message) -> None:
    """It is returned when its last byte is there and not before; a message behind it changes nothing."""
    frame = channel.encode(message)
    for cut in range(1, len(frame)):
        descriptors = pair.descriptors(message)
        socket.send_fds(pair.raw, [frame[:cut]], descriptors)
        assert pair.here.receive() == []
        pair.raw.send(frame[cut:] + channel.encode(Booted()))
        assert take(pair.here.receive()) == [(message, inodes(descriptors)), (Booted(), [])]


def test_a_message_may_come_byte_by_byte(pair: Pair) -> None:
    """With a read after each byte."""
    frame = channel.encode(LOAD)
    descriptors = pair.descriptors(LOAD)
    for at in range(len(frame)):
        socket.send_fds(pair.raw, [frame[at : at + 1]], descriptors if at == 0 else [])
        arrived = take(pair.here.receive())
        assert arrived == ([(LOAD, inodes(descriptors))] if at == len(frame) - 1 else [])


texts = st.text(max_size=50)
numbers = st.integers(0, (1 << 63) - 1)


@given(
    st.one_of(
        st.builds(Reject, generation=numbers, reason=texts),
        st.builds(Keys, keys=st.lists(st.dictionaries(texts, texts))),
        st.builds(Load, generation=numbers, size=numbers),
        st.builds(Ack, generation=numbers, seconds=st.floats(0, 1e9)),
        st.builds(Drain, at_once=st.booleans()),
    )
)
@settings(deadline=None)
def test_encode_and_decode_are_a_pair(message: Message) -> None:
    """Whatever the fields hold."""
    frame = channel.encode(message)
    (length,) = struct.unpack("<I", frame[:4])
    assert length == len(frame) - 4
    assert channel.decode(frame[4:]) == message


# --- a reader that does not read ------------------------------------------------------------------------------------


def test_a_full_socket_keeps_messages_for_later(pair: Pair) -> None:
    """`send` never waits; `flush` sends what waited, in order, with its descriptors, and closes its copies."""
    big = Keys(keys=[{"digest": "ab" * 32}] * 500)
    sent = []
    for number in range(60):
        load = Load(generation=number, size=1)
        descriptors = pair.descriptors(load)
        pair.here.send(big)
        pair.here.send(load, *descriptors)
        sent += [(big, []), (load, inodes(descriptors))]
    assert pair.here.pending
    arrived: list[tuple[Message, list[int]]] = []
    while len(arrived) < len(sent):
        new = take(pair.there.receive())
        assert new
        arrived += new
        pair.here.flush()
    assert arrived == sent
    assert not pair.here.pending


def test_what_nobody_read_is_closed_with_the_channel() -> None:
    """Unsent copies and arrived but untaken descriptors alike."""
    before = files()
    made = Pair()
    big = Keys(keys=[{"digest": "ab" * 32}] * 5000)
    load = made.descriptors(LOAD)
    for _ in range(5):
        made.here.send(LOAD, *load)
        made.here.send(big)
    assert made.here.pending
    half = channel.encode(LOAD)[:5]
    socket.send_fds(made.raw, [half], load)
    assert made.here.receive() == []
    made.close()
    assert files() <= before


# --- the end --------------------------------------------------------------------------------------------------------


def test_the_end_is_told_after_everything_that_was_sent(pair: Pair) -> None:
    """First the messages, then EOFError, again and again."""
    descriptors = pair.descriptors(LOAD)
    pair.here.send(Booted())
    pair.here.send(LOAD, *descriptors)
    pair.here.close()
    assert take(pair.there.receive()) == [(Booted(), []), (LOAD, inodes(descriptors))]
    for _ in range(2):
        with pytest.raises(EOFError):
            pair.there.receive()


def test_half_a_message_at_the_end_is_no_message(pair: Pair) -> None:
    """A sender that died in the middle of a message sent nothing."""
    pair.raw.send(channel.encode(Booted())[:-1])
    pair.raw.close()
    with pytest.raises(EOFError):
        pair.here.receive()


def test_an_end_with_unread_messages_is_an_end(pair: Pair) -> None:
    """The kernel says ECONNRESET when the dead side had not read everything."""
    pair.here.send(Booted())
    pair.raw.close()
    with pytest.raises(EOFError):
        pair.here.receive()


def test_sending_to_nobody_is_an_error_of_the_system(pair: Pair) -> None:
    """OSError, at once and ever after, and no descriptor stays behind."""
    descriptors = pair.descriptors(LOAD)
    pair.raw.close()
    for _ in range(3):
        with pytest.raises(OSError, match="Broken pipe"):
            pair.here.send(LOAD, *descriptors)
    assert not pair.here.pending


def test_a_descriptor_that_cannot_be_copied_leaves_none_behind(pair: Pair) -> None:
    """The first of two is copied, the second is not open: the copy of the first is closed again."""
    good, _ = pair.descriptors(START)
    before = files()
    with pytest.raises(OSError, match="Bad file descriptor"):
        pair.here.send(START, good, 1 << 20)
    assert files() == before
    assert not pair.here.pending


# --- nonsense ---------------------------------------------------------------------------------------------------------


def frame_of(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"1", b'"Booted"', b"{}", b'{"is":"booted"}', b'{"is":null}', b'{"is":[]}',
        b'{"is":{}}',
        b'{"is":"Booted","x":1}', b'{"is":"Load","size":1}', b'{"is":"Load","generation":1,"size":1,"fd":3}',
        b"\xff\xfe",
        b'{"is":"Channel"}', b'{"is":"__class__"}', b"[" * 5000, b'{"is":"Drain"}',
    ],
)  # fmt: skip
def test_a_frame_that_is_no_message_is_an_error_of_ours(pair: Pair, body: bytes) -> None:
    """ChannelError, whose text is short and shows the bytes escaped."""
    pair.raw.send(frame_of(body))
    with pytest.raises(ChannelError) as caught:
        pair.here.receive()
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@given(st.binary())
@settings(deadline=None)
def test_garbage_never_gets_past_decode(body: bytes) -> None:
    """Random bytes are refused with ChannelError and with nothing else."""
    with pytest.raises(ChannelError):
        channel.decode(body)


@given(
    st.sampled_from(MESSAGES),
    st.dictionaries(
        st.sampled_from(["is", "slot", "generation", "size", "reason", "x"]), st.none() | st.booleans() | texts
    ),
)
@settings(deadline=None)
def test_changed_fields_are_a_message_or_an_error(message: Message, changes: dict[str, Any]) -> None:
    """Nothing but ChannelError comes out of a well-formed object with the wrong fields."""
    fields = {"is": type(message).__name__, **dataclasses.asdict(message), **changes}
    try:
        channel.decode(orjson.dumps(fields))
    except ChannelError:
        return


def test_a_message_that_is_too_long_is_refused_by_its_length(pair: Pair) -> None:
    """Before its bytes are waited for."""
    pair.raw.send(struct.pack("<I", MAX_MESSAGE + 1))
    with pytest.raises(ChannelError, match=f"{MAX_MESSAGE + 1} bytes"):
        pair.here.receive()


def test_a_message_of_the_largest_size_passes(pair: Pair) -> None:
    """The limit itself is allowed."""
    body = orjson.dumps({"is": "Reject", "generation": 1, "reason": "", "host": False})
    message = Reject(generation=1, reason="x" * (MAX_MESSAGE - len(body)))
    pair.here.send(message)
    arrived: list[tuple[Message, list[int]]] = []
    while not arrived:
        arrived = pair.there.receive()
        pair.here.flush()
    assert arrived == [(message, [])]


def test_a_message_without_its_descriptors_is_refused(pair: Pair) -> None:
    """A Load that names no memory cannot be meant."""
    pair.raw.send(channel.encode(LOAD))
    with pytest.raises(ChannelError, match="without its descriptors"):
        pair.here.receive()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_not_sent_with_other_descriptors(pair: Pair, message: Message) -> None:
    """Too many or too few would be paired with the next message."""
    fds = pair.descriptors(START) + pair.descriptors(START)
    for count in range(4):
        if count != needed(message):
            with pytest.raises(ChannelError):
                pair.here.send(message, *fds[:count])
    assert not pair.here.pending


@pytest.mark.parametrize("garbage", [frame_of(b"{}"), struct.pack("<I", MAX_MESSAGE + 1)])
def test_garbage_behind_a_message_leaks_no_descriptor(pair: Pair, garbage: bytes) -> None:
    """A good Load and then nonsense in one read: after the error and `close` its descriptor is closed too."""
    socket.send_fds(pair.raw, [channel.encode(LOAD) + garbage], pair.descriptors(LOAD))
    with pytest.raises(ChannelError):
        pair.here.receive()
