""".github/actions/roll-out: which image each step of a promotion gives to whom, as kustomize renders it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from clients.tools import installed

ROOT = Path(__file__).parents[2]
ACTION, KUBERNETES = Path(".github", "actions", "roll-out"), Path("deploy", "kubernetes")
RUNS, NEW = (f"ghcr.io/owner/avapd@sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout, since the script puts images into the overlays."""
    for part in (ACTION, KUBERNETES):
        shutil.copytree(ROOT / part, tmp_path / part)
    return tmp_path


def roll_out(tree: Path, step: str) -> subprocess.CompletedProcess[str]:
    """What would be applied, where RUNS is what runs."""
    env = {"PATH": f"{installed('kubectl').parent}:{os.environ['PATH']}", "RENDER": "1", "PRODUCTION": RUNS}
    command: list[str | Path] = [tree / ACTION / "roll-out", step, NEW]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def images(tree: Path, step: str) -> dict[str, str]:
    """The image of each Deployment."""
    done = roll_out(tree, step)
    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one["kind"] == "Deployment"]
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["image"] for one in objects}


@pytest.mark.parametrize(
    ("step", "expected"),
    [("canary", {"avapd": RUNS, "avapd-canary": NEW}), ("production", {"avapd": NEW}), ("withdraw", {"avapd": RUNS})],
)
def test_each_step_gives_the_image_to_the_right_pods(tree: Path, step: str, expected: dict[str, str]) -> None:
    """The canary leaves production what it has; production takes the new one; withdrawn, nothing has it."""
    assert images(tree, step) == expected


def test_an_overlay_of_another_shape_stops_it(tree: Path) -> None:
    """Where the image cannot be put in, nothing is applied."""
    overlay = tree / KUBERNETES / "overlays" / "production" / "kustomization.yaml"
    overlay.write_text(overlay.read_text(encoding="utf-8").replace("newName:", "name_of_it:"), encoding="utf-8")
    done = roll_out(tree, "production")
    assert done.returncode != 0
    assert done.stdout == ""


def test_an_unknown_step_is_refused(tree: Path) -> None:
    """With how to call it."""
    done = roll_out(tree, "promote")
    assert done.returncode == 2
    assert "canary|production|withdraw" in done.stderr
