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
from deploy.manifests import objects, of_kind, templated

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
    "api_keys_file": False,
    "database_port": 0,
    "extra_egress": [{"from": []}],
    "monitoring_namespace": "Monitoring",
    "route": {"canary": {"service": "avapd-canary", "weight": 0}},
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
        shown = "".join(f'output "{name}" {{\n  value = local.{name}\n}}\n' for name in ("values", "service"))
        (folder / "shown.tf").write_text(shown, encoding="utf-8")
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
        return self.local("values", **variables)

    def local(self, name: str, **variables: Any) -> Any:
        done = self.apply(**variables)
        assert done.returncode == 0, done.stderr
        return json.loads(self.run("output", "-json", name).stdout)


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return Terraform(tmp_path_factory.mktemp("terraform"))


def test_the_module_is_whole() -> None:
    """Variables and outputs say what they mean, and all variables but switches and names of Secrets are checked."""
    found = parsed()
    variables, outputs = names(found["variable"]), names(found["output"])
    assert all(body["description"] for body in (*variables.values(), *outputs.values()))
    unchecked = {name for name, body in variables.items() if "validation" not in body}
    secrets = {"api_key", "signing", "database_ca", "audit_sink_url", "audit_sink_token"}
    assert unchecked == {"create_namespace", "monitoring", "secret_name", "tls_secret_name", *secrets}
    assert WRONG.keys() == variables.keys() - unchecked
    assert outputs.keys() == {"target", "namespace", "image", "revision"}


def test_terraform_finds_it_in_order(terraform: Terraform) -> None:
    """Formatted as Terraform would, and valid."""
    assert terraform.run("fmt", "-check", "-recursive", MODULE).stdout == ""
    assert terraform.run("validate").returncode == 0


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_value_is_refused(terraform: Terraform, name: str) -> None:
    """By the variable's own rule, and with its name."""
    done = terraform.apply(**{"api_key": name != "api_keys_file", name: WRONG[name]})
    assert done.returncode != 0
    assert "Invalid value for variable" in done.stderr
    assert f"var.{name}" in done.stderr


@pytest.mark.parametrize("name", ["AVAPD_AUDIT_SINK_TOKEN", "AVAPD_AUDIT_SINK_URL", "OTEL_EXPORTER_OTLP_HEADERS"])
def test_a_secret_is_no_setting(terraform: Terraform, name: str) -> None:
    """It would stand in the state and in a ConfigMap."""
    assert "secrets go into the Secret" in " ".join(terraform.apply(settings={name: "secret"}).stderr.split())


@pytest.mark.parametrize("release", ["avapd", "avapd-canary", "prod"])
def test_the_target_is_the_service_of_the_chart(terraform: Terraform, release: str) -> None:
    """Which adds its own name to a release that has it not; the output is made of it."""
    services = {one["metadata"]["name"] for one in of_kind(objects(templated(release=release).stdout), "Service")}
    service = terraform.local("service", release=release)
    assert services == {service, f"{service}-headless"}
    assert "${local.service}." in names(parsed()["output"])["target"]["value"]


def test_clear_text_is_said_aloud(terraform: Terraform) -> None:
    """Without a certificate avapd is told that this is meant; with one it is not."""
    assert terraform.values()["settings"] == {}
    assert terraform.values(tls_secret_name=None)["settings"] == {"AVAPD_INSECURE": "1"}


OTLP = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 4318, "protocol": "TCP"}]}
FULL = {
    "tls_secret_name": None, "database_cidrs": ["10.0.0.0/8"], "database_port": 6432,
    "monitoring_namespace": "prometheus",
    "signing": True, "api_key": False, "api_keys_file": True, "database_ca": True, "audit_sink_url": True,
    "audit_sink_token": True, "settings": {"AVAPD_OTEL": "on", "OTEL_SERVICE_NAME": "avapd"},
    "extra_egress": [OTLP, {"ports": [{"port": 443, "protocol": "TCP"}]}],
    "route": {"hostnames": ["avapd.example"], "canary": {"service": "avapd-canary", "weight": 5}},
}  # fmt: skip


@pytest.mark.parametrize("variables", [{}, {"route": {}}, FULL])
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


def test_what_is_given_arrives(terraform: Terraform, tmp_path: Path) -> None:
    """The chart renders the route with its canary, and a policy with port, namespace and rules, from these values."""
    (tmp_path / "values.json").write_text(json.dumps(terraform.values(**FULL)), encoding="utf-8")
    done = templated("-f", str(tmp_path / "values.json"))
    assert done.returncode == 0, done.stderr
    documents = objects(done.stdout)
    (route,) = of_kind(documents, "GRPCRoute")
    weights = {backend["name"]: backend["weight"] for backend in route["spec"]["rules"][0]["backendRefs"]}
    assert (route["spec"]["hostnames"], weights) == (["avapd.example"], {"avapd": 95, "avapd-canary": 5})
    (policy,) = of_kind(documents, "NetworkPolicy")
    assert policy["spec"]["egress"][-2:] == FULL["extra_egress"]
    assert policy["spec"]["egress"][-3]["ports"] == [{"port": 6432, "protocol": "TCP"}]
    assert "kubernetes.io/metadata.name: prometheus" in done.stdout
    assert terraform.values()["route"] == {"enabled": False}


def over(defaults: Any, values: Any) -> Any:
    """Values over those of the chart, as Helm lays them."""
    if not isinstance(defaults, dict) or not isinstance(values, dict):
        return values
    return {**defaults, **{name: over(defaults.get(name), value) for name, value in values.items()}}
