"""deploy/helm/avapd: the chart is deploy/kubernetes with values, and refuses the wrong ones."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.crosschecks import complaints
from deploy.manifests import (
    CHART,
    DEPLOY,
    VALUES,
    Object,
    charted,
    composed,
    containers,
    environment,
    helm,
    kustomized,
    objects,
    of_kind,
    pod_of,
    templated,
    values_files,
)
from deploy.schemas import VERSIONS, errors, is_custom
from jsonschema import Draft7Validator
from support.database import Database
from support.server import Server

import avapd

pytestmark = pytest.mark.timeout(600)  # the first run installs helm and the schemas

HELMS_LABELS = ("app.kubernetes.io/managed-by", "helm.sh/chart")
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize("values", VALUES)
def test_lint_finds_nothing(values: str) -> None:
    """Not even a warning, with any of the values."""
    done = helm("lint", "--strict", CHART, *values_files(values))
    assert (done.returncode, "WARNING" in done.stdout) == (0, False), done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES)
def test_a_release_is_valid(values: str, version: str) -> None:
    """No object of it has a field that its kind does not have, lacks one, or has one of another type."""
    own = [document for document in objects(charted(values)) if not is_custom(document)]
    assert own
    assert not [error for document in own for error in errors(document, version)]


@pytest.mark.parametrize("values", VALUES)
def test_the_custom_objects_of_a_release_are_valid(values: str) -> None:
    """The CRDs of the Prometheus operator and of the Gateway API take them."""
    assert not [error for document in objects(charted(values)) if is_custom(document) for error in errors(document)]


@pytest.mark.parametrize("values", VALUES)
def test_a_release_fits_together(values: str) -> None:
    """What holds for the overlays holds for the chart. A canary's Service is another release's, and not seen here."""
    elsewhere = "Service avapd-canary is named and not there"
    assert [complaint for complaint in complaints(objects(charted(values))) if complaint != elsewhere] == []


@pytest.mark.parametrize(
    ("values", "folder"),
    [("default", "base"), ("development", "overlays/dev"), ("production", "overlays/production")],
)
def test_the_chart_is_the_overlay(values: str, folder: str) -> None:
    """With the values of an environment helm renders what kustomize does, labels of its own and hashes aside."""
    assert normal(charted(values)) == normal(kustomized(folder))


COMPONENTS = {
    "named-keys": {"apiKeysFile": True},
    "audit": {
        "auditSinkUrl": True,
        "auditSinkToken": True,
        "networkPolicy": {"extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
    },
    "telemetry": {
        "settings": {"AVAPD_OTEL": "on", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4318"},
        "networkPolicy": {
            "extraEgress": [
                {
                    "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
                    "ports": [{"port": 4318, "protocol": "TCP"}],
                }
            ]
        },
    },
}


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_chart_has_values_for_a_component(component: str, tmp_path: Path) -> None:
    """With these it renders what kustomize makes of the base and the component, the way through the policy included."""
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(COMPONENTS[component]), encoding="utf-8")
    done = templated("-f", str(tmp_path / "values.yaml"))
    assert done.returncode == 0, done.stderr
    assert normal(done.stdout) == normal(composed(tmp_path, "base", component))


def test_named_keys_alone_are_enough() -> None:
    """What avapd asks for is one of the two files; the Secret need not have the other."""
    documents = objects(charted("full"))
    _, container = next(containers(documents))
    given = environment(container, documents)
    assert "AVAPD_API_KEYS_FILE" in given
    assert "API_KEY_FILE" not in given


def test_the_canary_is_a_pod_of_production() -> None:
    """The second release differs by names and labels: settings, resources and volumes are those of the first."""
    stable, tried = (objects(charted(values)) for values in ("production", "canary"))
    assert of_kind(stable, "ConfigMap")[0]["data"] == of_kind(tried, "ConfigMap")[0]["data"]
    specs = [pod_of(of_kind(one, "Deployment")[0])["spec"] for one in (stable, tried)]
    names = {"serviceAccountName", "affinity", "topologySpreadConstraints"}
    assert {key for key in specs[0] if specs[0][key] != specs[1].get(key)} == {"containers", *names}
    (one,), (other,) = (spec["containers"] for spec in specs)
    assert {key for key in one if one[key] != other.get(key)} == {"envFrom"}
    assert {document["kind"] for document in tried} == {"ConfigMap", "Deployment", "Service", "ServiceAccount"}


def normal(text: str) -> dict[tuple[str, str], Any]:
    """The objects that both make, without order, and without what each adds in its own way."""
    text = re.sub(r"\b(avapd)-[2456789bcdfghkmt]{10}\b", r"\1", text)  # kustomize's hashes
    text = re.sub(f"(image: registry.example/avapd)(:{re.escape(avapd.__version__)}|@{DIGEST})", r"\1", text)
    made = {}
    for document in objects(text):
        annotations = document["metadata"].pop("annotations", {})
        if document["kind"] in {"Namespace", "Secret"} or "helm.sh/hook" in annotations:
            continue
        document["metadata"].pop("namespace")
        for label in HELMS_LABELS:
            document["metadata"]["labels"].pop(label, None)
        if document["kind"] == "Deployment":
            document["spec"]["template"]["metadata"]["annotations"].pop("checksum/settings", None)
        made[document["kind"], document["metadata"]["name"]] = ordered(document)
    return made


def ordered(value: Any) -> Any:
    """Named things in the order of their names."""
    if isinstance(value, dict):
        return {key: ordered(item) for key, item in value.items()}
    if isinstance(value, list):
        by_name = all(isinstance(item, dict) and "name" in item for item in value)
        return [ordered(item) for item in (sorted(value, key=lambda item: str(item["name"])) if by_name else value)]
    return value


WRONG: dict[str, Any] = {
    "resources.cpu": 1.5, "resources.memory": "1e9", "resources.gpu": 1, "replica": 3, "replicas": 0,
    "settings.DATABASE_URL": "postgresql://a@b/c", "settings.API_KEY": "k", "settings.SIGNING_KEY": "k",
    "settings.AVAPD_SNAPSHOT_DIR": "/s", "settings.AVAPD_ADMIN_PORT": "1", "settings.AVAPD_TLS_CERT_FILE": "/c",
    "settings.AVAPD_AUDIT_SINK_URL": "https://u:p@sink", "settings.AVAPD_AUDIT_SINK_TOKEN": "t",
    "settings.OTEL_EXPORTER_OTLP_HEADERS": "authorization=t", "apiKey": False, "auditSinkToken": "t",
    "networkPolicy.extraEgress": [{"from": []}],
    "settings.PORT": "1", "settings.AVAPD_DRAIN_SECONDS": "30s", "settings.AVAPD_MAX_CATALOG_BYTES": 94371840,
    "image.digest": "latest", "image.pullPolicy": "Sometimes", "secretName": "Not_A_Name", "tls.healthPort": 50051,
    "tls.enabled": "yes", "autoscaling.minReplicas": 1, "autoscaling.cpuPercent": 0, "preStopSeconds": 0,
    "zoneSpread": "Never", "networkPolicy.databaseCidrs": ["everywhere"], "networkPolicy.clientLabels": {},
    "route.canary": {"weight": 5}, "route.weight": 5,
}  # fmt: skip


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_refused(path: str) -> None:
    """The schema takes the defaults, and not with this one among them. One word of the error is the value's name."""
    schema = Draft7Validator(json.loads((CHART / "values.schema.json").read_bytes()))
    values = yaml.safe_load((CHART / "values.yaml").read_bytes())
    assert not list(schema.iter_errors(values))
    *folders, name = path.split(".")
    functools.reduce(dict.__getitem__, folders, values)[name] = WRONG[path]
    (error,) = schema.iter_errors(values)
    assert name in {*map(str, error.absolute_path), *re.findall(r"\w+", error.message)}


