"""The wall clock jumps, and nobody minds: all schedules follow the monotonic clock (scenario 23).

Without root no clock can be set, so a `sitecustomize` lies to the processes: `time.time` is moved by what a file says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.calls import Calls, Outcome
from support.database import Database
from support.load import Load
from support.server import Server
from support.waiting import wait_until

Serve = Callable[..., Server]
DAY = 86_400.0
INTERVAL = 0.4
LIE = """
import os, time
from pathlib import Path

true = time.time
shift = Path(os.environ["PYTHON_SHIFT"])
time.time = lambda: true() + float(shift.read_text())
"""


def get(calls: Calls) -> Outcome:
    return calls.get("si")


@pytest.mark.parametrize("shift", [-DAY, DAY])
def test_a_clock_that_jumps_moves_no_schedule(serve: Serve, sample: Database, tmp_path: Path, shift: float) -> None:
    """Polls stay as far apart, changes are served, health and freshness stay SERVING, no worker ends, no call fails."""
    moved = tmp_path / "shift"
    moved.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(LIE)
    env = {"PYTHONPATH": str(tmp_path), "PYTHON_SHIFT": str(moved), "AVAPD_REFRESH_SECONDS": str(INTERVAL)}
    server = serve(sample.reader_url, env=env).wait_serving()
    pids = server.workers()

    def looked() -> float:
        return server.metric("avap_sync_total", result="unchanged")

    with Load(server.calls, get, 2) as load:
        new = tmp_path / "new"
        new.write_text(str(shift))
        new.replace(moved)
        looks, began = looked(), time.monotonic()
        wait_until(lambda: looked() >= looks + 5, 15)
        assert time.monotonic() - began > 4 * 0.9 * INTERVAL - 0.1
        sample.execute("UPDATE obex_dapl_functions SET code = '# after the jump' WHERE name = 'si'")
        with server.calls() as calls:
            wait_until(lambda: b"after the jump" in calls.get("si").payload, 15)
    assert not load.failures()
    assert server.workers() == pids
    assert abs(server.metric("avap_last_check_timestamp_seconds") - (time.time() + shift)) < 60
    assert 0 <= server.metric("avap_catalog_age_seconds") < 30
    assert (
        server.order("health", "--service", "avapd.freshness", "--target", f"127.0.0.1:{server.port}").returncode == 0
    )
