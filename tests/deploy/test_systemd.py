"""deploy/systemd: the unit is what systemd takes without a word and rates as tight; the kernel knows each sysctl."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from clients.tools import installed

from avapd.control.listeners import BACKLOG

SHIPPED = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT, SYSCTL = SHIPPED / "avapd.service", SHIPPED / "90-avapd.conf"
EXPOSURE = 15  # tenths
BAD = {"an unknown key": ("[Service]", "[Service]\nLimitNoFiles=1"), "no such program": ("bin/avapd serve", "bin/none")}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the programs of this installation in it."""
    made = tmp_path / UNIT.name
    made.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/avapd", sys.prefix), encoding="utf-8")
    return made


def verify(unit: Path) -> str:
    """What systemd has against a unit; for many mistakes its exit code is 0."""
    command: list[str | Path] = [installed("systemd-analyze"), "verify", "--man=no", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr or ("" if done.returncode == 0 else f"exit {done.returncode}")


def test_systemd_has_nothing_against_the_unit(unit: Path) -> None:
    """Every key and value is known, and every program is there."""
    assert verify(unit) == ""


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_would_be_seen(unit: Path, mistake: str) -> None:
    """The check that the unit passes is one that finds mistakes."""
    unit.write_text(unit.read_text(encoding="utf-8").replace(*BAD[mistake]), encoding="utf-8")
    assert verify(unit)


def test_the_service_can_do_little(unit: Path) -> None:
    """Its exposure, as systemd counts it, is 1.5 at most; a service without hardening has 9.6."""
    limit = f"--threshold={EXPOSURE}"
    command: list[str | Path] = [installed("systemd-analyze"), "security", "--offline=true", "--no-pager", limit, unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_may_read_files_of_a_group(unit: Path) -> None:
    """As README.md says for certificates that are to be seen without a restart; a dynamic user is no hindrance."""
    (line,) = re.findall(r"`(SupplementaryGroups=\S+)`", (SHIPPED / "README.md").read_text(encoding="utf-8"))
    unit.write_text(unit.read_text(encoding="utf-8").replace("[Service]", f"[Service]\n{line}"), encoding="utf-8")
    assert verify(unit) == ""


def test_it_is_given_time_to_drain() -> None:
    """A stop waits longer than avapd takes to drain and end by itself."""
    found = re.search(r"^TimeoutStopSec=(\d+)s$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    assert int(found[1]) >= 30 + 2


def test_each_sysctl_exists_and_says_why() -> None:
    """The kernel has the key, a comment stands above it, and queues are as long as avapd asks for."""
    blocks = [block.splitlines() for block in SYSCTL.read_text(encoding="utf-8").strip().split("\n\n")[1:]]
    values = dict(re.split(r"\s*=\s*", block[-1]) for block in blocks)
    assert all(line.startswith("# ") for block in blocks for line in block[:-1])
    assert all(len(block) > 1 for block in blocks)
    for key in values:
        assert Path("/proc/sys", *key.split(".")).exists(), key
    assert int(values["net.core.somaxconn"]) >= BACKLOG
    assert int(values["net.ipv4.tcp_max_syn_backlog"]) >= BACKLOG
