"""The metrics: names, labels and values of contract part 6, as Prometheus itself reads them."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from avapd import __version__
from avapd.control import host
from avapd.control.catalog import REASONS, Definition
from avapd.control.encode import message
from avapd.control.metrics import registry
from avapd.control.packer import Packer
from avapd.control.plane import Plane as PlaneParts
from avapd.control.poll import RESULTS, Poll
from avapd.control.publisher import Publisher
from avapd.control.refresh import Refresh
from avapd.control.source import Source
from avapd.control.source.listener import Notifications
from avapd.control.supervisor import Supervisor
from avapd.control.validator import Validator
from avapd.log import Log, Sink
from avapd.shared import board as words
from avapd.shared.board import BUCKETS, METHODS, STATUSES, Board
from avapd.shared.channel import Start

SLOTS = 3
# name → label names, as the contract has them
CONTRACT = {
    "avap_cache_size": (),
    "avap_requests_total": ("method", "status"),
    "avap_request_duration_seconds_bucket": ("le", "method"),
    "avap_request_duration_seconds_count": ("method",),
    "avap_request_duration_seconds_sum": ("method",),
    "avap_sync_total": ("result",),
    "avap_sync_duration_seconds": (),
    "avap_last_attempt_timestamp_seconds": (),
    "avap_last_check_timestamp_seconds": (),
    "avap_last_change_timestamp_seconds": (),
    "avap_last_activation_timestamp_seconds": (),
    "avap_catalog_age_seconds": (),
    "avap_database_up": (),
    "avap_generation": (),
    "avap_worker_up": ("worker",),
    "avap_worker_restarts_total": ("worker",),
    "avap_connections": ("worker",),
    "avap_snapshot_bytes": (),
    "avap_catalog_fingerprint": (),
    "avap_memory_used_bytes": (),
    "avap_memory_limit_bytes": (),
    "avap_definitions_rejected": ("reason",),
    "avap_database_listening": (),
    "avap_updates_frozen": (),
    "avap_commands_denied": (),
    "avap_candidate_refused": ("reason",),
    "avap_build_info": ("engine", "python", "version"),
}


class Sample(NamedTuple):
    """One line of the exposition."""

    name: str
    labels: dict[str, str]
    value: float


class Plane:
    """The parts of a master that the metrics look at, real and not running."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        log = Log("master", sink=Sink(os.open(os.devnull, os.O_WRONLY)))
        rows = 2 * SLOTS
        self.board = Board(words.create(rows), rows)
        self.publisher = Publisher(log)
        source = Source("postgresql://h/db", schema="public", seconds=1, max_definition_bytes=1, max_bytes=1)
        anything = Validator(grammar=0, interfaces=False)
        self.refresh = Refresh(
            source, self.publisher, anything, log, signing_key=None, seconds=60, on_checked=lambda: None
        )
        self.poll = Poll(self.refresh, self.publisher, log, seconds=60)
        self.supervisor = Supervisor(
            board=self.board, listeners=listeners, describe=_describe, environ={}, audience=self.publisher, log=log,
            silence_seconds=2.0,
        )  # fmt: skip
        self.registry: CollectorRegistry = registry(
            PlaneParts(self.board, self.poll, self.refresh, self.publisher, self.supervisor,
                       Notifications(source.database, "", lambda: None, log)),
            "grpcio",
        )  # fmt: skip

    def samples(self) -> list[Sample]:
        """What a scrape sees."""
        families = parse(generate_latest(self.registry).decode())
        return [
            Sample(sample.name, dict(sample.labels), sample.value) for family in families for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """The value of the one sample with exactly these labels."""
        (found,) = [sample.value for sample in self.samples() if sample.name == name and sample.labels == labels]
        return float(found)


def _describe(slot: int, row: int, spare: bool) -> Start:
    raise NotImplementedError


@pytest.fixture
def plane() -> Iterator[Plane]:
    """A control plane of SLOTS slots that has not begun."""

    async def make() -> Plane:
        return Plane(listeners)

    listeners = [socket.socket() for _ in range(SLOTS)]
    yield asyncio.run(make())
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("name", CONTRACT)
def test_every_metric_of_the_contract_is_there(plane: Plane, name: str) -> None:
    """From the first scrape on, with the labels that alerts ask for."""
    found = [sample for sample in plane.samples() if sample.name == name]
    assert found
    assert {tuple(sorted(sample.labels)) for sample in found} == {CONTRACT[name]}


def test_a_worker_s_generation_is_told_by_worker(plane: Plane) -> None:
    """Which worker is behind can be seen (R15)."""
    assert {sample.labels["worker"] for sample in plane.samples() if sample.name == "avap_worker_generation"} == {
        "0",
        "1",
        "2",
    }


def test_labels_are_bounded_and_there_from_the_start(plane: Plane) -> None:
    """Each set is known in advance: a client can never make a new one, and no series appears late."""
    expected: dict[str, dict[str, set[str]]] = {
        "avap_requests_total": {"method": set(METHODS), "status": {str(status) for status in STATUSES}},
        "avap_request_duration_seconds_bucket": {"method": set(METHODS), "le": {*map(str, BUCKETS), "+Inf"}},
        "avap_sync_total": {"result": set(RESULTS)},
        "avap_definitions_rejected": {"reason": set(REASONS)},
        "avap_worker_up": {"worker": {"0", "1", "2"}},
        "avap_worker_restarts_total": {"worker": {"0", "1", "2"}},
        "avap_connections": {"worker": {"0", "1", "2"}},
    }
    for row in plane.board.all():
        for method in range(len(METHODS)):
            for status in range(len(STATUSES)):
                row.count(method, status, 1)
    samples = plane.samples()
    for name, sets in expected.items():
        mine = [sample for sample in samples if sample.name == name]
        for label, values in sets.items():
            assert {sample.labels[label] for sample in mine} == values
        assert len(mine) == math.prod(map(len, sets.values()))


def test_no_series_stands_twice(plane: Plane) -> None:
    """Prometheus refuses a scrape with duplicates."""
    series = [(sample.name, *sorted(sample.labels.items())) for sample in plane.samples()]
    assert len(series) == len(set(series))


def test_calls_are_summed_over_all_rows(plane: Plane) -> None:
    """Both rows of every slot count, also those of workers that are gone."""
    for number, row in enumerate(plane.board.all()):
        for _ in range(number + 1):
            row.count(METHODS.index("GetCommand"), STATUSES.index(404), 30_000)
        row.count(METHODS.index("SyncCatalog"), STATUSES.index(200), 3_000_000_000)
        row.clear_gauges()
    assert plane.value("avap_requests_total", method="GetCommand", status="404") == 21
    assert plane.value("avap_requests_total", method="SyncCatalog", status="200") == 6
    assert plane.value("avap_requests_total", method="unknown", status="501") == 0


def test_the_histogram_is_cumulative_and_complete(plane: Plane) -> None:
    """Buckets only rise, the last is the count, the sum is in seconds."""
    row = plane.board.row(1)
    times = [10_000, 50_000, 50_001, 7_000_000, 99_000_000_000]
    for nanoseconds in times:
        row.count(0, 0, nanoseconds)
    name = "avap_request_duration_seconds"
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in plane.samples()
        if sample.name == f"{name}_bucket" and sample.labels["method"] == METHODS[0]
    }
    for bound, value in buckets.items():
        assert value == sum(nanoseconds <= bound * 1e9 for nanoseconds in times)
    assert plane.value(f"{name}_count", method=METHODS[0]) == len(times) == buckets[math.inf]
    assert plane.value(f"{name}_sum", method=METHODS[0]) == pytest.approx(sum(times) / 1e9)


