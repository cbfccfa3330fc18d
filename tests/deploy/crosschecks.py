"""What no schema knows: whether the objects fit each other, and avapd. Each check yields what it has to complain of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from deploy.manifests import Object, containers, environment, of_kind, pod_of

from avapd import config
from avapd.cli import cli
from avapd.control import store
from avapd.control.check import needed_memory
from avapd.data.health import LIVENESS

SETTINGS: Final = config.settings()
SECRETS: Final = {name for setting in SETTINGS.values() if setting.secret for name in setting.variables}
# And what avapd's own commands read, to be run in the pod.
ASKED: Final = {option.envvar for option in cli.commands["get"].params if isinstance(option.envvar, str)}
KNOWN: Final = (
    {name for setting in SETTINGS.values() for name in setting.variables} | {f"{name}_FILE" for name in SECRETS} | ASKED
)
# A stop takes the drain and at most this much more (tests/system holds it).
STOP_SECONDS: Final = 2
HISTORY_BYTES: Final = 128 << 20
CANARY_PERCENT: Final = 5
_UNITS: Final = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Complaints = Iterator[str]


def complaints(documents: list[Object]) -> list[str]:
    """All that is wrong with the objects of one environment."""
    return [complaint for check in CHECKS for complaint in check(documents)]


def guaranteed(documents: list[Object]) -> Complaints:
    """QoS class Guaranteed; avapd's on whole CPUs, so that its workers are as many, and may have cores of their own."""
    for _, container in containers(documents):
        requests, limits = (container.get("resources", {}).get(key, {}) for key in ("requests", "limits"))
        if requests != limits or not {"cpu", "memory"} <= set(limits):
            yield f"{container['name']}: not Guaranteed: requests {requests}, limits {limits}"
        if container.get("ports") and not re.fullmatch(r"[1-9][0-9]*", str(limits.get("cpu"))):
            yield f"{container['name']}: {limits.get('cpu')} is not a whole number of CPUs"


def confined(documents: list[Object]) -> Complaints:
    """What the Pod Security Standard `restricted` asks for, and a read-only root without the API server's token."""
    for pod, container in containers(documents):
        spec, own = pod["spec"], container.get("securityContext", {})
        asked = spec.get("securityContext", {})
        wrong = {
            "root": asked.get("runAsNonRoot") is not True or asked.get("runAsUser") != 10001,
            "seccomp": asked.get("seccompProfile") != {"type": "RuntimeDefault"},
            "privileges": own.get("allowPrivilegeEscalation") is not False or own.get("privileged") is not False,
            "capabilities": own.get("capabilities") != {"drop": ["ALL"]},
            "a root that can be written": own.get("readOnlyRootFilesystem") is not True,
            "a token": spec.get("automountServiceAccountToken") is not False,
            "variables of Services": spec.get("enableServiceLinks") is not False,
            "the host": any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
        }
        yield from (f"{container['name']}: may have {what}" for what, is_wrong in wrong.items() if is_wrong)


def rolling(documents: list[Object]) -> Complaints:
    """A new pod serves before an old one goes; and the old one has the time to drain."""
    for deployment in of_kind(documents, "Deployment"):
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        if spec.get("strategy", {}).get("rollingUpdate") != {"maxSurge": 1, "maxUnavailable": 0}:
            yield f"{name}: a rollout may lose capacity"
        pod = pod_of(deployment)["spec"]
        grace = pod.get("terminationGracePeriodSeconds", 30)
        for container in pod["containers"]:
            env = environment(container, documents)
            drain = float(env.get("AVAPD_DRAIN_SECONDS", SETTINGS["drain_seconds"].default_text))
            pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if not pause:
                yield f"{name}: no preStop: calls still come when it stops"
            needed = pause + drain + STOP_SECONDS
            if needed > grace:
                yield f"{name}: is killed {grace} s after, and needs {needed:g} s"


def probed(documents: list[Object]) -> Complaints:
    """Native gRPC probes of services that avapd has, on the port that speaks clear text."""
    wanted = {"startupProbe": "", "readinessProbe": "", "livenessProbe": LIVENESS}
    for deployment in of_kind(documents, "Deployment"):
        for container in pod_of(deployment)["spec"]["containers"]:
            env = environment(container, documents)
            port = int(env.get("AVAPD_HEALTH_PORT") or env.get("PORT") or SETTINGS["port"].default_text)
            for probe, service in wanted.items():
                grpc = container.get(probe, {}).get("grpc", {})
                if (grpc.get("port"), grpc.get("service") or "") != (port, service):
                    yield f"{container['name']}: {probe} asks {grpc}, and not port {port} for {service!r}"


