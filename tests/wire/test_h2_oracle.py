"""The h2 package as a strict client: whatever the two say to each other, in whatever order, h2 finds nothing wrong."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from wire.application import COUNT, DENY, ECHO, FAIL, LARGE, REFUSE, TALK, WATCH, Field, Methods
from wire.conversations import FOUND
from wire.raw import fields, framed

from avapd.wire.connection import Connection
from avapd.wire.headers import Routes
from avapd.wire.limits import Limits

STREAMS = 8
# No limit but the number of streams: it is h2 that judges here, and hypothesis is no honest client.
MANY = 1 << 30
LIMITS = Limits(
    streams=STREAMS, resets=MANY, our_resets=MANY, ping_strikes=MANY, settings_per_minute=MANY, control_frames=MANY,
    tiny_frames=MANY, window_updates=MANY, empty_data=MANY, priorities=MANY, glitches=MANY,
)  # fmt: skip
PIECES = st.sampled_from([1, 9, 60, 1000, 1 << 30, 1 << 30, 1 << 30])
ANY = -2  # a status that the test does not foretell


@dataclasses.dataclass
class Asked:
    """A call as the client sees it: what it has still to say, what it must hear, and what it heard."""

    unsent: bytes
    messages: list[bytes] | None  # None: whatever
    status: int
    said_all: bool = False
    dropped: bool = False
    data: bytearray = dataclasses.field(default_factory=bytearray)
    statuses: list[bytes] = dataclasses.field(default_factory=list)
    ends: int = 0
    reset: int | None = None


def split(data: bytearray) -> list[bytes]:
    """The gRPC messages in a stream's DATA."""
    found, at = [], 0
    while at < len(data):
        flag, length = struct.unpack_from(">BI", data, at)
        assert flag == 0
        found.append(bytes(data[at + 5 : at + 5 + length]))
        assert len(found[-1]) == length
        at += 5 + length
    return found


Sample = tuple[bytes, bytes, list[bytes], int]  # path, body, messages, status
small = st.binary(max_size=40)


def sample(path: bytes, message: bytes, replies: list[bytes], status: int = 0) -> Sample:
    return path, framed(message), replies, status


calls: st.SearchStrategy[Sample] = st.one_of(
    small.map(lambda message: sample(ECHO, message, [b"reply to " + message])),
    st.sampled_from([0, 1, 1000, 16_379, 70_000, 200_000, 500_000]).map(
        lambda size: sample(LARGE, b"%d" % size, [b"x" * size])
    ),
    st.integers(0, 30).map(lambda count: sample(COUNT, b"%d" % count, [b"message %d" % one for one in range(count)])),
    st.lists(small, max_size=5).map(
        lambda messages: (TALK, b"".join(map(framed, messages)), [b"reply to " + one for one in messages], 0)
    ),
    st.just(sample(REFUSE, b"no", [], 5)),
    st.just(sample(FAIL, b"x", [], 2)),
    st.just(sample(b"/no/where", b"x" * 300, [], 12)),
    st.just((ECHO, framed(b"a") + framed(b"b"), [], 12)),
    st.just((ECHO, framed(b"abc")[:-1], [], 13)),
    st.just((ECHO, b"", [], 12)),
)
metadata: st.SearchStrategy[list[Field]] = st.lists(
    st.sampled_from([(b"x-trace", b"a"), (b"x-trace", b"b" * 300), (b"x-other", b""), (b"grpc-timeout", b"99S")]),
    max_size=4,
    unique=True,
)