def test_connections_are_those_of_both_rows_of_a_slot(plane: Plane) -> None:
    """While a worker is replaced, the old one's connections still count."""
    for number, row in enumerate(plane.board.all()):
        row[words.CONNECTIONS] = 10**number
    found = [plane.value("avap_connections", worker=str(slot)) for slot in range(SLOTS)]
    assert found == [11, 1100, 110_000]


def test_nothing_has_happened_yet(plane: Plane) -> None:
    """Before the first read: no catalog, no database, times of 0, and an age that is no number."""
    for name in ("cache_size", "generation", "catalog_fingerprint", "snapshot_bytes", "database_up"):
        assert plane.value(f"avap_{name}") == 0
    for name in ("attempt", "check", "change", "activation"):
        assert plane.value(f"avap_last_{name}_timestamp_seconds") == 0
    assert math.isnan(plane.value("avap_catalog_age_seconds"))
    assert plane.value("avap_worker_up", worker="0") == 0


def test_a_catalog_has_its_fingerprint(plane: Plane) -> None:
    """The first 48 bits of the hash, exactly, so that it is equal on all replicas that serve the same."""
    definition = Definition(name="si", type="function", interface_json="[]", code=b"x = 1", hash="0" * 64)
    snapshot = Packer().pack(1, map(message, [definition]))
    plane.publisher.current = snapshot
    try:
        fingerprint = plane.value("avap_catalog_fingerprint")
        assert f"{int(fingerprint):012x}" == snapshot.view.version_hash[:12]
    finally:
        plane.publisher.current = None
        snapshot.close()