def ports(documents: list[Object]) -> Complaints:
    """A port's name and number are the same wherever it stands, and avapd listens there."""
    opened: dict[str, int] = {}
    for _, container in containers(documents):
        env = environment(container, documents)
        listens = {
            "grpc": env.get("PORT", SETTINGS["port"].default_text),
            "metrics": env.get("AVAPD_ADMIN_PORT", SETTINGS["admin_port"].default_text),
            "health": env.get("AVAPD_HEALTH_PORT", ""),
        }
        for port in container.get("ports", []):
            opened[port["name"]] = port["containerPort"]
            if listens.get(port["name"]) != str(port["containerPort"]):
                yield f"{container['name']}: nothing listens on {port['name']} {port['containerPort']}"
    for service in of_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] != port["name"] or opened.get(port["name"]) != port["port"]:
                yield f"Service {service['metadata']['name']}: {port} leads nowhere"
    for policy in of_kind(documents, "NetworkPolicy"):
        named = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        yield from (f"NetworkPolicy: no port is called {name}" for name in named - set(opened))


def scraped(documents: list[Object]) -> Complaints:
    """Prometheus finds each pod once, and reaches it."""
    for deployment in of_kind(documents, "Deployment"):
        for container in pod_of(deployment)["spec"]["containers"]:
            if environment(container, documents).get("AVAPD_ADMIN_HOST", "127.0.0.1") == "127.0.0.1":
                yield f"{container['name']}: metrics are on loopback, where nobody can scrape them"
    for monitor in of_kind(documents, "ServiceMonitor"):
        chosen = [item for item in of_kind(documents, "Service") if _matches(monitor["spec"]["selector"], item)]
        for endpoint in monitor["spec"]["endpoints"]:
            times = sum(endpoint["port"] == port["name"] for item in chosen for port in item["spec"]["ports"])
            if times != len(of_kind(documents, "Deployment")):
                yield f"ServiceMonitor: port {endpoint['port']} is found {times} times"


def selected(documents: list[Object]) -> Complaints:
    """Every selector finds the pods that it is meant for, and a Deployment or a Service only its own."""
    deployments = of_kind(documents, "Deployment")
    pods = [pod_of(deployment) for deployment in deployments]
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        for item in of_kind(documents, kind):
            selector = item["spec"]["selector"]
            found = sum(_matches({"matchLabels": selector} if kind == "Service" else selector, pod) for pod in pods)
            if found != 1:
                yield f"{kind} {item['metadata']['name']}: selects {found} kinds of pods"
    for policy in of_kind(documents, "NetworkPolicy"):
        if not all(_matches(policy["spec"]["podSelector"], pod) for pod in pods):
            yield "NetworkPolicy: does not hold for every pod"
    for pod in pods:
        affinity = pod["spec"].get("affinity", {}).get("podAntiAffinity", {})
        terms = [
            term["podAffinityTerm"] for term in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
        ]
        spread = [*terms, *pod["spec"].get("topologySpreadConstraints", [])]
        if {term["topologyKey"] for term in spread} != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
            yield "Deployment: not spread over nodes and zones"
        if not all(_matches(term["labelSelector"], pod) for term in spread):
            yield "Deployment: is kept apart from other pods than its own"


