"""Request headers: from a header block to what it means, and how that is remembered.

A block goes through three memos, the widest meaning last:

    block ──settled / portable──► Known(Head, inserts, timeout)         equal octets, nothing is decoded
      └─decode─► fields ──lists──► Head                                 equal fields that matter
                   └─validate (A34 to A37)─► route ─► Head

`settled`   blocks of this connection that point into its dynamic table. True only while the table stays as it is: one
            insert and all are forgotten.
`portable`  blocks without a pointer into the table: equal octets mean the same on every connection, so all share them.
            They may insert (nginx and HAProxy do so with every call): a hit must replay the inserts, or the next
            pointer is read wrongly.
`lists`     clients whose blocks never repeat, since a deadline or a request id drifts, still send the same fields. What
            varies (grpc-timeout) or does not matter (user-agent, tracing) is left out of the key.

Fields that belong to one call alone (`noted`: a request id, a trace) make a mark, which goes with the call to its end;
only if they are visible ASCII. A block that has a mark is not remembered, since the next call's is another.

Entries are admitted on second sight and only when small, so a client that never repeats itself cannot push out those
who do. Only what was fully validated is remembered. A Head holds whether the key in it was right: `Routes.forget` drops
all when keys change. EDITORS: whatever a Head depends on must be part of the key of each memo.
"""

from __future__ import annotations

import re
from math import inf
from typing import Final

from avapd.wire import grpc
from avapd.wire.errors import ErrorCode, StreamFault
from avapd.wire.grpc import Answer, Application, Kind, Memo
from avapd.wire.hpack import Block, Decoder, Field, Inserts
from avapd.wire.limits import Limits
from avapd.wire.meaning import Head as Head  # noqa: PLC0414  # for those who import this module
from avapd.wire.meaning import Known as Known  # noqa: PLC0414  # as above
from avapd.wire.meaning import Marked

_NAME: Final = re.compile(rb"[!-9;-@\[-~]+")  # RFC 9113 section 8.2.1: no blank, no upper case, no colon, ASCII
_VALUE: Final = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")
_VISIBLE: Final = re.compile(rb"[!-~]+")
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
# RFC 9113 section 8.2.2: fields of a connection, not of a message.
_FORBIDDEN: Final = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_READ: Final = frozenset({b"te", b"content-type", b"content-length", b"grpc-encoding", b"grpc-accept-encoding"})
_TYPES: Final = (b"application/grpc", b"application/grpc+proto")
_TIMEOUT: Final = b"grpc-timeout"
_REGULAR: Final[Field] = (b"", b"")  # stands in a key for regular fields that are left out of it

_MALFORMED: Final = -1.0  # a grpc-timeout that is none

_BLOCK_BYTES: Final = 1_024  # larger blocks and lists are not remembered
_FIELD_BYTES: Final = 256
_INSERTS: Final = 32  # a block of 1 KiB may insert 200 entries, which no client does with every call

_NOT_GRPC: Final = b"This port speaks gRPC.\n"
_TOO_LARGE: Final = "The request headers are larger than the maximum"


def malformed(reason: str) -> StreamFault:
    """The fault of a request that breaks RFC 9113 section 8.1.1."""
    return StreamFault(ErrorCode.PROTOCOL_ERROR, reason)


def check_field(field: Field) -> None:
    """Raise StreamFault unless this is a regular field that a request may carry (A34)."""
    name, value = field
    if not _NAME.fullmatch(name):
        raise malformed("field name with forbidden characters")
    if not _VALUE.fullmatch(value):
        raise malformed("field value with forbidden characters")
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        raise malformed("connection-specific field")


def check_trailers(fields: tuple[Field, ...]) -> None:
    """Raise StreamFault unless these may end a request."""
    for field in fields:
        check_field(field)


