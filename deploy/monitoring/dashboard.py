"""Makes dashboard.json, the Grafana dashboard of avapd.

    pip install 'grafana-foundation-sdk==1769699998!10.1.0'
    python dashboard.py > dashboard.json

Change the panels here, never in the JSON: a test makes it anew and compares.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import HeatmapCellLayout, StackingMode, VizOrientation
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
HERE = 'job=~"$job", instance=~"$instance"'  # what HERE stands for below: the chosen instances
_WIDTH = {"stat": 4, "lines": 8, "stacked": 8, "heatmap": 8}
_HEIGHT = {"stat": 4, "lines": 8, "stacked": 8, "heatmap": 8}


class Query(NamedTuple):
    """An expression, and what its series are called."""

    expression: str
    legend: str = "{{instance}}"


class Panel(NamedTuple):
    """What one panel shows."""

    title: str
    meaning: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "lines"


BUCKETS = 'rate(avap_request_duration_seconds_bucket{HERE, method="GetCommand"}[$__rate_interval])'
BY_WORKER = "{{instance}} worker {{worker}}"
ROWS: dict[str, Sequence[Panel]] = {
    "At a glance": (
        Panel("Replicas up", "Instances that Prometheus reaches", [Query("sum(up{HERE})", "up")], kind="stat"),
        Panel("Workers that serve", "Of all replicas", [Query("sum(avap_worker_up{HERE})", "up")], kind="stat"),
        Panel(
            "Definitions", "The fewest on any replica; an alert below 100",
            [Query("min(avap_cache_size{HERE})", "definitions")], kind="stat",
        ),
        Panel(
            "Catalog age", "The oldest of any replica; alerts at 3 and 15 minutes",
            [Query("max(avap_catalog_age_seconds{HERE})", "age")], "s", "stat",
        ),
        Panel(
            "Different catalogs", "More than 1 for long: replicas disagree",
            [Query('count(count_values("fingerprint", avap_catalog_fingerprint{HERE}))', "catalogs")], kind="stat",
        ),
        Panel(
            "Errors, 1 h", "Share of calls, watches apart, that ended with 500, 503 or 504; the budget is 0.01 %",
            [Query('sum(rate(avap_requests_total{HERE, method!="WatchCatalog", status=~"500|503|504"}[1h]))'
                   ' / sum(rate(avap_requests_total{HERE, method!="WatchCatalog"}[1h]))', "errors")],
            "percentunit", "stat",
        ),
    ),
    "Calls": (
        Panel(
            "Calls by status", "HTTP-like status of the gRPC code; a watch ends with 503 when its connection is old",
            [Query("sum by (status) (rate(avap_requests_total{HERE}[$__rate_interval])) > 0", "{{status}}")],
            "reqps", "stacked",
        ),
        Panel(
            "Calls by method", "Finished calls",
            [Query("sum by (method) (rate(avap_requests_total{HERE}[$__rate_interval])) > 0", "{{method}}")], "reqps",
        ),
        Panel(
            "Wrong keys", "Calls with status 401, and what was throttled; an alert above 10 a second, or when any was",
            [Query('sum by (instance) (rate(avap_requests_total{HERE, status="401"}[$__rate_interval]))'),
             Query("sum by (instance) (rate(avap_failures_throttled_total{HERE}[$__rate_interval])) > 0",
                   "{{instance}} throttled")],
            "reqps",
        ),
        Panel(
            "Latency of GetCommand", "Time in the server, from the whole request to the answer",
            [Query(f"sum by (le) ({BUCKETS})", "{{le}}")], "s", "heatmap",
        ),
        Panel(
            "Percentiles of GetCommand", "The objective is a P95 of 1 ms",
            [Query(f"histogram_quantile({share}, sum by (le) ({BUCKETS}))", f"P{share * 100:g}")
             for share in (0.5, 0.95, 0.99)],
            "s",
        ),
        Panel(
            "Connections by worker", "Open client connections, and how many a minute were cut off, by the limit",
            [Query("avap_connections{HERE}", BY_WORKER),
             Query("60 * sum by (limit) (rate(avap_connections_refused_total{HERE}[$__rate_interval])) > 0",
                   "cut off: {{limit}}")],
        ),
    ),
    "Catalog": (
        Panel("Definitions in RAM", "An alert below 100", [Query("avap_cache_size{HERE}")]),
        Panel("Age", "Since the table was last found well", [Query("avap_catalog_age_seconds{HERE}")], "s"),
        Panel(
            "Generation by worker", "They rise together; a worker that stays behind is late",
            [Query("avap_worker_generation{HERE}", BY_WORKER)],
        ),
        Panel(
            "Reads of the table", "By what came of them",
            [Query("sum by (result) (rate(avap_sync_total{HERE}[$__rate_interval]))", "{{result}}")], "ops", "stacked",
        ),
        Panel("Duration of a read", "The last one", [Query("avap_sync_duration_seconds{HERE}")], "s"),
        Panel(
            "Database", "Whether the last read reached it, and whether notifications can come",
            [Query("avap_database_up{HERE}", "{{instance}} up"),
             Query("avap_database_listening{HERE}", "{{instance}} listening")],
        ),
        Panel(
            "Refused and rejected", "Candidates refused as a whole, and reads that were not published",
            [Query("sum by (reason) (avap_candidate_refused{HERE})", "refused: {{reason}}"),
             Query('sum(increase(avap_sync_total{HERE, result="rejected"}[$__rate_interval]))', "rejected")],
        ),
        Panel(
            "Not as in the table", "In quarantine (the last good version is served), denied, and rows that are skipped",
            [Query("avap_quarantined{HERE}", "{{instance}} quarantined"),
             Query("avap_commands_denied{HERE}", "{{instance}} denied"),
             Query("sum by (reason) (avap_definitions_rejected{HERE}) > 0", "{{reason}}")],
        ),
        Panel("Updates frozen", "1 while an operator holds them", [Query("avap_updates_frozen{HERE}")]),
    ),
    "Processes": (
        Panel(
            "Workers that died", "Each took its calls in flight with it",
            [Query("sum by (instance) (increase(avap_worker_restarts_total{HERE}[$__rate_interval]))")],
        ),
        Panel(
            "Memory", "Of the cgroup where there is one, which is master and workers; and of the master alone",
            [Query("avap_memory_used_bytes{HERE}", "{{instance}} used"),
             Query("avap_memory_limit_bytes{HERE}", "{{instance}} limit"),
             Query("process_resident_memory_bytes{HERE}", "{{instance}} master"),
             Query("avap_snapshot_bytes{HERE}", "{{instance}} snapshot")],
            "bytes",
        ),
        Panel(
            "CPU of the master", "Seconds of CPU a second; workers are not in it",
            [Query("rate(process_cpu_seconds_total{HERE}[$__rate_interval])")],
        ),
    ),
}  # fmt: skip


def _built(panel: Panel) -> Any:
    """The panel as the SDK makes it."""
    made: Any
    if panel.kind == "stat":
        made = stat.Panel().orientation(VizOrientation.AUTO)
    elif panel.kind == "heatmap":
        colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        layout = heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO)
        made = heatmap.Panel().color(colors).rows_frame(layout).y_axis(heatmap.YAxisConfig().unit(panel.unit))
    else:
        made = timeseries.Panel().fill_opacity(8).min(0)
        if panel.kind == "stacked":
            made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    made.title(panel.title).description(panel.meaning).datasource(SOURCE)
    made.height(_HEIGHT[panel.kind]).span(_WIDTH[panel.kind])
    if panel.kind != "heatmap":
        made.unit(panel.unit)
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().datasource(SOURCE).expr(query.expression.replace("HERE", HERE))
        target.legend_format(query.legend).ref_id("ABCD"[number])
        if panel.kind == "heatmap":
            target.format(PromQueryFormat.HEATMAP)
        made.with_target(target)
    return made


def _variable(name: str, label: str, query: str) -> Any:
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).include_all(True).multi(True)


def main() -> str:
    """The dashboard as JSON."""
    made = dashboard.Dashboard("avapd").uid("avapd").tags(["avapd"]).refresh("30s").time("now-3h", "now")
    made.tooltip(DashboardCursorSync.CROSSHAIR).readonly()
    made.description("Made by deploy/monitoring/dashboard.py")
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made.with_variable(_variable("job", "Job", "label_values(avap_build_info, job)"))
    made.with_variable(_variable("instance", "Instance", 'label_values(avap_build_info{job=~"$job"}, instance)'))
    numbers = itertools.count(1)
    for title, panels in ROWS.items():
        made.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            made.with_panel(_built(panel).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build())


if __name__ == "__main__":
    sys.stdout.write(main() + "\n")
