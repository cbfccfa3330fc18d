"""The audit's sink against a real HTTP server that is not always well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from support.lines import Lines
from support.server import free_port
from support.sink import HttpSink

from avapd.control import audit
from avapd.control.audit import Audit, Sink
from avapd.log import Log

TOKEN = "a-token-nobody-may-see"


@asynccontextmanager
async def sending(url: str, *, buffer: int = 100, token: str = TOKEN) -> AsyncIterator[tuple[Audit, Sink, Lines]]:
    """An audit whose sink sends in the background."""
    lines = Lines()
    log = Log("master", sink=lines)
    sink = Sink(url, token, log, buffer=buffer)
    made = Audit(log, sink)
    task = asyncio.create_task(made.run())
    try:
        yield made, sink, lines
    finally:
        task.cancel()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # of another thread
            await asyncio.sleep(0.005)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]  # each is a coroutine function


def test_events_come_as_the_log_has_them_with_the_token() -> None:
    """A line of JSON for each event, in order; `what` is cut, and control characters are escaped."""

    async def test() -> None:
        with HttpSink() as server:
            async with sending(server.url) as (made, sink, lines):
                made.note("order", "deny\x1b" + "x" * 1000, uid=0)
                made.note_refusals(1, [["auth_failed", "10.0.0.1", "", 7], ["auth_failed", "", "", 9]])
                await until(lambda: len(server.events) == 3)
                assert server.events == lines.said("Audit")
                assert sink.sent == 3
            (path, headers, body), *_ = server.taken
            assert path == "/audit"
            assert headers["authorization"] == f"Bearer {TOKEN}"
            assert headers["content-type"] == "application/x-ndjson"
            assert len(body) < 1000
            assert "\x1b" not in server.events[0]["what"]
            assert [one["peer"] for one in server.of("auth_failed")] == ["10.0.0.1", "others"]
            assert [one["count"] for one in server.of("auth_failed")] == [7, 9]
            assert all(one["audit"] and one["ts"] for one in server.events)

    run(test)


@pytest.mark.parametrize("ill", [500, 429, 302, "hang", "refuse"])
def test_what_was_not_taken_is_sent_again(ill: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that answers an error, redirects, hangs or is not there gets everything when it is well again."""
    monkeypatch.setattr(audit, "_SECONDS", 0.2)
    monkeypatch.setattr(audit, "_BACKOFF_FIRST", 0.05)

    async def test() -> None:
        port = free_port()
        async with sending(f"http://127.0.0.1:{port}/audit") as (made, sink, lines):
            made.note("published", generation=1)
            if ill != "refuse":
                with HttpSink(port) as server:
                    server.behave = ill
                    await until(lambda: server.asked >= 2)
                    assert server.taken == []
            await until(lambda: len(lines.said("Audit Not Sent")) == 1)
            assert sink.sent == 0
            with HttpSink(port) as server:
                made.note("published", generation=2)
                await until(lambda: sink.sent == 2)
                assert [one["generation"] for one in server.events] == [1, 2]
            assert sink.dropped == 0

    run(test)


def test_the_buffer_is_bounded_and_what_it_drops_is_counted() -> None:
    """With a sink that hangs, a million events would cost no more memory than the buffer, and no time."""

    async def test() -> None:
        with HttpSink() as server:
            server.behave = "hang"
            async with sending(server.url, buffer=50) as (made, sink, _):
                for number in range(200):
                    made.note("published", generation=number)
                await until(lambda: server.asked == 1)
                assert (sink.waiting, sink.dropped, sink.sent) == (50, 150, 0)
                samples = {sample.name: sample.value for metric in made.collect() for sample in metric.samples}
                assert samples["avap_audit_dropped_total"] == 150
                assert samples["avap_audit_sent_total"] == 0
                assert samples["avap_audit_waiting"] == 50

    run(test)


def test_the_end_sends_what_waits() -> None:
    """`finish` tries once more what the background had not sent, in batches."""

    async def test() -> None:
        with HttpSink() as server:
            sink = Sink(server.url, TOKEN, Log("master", sink=Lines()))
            for number in range(audit.BATCH_EVENTS + 1):
                sink.put(b'{"event": "published", "generation": %d}\n' % number)
            await sink.finish()
            assert [one["generation"] for one in server.events] == list(range(audit.BATCH_EVENTS + 1))
            assert len(server.taken) == 2
            assert (sink.waiting, sink.dropped) == (0, 0)

    run(test)


def test_the_end_does_not_wait_for_a_sink_that_hangs() -> None:
    """A short time, then what is left is dropped, and counted."""

    async def test() -> None:
        with HttpSink() as server:
            server.behave = "hang"
            sink = Sink(server.url, TOKEN, Log("master", sink=Lines()))
            sink.put(b"{}\n")
            began = asyncio.get_running_loop().time()
            await sink.finish(seconds=0.2)
            assert asyncio.get_running_loop().time() - began < 5
            assert (sink.waiting, sink.dropped) == (0, 1)

    run(test)


def test_no_secret_is_in_a_line() -> None:
    """Neither user and password of the URL nor its path and query nor the token; user and password are sent, though."""

    async def test() -> None:
        with HttpSink() as server:
            url = f"http://writer:pass%2Fword@127.0.0.1:{server.port}/hidden/path?secret=query"
            server.behave = 403
            async with sending(url, token="") as (made, sink, lines):
                made.note("published", generation=1)
                await until(lambda: bool(lines.said("Audit Not Sent")))
                server.behave = 200
                await until(lambda: sink.sent == 1)
                said = lines.buffer.getvalue()
                assert not any(secret in said for secret in (b"writer", b"pass", b"hidden", b"query"))
                assert lines.said("Audit Not Sent")[0]["sink"] == f"http://127.0.0.1:{server.port}"
            path, headers, _ = server.taken[0]
            assert path == "/hidden/path?secret=query"
            assert headers["authorization"] == "Basic d3JpdGVyOnBhc3Mvd29yZA=="

    run(test)


def test_a_certificate_nobody_vouches_for_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to a server that cannot prove its name; SSL_CERT_FILE says who may vouch for it."""
    authority, both = trustme.CA(), tmp_path / "both.pem"
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(both)

    async def test() -> None:
        with HttpSink(certificate=both) as server:
            async with sending(server.url) as (made, sink, lines):
                made.note("published", generation=1)
                await until(lambda: bool(lines.said("Audit Not Sent")))
                assert "Certificate" in lines.said("Audit Not Sent")[0]["reason"]
                assert (server.asked, sink.sent) == (0, 0)
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            async with sending(server.url) as (made, sink, _):
                made.note("published", generation=1)
                await until(lambda: sink.sent == 1)

    run(test)