class Routes:
    """What request headers mean to one application; shared by all connections."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.application = application
        self.limits = limits
        self.portable: dict[bytes, Known] = {}
        self._keyed = _PSEUDO | _FORBIDDEN | _READ | application.names
        self._noted = application.noted
        self._lists: dict[tuple[Field, ...], Head] = {}
        self._seen: set[object] = set()
        self._valid: set[Field] = set()
        self._timeouts: dict[bytes, float] = {}
        self._memos: dict[tuple[bytes, bool], Memo] = {}

    def forget(self) -> None:
        """Routes and refusals may be different from now on. Each connection's `Heads.forget` must follow."""
        self.portable.clear()
        self._lists.clear()
        self._seen.clear()

    def forget_answers(self) -> None:
        """Unary methods may answer differently from now on."""
        for memo in self._memos.values():
            memo.forget()

    def second_sight(self, key: object) -> bool:
        """Whether this was seen before, lately."""
        if key in self._seen:
            return True
        if len(self._seen) >= self.limits.memo_shared:
            self._seen.clear()
        self._seen.add(key)
        return False

    def offer(self, block: bytes, known: Known) -> None:
        """Remember a portable block on second sight."""
        if len(block) <= _BLOCK_BYTES and len(known[1]) <= _INSERTS and self.second_sight(block):
            if len(self.portable) >= self.limits.memo_shared:
                self.portable.clear()
            self.portable[block] = known

    def read(self, block: Block) -> tuple[Head, float]:  # noqa: C901  # calls cost more than the branches
        """The meaning of a decoded block, and its timeout in seconds. Raises StreamFault when it is malformed."""
        key: list[Field] = []
        notes: list[Field] = []
        timeout: bytes | None = None
        others = False
        valid, keyed = self._valid, self._keyed
        for field in block.fields:
            name = field[0]
            if name in keyed:
                key.append(field)
                continue
            if not others:
                others = True
                key.append(_REGULAR)
            if name == _TIMEOUT and timeout is None:
                timeout = field[1]
            elif field not in valid:
                if name in self._noted and _VISIBLE.fullmatch(field[1]):
                    notes.append(field)
                else:
                    self._validate(field)
        fields = tuple(key)
        head = self._lists.get(fields)
        if head is None:
            head = self._head(fields, block)
            small = block.at_most <= _BLOCK_BYTES or block.size <= _BLOCK_BYTES
            if small and self.second_sight(fields):
                if len(self._lists) >= self.limits.memo_shared:
                    self._lists.clear()
                self._lists[fields] = head
        if len(block.fields) > self.limits.header_fields or (
            block.at_most > self.limits.header_bytes and block.size > self.limits.header_bytes
        ):
            head, seconds = self._early(head, grpc.RESOURCE_EXHAUSTED, _TOO_LARGE), inf
        else:
            head, seconds = (head, inf) if timeout is None else self._timed(head, timeout)
        mark = self.application.mark(notes) if notes else None
        return (head if mark is None else Marked(head, mark)), seconds

    def _validate(self, field: Field) -> None:
        if field[0].startswith(b":"):
            raise malformed("unknown pseudo-header field")
        check_field(field)
        if len(field[0]) + len(field[1]) <= _FIELD_BYTES:
            if len(self._valid) >= self.limits.memo_shared:
                self._valid.clear()
            self._valid.add(field)

    def _timed(self, head: Head, text: bytes) -> tuple[Head, float]:
        seconds = self._timeouts.get(text)
        if seconds is None:
            if not _VALUE.fullmatch(text):
                raise malformed("field value with forbidden characters")
            try:
                seconds = grpc.timeout(text)
            except ValueError:
                seconds = _MALFORMED
            if len(self._timeouts) >= self.limits.memo_shared:
                self._timeouts.clear()
            self._timeouts[text] = seconds
        if head.method is None:  # whatever is wrong with the call comes before its time
            return head, inf
        if seconds == _MALFORMED:
            return self._early(head, grpc.INTERNAL, "malformed grpc-timeout"), inf
        if not seconds:
            return self._early(head, grpc.DEADLINE_EXCEEDED, "Deadline Exceeded"), inf
        return head, seconds

    def _early(self, head: Head, code: int, message: str, status: bytes = b"200") -> Head:
        early = Head(head.path)
        outcome = self.application.outcome(head.path, code)
        early.answer_at_once(grpc.trailers_only(code, message, outcome, status=status))
        return early

    def _head(self, fields: tuple[Field, ...], block: Block) -> Head:
        pseudo, regular = _sorted(fields)
        path = pseudo[b":path"]
        head = Head(path)
        head.length = _content_length(regular)
        content_type = _last(regular, b"content-type").partition(b";")[0]
        if content_type not in _TYPES:
            post = pseudo[b":method"] == b"POST"
            body = pseudo[b":method"] != b"HEAD"
            head.refusal = grpc.plain(b"415" if post else b"405", _NOT_GRPC, body=body)
            return head
        if pseudo[b":method"] != b"POST":
            return self._early(head, grpc.INTERNAL, "Method is not POST", b"405")
        head.encoding = _last(regular, b"grpc-encoding")
        head.gzip = b"gzip" in _listed(regular, b"grpc-accept-encoding")
        names = self.application.names
        # The fields as they came, not those of the key: `names` may be asked for twice.
        route = self.application.route(path, tuple(field for field in block.fields if field[0] in names))
        if isinstance(route, Answer):
            refusal = grpc.response(route, self.application.outcome(path, route.code))
            if route.code == grpc.UNIMPLEMENTED:  # nobody knows how long a call to it would go on (B2)
                head.answer_at_once(refusal)
            else:
                head.refusal = refusal
            if route.sterner is not None:
                head.sterner = grpc.response(route.sterner, self.application.outcome(path, route.sterner.code))
            return head
        head.method = route
        head.owner = route.owner
        head.shed = route.shed
        head.waits = route.kind is not Kind.BIDI
        if route.kind is Kind.UNARY and route.remembered and head.encoding in grpc.ENCODINGS:
            head.memo = self._memos.setdefault((path, head.gzip), Memo(self.limits.memo_shared))
            head.answers = head.memo.answers
        return head


