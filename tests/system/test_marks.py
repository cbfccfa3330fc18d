"""Request ids, traces and the audit of a whole server, on both engines, against real receivers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.database import Database
from support.raw import GET, RIGHT_KEY, Raw, framed
from support.server import KEY, Server, free_port
from support.sink import HttpSink
from support.waiting import stays, wait_until

from avapd.config import ENGINES
from avapd.pb.avap_pb2 import CommandRequest

Serve = Callable[..., Server]
SERVICE = b"/avap.DefinitionEngine/"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def asked(name: str) -> bytes:
    return framed(CommandRequest(name=name).SerializeToString())


# --- request ids --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("known", "[]", "function", "x = 1\n"), ("large", "[]", "function", "x = 1\n" * 20_000)])
    yield made
    made.drop()


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, database: Database) -> Iterator[Server]:
    env = {"AVAPD_ENGINE": str(request.param), "AVAPD_WORKERS": "1"}
    with Server(database.reader_url, env=env) as made:
        yield made.wait_serving()


CALLS = [
    (GET, asked("known"), 0), (GET, asked("large"), 0), (GET, asked("nobody"), 5), (GET, framed(b"\xff"), 13),
    (SERVICE + b"StreamCatalog", framed(b""), 0), (SERVICE + b"Nothing", framed(b""), 12),
    (SERVICE + b"SyncCatalog", framed(b""), 0),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "code"), CALLS)
def test_a_request_id_comes_back(server: Server, path: bytes, body: bytes, code: int) -> None:
    """Whatever the call and its end, first and second time alike; a call without one gets none."""
    with Raw(server.port) as raw:
        for number in range(3):
            request_id = b"id-%d" % number
            reply = raw.call(path, body, [*RIGHT_KEY, (b"x-request-id", request_id)])
            assert (reply.code, reply.headers.get(b"x-request-id")) == (code, request_id)
            reply = raw.call(path, body)
            assert (reply.code, reply.headers.get(b"x-request-id")) == (code, None)


def test_a_refused_call_has_its_request_id_too(server: Server) -> None:
    """A wrong key is no reason to leave the client without it."""
    with Raw(server.port) as raw:
        reply = raw.call(GET, asked("known"), [(b"x-avap-auth", b"wrong"), (b"x-request-id", b"mine")])
        assert (reply.code, reply.headers[b"x-request-id"]) == (16, b"mine")


@pytest.mark.parametrize("odd", [b"", b"x" * 127, b"with blank", b"tab\tbed", b"x" * 5000])
def test_an_odd_request_id_is_left_alone(server: Server, odd: bytes) -> None:
    """Too long, or not visible ASCII: the call is served as if it were not there."""
    with Raw(server.port) as raw:
        reply = raw.call(GET, asked("known"), [*RIGHT_KEY, (b"x-request-id", odd)])
        assert (reply.code, b"x-request-id" in reply.headers) == (0, False)


def test_a_failed_call_is_logged_by_its_request_id(server: Server) -> None:
    """Status, method and id, without the payload; a second has one line, however many fail."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in server.events("Request Failed") if line["request_id"].startswith("failed-")]

    with Raw(server.port) as raw:

        def told() -> bool:
            for _ in range(20):
                raw.call(GET, asked("a-secret-name"), [*RIGHT_KEY, (b"x-request-id", b"failed-%d" % next(count))])
            return len(lines()) >= 2

        count, began = itertools.count(), time.monotonic()
        wait_until(told)
    assert {(line["level"], line["method"], line["status"]) for line in lines()} == {("WARN", "GetCommand", 404)}
    assert len(lines()) <= time.monotonic() - began + 1
    assert sum(line["held_back"] + 1 for line in lines()) <= next(count) + 20
    assert "a-secret-name" not in json.dumps(lines())