def test_memory_is_that_of_the_cgroup(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """In use and limit in bytes; no number where the host sets none."""
    monkeypatch.setattr(host, "memory_used", lambda: 300)
    monkeypatch.setattr(host, "memory_limit", lambda: 400)
    assert plane.value("avap_memory_used_bytes") == 300
    assert plane.value("avap_memory_limit_bytes") == 400
    monkeypatch.setattr(host, "memory_used", lambda: None)
    monkeypatch.setattr(host, "memory_limit", lambda: None)
    assert math.isnan(plane.value("avap_memory_used_bytes"))
    assert math.isnan(plane.value("avap_memory_limit_bytes"))


def test_polls_are_told_by_result(plane: Plane) -> None:
    """What the poll counted, its four times and its last duration."""
    plane.poll.results.update(published=2, failed=3)
    plane.refresh.rejected["duplicate_name"] = 7
    plane.poll.duration_last = 0.25
    plane.refresh.source_up = True
    times = plane.refresh.times
    times.attempt, times.check, times.change, times.activation = 4.5, 3.5, 2.5, 1.5
    assert plane.value("avap_sync_total", result="published") == 2
    assert plane.value("avap_sync_total", result="failed") == 3
    assert plane.value("avap_definitions_rejected", reason="duplicate_name") == 7
    assert plane.value("avap_sync_duration_seconds") == 0.25
    assert plane.value("avap_database_up") == 1
    assert plane.value("avap_last_attempt_timestamp_seconds") == 4.5
    assert plane.value("avap_last_check_timestamp_seconds") == 3.5
    assert plane.value("avap_last_change_timestamp_seconds") == 2.5
    assert plane.value("avap_last_activation_timestamp_seconds") == 1.5
    assert plane.value("avap_catalog_age_seconds") > 1e9


def test_the_build_is_told(plane: Plane) -> None:
    """Version, Python and engine."""
    (build,) = [sample for sample in plane.samples() if sample.name == "avap_build_info"]
    assert build.labels["version"] == __version__
    assert build.labels["engine"] == "grpcio"


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0", "*/*"])
def test_every_format_a_scraper_may_ask_for_is_valid(plane: Plane, accept: str) -> None:
    """The text format and OpenMetrics, which is stricter."""
    encode, content_type = choose_encoder(accept)
    text: str = encode(plane.registry).decode()
    reader: Callable[[str], object] = parse_openmetrics if "openmetrics" in content_type else parse
    names = {sample.name for family in reader(text) for sample in family.samples}  # type: ignore[attr-defined]
    assert set(CONTRACT) <= names
