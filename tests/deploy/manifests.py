"""What is applied to a cluster: rendered by kubectl's kustomize and by helm, as objects."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from clients.tools import helm_and_kubectl

Object = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "avapd"
REQUIREMENTS = Path(__file__).parent / "kubernetes" / "requirements.txt"
OVERLAYS = ("dev", "staging", "production", "canary")
VALUES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")
_KUBE_VERSION = "1.31.0"


def kubectl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return _run(helm_and_kubectl(REQUIREMENTS) / "kubectl" / "kubectl", *arguments)


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return _run(helm_and_kubectl(REQUIREMENTS) / "helm" / "helm", *arguments)


def _run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@cache
def kustomized(folder: str) -> str:
    """A folder of deploy/kubernetes, rendered."""
    done = kubectl("kustomize", DEPLOY / "kubernetes" / folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def composed(folder: Path, overlay: str, *components: str) -> str:
    """A folder of deploy/kubernetes with components, rendered from an overlay that is written to an empty folder."""
    root = Path(os.path.relpath(DEPLOY / "kubernetes", folder))
    made = {"resources": [str(root / overlay)], "components": [str(root / "components" / name) for name in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    done = kubectl("kustomize", folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def templated(*arguments: str, release: str = "avapd") -> subprocess.CompletedProcess[str]:
    """The chart, rendered, or why not."""
    return helm("template", release, CHART, "-n", "avapd", "--kube-version", _KUBE_VERSION, *MONITORING, *arguments)


def values_files(values: str) -> list[str]:
    """Options of helm; those of a canary lie over those of production."""
    names = ("production", "canary") if values == "canary" else (values,)
    return [word for name in names for word in ("-f", str(CHART / "ci" / f"{name}-values.yaml"))]


@cache
def charted(values: str) -> str:
    """The chart with one of its ci values files, rendered."""
    release = "avapd-canary" if values == "canary" else "avapd"
    done = templated(*values_files(values), release=release)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[Object]:
    """Fresh objects, to be changed at will."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def of_kind(documents: list[Object], kind: str) -> list[Object]:
    return [document for document in documents if document["kind"] == kind]


def pod_of(workload: Object) -> Object:
    """The pod of a Deployment, or of a Pod that stands alone: metadata and spec."""
    pod: Object = workload["spec"].get("template", workload)
    return pod


def containers(documents: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each container with its pod."""
    for document in documents:
        if document["kind"] in {"Deployment", "Pod"}:
            pod = pod_of(document)
            for container in pod["spec"]["containers"]:
                yield pod, container


def environment(container: Object, documents: list[Object]) -> dict[str, str]:
    """What the container's process finds in its environment."""
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    return found | {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}
