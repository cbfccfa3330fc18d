"""The channel between master and worker: small messages, with file descriptors beside them, over a socketpair.

Frame: length uint32 little-endian | JSON object `{"is": <message name>, …its fields}`. The descriptors of a message
travel as SCM_RIGHTS with its first byte (unix(7)); `DESCRIPTORS` says how many belong to each. The kernel never
merges bytes across such a boundary in one receive, and they arrive in order, so a plain queue pairs them up again.

End of stream is how each side learns that the other is gone, however it died.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from array import array
from collections import deque
from typing import Any, Final

import orjson

from avapd.errors import ChannelError

_LENGTH: Final = struct.Struct("<I")
MAX_MESSAGE: Final = 1 << 20
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """First message to a worker: who it is and how it serves. Descriptors: the board, the slot's listening socket.

    `keys` are the fields of config.keys.Key, with digests: a worker can check a key and cannot tell one. `catalog` says
    that a Load follows at once, so that the port is opened only when there is something to serve. A `spare` worker
    never opens it. With `tls` the Certificates come next. `anonymous` asks nobody for a key. `seed` makes every spread
    repeatable.
    `trace_ratio` is the share of calls that are traced though nobody asked for it; None when nothing is traced.
    """

    slot: int
    row: int
    rows: int
    slots: int
    cpu: int
    engine: str
    environment: str
    log_level: str
    keys: list[dict[str, Any]]
    catalog: bool
    spare: bool
    trace_ratio: float | None = None
    echo_request_id: bool = True
    orphan_seconds: float
    max_stale_seconds: float
    pre_drain_seconds: float
    drain_seconds: float
    max_answer_bytes: int
    limits: dict[str, float]
    tls: bool = False
    anonymous: bool = False
    seed: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Serve this snapshot. Descriptor: the sealed arena of `size` bytes.

    `changed` are the names that differ from the catalog with the hash `before`; None when they are too many to tell.
    `thorough` asks for every definition to be tried before it is served.
    """

    generation: int
    size: int
    before: str = ""
    changed: list[str] | None = None
    thorough: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadPatch:
    """Serve this patch. Descriptors: its base, of `base_size` bytes and `base` its generation, and the sealed patch.

    `before`, `changed` and `thorough` are as in Load.
    """

    generation: int
    size: int
    base: int
    base_size: int
    before: str = ""
    changed: list[str] | None = None
    thorough: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why some names are not found: `reasons` by name, to be said to who asks for them."""

    reasons: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """The answer of SyncCatalog of this generation, as gzip. Descriptor: sealed memory of `size` bytes.

    `checksum` is the SHA-256 (hex) of them.
    """

    generation: int
    size: int
    checksum: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Accept these keys and no others, from now on; `keys` as in Start."""

    keys: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Show this certificate from the next handshake on. Descriptor: sealed memory with it and its key, as PEM.

    With `client_ca`, PEM as well, clients must show one that these authorities signed.
    """

    client_ca: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Accept connections of a slot whose worker is missing as well. Descriptor: its listening socket.

    With `health` it is that of the health port; for a worker's own slot this says where its own is.
    """

    slot: int
    health: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The slot has a worker of its own again, for both ports."""

    slot: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Stop: NOT_SERVING, pre-drain, no new connections, finish what is in flight, exit 0.

    `at_once` leaves NOT_SERVING and the pre-drain out: the slot's socket has another worker already, so nobody has to
    be warned.
    """

    at_once: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """From a worker: the engine runs, a catalog may come."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """From a worker: it serves this generation, after `seconds` of mapping and verifying."""

    generation: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """From a worker: it goes on with what it had, because of `reason`; `host` when it was refused memory for it."""

    generation: int
    reason: str
    host: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """From a worker: a client would take the answer of SyncCatalog of this generation compressed. Said once."""

    generation: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """From a worker, once a second at most: who was refused. Entries are [reason, address, name of the key, calls].

    An empty address stands for all those that were too many to be named.
    """

    entries: list[list[str | int]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """From a worker, once a second at most: calls that were traced, and how many more there was no room for.

    Spans are [method, status, trace, parent or nothing, begin, duration, name of the command, request id], times in
    nanoseconds.
    """

    spans: list[list[str | int]]
    dropped: int


Message = (
    Start | Load | LoadPatch | Missing | Compressed | Keys | Certificates | Adopt | Release | Drain
    | Booted | Ack | Reject | Want | Refusals | Spans
)  # fmt: skip
_KINDS: Final = (
    Start, Load, LoadPatch, Missing, Compressed, Keys, Certificates, Adopt, Release, Drain,
    Booted, Ack, Reject, Want, Refusals, Spans,
)  # fmt: skip
_MESSAGES: Final = {kind.__name__: kind for kind in _KINDS}
DESCRIPTORS: Final = {"Start": 2, "Load": 1, "LoadPatch": 2, "Compressed": 1, "Certificates": 1, "Adopt": 1}


def encode(message: Message) -> bytes:
    """A message as a frame."""
    body = orjson.dumps({"is": type(message).__name__, **dataclasses.asdict(message)})
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """A frame's body as a message. Raises ChannelError when it is none."""
    try:
        fields = orjson.loads(body)
        return _MESSAGES[fields.pop("is")](**fields)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ChannelError(f"not a message ({type(error).__name__}): {body[:80]!r}") from None


