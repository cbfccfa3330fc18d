"""What avapd itself never sends and the suites ask of every server: metadata with an answer.

The engine has no interface for it, so this module writes the header blocks that `Call.send` and `Call.finish` would.
"""

from __future__ import annotations

from collections.abc import Sequence

from avapd.wire import grpc
from avapd.wire.call import Call
from avapd.wire.hpack import encode
from avapd.wire.hpack_tables import Field

_HEAD: tuple[Field, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))


def start(call: Call, headers: Sequence[Field]) -> None:
    """Send the headers of an answer now, and with them some metadata."""
    if not call.ended:
        call._calls._outbox.begin(call._stream, encode([*_HEAD, *headers]))
        call._calls.on_output()


def finish(call: Call, code: int, message: str, trailers: Sequence[Field], headers: Sequence[Field] = ()) -> None:
    """End a call with a status and some metadata; `headers` go with it if the call has none yet (Trailers-Only)."""
    if call.ended:
        return
    calls, stream = call._calls, call._stream
    status = [*grpc._status_fields(code, message), *trailers]
    outcome = calls._application.outcome(stream.head.path, code)
    call.ended = True
    if not stream.headed:
        calls._answer(stream, grpc.Response(outcome, encode([*_HEAD, *headers, *status])))
    else:
        stream.outcome = outcome
        calls._outbox.end(stream, encode(status))
    calls.on_output()
