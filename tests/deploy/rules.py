"""The rules of deploy/monitoring/alerts.yml, parsed."""

from __future__ import annotations

from typing import Any

import yaml
from deploy.prometheus import MONITORING


def rules() -> list[dict[str, Any]]:
    """Every rule, in order."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Those that are alerts."""
    return [rule for rule in rules() if "alert" in rule]
