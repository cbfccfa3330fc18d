"""deploy/ecs, deploy/cloud-run, deploy/azure-container-instances: each example is one that avapd would start with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from avapd import config
from avapd.cli import cli
from avapd.control.check import needed_memory
from avapd.data.health import LIVENESS

SHIPPED = Path(__file__).parents[2] / "deploy"
SECRETS = {"DATABASE_URL": "postgresql://db/avap", "API_KEY": "k" * 16, "SIGNING_KEY": "s" * 16}
CLIENT = "AVAPD_TARGET"  # of `avapd health`


class Example(NamedTuple):
    """What the platforms say in different words."""

    values: dict[str, str]
    references: dict[str, str]
    image: str
    cpus: int
    memory: int
    grace: int
    health: list[Any]
    kills: str


def ecs() -> Example:
    task = json.loads((SHIPPED / "ecs" / "task-definition.json").read_text(encoding="utf-8"))
    (container,) = task["containerDefinitions"]
    assert (int(task["cpu"]), int(task["memory"])) == (container["cpu"], container["memory"])
    assert container["memory"] > container.get("memoryReservation", 0), "ECS takes no less"
    assert container["readonlyRootFilesystem"]
    assert container["user"] == "10001:10001"
    return Example(
        {entry["name"]: entry["value"] for entry in container["environment"]},
        {entry["name"]: entry["valueFrom"] for entry in container["secrets"]},
        container["image"], container["cpu"] // 1024, container["memory"] << 20, container["stopTimeout"],
        container["healthCheck"]["command"][1:], service_of(container["healthCheck"]["command"]),
    )  # fmt: skip


def cloud_run() -> Example:
    template = yaml.safe_load((SHIPPED / "cloud-run" / "service.yaml").read_text(encoding="utf-8"))["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert port["name"] == "h2c"
    assert template["metadata"]["annotations"]["run.googleapis.com/cpu-throttling"] == "false"
    assert {container[probe]["grpc"]["port"] for probe in ("startupProbe", "livenessProbe")} == {port["containerPort"]}
    startup, kills = container["startupProbe"], container["livenessProbe"]["grpc"]["service"]
    assert "service" not in startup["grpc"]
    assert startup["periodSeconds"] * startup["failureThreshold"] <= 240, "the longest that Cloud Run waits"
    limits = container["resources"]["limits"]
    values = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert "PORT" not in values, "Cloud Run sets it and refuses it"
    references = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"] for entry in container["env"] if "value" not in entry
    }
    memory = int(limits["memory"].removesuffix("Gi")) << 30
    return Example(values, references, container["image"], int(limits["cpu"]), memory, 10, ["avapd", "health"], kills)


def azure() -> Example:
    text = (SHIPPED / "azure-container-instances" / "group.yaml").read_text(encoding="utf-8")
    group = yaml.safe_load(text)["properties"]
    (named,) = group["containers"]
    container = named["properties"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["securityContext"]["runAsUser"] == 10001
    entries = container["environmentVariables"]
    references = {entry["name"]: entry["secureValueReference"] for entry in entries if "value" not in entry}
    volumes = {file for volume in group["volumes"] for file in volume["secretReference"].values()}
    assert {one["name"] for one in group["secretReferences"]} == volumes | set(references.values())
    limits = container["resources"]["limits"]
    return Example(
        {entry["name"]: entry["value"] for entry in entries if "value" in entry}, references, container["image"],
        limits["cpu"], limits["memoryInGB"] << 30, 30, container["readinessProbe"]["exec"]["command"],
        service_of(container["livenessProbe"]["exec"]["command"]),
    )  # fmt: skip


def service_of(command: list[str]) -> str:
    """What a command of `avapd health` asks for."""
    context = cli.commands["health"].make_context("health", command[command.index("health") + 1 :])
    return str(context.params["service"])


PLATFORMS: dict[str, Callable[[], Example]] = {"ecs": ecs, "cloud-run": cloud_run, "azure": azure}


@pytest.fixture(params=PLATFORMS)
def example(request: pytest.FixtureRequest) -> Example:
    return PLATFORMS[request.param]()


def load(example: Example) -> config.Config:
    """The settings as avapd would read them there."""
    return config.load({**example.values, **{name: SECRETS[name] for name in example.references}})


def test_every_variable_is_a_setting(example: Example) -> None:
    """No name is unknown, no value is wrong: avapd starts with just these."""
    known = {name for setting in config.settings().values() for name in setting.variables}
    assert example.values.keys() | example.references.keys() <= known | {CLIENT}
    assert load(example).api_keys


def test_secrets_are_references(example: Example) -> None:
    """The two that avapd needs are named, and nothing like a secret is written down."""
    assert {"DATABASE_URL", "API_KEY"} <= example.references.keys()
    assert not {name for name in example.values if re.search(r"PASSWORD|SECRET|_KEY$|_URL$", name)}


def test_what_the_container_may_have_is_enough(example: Example) -> None:
    """The largest catalog that is let in fits with a worker on each CPU, as `avapd check` reckons: 70 % at the peak."""
    config = load(example)
    assert needed_memory(config.max_catalog_bytes, example.cpus, config.max_answer_bytes) <= 0.7 * example.memory


def test_it_drains_before_it_is_killed(example: Example) -> None:
    """The platform waits two seconds longer than the drain may take."""
    assert load(example).drain_seconds + 2 <= example.grace


def test_one_that_waits_for_its_database_is_not_killed(example: Example) -> None:
    """What the platform kills for asks whether the process answers, not whether there is a catalog."""
    assert example.kills == LIVENESS
    assert "AVAPD_SNAPSHOT_DIR" not in example.values, "README.md says that there is no disk for it"


def test_the_image_is_named_by_digest(example: Example) -> None:
    """A tag can be moved; health is asked without a shell."""
    assert re.search(r"@sha256:[0-9a-f]{64}$", example.image)
    assert example.health[:2] == ["avapd", "health"]
