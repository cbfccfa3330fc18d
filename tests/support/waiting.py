"""Waiting for a condition, never for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_PAUSE = threading.Event()


def wait_until(condition: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """The first truthy value of `condition`; AssertionError, with the last value, when there is none in time.

    What `condition` raises as OSError or AssertionError counts as not yet.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            value = condition()
        except (OSError, AssertionError) as error:
            last = error
        else:
            if value:
                return value
            last = value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}; last: {last!r}"
        _PAUSE.wait(0.01)


def stays(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition holds all the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            return False
        _PAUSE.wait(0.02)
    return True
