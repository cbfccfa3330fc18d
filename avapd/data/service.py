"""What the rpcs of DefinitionEngine mean: request bytes in, answer bytes and status out.

No engine, no I/O, no protobuf library: both engines, which remember answers, run this service. The caller has
checked the key before it comes here. One reference, `view`, is the whole state; `swap` replaces it between two calls,
so every answer belongs to one generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from avapd.data.feed import Feed
from avapd.data.request import check_empty, name_in
from avapd.shared.patch import Content
from avapd.shared.snapshot import key_of
from avapd.wire.grpc import INTERNAL, OK, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, Answer, Body

SERVICE: Final = "avap.DefinitionEngine"
# A name this long stands in the answer as it is; trailers must stay small, clients refuse more than 8 KiB.
_NAME_SHOWN: Final = 256
_PATH_SHOWN: Final = 64

# Status codes that only a service gives (https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
NOT_FOUND: Final = 5
UNAUTHENTICATED: Final = 16

TOO_MANY_FAILURES: Final = Answer(RESOURCE_EXHAUSTED, "Too many wrong keys from this address", b"")
OVERLOADED: Final = Answer(RESOURCE_EXHAUSTED, "Overloaded: the call waited too long for its turn")
DENIED: Final = Answer(UNAUTHENTICATED, "Invalid Credentials", b"", sterner=TOO_MANY_FAILURES)
NO_MESSAGE: Final = Answer(UNIMPLEMENTED, "The call ended before its message", b"")
HEADERS_TOO_LARGE: Final = Answer(RESOURCE_EXHAUSTED, "The request headers are larger than the maximum", b"")
_NOT_LOADED: Final = Answer(UNAVAILABLE, "No catalog loaded yet", b"")
_BAD_REQUEST: Final = Answer(INTERNAL, "Request is not a valid avap.CommandRequest", b"")
_BAD_EMPTY: Final = Answer(INTERNAL, "Request is not a valid avap.Empty", b"")


def unimplemented(path: str) -> Answer:
    """The answer to a method nobody serves. It is short, since it needs no key: nobody gets ten octets for one."""
    shown = path.encode("ascii", "backslashreplace").decode()
    return Answer(UNIMPLEMENTED, f"Method '{shown[:_PATH_SHOWN]}' not found", b"")


class Service:
    """The catalog a worker serves. `max_answer_bytes` bounds a unary answer.

    `missing` tells why a name is not found, where that is known: it stands in the answer.
    `want(generation)` is called once in a generation, when first a client would take SyncCatalog's answer compressed.
    """

    def __init__(self, max_answer_bytes: int, want: Callable[[int], None] = lambda _generation: None) -> None:
        self.view: Content | None = None
        self.missing: dict[str, str] = {}
        self._compressed: Body | None = None
        self._want = want
        self._wanted = 0  # the last generation that was
        self.feed = Feed()
        self._max_answer_bytes = max_answer_bytes
        self.methods: Final[dict[str, Callable[[bytes], Answer]]] = {
            "GetCommand": self.get_command,
            "SyncCatalog": self.sync_catalog,
        }

    def swap(self, view: Content, base: str = "", changed: list[str] | None = None) -> Content | None:
        """Serve `view` from now on; the view that was served before.

        `changed` are the names that differ from the catalog with the hash `base`; see feed.py.
        """
        before, self.view = self.view, view
        self._compressed = None
        self.feed.advance(view, base, changed)
        return before

    def get_command(self, request: bytes) -> Answer:
        """GetCommand: request is a serialized CommandRequest, payload a serialized CommandResponse."""
        view = self.view
        if view is None:
            return _NOT_LOADED
        # A canonical request is the key itself; see shared/snapshot.py.
        payload = view.get(request)
        if payload is None:
            try:
                name = name_in(request)
            except ValueError:
                return _BAD_REQUEST
            key = key_of(name)
            payload = view.get(key) if key != request else None
            if payload is None:
                why = self.missing.get(name)
                more = f": it is in quarantine, {_cut(why)}" if why is not None else ""
                return Answer(NOT_FOUND, f"Command '{_cut(name)}' not found{more}", b"")
        if len(payload) > self._max_answer_bytes:
            return self._too_large(len(payload))
        return Answer(OK, "", payload)

    def sync_catalog(self, request: bytes) -> Answer:
        """SyncCatalog: request is a serialized Empty, payload a serialized CatalogResponse."""
        view = self.view
        if view is None:
            return _NOT_LOADED
        try:
            check_empty(request)
        except ValueError:
            return _BAD_EMPTY
        if view.answer_size > self._max_answer_bytes:
            return self._too_large(view.answer_size)
        return Answer(OK, "", view.answer(), self._in_gzip)

    def _in_gzip(self) -> Body | None:
        """The answer of SyncCatalog as gzip, if it is there yet."""
        if self.view is not None and self._wanted != self.view.generation:
            self._wanted = self.view.generation
            self._want(self._wanted)
        return self._compressed

    def take_compressed(self, generation: int, answer: Body) -> bool:
        """Keep the answer of SyncCatalog as gzip until the next swap; False when it is not of what is served."""
        if self.view is None or self.view.generation != generation:
            return False
        self._compressed = answer
        return True

    def _too_large(self, size: int) -> Answer:
        return Answer(
            RESOURCE_EXHAUSTED,
            f"The answer has {size} bytes, the maximum is {self._max_answer_bytes}; use StreamCatalog",
            b"",
        )


def _cut(text: str) -> str:
    return text if len(text) <= _NAME_SHOWN else f"{text[:_NAME_SHOWN]}…"
