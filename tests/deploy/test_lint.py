"""Files that nothing here can run to the end are read by the tools of their trade: none may have anything to say.

Each tool also gets a file with a mistake in it, so that silence means something.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from clients.tools import program_in, wheels

ROOT = Path(__file__).parents[2]
LINTERS = Path(__file__).parent / "linters" / "requirements.txt"
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
PINNED = re.compile(r"uses: (?:\$/\S+|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$")
SHELL = re.compile(r"#!(?:/usr/bin/env bash|/bin/sh)\b")
SKIPPED = {".git", ".venv", "node_modules", "__pycache__"}


class Tool(NamedTuple):
    """A command, and a mistake it must find: the name of a file, and its text."""

    command: tuple[str, ...]
    name: str
    mistake: str


ZIZMOR = ("zizmor", "--offline", "--no-progress")
BAD_WORKFLOW = "on: push\njobs:\n  x:\n    runs-on: ubuntu-24.04\n    steps:\n      - {}\n"
TOOLS = {
    "hadolint": Tool(("hadolint", "--failure-threshold=info"), "Dockerfile", "FROM debian\nRUN cd / && sudo true\n"),
    "shellcheck": Tool(("shellcheck",), "script", "#!/bin/sh\nrm -rf $1/$2\n"),
    "actionlint": Tool(("actionlint",), "bad.yml", BAD_WORKFLOW.format("run: echo ${{ github.nothing }}")),
    "zizmor": Tool(ZIZMOR, "bad.yml", BAD_WORKFLOW.format("uses: actions/checkout@v4")),
    "yamllint": Tool(("yamllint", "--strict", f"--config-file={ROOT / '.yamllint'}"), "bad.yaml", "a: 1\na: 2\n"),
    "workflow": Tool(
        ("check-jsonschema", "--builtin-schema=vendor.github-workflows"), "bad.yml", BAD_WORKFLOW.format("rum: true")
    ),
    "action": Tool(("check-jsonschema", "--builtin-schema=vendor.github-actions"), "action.yml", "name: x\n"),
    "dependabot": Tool(("check-jsonschema", "--builtin-schema=vendor.dependabot"), "bad.yml", "version: 1\n"),
}  # fmt: skip


def complaints(tool: Tool, *files: Path) -> str:
    """What a tool has against files; empty when it ends with 0."""
    installed = wheels(LINTERS)
    # actionlint gives inline scripts to the shellcheck it finds.
    env = {"PATH": f"{installed / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(installed)}
    command = [*program_in(installed, tool.command[0]), *tool.command[1:], *files]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"


def sources() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED]
        yield from (Path(folder, name) for name in names)


def scripts() -> list[Path]:
    """Every shell script of the repository, by its first line."""
    found = []
    for path in sources():
        if os.access(path, os.X_OK) and path.is_file():
            with path.open("rb") as file:
                if SHELL.match(file.readline().decode(errors="replace")):
                    found.append(path)
    return found


@pytest.mark.parametrize("name", TOOLS)
def test_a_mistake_would_be_found(name: str, tmp_path: Path) -> None:
    """Each tool finds the mistake that is made for it."""
    bad = tmp_path / TOOLS[name].name
    bad.write_text(TOOLS[name].mistake, encoding="utf-8")
    assert complaints(TOOLS[name], bad)


def test_the_dockerfile_is_clean() -> None:
    """By hadolint, with not even an `info`."""
    assert complaints(TOOLS["hadolint"], ROOT / "Dockerfile") == ""


def test_shell_scripts_are_clean() -> None:
    """By shellcheck: .ci/run, and all that have a shell in their first line."""
    found = scripts()
    assert ROOT / ".ci" / "run" in found
    assert complaints(TOOLS["shellcheck"], *found) == ""


def test_yaml_is_clean() -> None:
    """By yamllint: what is in .github and deploy, templates of Helm apart, which are no YAML."""
    found = [path for folder in (GITHUB, ROOT / "deploy") for path in folder.rglob("*.y*ml")]
    assert complaints(TOOLS["yamllint"], *(path for path in found if "templates" not in path.parts)) == ""


@pytest.mark.parametrize("tool", ["actionlint", "workflow"])
def test_workflows_are_right(tool: str) -> None:
    """By their schema, by actionlint, and, for the scripts in them, by shellcheck."""
    assert complaints(TOOLS[tool], *WORKFLOWS) == ""


def test_workflows_are_safe() -> None:
    """By zizmor: nothing of a stranger's is run, no credential stays on disk, no right is given for nothing."""
    assert complaints(TOOLS["zizmor"], GITHUB) == ""
    assert complaints(TOOLS["action"], *ACTIONS) == ""
    assert complaints(TOOLS["dependabot"], GITHUB / "dependabot.yml") == ""


def test_actions_are_pinned_by_commit() -> None:
    """With the version beside it; the same action has the same commit everywhere."""
    lines = [
        line.strip().removeprefix("- ")
        for path in (*WORKFLOWS, *ACTIONS)
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses: " in line
    ]
    assert lines
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    assert len({line.split("@")[0] for line in lines}) == len(set(lines))


def test_an_image_gets_its_tags_when_it_is_scanned_and_signed() -> None:
    """It is pushed by digest alone; the tags come after everything that may stop it."""
    workflow: Any = yaml.safe_load((GITHUB / "workflows" / "image.yml").read_text(encoding="utf-8"))
    steps: list[dict[str, Any]] = workflow["jobs"]["publish"]["steps"]
    pushed = next(step["with"] for step in steps if step.get("id") == "build")
    assert "push-by-digest=true" in pushed["outputs"].split(",")
    assert not {"tags", "push"} & pushed.keys()
    marks = ("scan-action", "cosign sign", "subject-digest", "sbom-path", "imagetools create")
    places = [[number for number, step in enumerate(steps) if mark in str(step)] for mark in marks]
    tagged = places.pop()
    assert all(places)
    assert len(tagged) == 1
    assert max(number for found in places for number in found) < tagged[0]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_has_only_the_rights_it_names(path: Path) -> None:
    """The workflow as a whole has none to write; a job that has them says each, and every job ends in time."""
    workflow: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        assert "permissions" in job or workflow["permissions"], name
        writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert writes <= ({"packages", "id-token", "attestations"} if name == "publish" else set()), name
