"""deploy/monitoring and deploy/runbooks.md: promtool and amtool take them, and all that they name exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.guide import sections
from deploy.prometheus import MONITORING, program
from deploy.rules import alerts

pytestmark = pytest.mark.timeout(300)  # the first run downloads Prometheus

RUNBOOKS = MONITORING.parent / "runbooks.md"
TESTS = ("alerts_test.yml", "alerts_slow_test.yml")
ALERTS = [str(rule["alert"]) for rule in alerts()]


def run(*command: str | Path) -> str:
    """The output of a command that must do well, also without a warning."""
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cases() -> dict[str, dict[str, Any]]:
    """The unit tests of the rules, by alert."""
    files = (yaml.safe_load((MONITORING / name).read_text(encoding="utf-8")) for name in TESTS)
    return {case["name"]: case for file in files for case in file["tests"]}


# --- the rules ---------------------------------------------------------------------------------------------------


def test_rules_and_configuration_are_valid() -> None:
    """Both are taken by promtool, and lint has nothing to say."""
    out = run(program("promtool"), "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert f"{len(ALERTS) + 7} rules found" in out


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    """The unit tests that stand beside the rules hold."""
    run(program("promtool"), "test", "rules", *TESTS)


def test_an_alert_that_never_fires_fails_its_unit_test(tmp_path: Path) -> None:
    """Of every alert, all silenced at once."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = "vector(0) > 1"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    for name in TESTS:
        (tmp_path / name).write_text((MONITORING / name).read_text(encoding="utf-8"))
    command = [str(program("promtool")), "test", "rules", *TESTS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert set(re.findall(r'alertname=\\"(\w+)', done.stdout + done.stderr)) == set(ALERTS)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """Its unit test waits for the alert, expects none at some time, and feeds it more than what fires."""
    found = cases()
    assert sorted(found) == sorted(ALERTS)
    for name, case in found.items():
        expected = [test["exp_samples"] for test in case["promql_expr_test"]]
        assert any(expected), name
        firing = {sample["labels"] for samples in expected for sample in samples}
        assert not all(expected) or len(firing) < len(case["input_series"]), name
        assert all(f'alertname="{name}"' in test["expr"] for test in case["promql_expr_test"]), name


@pytest.mark.parametrize("rule", alerts(), ids=ALERTS)
def test_an_alert_says_what_it_means(rule: dict[str, Any]) -> None:
    """A severity of three, a summary, a description that is a sentence, and the runbook of its name."""
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"deploy/runbooks.md#{rule['alert'].lower()}"


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "pager"), ("warning", "tickets"), ("info", "nobody")])
def test_alertmanager_sends_each_severity_where_it_belongs(severity: str, receiver: str) -> None:
    """The example is taken by amtool, which finds its way through the routes."""
    run(program("amtool"), "check-config", "alertmanager.yml")
    routes = ("config", "routes", "test", "--config.file=alertmanager.yml")
    assert run(program("amtool"), *routes, f"severity={severity}").strip() == receiver


def test_what_alertmanager_holds_back_exists() -> None:
    """Every alert that an inhibition names is one."""
    inhibitions = yaml.safe_load((MONITORING / "alertmanager.yml").read_text(encoding="utf-8"))["inhibit_rules"]
    assert set(re.findall(r"Avap[A-Z]\w+", str(inhibitions))) <= set(ALERTS)


# --- the runbooks ------------------------------------------------------------------------------------------------


def test_every_alert_has_its_runbook() -> None:
    """A section of its name, in the same order, with what it means, what to look at and what to do."""
    found = sections(RUNBOOKS)
    assert list(found) == ALERTS
    for name, text in found.items():
        assert re.findall(r"^\*\*(.+?)\*\*", text, flags=re.MULTILINE) == ["Means", "Look at", "Do"], name
        assert "    avapd " in text, name
