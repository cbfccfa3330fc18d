"""What is fuzzed: each target takes any bytes and raises when a claim about them is broken."""

from __future__ import annotations

import importlib
from collections.abc import Callable

Target = Callable[[bytes], None]


def load(name: str) -> Target:
    """The function of a target. ImportError where what it tests is not installed."""
    target: Target = importlib.import_module(f".{name}", __package__).run
    return target