class Channel:
    """One end of the socketpair, non-blocking. The owner watches `fileno` and calls `receive` and `flush`."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Our end, and the end to hand to the other process."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._end.fileno()

    def send(self, message: Message, *descriptors: int) -> None:
        """Send, or keep for `flush` when the other side does not read; never waits.

        Descriptors are duplicated, the caller's stay open. Raises OSError when the other side is gone.
        """
        if len(descriptors) != DESCRIPTORS.get(type(message).__name__, 0):
            raise ChannelError(f"{type(message).__name__} goes with other descriptors")
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in descriptors)
        except OSError:
            for fd in copies:
                os.close(fd)
            raise
        self._unsent.append((encode(message), tuple(copies)))
        self.flush()

    @property
    def pending(self) -> bool:
        """Whether the other side has left messages unread for so long that some wait here."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what waits, as far as the other side reads. Raises OSError when it is gone."""
        while self._unsent:
            frame, descriptors = self._unsent[0]
            try:
                sent = socket.send_fds(self._end, [frame], list(descriptors))
            except BlockingIOError:
                return
            except OSError:
                self._drop_unsent()
                raise
            for fd in descriptors:
                os.close(fd)
            if sent < len(frame):
                self._unsent[0] = (frame[sent:], ())
            else:
                self._unsent.popleft()

    def receive(self) -> list[tuple[Message, list[int]]]:
        """The messages that have arrived, with their descriptors, now the caller's to close.

        Raises EOFError when the other side is gone and everything it sent was returned before, and ChannelError.
        """
        ended = False
        while True:
            try:
                data, descriptors = self._read()
            except BlockingIOError:
                break
            except ConnectionResetError:
                data, descriptors = b"", array("i")
            self._descriptors.extend(descriptors)
            if not data:
                ended = True
                break
            self._buffer += data
        messages: list[tuple[Message, list[int]]] = []
        try:
            self._frames(messages)
        except ChannelError:
            for _, its_descriptors in messages:
                for fd in its_descriptors:
                    os.close(fd)
            raise
        if ended and not messages:
            raise EOFError
        return messages

    def _read(self) -> tuple[bytes, array[int]]:
        # Not socket.recv_fds: it ignores its flags (CPython 3.11), and the descriptors would be inheritable.
        data, ancillary, _flags, _address = self._end.recvmsg(65536, socket.CMSG_SPACE(8 * 4), _CLOEXEC)
        descriptors = array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        return data, descriptors

    def _frames(self, messages: list[tuple[Message, list[int]]]) -> None:
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE:
                raise ChannelError(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            message = decode(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
            count = DESCRIPTORS.get(type(message).__name__, 0)
            if len(self._descriptors) < count:
                raise ChannelError(f"{type(message).__name__} came without its descriptors")
            messages.append((message, [self._descriptors.popleft() for _ in range(count)]))

    def _drop_unsent(self) -> None:
        for _frame, descriptors in self._unsent:
            for fd in descriptors:
                os.close(fd)
        self._unsent.clear()

    def close(self) -> None:
        """Close our end and every descriptor nobody took."""
        self._drop_unsent()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._end.close()
