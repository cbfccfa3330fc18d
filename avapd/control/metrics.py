"""Prometheus metrics (contract part 6), made at each scrape from the board and the poll.

No label value comes from a client.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from avapd import __version__
from avapd.control import guard, host
from avapd.control.plane import Plane
from avapd.shared.board import BUCKETS, CONNECTIONS, CUT_OFF, METHODS, STATUSES

# A float holds so much of a hash exactly, and one series tells replicas apart; a label would make one for each change.
_FINGERPRINT_DIGITS = 12


def registry(plane: Plane, engine: str, *more: Collector) -> CollectorRegistry:
    """Everything that `/metrics` shows: ours, `more` of ours, and the library's of the master process."""
    made = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=made)
    for own in (_Avapd(plane, engine), *more):
        made.register(own)
    return made


class _Avapd(Collector):
    def __init__(self, plane: Plane, engine: str) -> None:
        self._board, self._poll, self._refresh, self._publisher, self._supervisor, self._notifications = plane
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance; the registry then asks `collect` only when it is scraped."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._catalog()
        yield from self._polls()
        yield from self._workers()
        yield from _memory()
        build = InfoMetricFamily("avap_build", "Version of avapd and what it runs on")
        build.add_metric([], {"version": __version__, "python": platform.python_version(), "engine": self._engine})
        yield build

    def _calls(self) -> Iterator[Metric]:
        rows = self._board.all()
        requests = CounterMetricFamily(
            "avap_requests", "Finished calls, by the HTTP-like status of their gRPC code", labels=("method", "status")
        )
        durations = HistogramMetricFamily(
            "avap_request_duration_seconds",
            "Time in the server, from the whole request to the answer",
            labels=("method",),
        )
        for method, name in enumerate(METHODS):
            by_status = [sum(counts) for counts in zip(*(row.requests(method) for row in rows), strict=True)]
            for status, count in zip(STATUSES, by_status, strict=True):
                requests.add_metric((name, str(status)), count)
            timed = [row.durations(method) for row in rows]
            per_bucket = [sum(counts) for counts in zip(*(counts for counts, _ in timed), strict=True)]
            cumulative, total = [], 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), per_bucket, strict=True):
                total += count
                cumulative.append((bound, total))
            durations.add_metric((name,), cumulative, sum(seconds for _, seconds in timed))
        yield requests
        yield durations

        times = CounterMetricFamily("avap_failures_throttled", "Times that wrong keys from an address were too many")
        times.add_metric((), sum(row.met("failures") for row in rows))
        yield times
        cut_off = CounterMetricFamily(
            "avap_connections_refused", "Connections that were cut off, by the limit they met", labels=("limit",)
        )
        for reason in CUT_OFF:
            cut_off.add_metric((reason,), sum(row.met(reason) for row in rows))
        yield cut_off

    def _catalog(self) -> Iterator[Metric]:
        current = self._publisher.current
        yield GaugeMetricFamily("avap_cache_size", "Definitions in RAM", len(current.view) if current else 0)
        yield GaugeMetricFamily("avap_generation", "Generation that is served, 0 for none", self._publisher.generation)
        fingerprint = int(current.view.version_hash[:_FINGERPRINT_DIGITS], 16) if current else 0
        yield GaugeMetricFamily(
            "avap_catalog_fingerprint", "The first 48 bits of the version_hash that is served, 0 for none", fingerprint
        )
        yield GaugeMetricFamily("avap_snapshot_bytes", "Size of the snapshot", current.total if current else 0)
        times = self._refresh.times
        for name, value, meaning in (
            ("attempt", times.attempt, "the source was last asked"),
            ("check", times.check, "the source last answered well"),
            ("change", times.change, "the content last changed"),
            ("activation", times.activation, "the workers last took a new snapshot"),
        ):
            yield GaugeMetricFamily(f"avap_last_{name}_timestamp_seconds", f"When {meaning}, 0 for never", value)
        age = time.time() - times.check if times.check else float("nan")
        yield GaugeMetricFamily("avap_catalog_age_seconds", "Time since the source last answered well", age)
        rejected = GaugeMetricFamily(
            "avap_definitions_rejected", "Rows that are not served, or not as they stand", labels=("reason",)
        )
        for reason, count in self._refresh.rejected.items():
            rejected.add_metric((reason,), count)
        yield rejected
        held = GaugeMetricFamily("avap_quarantined", "Definitions that failed validation", labels=("reason",))
        for reason, count in self._refresh.quarantine.counts().items():
            held.add_metric((reason,), count)
        yield held
        unchecked = len(self._refresh.unchecked)
        yield GaugeMetricFamily("avap_definitions_unchecked", "Served before they were validated", unchecked)
        switches, refused = self._refresh.switches, self._refresh.refused
        yield GaugeMetricFamily("avap_updates_frozen", "Whether the operator froze updates", int(bool(switches.frozen)))
        yield GaugeMetricFamily("avap_commands_denied", "Names that the operator denied", len(switches.denied))
        canary = int(self._publisher.canary is not None)
        yield GaugeMetricFamily("avap_canary", "Whether one worker serves a new generation alone now", canary)
        candidate = GaugeMetricFamily(
            "avap_candidate_refused", "Whether the table holds what was refused as implausible", labels=("reason",)
        )
        for reason in guard.REASONS:
            candidate.add_metric((reason,), int(refused is not None and refused.error.reason == reason))
        yield candidate

    def _polls(self) -> Iterator[Metric]:
        results = CounterMetricFamily("avap_sync", "Reads of the source, by what came of them", labels=("result",))
        for result, count in self._poll.results.items():
            results.add_metric((result,), count)
        yield results
        yield GaugeMetricFamily(
            "avap_database_listening", "Whether notifications of changes can come", int(self._notifications.listening)
        )
        yield GaugeMetricFamily("avap_sync_duration_seconds", "How long the last read took", self._poll.duration_last)
        yield GaugeMetricFamily(
            "avap_database_up", "Whether the last read reached the database", int(self._refresh.source_up)
        )

    def _workers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("avap_worker_up", "Whether the slot has a worker that serves", labels=("worker",))
        generation = GaugeMetricFamily("avap_worker_generation", "Generation the worker serves", labels=("worker",))
        restarts = CounterMetricFamily("avap_worker_restarts", "Workers that died", labels=("worker",))
        connections = GaugeMetricFamily("avap_connections", "Open client connections", labels=("worker",))
        for slot in self._supervisor.slots:
            label = (str(slot.number),)
            up.add_metric(label, int(slot.worker is not None and slot.worker.serving))
            generation.add_metric(label, slot.worker.generation if slot.worker is not None else 0)
            restarts.add_metric(label, slot.restarts)
            rows = (self._board.row(2 * slot.number), self._board.row(2 * slot.number + 1))
            connections.add_metric(label, sum(row[CONNECTIONS] for row in rows))
        yield from (up, generation, restarts, connections)


def _memory() -> Iterator[Metric]:
    """Of the cgroup, which is master and workers together; no number where there is none."""
    used, limit = host.memory_used(), host.memory_limit()
    yield GaugeMetricFamily("avap_memory_used_bytes", "Memory of the cgroup in use", math.nan if used is None else used)
    yield GaugeMetricFamily(
        "avap_memory_limit_bytes", "Memory limit of the cgroup", math.nan if limit is None else limit
    )
