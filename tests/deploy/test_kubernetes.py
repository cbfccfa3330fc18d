"""deploy/kubernetes: every overlay is what a cluster takes, fits together, and is what avapd reads."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from clients.tools import installed
from deploy.crosschecks import complaints
from deploy.manifests import (
    DEPLOY,
    OVERLAYS,
    Object,
    charted,
    composed,
    containers,
    environment,
    kubectl,
    kustomized,
    objects,
    of_kind,
    pod_of,
)
from deploy.schemas import VERSIONS, errors, is_custom
from support.database import Database
from support.server import Server

import avapd
from avapd import config
from avapd.errors import ConfigError

pytestmark = pytest.mark.timeout(600)  # the first run installs kubectl and the schemas

KEY = "a-key-of-enough-bytes"
TARGET = {f"AVAPD_TARGET_{name}" for name in ("CA_FILE", "CERT_FILE", "KEY_FILE", "NAME")}
TLS = {"AVAPD_TLS_CERT_FILE", "AVAPD_TLS_KEY_FILE", "AVAPD_TLS_CLIENT_CA_FILE", "AVAPD_HEALTH_PORT", *TARGET}
# What certificates must hold for, by the README.
NAMES = ("avapd.avapd.svc", "avapd.avapd-staging.svc")
# Components that no overlay has.
ADDED = ("named-keys", "audit", "telemetry")
EXAMPLE = DEPLOY / "kubernetes" / "base" / "secret.example.yaml"


def overlay(name: str) -> list[Object]:
    return objects(kustomized(f"overlays/{name}"))


# --- what a cluster takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid(name: str, version: str) -> None:
    """No object of it has a field that its kind does not have, lacks one, or has one of another type."""
    own = [document for document in overlay(name) if not is_custom(document)]
    assert own
    assert not [error for document in own for error in errors(document, version)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_custom_objects_of_an_overlay_are_valid(name: str) -> None:
    """The CRDs of the Prometheus operator and of the Gateway API take them; dev needs none."""
    custom = [document for document in overlay(name) if is_custom(document)]
    assert bool(custom) == (name != "dev")
    assert not [error for document in custom for error in errors(document)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_fits_together(name: str) -> None:
    """QoS, probes, ports, selectors, references, drain, budget and memory agree with each other and with avapd."""
    assert not complaints(overlay(name))


def replaced(kind: str, *path: str | int, value: Any) -> Callable[[list[Object]], None]:
    """Sets what stands at a path in the first object of a kind; None removes it."""

    def plant(documents: list[Object]) -> None:
        target: Any = of_kind(documents, kind)[0]
        for step in path[:-1]:
            target = target[step]
        if value is None:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return plant


POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)

WRONG_FIELDS: dict[str, tuple[Callable[[list[Object]], None], str]] = {
    "misspelt": (replaced("Deployment", "spec", "strategy", "rollingUpdate", "maxSurg", value=1), "maxSurg"),
    "type": (
        replaced("Deployment", *CONTAINER, "livenessProbe", "grpc", "port", value="grpc"),
        "'grpc' is not of type",
    ),
    "missing": (replaced("Deployment", "spec", "selector", value=None), "'selector' is a required property"),
    "place": (replaced("HorizontalPodAutoscaler", "spec", "targetCPUUtilizationPercentage", value=60), "targetCPU"),
    "scrape": (replaced("ServiceMonitor", "spec", "endpoints", 0, "intervall", value="15s"), "intervall"),
    "rule": (replaced("PrometheusRule", "spec", "groups", 0, "rules", 0, "expr", value=None), "'expr' is a required"),
    "weight": (
        replaced("GRPCRoute", "spec", "rules", 0, "backendRefs", 0, "weight", value=-5),
        "less than the minimum",
    ),
    "policy": (replaced("BackendTLSPolicy", "spec", "validation", "hostnam", value="x"), "hostnam"),
}


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_wrong_field_is_found(case: str) -> None:
    """The schemas are strict, those of the CRDs too, and one error is told as one."""
    plant, told = WRONG_FIELDS[case]
    documents = overlay("production")
    plant(documents)
    (error,) = [error for document in documents for error in errors(document)]
    assert told in error


MISFITS: dict[str, tuple[Callable[[list[Object]], None], str]] = {
    "burstable": (replaced("Deployment", *CONTAINER, "resources", "requests", "cpu", value="2"), "not Guaranteed"),
    "part of a cpu": (replaced("Deployment", *CONTAINER, "resources", "limits", "cpu", value="1500m"), "whole number"),
    "root": (replaced("Deployment", *POD, "securityContext", "runAsNonRoot", value=False), "may have root"),
    "capability": (
        replaced("Deployment", *CONTAINER, "securityContext", "capabilities", "add", value=["NET_RAW"]),
        "may have capabilities",
    ),
    "writable": (replaced("Deployment", *CONTAINER, "securityContext", "readOnlyRootFilesystem", value=None), "a root"),
    "links": (replaced("Deployment", *POD, "enableServiceLinks", value=True), "variables of Services"),
    "unavailable": (replaced("Deployment", "spec", "strategy", "rollingUpdate", "maxUnavailable", value=1), "capacity"),
    "grace": (replaced("Deployment", *POD, "terminationGracePeriodSeconds", value=36), "needs 37 s"),
    "drain": (replaced("ConfigMap", "data", "AVAPD_DRAIN_SECONDS", value="60"), "needs 67 s"),
    "no preStop": (replaced("Deployment", *CONTAINER, "lifecycle", value=None), "no preStop"),
    "probe": (replaced("Deployment", *CONTAINER, "livenessProbe", "grpc", "service", value="live"), "livenessProbe"),
    "probe in clear text": (replaced("Deployment", *CONTAINER, "readinessProbe", "grpc", "port", value=50051), "50052"),
    "port": (replaced("Service", "spec", "ports", 0, "targetPort", value="http2"), "leads nowhere"),
    "unheard port": (replaced("ConfigMap", "data", "AVAPD_HEALTH_PORT", value="50053"), "nothing listens on health"),
    "loopback": (replaced("ConfigMap", "data", "AVAPD_ADMIN_HOST", value=None), "on loopback"),
    "policy's port": (replaced("NetworkPolicy", "spec", "ingress", 0, "ports", 0, "port", value="http"), "called http"),
    "scraped twice": (replaced("ServiceMonitor", "spec", "endpoints", 0, "port", value="grpc"), "found 2 times"),
    "selector": (replaced("Service", "spec", "selector", "tier", value="a"), "Service avapd: selects 0"),
    "policy": (replaced("NetworkPolicy", "spec", "podSelector", "matchLabels", "tier", value="a"), "does not hold"),
    "spread": (replaced("Deployment", *POD, "topologySpreadConstraints", value=[]), "not spread"),
    "no settings": (replaced("ConfigMap", "metadata", "name", value="other"), "is named and not there"),
    "no volume": (replaced("ConfigMap", "data", "AVAPD_SNAPSHOT_DIR", value="/data"), "/data: no volume"),
    "no certificate": (replaced("Deployment", *CONTAINER, "volumeMounts", 0, "mountPath", value="/x"), "tls.crt: no"),
    "no target": (replaced("HorizontalPodAutoscaler", "spec", "scaleTargetRef", "name", value="x"), "Deployment x is"),
    "no backend": (replaced("GRPCRoute", "spec", "rules", 0, "backendRefs", 0, "name", value="x"), "Service x is"),
    "no setting": (replaced("ConfigMap", "data", "AVAPD_REFRESH", value="60"), "AVAPD_REFRESH is no setting"),
    "secret": (replaced("ConfigMap", "data", "API_KEY", value="k"), "API_KEY is a secret"),
    "secrets": (
        replaced("Deployment", *CONTAINER, "envFrom", value=[{"secretRef": {"name": "avapd"}}]), "secrets are values"
    ),
    "replicas": (replaced("Deployment", "spec", "replicas", value=3), "set twice"),
    "budget": (replaced("PodDisruptionBudget", "spec", "maxUnavailable", value=0), "lets no pod go"),
    "memory": (replaced("ConfigMap", "data", "AVAPD_MAX_CATALOG_BYTES", value="1073741824"), "more than 70 %"),
    "disk": (
        replaced("Deployment", *POD, "volumes", 0, value={"name": "snapshot", "emptyDir": {"sizeLimit": "512Mi"}}),
        "do not fit",
    ),
    "weights": (replaced("GRPCRoute", "spec", "rules", 0, "backendRefs", 0, "weight", value=90), "the weights are"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_found(case: str) -> None:
    """Each cross-check fails when what it is about is wrong."""
    plant, told = MISFITS[case]
    documents = overlay("production")
    plant(documents)
    assert any(told in complaint for complaint in complaints(documents)), complaints(documents)


# --- what avapd makes of it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What /run/secrets holds: a Secret of the example's shape, and a certificate of its own authority."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("avapd", "avapd-tls"):
        (folder / name).mkdir()
    for key, text in yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["stringData"].items():
        (folder / "avapd" / key).write_text(KEY if key.endswith("-key") else text, encoding="utf-8")
        (folder / "avapd" / key).chmod(0o440)
    key, certificate = (folder / "avapd-tls" / f"tls.{end}" for end in ("key", "crt"))
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=avapd", "-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in NAMES)}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([installed("openssl"), *request, *subject, *files], check=True, capture_output=True)
    (folder / "avapd-tls" / "ca.crt").write_bytes(certificate.read_bytes())
    return folder


@pytest.mark.parametrize("name", OVERLAYS)
def test_avapd_reads_the_environment(name: str, mounted: Path) -> None:
    """The variables of every container, with the files that they name, are a configuration without a warning."""
    documents = overlay(name)
    for _, container in containers(documents):
        env = environment(container, documents)
        read = config.load({key: value.replace("/run/secrets", str(mounted)) for key, value in env.items()})
        assert not read.warnings()
        assert not config.misspelt(env)
        assert read.development == (name == "dev")


def test_what_may_be_added_fits_too(tmp_path: Path, mounted: Path) -> None:
    """Production with every other component is valid, fits together, and is a configuration without a warning."""
    documents = objects(composed(tmp_path, "overlays/production", *ADDED))
    assert not [error for document in documents for error in errors(document)]
    assert not complaints(documents)
    ((_, container),) = containers(documents)
    env = environment(container, documents)
    read = config.load({key: value.replace("/run/secrets", str(mounted)) for key, value in env.items()})
    assert (bool(read.audit_sink_token), read.otel) == (True, True)
    assert not read.warnings()


def test_a_service_called_avapd_admin_would_stop_avapd() -> None:
    """This is what `enableServiceLinks: false` is for."""
    linked = {"AVAPD_ADMIN_PORT": "tcp://10.0.0.1:9464", "API_KEY": KEY, "DATABASE_URL": "postgresql://a@b/c"}
    with pytest.raises(ConfigError, match="AVAPD_ADMIN_PORT"):
        config.load(linked)


def test_clear_text_is_for_development_alone() -> None:
    """Every other overlay has a certificate, asks clients for theirs, and has the probes' port."""
    for name in OVERLAYS:
        documents = overlay(name)
        for _, container in containers(documents):
            env = environment(container, documents)
            assert (env.get("AVAPD_INSECURE") == "1") == (name == "dev")
            assert (set(env) >= TLS) == (name != "dev")