def referred(documents: list[Object]) -> Complaints:
    """What is named is there: settings, accounts, volumes, targets, backends."""
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    named: list[tuple[str, str]] = []
    for deployment in of_kind(documents, "Deployment"):
        pod = pod_of(deployment)["spec"]
        named.append(("ServiceAccount", pod["serviceAccountName"]))
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            named += [
                ("ConfigMap", source["configMapRef"]["name"])
                for source in container["envFrom"]
                if "configMapRef" in source
            ]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            yield from (f"volume {name}: not both made and mounted" for name in volumes ^ set(mounts))
            env = environment(container, documents)
            paths = [path for name, path in env.items() if name.endswith(("_FILE", "_DIR"))]
            inside = tuple(f"{folder}/" for folder in mounts.values())
            yield from (f"{path}: no volume is there" for path in paths if not f"{path}/".startswith(inside))
    named += [
        ("Deployment", item["spec"]["scaleTargetRef"]["name"]) for item in of_kind(documents, "HorizontalPodAutoscaler")
    ]
    for route in of_kind(documents, "GRPCRoute"):
        named += [("Service", backend["name"]) for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    yield from (f"{kind} {name} is named and not there" for kind, name in named if (kind, name) not in there)


def settled(documents: list[Object]) -> Complaints:
    """Every variable is a setting of avapd, and no secret is one's value."""
    for document in of_kind(documents, "ConfigMap"):
        names = {name for name in document["data"] if not name.startswith("OTEL_")}  # the SDK's own
        yield from (f"{name} is no setting of avapd" for name in names - KNOWN)
        yield from (f"{name} is a secret in a ConfigMap" for name in document["data"] if name in SECRETS)
    for _, container in containers(documents):
        yield from (f"{variable['name']} is set beside the ConfigMap" for variable in container.get("env", []))
        if any("secretRef" in source for source in container.get("envFrom", [])):
            yield "secrets are values of the environment"


def scaled(documents: list[Object]) -> Complaints:
    """The autoscaler and nobody else sets replicas, and leaves the budget a pod to evict."""
    targets = [item["spec"] for item in of_kind(documents, "HorizontalPodAutoscaler")]
    scaled_names = {target["scaleTargetRef"]["name"] for target in targets}
    for deployment in of_kind(documents, "Deployment"):
        if ("replicas" in deployment["spec"]) == (deployment["metadata"]["name"] in scaled_names):
            yield f"{deployment['metadata']['name']}: replicas are set twice, or not at all"
    fewest = min([target["minReplicas"] for target in targets], default=1)
    if any(target["minReplicas"] > target["maxReplicas"] for target in targets):
        yield "the autoscaler's least is more than its most"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        unavailable, available = budget["spec"].get("maxUnavailable"), budget["spec"].get("minAvailable")
        if not (fewest > available if unavailable is None else 0 < unavailable < fewest):
            yield f"the budget lets no pod go, or all of {fewest}"


def sized(documents: list[Object]) -> Complaints:
    """The largest catalog that is let in leaves 30 % of the memory at its peak, and fits the snapshot's volume."""
    for deployment in of_kind(documents, "Deployment"):
        pod = pod_of(deployment)["spec"]
        for container in pod["containers"]:
            limits = container.get("resources", {}).get("limits", {})
            settings = environment(container, documents)
            catalog, answer = (
                int(settings.get(f"AVAPD_MAX_{name}_BYTES", default))
                for name, default in (("CATALOG", 1 << 30), ("ANSWER", 32 << 20))
            )
            cpus = re.match(r"[0-9]*", str(limits.get("cpu"))) or [""]
            needed = needed_memory(catalog, int(cpus[0] or 1), answer)
            if needed > 0.7 * octets(limits.get("memory", "0")):
                yield f"a catalog of {catalog} bytes needs {needed}, more than 70 % of {limits.get('memory')}"
            disk = (store.CATALOGS_KEPT + 1) * catalog + HISTORY_BYTES
            for volume in pod["volumes"]:
                if "emptyDir" in volume and octets(volume["emptyDir"].get("sizeLimit", "0")) < disk:
                    yield f"volume {volume['name']}: {disk} bytes do not fit"


def weighted(documents: list[Object]) -> Complaints:
    """The weights of a route are percents; a canary that is there gets five."""
    canary = any(item["metadata"]["name"] == "avapd-canary" for item in of_kind(documents, "Deployment"))
    for route in of_kind(documents, "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
            if sum(weights.values()) != 100 or (canary and weights.get("avapd-canary") != CANARY_PERCENT):
                yield f"GRPCRoute: the weights are {weights}"


def _matches(selector: Object, item: Object) -> bool:
    wanted: dict[str, Any] = selector["matchLabels"]
    return bool(wanted) and wanted.items() <= item["metadata"]["labels"].items()


def octets(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(|Ki|Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


CHECKS: Final[tuple[Callable[[list[Object]], Complaints], ...]] = (
    guaranteed, confined, rolling, probed, ports, scraped, selected, referred, settled, scaled, sized, weighted,
)  # fmt: skip
