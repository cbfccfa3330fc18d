"""deploy/monitoring/dashboard.json and the rules: made by the code beside it, valid PromQL, metrics that exist."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients.tools import wheels
from deploy.prometheus import MONITORING, program
from deploy.rules import rules
from support.database import Database
from support.server import Server

pytestmark = pytest.mark.timeout(300)  # the first run installs the tools

DASHBOARD = MONITORING / "dashboard.json"
OF_PROMETHEUS = {"up"}
# Told where there is TLS.
OF_TLS = {
    "avap_tls_certificate_expiry_timestamp_seconds",
    "avap_tls_certificate_renewal_timestamp_seconds",
    "avap_tls_files_refused",
}


@pytest.fixture(scope="module")
def tools() -> Path:
    """A folder with the packages of monitoring/requirements.txt."""
    return wheels(Path(__file__).parent / "monitoring" / "requirements.txt")


@pytest.fixture
def parser(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module promql_parser."""
    monkeypatch.syspath_prepend(str(tools))
    return importlib.import_module("promql_parser")


def panels() -> list[dict[str, Any]]:
    """The panels that show something."""
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Every expression of the dashboard and of the rules, with the dashboard's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$job", "avapd").replace("$instance", ".+")
    for rule in rules():
        yield rule["expr"]


def metrics(parser: Any, expression: str) -> set[str]:
    """The names of the metrics in an expression. ValueError when it is no PromQL."""
    found = set()

    def visit(node: Any) -> bool:
        if isinstance(node, parser.VectorSelector):
            found.add(node.name)
        return True

    parser.walk(parser.parse(expression), visit)
    return found


def test_the_dashboard_is_what_its_code_makes(tools: Path) -> None:
    """dashboard.py prints dashboard.json."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tools)}
    command = [sys.executable, str(MONITORING / "dashboard.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == DASHBOARD.read_text(encoding="utf-8")


def test_every_expression_is_valid(parser: Any) -> None:
    """Of every panel and rule; one that lacks a parenthesis is not."""
    with pytest.raises(ValueError, match="paren"):
        parser.parse("sum(rate(avap_requests_total[5m])")
    found = list(expressions())
    assert len(found) > 50
    for expression in found:
        assert metrics(parser, expression), expression


def test_every_metric_that_is_shown_or_watched_exists(
    parser: Any, serve: Callable[..., Server], sample: Database
) -> None:
    """A running avapd tells each, or a rule records it."""
    text = serve(sample.reader_url).wait_serving().http("/metrics")[1]
    told = set(re.findall(r"^(\w+)(?:{.*})? ", text, flags=re.MULTILINE))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = set().union(*(metrics(parser, expression) for expression in expressions()))
    assert named - told - recorded <= OF_PROMETHEUS | OF_TLS
    assert {name for name in told if name.startswith("avap_worker")} <= named


def test_promtool_has_nothing_against_the_metrics(serve: Callable[..., Server], sample: Database) -> None:
    """Names, units and help texts are as Prometheus wants them."""
    text = serve(sample.reader_url).wait_serving().http("/metrics")[1]
    ours = "".join(line + "\n" for line in text.splitlines() if re.match(r"(# \w+ )?avap_", line))
    command = [str(program("promtool")), "check", "metrics"]
    done = subprocess.run(command, input=ours, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_panels_are_explained_and_do_not_overlap() -> None:
    """Each has a title of its own, a description, and a place of its own; none is wider than the page."""
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["description"]
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
