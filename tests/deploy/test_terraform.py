"""deploy/terraform: the module parses, refuses bad values before a plan, and gives the chart what the chart takes.

Providers come from a registry that only Terraform reaches, so what needs one is parsed; variables and values need none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from clients.tools import installed, program_in, wheels

MODULE = Path(__file__).parents[2] / "deploy" / "terraform"
CHART = MODULE.parent / "helm" / "avapd"
LINTERS = Path(__file__).parent / "linters" / "requirements.txt"
RIGHT = {"image_repository": "registry.example:5000/avapd", "image_digest": "sha256:" + "0" * 64}
WRONG = {
    "namespace": "Avapd",
    "release": "1avapd",
    "image_repository": "avapd:latest",
    "image_digest": "latest",
    "settings": {"API_KEY": "secret"},
    "cpu": 0.5,
    "memory": "1024",
    "min_replicas": 1,
    "max_replicas": 1,
    "zone_spread": "Never",
    "client_labels": {},
    "database_cidrs": ["db.example"],
    "timeout_seconds": 5,
}


def parsed() -> dict[str, Any]:
    """The blocks of all files, as python-hcl2 reads them: kind, then a list."""
    script = (
        "import hcl2, json, pathlib, sys\n"
        "found = {}\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.tf')):\n"
        "    for kind, blocks in hcl2.loads(path.read_text()).items():\n"
        "        found.setdefault(kind, []).extend(blocks)\n"
        "print(json.dumps(found))\n"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(wheels(LINTERS))}
    done = subprocess.run([sys.executable, "-c", script, MODULE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def names(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Labelled blocks by their label."""
    return {label.strip('"'): body for block in blocks for label, body in block.items()}


class Terraform:
    """Terraform on what of the module needs no provider, with nothing downloaded."""

    def __init__(self, folder: Path) -> None:
        self._program, self.folder = installed("terraform"), folder
        for name in ("variables.tf", "values.tf"):
            shutil.copy(MODULE / name, folder)
        (folder / "shown.tf").write_text('output "values" {\n  value = local.values\n}\n', encoding="utf-8")
        (folder / "empty").touch()
        assert self.run("init", "-backend=false").returncode == 0

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "TF_CLI_CONFIG_FILE": str(self.folder / "empty"), "CHECKPOINT_DISABLE": "1"}
        command = [self._program, *arguments]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    def apply(self, **variables: Any) -> subprocess.CompletedProcess[str]:
        given = self.folder / "given.tfvars.json"
        given.write_text(json.dumps({**RIGHT, **variables}), encoding="utf-8")
        return self.run("apply", "-auto-approve", "-input=false", "-no-color", f"-var-file={given}")

    def values(self, **variables: Any) -> Any:
        """What the chart would be given."""
        done = self.apply(**variables)
        assert done.returncode == 0, done.stderr
        return json.loads(self.run("output", "-json", "values").stdout)


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return Terraform(tmp_path_factory.mktemp("terraform"))


def test_the_module_is_whole() -> None:
    """Variables and outputs say what they mean, and all variables but switches and names of Secrets are checked."""
    found = parsed()
    variables, outputs = names(found["variable"]), names(found["output"])
    assert all(body["description"] for body in (*variables.values(), *outputs.values()))
    unchecked = {name for name, body in variables.items() if "validation" not in body}
    assert unchecked == {"create_namespace", "signing", "monitoring", "secret_name", "tls_secret_name"}
    assert WRONG.keys() == variables.keys() - unchecked
    assert outputs.keys() == {"target", "namespace", "image", "revision"}


def test_terraform_finds_it_in_order(terraform: Terraform) -> None:
    """Formatted as Terraform would, and valid."""
    assert terraform.run("fmt", "-check", "-recursive", MODULE).stdout == ""
    assert terraform.run("validate").returncode == 0


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_value_is_refused(terraform: Terraform, name: str) -> None:
    """By the variable's own rule, and with its name."""
    done = terraform.apply(**{name: WRONG[name]})
    assert done.returncode != 0
    assert "Invalid value for variable" in done.stderr
    assert f"var.{name}" in done.stderr


def test_clear_text_is_said_aloud(terraform: Terraform) -> None:
    """Without a certificate avapd is told that this is meant; with one it is not."""
    assert terraform.values()["settings"] == {}
    assert terraform.values(tls_secret_name=None)["settings"] == {"AVAPD_INSECURE": "1"}


@pytest.mark.parametrize(
    "variables", [{}, {"tls_secret_name": None, "database_cidrs": ["10.0.0.0/8"], "signing": True}]
)
def test_the_chart_takes_the_values(terraform: Terraform, variables: dict[str, Any]) -> None:
    """Over its own they are right by its schema, which allows no other name."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    merged = over(defaults, terraform.values(**variables))
    (terraform.folder / "values.json").write_text(json.dumps(merged), encoding="utf-8")
    tools = wheels(LINTERS)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tools)}
    program = program_in(tools, "check-jsonschema")
    command = [*program, "--schemafile", CHART / "values.schema.json", "values.json"]
    done = subprocess.run(command, cwd=terraform.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def over(defaults: Any, values: Any) -> Any:
    """Values over those of the chart, as Helm lays them."""
    if not isinstance(defaults, dict) or not isinstance(values, dict):
        return values
    return {**defaults, **{name: over(defaults.get(name), value) for name, value in values.items()}}