def test_helm_asks_the_schema() -> None:
    """Before it renders. 94371840 would reach the pod as 9.437184e+07, and a misspelt value would do nothing."""
    for value, told in (
        ("settings.AVAPD_MAX_CATALOG_BYTES=94371840", "got number, want string"),
        ("replica=3", "additional properties 'replica' not allowed"),
    ):
        done = templated("--set", value)
        assert (done.returncode, done.stdout, told in done.stderr) == (1, "", True), done.stderr


def test_more_replicas_at_least_than_at_most_are_refused() -> None:
    """What a schema cannot compare, the template does."""
    assert "maxReplicas is less than" in templated("--set", "autoscaling.minReplicas=9").stderr


def test_the_grace_period_follows_the_drain() -> None:
    """preStop, drain and 5 s."""
    done = templated("--set-string", "settings.AVAPD_DRAIN_SECONDS=100", "--set", "preStopSeconds=20")
    (deployment,) = of_kind(objects(done.stdout), "Deployment")
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 125


def test_other_settings_replace_the_pods() -> None:
    """The template carries the settings' checksum, so that a change of one is a rollout."""
    assert checksum(templated()) == checksum(templated("--set", "replicas=3"))
    assert checksum(templated()) != checksum(templated("--set-string", "settings.AVAPD_LOG_LEVEL=WARN"))