def _sorted(fields: tuple[Field, ...]) -> tuple[dict[bytes, bytes], list[Field]]:
    """Pseudo-header fields by name, and the regular ones in order. Raises StreamFault (RFC 9113 section 8.3)."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[Field] = []
    for field in fields:
        name, value = field
        if field is _REGULAR:
            regular.append(field)
        elif name.startswith(b":"):
            if regular or name in pseudo or not _VALUE.fullmatch(value):
                raise malformed("pseudo-header field twice, late, or with forbidden characters")
            pseudo[name] = value
        else:
            check_field(field)
            regular.append(field)
    if not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        raise malformed("pseudo-header field missing or empty")
    return pseudo, regular


def _last(fields: list[Field], name: bytes) -> bytes:
    return next((value for found, value in reversed(fields) if found == name), b"")


def _listed(fields: list[Field], name: bytes) -> set[bytes]:
    """The members of a list, which may stand in one field or in several (RFC 9110 section 5.6.1)."""
    return {member.strip(b" \t") for found, value in fields if found == name for member in value.split(b",")}


def _content_length(fields: list[Field]) -> int:
    """The content-length, -1 without one; copies must be equal (A35)."""
    values = {value for name, value in fields if name == b"content-length"}
    if not values:
        return -1
    value = values.pop()
    if values or not value.isdigit() or len(value) > 18:
        raise malformed("content-length")
    return int(value)


class Heads:
    """The header blocks of one connection."""

    __slots__ = ("_decoder", "_routes", "_seen", "portable", "settled")

    def __init__(self, routes: Routes) -> None:
        limits = routes.limits
        self._routes = routes
        self._decoder = Decoder(max_list=4 * limits.header_bytes, max_fields=4 * limits.header_fields)
        self._seen: set[bytes] = set()
        self.settled: dict[bytes, Known] = {}
        self.portable = routes.portable

    def known(self, block: bytes) -> Known:
        """What a block means. Raises ConnectionFault when it cannot be decoded, StreamFault when it is malformed."""
        found = self.settled.get(block) or self.portable.get(block)
        if found is None:
            return self.read(block)
        if found[1]:
            self.replay(found[1])
        return found

    def read(self, block: bytes) -> Known:
        """What a block means that is not remembered. Raises as `known` does."""
        decoder = self._decoder
        version = decoder.version
        decoded = decoder.decode(block)
        changed = decoder.version != version
        if changed:
            self.forget()
        head, timeout = self._routes.read(decoded)
        known = head, decoded.inserts, timeout
        if isinstance(head, Marked):  # of this call alone
            return known
        if decoded.portable:
            self._routes.offer(block, known)
        elif not changed and len(block) <= _BLOCK_BYTES:
            self._offer(block, known)
        return known

    def skip(self, block: bytes) -> tuple[Field, ...]:
        """Decode a block whose request is not wanted, or trailers: the table must follow the client's (A30)."""
        version = self._decoder.version
        decoded = self._decoder.decode(block)
        if self._decoder.version != version:
            self.forget()
        return decoded.fields

    def replay(self, inserts: Inserts) -> None:
        """Do to the table what a remembered block did."""
        self._decoder.replay(inserts)
        self.forget()

    def _offer(self, block: bytes, known: Known) -> None:
        if block not in self._seen:
            if len(self._seen) >= 2 * self._routes.limits.memo_blocks:
                self._seen.clear()
            self._seen.add(block)
            return
        if len(self.settled) >= self._routes.limits.memo_blocks:
            self.settled.clear()
        self.settled[block] = known

    def forget(self) -> None:
        """The table has changed, or what blocks mean."""
        if self.settled:
            self.settled.clear()
        if self._seen:
            self._seen.clear()

    def read_anew(self, on: bool) -> None:
        """See `Connection`."""
        self.portable = {} if on else self._routes.portable
        self.forget()
