"""A real Prometheus that scrapes servers of a test, with the rules of deploy/monitoring made sixty times as fast."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from clients.tools import debian
from support.server import free_port

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CONFIGURATION = """
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: avapd
    static_configs:
"""


def program(name: str) -> Path:
    """`prometheus`, `promtool` or `amtool`."""
    return debian("prometheus", "prometheus-alertmanager") / "usr" / "bin" / name


def faster(rules: str) -> str:
    """The rules with a second for each minute.

    No range is shorter than half a minute, so that a busy machine gets done within it what must happen in one. Nothing
    has to last longer than a second, or to be older than eight.
    """

    def milliseconds(found: re.Match[str]) -> int:
        return 1000 * int(found[2]) * _SECONDS[found[3]] // 60

    def shorter_range(found: re.Match[str]) -> str:
        return f"{found[1]}{max(milliseconds(found), 30_000)}ms"

    def shorter_for(found: re.Match[str]) -> str:
        return f"{found[1]}{min(milliseconds(found), 1000)}ms"

    def shorter_step(found: re.Match[str]) -> str:
        return f"{found[1]}{milliseconds(found)}ms"

    rules = re.sub(r"(\[)(\d+)([smhd])(?=[\]:])", shorter_range, rules)
    rules = re.sub(r"(:)(\d+)([smhd])(?=\])", shorter_step, rules)
    rules = re.sub(r"(for: )(\d+)([smhd])", shorter_for, rules)
    old = r"((?:age|start_time)_seconds > )(\d+)"
    return re.sub(old, lambda found: f"{found[1]}{min(int(found[2]) / 60, 8):g}", rules)


class Alert(NamedTuple):
    """An alert that fires."""

    name: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Prometheus:
    """Started at construction, for admin ports by the name of their instance; ended with the block."""

    def __init__(self, folder: Path, instances: Mapping[str, int]) -> None:
        (folder / "alerts.yml").write_text(faster((MONITORING / "alerts.yml").read_text(encoding="utf-8")))
        target = "      - {{targets: ['127.0.0.1:{}'], labels: {{instance: {}}}}}\n"
        targets = (target.format(port, name) for name, port in instances.items())
        (folder / "prometheus.yml").write_text(_CONFIGURATION + "".join(targets))
        self.port = free_port()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"), "--config.file", "prometheus.yml", "--storage.tsdb.path", "data",
                    "--web.listen-address", f"127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            )  # fmt: skip

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=5) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> dict[str, float]:
        """The values of an expression by instance. OSError while Prometheus does not answer."""
        found = self._ask("query?" + urllib.parse.urlencode({"query": expression}))["result"]
        return {one["metric"].get("instance", ""): float(one["value"][1]) for one in found}

    def firing(self) -> list[Alert]:
        """What fires now."""
        return [
            Alert(one["labels"]["alertname"], one["labels"], one["annotations"])
            for one in self._ask("alerts")["alerts"]
            if one["state"] == "firing"
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