def test_request_ids_can_be_turned_off(serve: Serve, database: Database) -> None:
    """AVAPD_ECHO_REQUEST_ID=off: nothing is echoed."""
    server = serve(database.reader_url, env={"AVAPD_ECHO_REQUEST_ID": "off", "AVAPD_WORKERS": "1"}).wait_serving()
    with Raw(server.port) as raw:
        assert b"x-request-id" not in raw.call(GET, asked("known"), [*RIGHT_KEY, (b"x-request-id", b"mine")]).headers


# --- traces and metrics -------------------------------------------------------------------------------------------


class Receiver(HttpSink):
    """An OTLP receiver: it keeps what comes, and parses it with the messages of opentelemetry-proto."""

    @property
    def spans(self) -> list[Span]:
        requests = [
            ExportTraceServiceRequest.FromString(body) for path, _, body in list(self.taken) if "traces" in path
        ]
        return [
            span for request in requests for resource in request.resource_spans for scope in resource.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    @property
    def metrics(self) -> dict[str, Any]:
        """The newest of each metric."""
        requests = [
            ExportMetricsServiceRequest.FromString(body) for path, _, body in list(self.taken) if "metrics" in path
        ]
        return {
            metric.name: metric for request in requests for resource in request.resource_metrics
            for scope in resource.scope_metrics for metric in scope.metrics
        }  # fmt: skip

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def attributes(span: Span) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def value(point: NumberDataPoint) -> float:
    return point.as_int or point.as_double


def otel(receiver: HttpSink, **more: str) -> dict[str, str]:
    return {
        "AVAPD_OTEL": "on", "AVAPD_WORKERS": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "300",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret", **more,
    }  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sampled_call_is_a_span_under_its_callers(serve: Serve, database: Database, engine: str) -> None:
    """`traceparent` is heard: the trace, the parent and whether to sample; the span says what became of the call."""
    with Receiver() as receiver:
        server = serve(database.reader_url, env=otel(receiver, AVAPD_ENGINE=engine)).wait_serving()
        began = time.time_ns()
        with Raw(server.port) as raw:
            for name, flag in (("known", b"01"), ("known", b"00"), ("nob\x1body", b"01")):
                parent = f"00-{TRACE}-{PARENT}-".encode() + flag
                raw.call(GET, asked(name), [*RIGHT_KEY, (b"traceparent", parent), (b"x-request-id", b"mine")])
            raw.call(GET, framed(b"\xff"), [*RIGHT_KEY, (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())])
            raw.call(GET, asked("known"), [*RIGHT_KEY, (b"traceparent", b"00-nonsense-01")])
            raw.call(GET, asked("known"))
        wait_until(lambda: len(receiver.named("avap.DefinitionEngine/GetCommand")) >= 3, 20)
        spans = receiver.named("avap.DefinitionEngine/GetCommand")
        assert stays(lambda: len(receiver.named("avap.DefinitionEngine/GetCommand")) == 3, 0.3)
        for span in spans:
            assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
            assert span.kind == Span.SPAN_KIND_SERVER
            assert began <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
            assert span.end_time_unix_nano - span.start_time_unix_nano < 5e9
        assert len({span.span_id for span in spans}) == 3
        assert [attributes(span)["rpc.grpc.status_code"] for span in spans] == [0, 5, 13]
        assert [attributes(span).get("avapd.command") for span in spans] == ["known", "nob\\u001body", None]
        assert [attributes(span).get("avapd.request_id") for span in spans] == ["mine", "mine", None]
        assert [span.status.code for span in spans] == [Status.STATUS_CODE_UNSET] * 2 + [Status.STATUS_CODE_ERROR]
        assert server.metric("avap_spans_total") == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_share_of_the_other_calls_is_traced(serve: Serve, database: Database, engine: str) -> None:
    """AVAPD_OTEL_SAMPLE_RATIO picks among calls that are known by heart as well, each a trace of its own."""
    with Receiver() as receiver:
        env = otel(receiver, AVAPD_ENGINE=engine, AVAPD_OTEL_SAMPLE_RATIO="0.1")
        server = serve(database.reader_url, env=env).wait_serving()
        with server.calls() as calls:
            for _ in range(600):
                assert calls.get("known").code == 0
            no = [("x-avap-auth", KEY), ("traceparent", f"00-{TRACE}-{PARENT}-00")]
            for _ in range(100):
                assert calls.get("large", metadata=no).code == 0
        wait_until(lambda: len(receiver.named("avap.DefinitionEngine/GetCommand")) >= 20, 20)
        spans = receiver.named("avap.DefinitionEngine/GetCommand")
        assert len(spans) < 200
        assert not any(span.parent_span_id for span in spans)
        assert len({span.trace_id for span in spans}) == len(spans)
        assert {attributes(span)["avapd.command"] for span in spans} == {"known"}


def test_refreshes_are_traced_and_metrics_are_those_of_prometheus(serve: Serve, database: Database) -> None:
    """A publication is a child of the refresh that led to it; the numbers are the same on both ways."""
    with Receiver() as receiver:
        server = serve(database.reader_url, env=otel(receiver)).wait_serving()
        with server.calls() as calls:
            for _ in range(7):
                calls.get("known")
        wait_until(lambda: receiver.named("publish"), 20)
        (published,) = receiver.named("publish")
        by_id = {span.span_id: span for span in receiver.named("refresh")}
        assert attributes(by_id[published.parent_span_id])["avapd.result"] == "published"
        assert attributes(published)["avapd.source"] == "database"

        def right() -> object:
            points = receiver.metrics["avap_requests"].sum.data_points if receiver.metrics else []
            return sum(map(value, points)) == server.metric("avap_requests_total") == 7

        wait_until(right, 20)
        assert receiver.metrics["avap_requests"].sum.is_monotonic
        assert receiver.metrics["avap_cache_size"].gauge.data_points[0].as_int == server.metric("avap_cache_size")
        histogram = receiver.metrics["avap_request_duration_seconds"].histogram.data_points[0]
        assert (histogram.count, sum(histogram.bucket_counts)) == (7, 7)
        assert len(histogram.bucket_counts) == len(histogram.explicit_bounds) + 1
        assert dict(receiver.taken[0][1])["authorization"] == "secret"


@pytest.mark.parametrize("ill", [503, "hang", "refuse"])
def test_a_receiver_that_is_ill_disturbs_nobody(serve: Serve, database: Database, ill: int | str) -> None:
    """Calls go on, the log stays JSON and without secrets, and the end does not wait for it."""
    with Receiver() as receiver:
        receiver.behave = ill if ill != "refuse" else 200
        env = otel(receiver, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}") if ill == "refuse" else {}
        server = serve(database.reader_url, env=otel(receiver) | env).wait_serving()
        with Raw(server.port) as raw:
            for _ in range(20):
                parent = f"00-{TRACE}-{PARENT}-01".encode()
                assert raw.call(GET, asked("known"), [*RIGHT_KEY, (b"traceparent", parent)]).code == 0
        wait_until(lambda: receiver.asked or ill == "refuse", 20)
        assert server.stop(seconds=15) == 0
        assert all(line.startswith("{") for line in server.log.splitlines())
        assert "secret" not in server.log


def test_without_the_extra_the_start_says_so(database: Database) -> None:
    """AVAPD_OTEL=on and no opentelemetry: exit 78, and what to install."""
    block = "import sys; sys.modules['opentelemetry'] = None; from avapd.cli import main; sys.exit(main())"
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": database.reader_url, "API_KEY": KEY, "AVAPD_ENV": "test"}
    env |= {"AVAPD_OTEL": "on"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", block, "serve"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "avapd[otel]" in done.stdout


def test_off_there_is_no_trace_of_it(serve: Serve, database: Database) -> None:
    """Neither process has loaded what tracing needs, nor the library."""
    server = serve(database.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    for process in server.family():
        assert not [mapped.path for mapped in process.memory_maps() if "opentelemetry" in mapped.path]
    code = (
        "import sys, avapd.control.master, avapd.data.worker, avapd.data.wire_engine, avapd.data.grpcio_engine\n"
        "print([name for name in sys.modules if name.endswith(('opentelemetry', 'data.spans', 'control.otlp'))])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