class Conversation(RuleBasedStateMachine):
    """h2 and a Connection, with two pipes between them that deliver when and in such pieces as hypothesis likes."""

    def __init__(self) -> None:
        super().__init__()
        self.application = Methods()
        self.server = Connection(Routes(self.application, LIMITS), 0.0)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.client.initiate_connection()
        self.up, self.down = bytearray(), bytearray()
        self.asked: dict[int, Asked] = {}
        self.pings = self.pongs = 0
        self.unacknowledged = True
        self.exchange()

    # What the client does.

    @precondition(lambda self: self.client.open_outbound_streams < STREAMS)
    @rule(call=calls, extra=metadata, deny=st.booleans(), whole=st.booleans())
    def ask(self, call: Sample, extra: list[Field], *, deny: bool, whole: bool) -> None:
        path, body, messages, status = call
        if deny:
            extra, messages, status = [*extra, DENY], [], 16
        self._open(path, extra, Asked(body, messages, status), whole=whole)

    @precondition(lambda self: self.client.open_outbound_streams < STREAMS)
    @rule(extra=metadata, whole=st.booleans())
    def watch(self, extra: list[Field], *, whole: bool) -> None:
        self._open(WATCH, extra, Asked(framed(b""), None, ANY), whole=whole)

    @precondition(lambda self: self.client.open_outbound_streams < STREAMS)
    @rule(size=st.integers(17_000, 40_000))
    def ask_with_large_headers(self, size: int) -> None:
        """Headers that need CONTINUATION, and are too many."""
        self._open(ECHO, [(b"x-large", bytes([97 + size % 26]) * size)], Asked(framed(b"x"), [], 8), whole=True)

    def _open(self, path: bytes, extra: list[Field], asked: Asked, *, whole: bool) -> None:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, fields(path, extra))
        self.asked[stream] = asked
        if whole:
            self._say(stream, len(asked.unsent), 0)

    @rule(which=st.integers(0, 30), size=st.integers(0, 400), padding=st.sampled_from([0, 0, 1, 255]))
    def say_more(self, which: int, size: int, padding: int) -> None:
        speaking = [stream for stream, one in self.asked.items() if not (one.said_all or one.dropped or one.ends)]
        if speaking:
            self._say(speaking[which % len(speaking)], size, padding)

    def _say(self, stream: int, size: int, padding: int) -> None:
        asked = self.asked[stream]
        room = self.client.local_flow_control_window(stream) - padding - 1
        size = min(size, room, self.client.max_outbound_frame_size - 256)
        if size < 0:
            return
        part, asked.unsent = asked.unsent[:size], asked.unsent[size:]
        asked.said_all = not asked.unsent
        self.client.send_data(stream, part, end_stream=asked.said_all, pad_length=padding or None)

    @rule(which=st.integers(0, 30))
    def drop(self, which: int) -> None:
        """Give a call up."""
        open_ = [stream for stream, one in self.asked.items() if not (one.dropped or (one.ends and one.said_all))]
        if open_:
            stream = open_[which % len(open_)]
            self.asked[stream].dropped = True
            self.client.reset_stream(stream, 8)

    @rule(which=st.integers(0, 30), increment=st.sampled_from([1, 10, 1000, 60_000]))
    def open_window(self, which: int, increment: int) -> None:
        streams = [None, *(s for s, one in self.asked.items() if not (one.dropped or one.ends))]
        self.client.increment_flow_control_window(increment, streams[which % len(streams)])

    @precondition(lambda self: not self.unacknowledged)  # h2 takes any ACK for the ACK of all that it has said
    @rule(
        values=st.dictionaries(
            st.sampled_from([1, 4, 5, 6]), st.sampled_from([0, 1, 100, 16_384, 65_535, 100_000]), max_size=4
        )
    )
    def change_settings(self, values: dict[int, int]) -> None:
        legal = {key: value for key, value in values.items() if key in {1, 4} or value >= 16_384}
        self.client.update_settings(legal)
        self.unacknowledged = True

    @precondition(lambda self: not self.unacknowledged)
    @rule(size=st.sampled_from([0, 1, 100, 30_000, 65_535, 300_000]))
    def resize_windows(self, size: int) -> None:
        """At once, while answers are under way."""
        self.client.update_settings({4: size})
        self.unacknowledged = True
        self.exchange()

    @rule()
    def ping(self) -> None:
        self.pings += 1
        self.client.ping(self.pings.to_bytes(8, "big"))

    @rule(stream=st.integers(1, 99), weight=st.integers(1, 256))
    def prioritise(self, stream: int, weight: int) -> None:
        self.client.prioritize(stream, weight=weight, depends_on=0)

    # What the application does.

    @precondition(lambda self: self.application.watching)
    @rule(which=st.integers(0, 30), size=st.sampled_from([0, 5, 5000, 100_000]), finish=st.booleans())
    def news(self, which: int, size: int, *, finish: bool) -> None:
        call = self.application.watching[which % len(self.application.watching)]
        if finish:
            call.finish(14, "gone")
        else:
            call.send(b"n" * size)
        self._take()

    # What the pipes do.

    @rule(size=PIECES)
    def carry_up(self, size: int) -> None:
        self.up += self.client.data_to_send()
        part, self.up = bytes(self.up[:size]), self.up[size:]
        self.server.receive(part, 0.0)
        self._take()

    @rule(size=PIECES)
    def carry_down(self, size: int) -> None:
        part, self.down = bytes(self.down[:size]), self.down[size:]
        for event in self.client.receive_data(part):  # a ProtocolError here is a defect of ours
            self._hear(event)

    @rule()
    def exchange(self) -> None:
        """All that is on its way arrives, and what the server has ready goes its way."""
        self.carry_up(1 << 30)
        self.turn()
        self.carry_down(1 << 30)

    @rule()
    def turn(self) -> None:
        """The transport takes more."""
        if self.server.pending:
            self.server.resume(0.0)
        elif self.server.ready:
            self.server.pump(0.0)
        self._take()

    def _take(self) -> None:
        assert not self.server.closed
        self.down += b"".join(self.server.out)
        self.server.out.clear()

    # What the client hears.

    def _hear(self, event: h2.events.Event) -> None:
        assert not isinstance(event, h2.events.ConnectionTerminated), event
        if isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
            assert event.ping_data == self.pongs.to_bytes(8, "big")
        if isinstance(event, h2.events.SettingsAcknowledged):
            self.unacknowledged = False
        asked = self.asked.get(getattr(event, "stream_id", 0) or 0)
        if asked is None:
            return
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                asked.statuses += [bytes(value) for name, value in event.headers or () if name == b"grpc-status"]
            case h2.events.DataReceived():
                asked.data += event.data or b""
            case h2.events.StreamEnded():
                asked.ends += 1
            case h2.events.StreamReset():
                assert asked.reset is None
                asked.reset = int(event.error_code or 0)
                asked.said_all = True

    def teardown(self) -> None:
        """Let everything come to its end; then look at what came, and at the windows."""
        for call in self.application.watching:
            call.finish(0, "")
        for _ in range(10_000):
            if not self._go_on():
                break
        for call in self.application.watching:  # those that were begun meanwhile
            call.finish(0, "")
        for _ in range(10_000):
            if not self._go_on():
                break
        for asked in self.asked.values():
            if not asked.dropped:
                assert (asked.ends, len(asked.statuses), asked.reset in {None, 0}) == (1, 1, True), asked
                assert asked.status in {ANY, int(asked.statuses[0])}, asked
                assert asked.messages is None or split(asked.data) == asked.messages
        assert self.pongs == self.pings
        self.check_windows()

    def check_windows(self) -> None:
        """The window of the connection is, at the server, what the model of h2 says: an answer fills it to the brim.

        That the server does not send more is h2's to say; that it sends so much, and has places for all streams, ours.
        """
        room = self.client._inbound_flow_control_window_manager.current_window_size
        streams = [self.client.get_next_available_stream_id()]
        self._open(LARGE, [], Asked(framed(b"%d" % (room + 1)), None, ANY), whole=True)
        self.client.increment_flow_control_window(room + 100_000, streams[0])
        for _ in range(STREAMS - 1):
            streams.append(self.client.get_next_available_stream_id())
            self._open(WATCH, [], Asked(framed(b""), None, ANY), whole=True)
        self.carry_up(1 << 30)
        while self.server.pending or self.server.ready:
            self.turn()
        self.carry_down(1 << 30)
        asked = [self.asked[stream] for stream in streams]
        assert (sum(len(one.data) for one in asked), asked[0].ends) == (room, 0)
        assert [one.reset for one in asked] == [None] * STREAMS
        assert 65_535 // 2 - 16_384 <= self.client.outbound_flow_control_window <= 65_535

    def _go_on(self) -> bool:
        """One round in which everybody does what there is to do; False when there is nothing."""
        for stream, asked in self.asked.items():
            if not (asked.said_all or asked.dropped):
                self._say(stream, len(asked.unsent), 0)
            if not (asked.dropped or asked.ends) and self.client.remote_flow_control_window(stream) < 1000:
                self.client.increment_flow_control_window(200_000, stream)
        if self.client._inbound_flow_control_window_manager.current_window_size < 100_000:
            self.client.increment_flow_control_window(1 << 20)
        self.exchange()
        waits: list[Callable[[], object]] = [lambda: self.server.pending, lambda: self.server.ready]
        unsaid = any(not (one.said_all or one.dropped) for one in self.asked.values())
        unheard = any(not (one.ends or one.dropped) and one.status != ANY for one in self.asked.values())
        self.up += self.client.data_to_send()
        return bool(self.up or self.down or unsaid or unheard or any(wait() for wait in waits))


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=50, stateful_step_count=60, deadline=None, phases=FOUND)
