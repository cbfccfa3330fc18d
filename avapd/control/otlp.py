"""OTLP over HTTP: the spans of the master and of its workers, and the numbers of `/metrics`. Needs the extra `otel`.

    master   span() ─────────────────────────┐
    workers  Spans, once a second ► take() ──┴─► batch, a thread of the SDK ─► /v1/traces
    registry, every OTEL_METRIC_EXPORT_INTERVAL ─► a thread ─────────────────► /v1/metrics

The SDK reads the standard `OTEL_` variables (endpoint, headers, certificate, resource, batches). HTTP and not gRPC,
though that exporter installs 3 MB less beside grpcio: the master stays free of grpcio, its threads and its memory.
Which calls are traced is said by the callers and AVAPD_OTEL_SAMPLE_RATIO, not by OTEL_TRACES_SAMPLER: workers decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from prometheus_client import Metric as Family
from prometheus_client.registry import CollectorRegistry

from avapd import __version__
from avapd.control.aside import aside
from avapd.control.telemetry import Telemetry, Told
from avapd.errors import ConfigError
from avapd.log import Log, Throttle
from avapd.shared.board import STATUS_OF_CODE
from avapd.shared.channel import Spans

_SERVICE: Final = "avap.DefinitionEngine"
_SCOPE: Final = "avapd"
_LAST_SECONDS: Final = 2.0
_WARN_SECONDS: Final = 60.0
_REPORTS: Final = 64  # of workers, that may wait to be made spans of
_CODES: Final = {status: code for code, status in STATUS_OF_CODE.items()}
# Which codes are the server's failure (semantic conventions of RPC spans): the others are answers.
_OURS: Final = frozenset({2, 4, 12, 13, 14, 15})


class Otlp(Telemetry):
    """Exports to where the environment says. `metrics_seconds` is 0 when metrics are not wanted."""

    def __init__(self, log: Log, *, traces: bool, metrics_seconds: float) -> None:
        super().__init__()
        self._log = log
        environ = os.environ
        named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        about = {"service.version": __version__, **({} if named else {"service.name": "avapd"})}
        self._resource = Resource.create(about)
        sampler = ParentBased(ALWAYS_ON)
        self._provider = TracerProvider(sampler=sampler, resource=self._resource, shutdown_on_exit=False)
        if traces:
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(_SCOPE, __version__)
        self._metrics_seconds = metrics_seconds
        self._metrics = OTLPMetricExporter() if metrics_seconds else None
        self._registry: CollectorRegistry | None = None
        self._maker = ThreadPoolExecutor(1, "spans")
        self._waiting = 0
        self._began = time.time_ns()
        self.span = self._span
        _take_over_logging(log)

    @classmethod
    def from_environment(cls, log: Log) -> Telemetry:
        """As the standard variables have it. Raises ConfigError for what they ask and we cannot."""
        environ = os.environ
        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return Telemetry()
        problems = [
            f"{name} is not http/protobuf, which is all that avapd speaks"
            for name in ("", "_TRACES", "_METRICS")
            for name in [f"OTEL_EXPORTER_OTLP{name}_PROTOCOL"]
            if environ.get(name) not in {None, "", "http/protobuf"}
        ]
        interval = environ.get("OTEL_METRIC_EXPORT_INTERVAL") or "60000"
        if not interval.isdecimal() or not int(interval):
            problems.append("OTEL_METRIC_EXPORT_INTERVAL must be a number of milliseconds")
        if problems:
            raise ConfigError(problems)
        traces, metrics = (environ.get(f"OTEL_{kind}_EXPORTER") != "none" for kind in ("TRACES", "METRICS"))
        return cls(log, traces=traces, metrics_seconds=int(interval) / 1000 if metrics else 0.0)

    # --- traces -----------------------------------------------------------------------------------------------

    @contextmanager
    def _span(self, name: str, **attributes: Any) -> Iterator[Told]:
        """A span of the master; one within another is its child."""
        with self._tracer.start_as_current_span(name, attributes=attributes, record_exception=False) as span:
            yield lambda **more: span.set_attributes(more)

    def take(self, worker: int, report: Spans) -> None:
        """Have spans made of what a worker has noted, by a thread: a full report takes it some 20 ms."""
        self.dropped += report.dropped
        if self._waiting >= _REPORTS:
            self.dropped += len(report.spans)
            return
        self._waiting += 1
        self._maker.submit(self._make, worker, report)

    def _make(self, worker: int, report: Spans) -> None:
        """Spans of calls, under the callers' own where they have one."""
        for one in report.spans:
            method, status, trace_id, parent, began, duration, name, request_id = one
            code = _CODES.get(int(status), 13)
            context = None
            if parent:
                flags = TraceFlags(TraceFlags.SAMPLED)
                remote = SpanContext(int(str(trace_id), 16), int(str(parent), 16), is_remote=True, trace_flags=flags)
                context = trace.set_span_in_context(NonRecordingSpan(remote))
            attributes: dict[str, str | int] = {
                "rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method, "rpc.grpc.status_code": code,
                "avapd.worker": worker,
            }  # fmt: skip
            attributes |= {"avapd.command": name} if name else {}
            attributes |= {"avapd.request_id": request_id} if request_id else {}
            span = self._tracer.start_span(
                f"{_SERVICE}/{method}", context, SpanKind.SERVER, attributes, start_time=int(began)
            )
            if code in _OURS:
                span.set_status(Status(StatusCode.ERROR))
            span.end(int(began) + int(duration))
            self.spans += 1
        self._waiting -= 1

    # --- metrics ----------------------------------------------------------------------------------------------

    async def run(self, registry: CollectorRegistry) -> None:
        """Collected here, where nothing changes meanwhile; sent by a thread, since that may take its time."""
        self._registry = registry
        while self._metrics is not None:
            await asyncio.sleep(self._metrics_seconds)
            try:
                await aside(partial(self._metrics.export, self._collected(registry)))
            except Exception as error:  # noqa: BLE001  # a number that cannot be told must not end the service
                self._log.error("Metrics Not Exported", error=type(error).__name__)

    def _collected(self, registry: CollectorRegistry) -> MetricsData:
        now = time.time_ns()
        metrics = [made for family in registry.collect() if (made := self._metric(family, now)) is not None]
        scope = ScopeMetrics(InstrumentationScope(_SCOPE, __version__), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _metric(self, family: Family, now: int) -> Metric | None:
        """A family of Prometheus as OTLP has it; counters lose their `_total`, which is Prometheus' way."""
        data: Sum | Gauge | Histogram
        if family.type == "histogram":
            points = list(self._histograms(family, now))
            data = Histogram(points, AggregationTemporality.CUMULATIVE)
        else:
            end = "_total" if family.type == "counter" else ""
            numbers = [
                NumberDataPoint(dict(one.labels), self._began, now, one.value)
                for one in family.samples
                if one.name.endswith(end) and not math.isnan(one.value)
            ]
            data = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True) if end else Gauge(numbers)
        return Metric(family.name, family.documentation, "", data) if data.data_points else None

    def _histograms(self, family: Family, now: int) -> Iterator[HistogramDataPoint]:
        found: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        sums: dict[tuple[tuple[str, str], ...], float] = {}
        for one in family.samples:
            labels = tuple((name, value) for name, value in one.labels.items() if name != "le")
            if one.name.endswith("_bucket"):
                found.setdefault(labels, []).append((float(one.labels["le"]), one.value))
            elif one.name.endswith("_sum"):
                sums[labels] = one.value
        for labels, buckets in found.items():
            cumulative = [int(count) for _, count in buckets]
            each = [count - before for before, count in zip([0, *cumulative], cumulative, strict=False)]
            yield HistogramDataPoint(
                dict(labels), self._began, now, cumulative[-1], sums.get(labels, 0.0), each,
                [bound for bound, _ in buckets[:-1]], 0.0, 0.0,
            )  # fmt: skip

    # --- the end ----------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """One last export of both, for a short time; threads that hang are left to hang."""

        def export() -> None:
            self._maker.shutdown()
            with contextlib.suppress(Exception):  # the library has told of it
                self._provider.force_flush(int(_LAST_SECONDS * 1000))
                if self._metrics is not None and last is not None:
                    self._metrics.export(last)

        last = self._collected(self._registry) if self._registry is not None else None
        await asyncio.wait([asyncio.ensure_future(aside(export))], timeout=_LAST_SECONDS)


def _take_over_logging(log: Log) -> None:
    """Have the library's complaints among ours: as what they are, without arguments, which may hold a URL."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers = [_Handler(log)]
    logger.propagate = False


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._throttle = Throttle(_WARN_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        held = self._throttle.passes(time.monotonic())
        if held is not None:
            self._log.warn("OpenTelemetry", complaint=str(record.msg), logger=record.name, held_back=held)