def checksum(done: subprocess.CompletedProcess[str]) -> str:
    (deployment,) = of_kind(objects(done.stdout), "Deployment")
    annotations: Object = deployment["spec"]["template"]["metadata"]["annotations"]
    return str(annotations["checksum/settings"])


def test_a_cluster_without_the_operator_gets_no_monitor_and_is_told() -> None:
    """Objects of an unknown kind would stop the install; the notes say what is missing, and how clients get in."""
    done = helm("install", "avapd", CHART, "-n", "avapd", "--dry-run=client")
    assert done.returncode == 0, done.stderr
    manifest, _, notes = done.stdout.partition("NOTES:")
    assert "kind: Deployment" in manifest
    assert "monitoring.coreos.com" not in manifest
    secret = "Secret avapd (api-key, database-url)"
    for told in ("does not know monitoring.coreos.com/v1", "avapd-client=true", "speaks clear text", secret):
        assert told in notes, notes


def test_an_old_cluster_is_refused() -> None:
    """`preStop.sleep` is a field that 1.29 would drop."""
    done = helm("template", "avapd", CHART, "--kube-version", "1.29.0")
    assert (done.returncode, "kubeVersion: >=1.30.0-0" in done.stderr) == (1, True), done.stderr


def test_the_package_holds_the_rules_and_not_a_link(tmp_path: Path) -> None:
    """files/alerts.yml is a link to deploy/monitoring; the package must work without the repository."""
    done = helm("package", CHART, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"avapd-{avapd.__version__}.tgz") as package:
        rules = package.extractfile("avapd/files/alerts.yml")
        assert rules is not None
        assert rules.read() == (DEPLOY / "monitoring" / "alerts.yml").read_bytes()
        assert not [name for name in package.getnames() if "/ci/" in name]


def test_the_versions_are_avapds() -> None:
    """The chart is released with avapd."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (avapd.__version__, avapd.__version__)


def test_helm_test_asks_for_health(sample: Database, serve: Callable[..., Server]) -> None:
    """The command of the test's pod, asked of a real server, succeeds; of nobody, it fails."""
    (pod,) = of_kind(objects(charted("default")), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    server = serve(sample.reader_url).wait_serving()
    codes = []
    for port in (server.port, 1):
        program, *command = (word.replace("avapd:50051", f"127.0.0.1:{port}") for word in container["command"])
        assert program == "avapd"
        arguments = [sys.executable, "-P", "-m", "avapd", *command, "--timeout", "20" if port != 1 else "1"]
        codes.append(subprocess.run(arguments, capture_output=True, check=False).returncode)
    assert codes[0] == 0
    assert codes[1] != 0
