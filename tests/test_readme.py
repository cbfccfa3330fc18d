"""The README says what is true."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from support.server import free_port
from support.waiting import wait_until

from avapd import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_table_is_the_one_that_avapd_prints() -> None:
    """One declaration per setting: the README's table is its rendering."""
    table = README.split("<!-- settings: made by `avapd settings` -->\n")[1].split("\n<!-- end of settings -->")[0]
    assert table == config.table()


def test_the_table_of_limits_is_the_one_that_avapd_prints() -> None:
    """The limits of the wire engine are settings like any other, in a table of their own."""
    text = (ROOT / "avapd" / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- limits: made by `avapd settings --limits` -->\n")[1].split("\n<!-- end of limits -->")[0]
    assert table == config.table(limits=True)


def test_the_two_commands_stand_on_the_first_screen() -> None:
    """Each is one line to copy, within the first 25 lines."""
    lines = README.splitlines()[:25]
    demo = "python3 -m venv .venv && .venv/bin/pip install -q '.[demo]' && .venv/bin/avapd demo"
    tests = "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest"
    assert demo in lines
    assert tests in lines


def test_every_link_between_documents_leads_somewhere() -> None:
    """Relative links of all Markdown files name files that exist."""
    documents = [
        path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts[len(ROOT.parts) :])
    ]
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert documents
    assert not broken


def test_the_top_level_is_what_the_layout_says() -> None:
    """Nothing grows at the top level unseen."""
    allowed = {
        "pyproject.toml", "proto", "avapd", "bench", "deploy", "tests", "Dockerfile", "README.md", "LICENSE",
        "CHANGELOG.md", "SECURITY.md", "requirements.lock",
    }  # fmt: skip
    present = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert present <= allowed


@pytest.mark.timeout(400)
def test_the_demo_command_works_as_printed(tmp_path: Path) -> None:
    """The README's first command, in a fresh copy: installs, serves, and Ctrl-C leaves nothing behind."""
    line = next(line for line in README.splitlines() if line.endswith("avapd demo"))
    tree = tmp_path / "avapd"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "results", "__pycache__"))
    port, admin_port = free_port(), free_port()
    line += f" --port {port} --admin-port {admin_port}"
    with (tmp_path / "out").open("wb") as out:
        shell = subprocess.Popen(["bash", "-c", f"{line} & wait $!"], cwd=tree, stdout=out, stderr=out, process_group=0)
    try:
        wait_until(lambda: "Ctrl-C stops the server" in _text(tmp_path / "out") or shell.poll() is not None, 300)
        assert shell.poll() is None, _text(tmp_path / "out")
        family = psutil.Process(shell.pid).children(recursive=True)
        demo = next(process for process in family if process.cmdline()[-5:-4] == ["demo"])
        demo.send_signal(signal.SIGINT)
        shell.wait(30)
        assert "STOPPED" in _text(tmp_path / "out")
        assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
