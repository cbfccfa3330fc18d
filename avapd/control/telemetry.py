"""Traces and metrics for OpenTelemetry (AVAPD_OTEL=on), seen from those who are traced; what it takes is in otlp.py.

Off, a span costs a function call in the master and nothing in a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from avapd.config import Config
from avapd.errors import ConfigError
from avapd.log import Log
from avapd.shared.channel import Spans

Told = Callable[..., None]
Span = Callable[..., AbstractContextManager[Told]]


@contextmanager
def no_span(_name: str, **_attributes: Any) -> Iterator[Told]:
    """What is not traced: the same shape, and nothing in it."""
    yield lambda **_attributes: None


class Telemetry(Collector):
    """Off. `span(name, **attributes)` gives what more is to be told of the span."""

    span: Span = staticmethod(no_span)

    def __init__(self) -> None:
        self.spans = 0
        self.dropped = 0

    def take(self, worker: int, report: Spans) -> None:
        """Calls that a worker has traced."""

    async def run(self, registry: CollectorRegistry) -> None:
        """Export the metrics of a registry now and then, until cancelled."""

    async def finish(self) -> None:
        """Export what waits, if that is quick."""

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance, as of all our collectors."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """How many calls were traced."""
        yield CounterMetricFamily("avap_spans", "Calls that were traced (AVAPD_OTEL)", self.spans)
        yield CounterMetricFamily(
            "avap_spans_dropped", "Calls that should have been traced and were too many for one second", self.dropped
        )


def telemetry_of(config: Config, log: Log) -> Telemetry:
    """What the settings ask for. Raises ConfigError when it is not installed."""
    if not config.otel:
        return Telemetry()
    try:
        from avapd.control.otlp import Otlp  # noqa: PLC0415  # the extra `otel`
    except ModuleNotFoundError as error:
        problem = f"AVAPD_OTEL is on and {error.name} is not installed: pip install 'avapd[otel]'"
        raise ConfigError([problem]) from None
    return Otlp.from_environment(log)