def test_the_probes_ask_for_what_avapd_serves(sample: Database, serve: Callable[..., Server]) -> None:
    """Every service that a probe names is SERVING on a real server."""
    server = serve(sample.reader_url).wait_serving()
    container = next(container for _, container in containers(objects(kustomized("base"))))
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    for service in {container[probe]["grpc"].get("service", "") for probe in probes}:
        command = [sys.executable, "-P", "-m", "avapd", "health", "--target", f"127.0.0.1:{server.port}"]
        done = subprocess.run([*command, "--service", service], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), service


@pytest.mark.parametrize("made", ["kustomize staging", "kustomize production", "kustomize canary", "helm canary"])
def test_avapd_can_be_asked_in_the_pod(
    made: str, mounted: Path, sample: Database, serve: Callable[..., Server]
) -> None:
    """`avapd health` and `avapd list` there show a certificate and want a name, by the pod's own environment."""
    tool, name = made.split()
    documents = overlay(name) if tool == "kustomize" else objects(charted(name))
    for _, container in containers(documents):
        env = environment(container, documents)
        tls = {name: env[name].replace("/run/secrets", str(mounted)) for name in TLS - {"AVAPD_HEALTH_PORT"}}
        server = serve(sample.reader_url, env=tls).wait_serving()
        for word in ("health", "list"):
            command = [sys.executable, "-P", "-m", "avapd", word]
            asked = {"API_KEY": server.env["API_KEY"], "AVAPD_TARGET": f"127.0.0.1:{server.port}", **tls}
            done = subprocess.run(command, env=asked, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


# --- one thing in two places --------------------------------------------------------------------------------------


def test_the_rules_are_those_of_the_monitoring() -> None:
    """The PrometheusRule ends in deploy/monitoring/alerts.yml, two columns further right."""
    rules = (DEPLOY / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    (rule,) = of_kind(objects(kustomized("base")), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(rules), "copy it: sed 's/^/  /' deploy/monitoring/alerts.yml"


def test_the_image_is_of_this_version() -> None:
    """Every tag that is written down is avapd's version."""
    for name in OVERLAYS:
        for _, container in containers(overlay(name)):
            assert container["image"].split(":")[-1] == avapd.__version__


def test_the_canary_is_production_and_one_pod_more() -> None:
    """Production's objects stay as they are, but for the weights; the canary's pod is like its pods, labels aside."""
    production, canary = (
        {(document["kind"], document["metadata"]["name"]): document for document in overlay(name)}
        for name in ("production", "canary")
    )
    changed = {key for key, document in production.items() if canary[key] != document}
    assert changed == {("GRPCRoute", "avapd"), ("BackendTLSPolicy", "avapd")}
    added = {(kind, re.sub(r"-[a-z0-9]{10}$", "", name)) for kind, name in canary.keys() - production.keys()}
    assert added == {
        ("Deployment", "avapd-canary"), ("ServiceAccount", "avapd-canary"), ("ConfigMap", "avapd-canary"),
        ("Service", "avapd-canary"), ("Service", "avapd-headless-canary"),
    }  # fmt: skip
    stable, tried = (pod_of(canary["Deployment", name])["spec"] for name in ("avapd", "avapd-canary"))
    names = {"serviceAccountName", "affinity", "topologySpreadConstraints"}
    assert {key for key in stable if stable[key] != tried[key]} == {"containers", *names}
    (stable,), (tried,) = stable["containers"], tried["containers"]
    assert {key for key in stable if stable[key] != tried[key]} == {"envFrom"}


def test_the_table_of_the_overlays_is_true() -> None:
    """README.md's pods, CPUs, memory and largest catalog are the rendered ones."""
    text = (DEPLOY / "kubernetes" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| [^|]+ \|$", text, re.MULTILINE))
    for name in ("dev", "staging", "production"):
        documents = overlay(name)
        scaler = [item["spec"] for item in of_kind(documents, "HorizontalPodAutoscaler")]
        ((_, container),) = containers(documents)
        size = int(environment(container, documents)["AVAPD_MAX_CATALOG_BYTES"]) >> 20
        pods = f"{scaler[0]['minReplicas']} to {scaler[0]['maxReplicas']}" if scaler else "1"
        limits = container["resources"]["limits"]
        assert rows[name] == f"{pods} | {limits['cpu']}, {limits['memory']} | {size} MiB"


def test_the_example_of_a_secret_is_one(tmp_path: Path) -> None:
    """It is valid, and its keys are the files that the settings name, whatever components there are."""
    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert not errors(example, VERSIONS[0])
    named = {
        Path(value).name
        for document in of_kind(objects(composed(tmp_path, "overlays/production", *ADDED)), "ConfigMap")
        for value in document["data"].values()
        if value.startswith("/run/secrets/avapd/")
    }
    assert named <= set(example["stringData"])
    assert f"/run/secrets/avapd/{(set(example['stringData']) - named).pop()}" in example["stringData"]["database-url"]


def test_a_broken_overlay_is_refused(tmp_path: Path) -> None:
    """kubectl, whose exit code the tests above rely on, is real and looks."""
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]\n", encoding="utf-8")
    assert kubectl("kustomize", tmp_path).returncode == 1
