"""Every error that the API server's schemas find in an object, unknown fields included.

Those of Kubernetes' own kinds are the strict ones that kubernetes-validate brings; it tells one error of each object,
here all are told. Those of the Prometheus operator and of the Gateway API are their CRDs; rules in CEL are not run.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from clients.tools import go_module, wheels
from deploy.manifests import REQUIREMENTS, Object
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

VERSIONS: Final = ("1.31", "1.37")
_DEFINITIONS: Final = "https://kubernetes.io/api/_definitions.json"
_CRDS: Final = {
    "monitoring.coreos.com": (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.80.1",
        "h1:jeqy9C8ku5coMThZh/cVrB5FwJHlV98jvnSeVnQKCQw=",
        "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml",
    ),
    "gateway.networking.k8s.io": (
        "sigs.k8s.io/gateway-api",
        "v1.4.0",
        "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=",
        "config/crd/standard/gateway.networking.k8s.io_{}.yaml",
    ),
}


def is_custom(document: Object) -> bool:
    """Whether a CRD says what the object may be, and not Kubernetes itself."""
    return document["apiVersion"].partition("/")[0] in _CRDS


def errors(document: Object, version: str = VERSIONS[-1]) -> list[str]:
    """What a cluster of this version would refuse in an object; skips when the schema of its kind cannot be had."""
    group, _, api = document["apiVersion"].rpartition("/")
    arguments = group, document["kind"], api
    validator = _of_a_crd(*arguments) if is_custom(document) else _built_in(*arguments, version)
    name = f"{document['kind']} {document['metadata']['name']}"
    return [f"{name}: {error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@cache
def _built_in(group: str, kind: str, api: str, version: str) -> Draft202012Validator:
    folder = wheels(REQUIREMENTS) / "kubernetes_validate" / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    middle = f"-{group.partition('.')[0]}" if group else ""
    return Draft202012Validator(_read(folder / f"{kind.lower()}{middle}-{api}.json"), registry=_registry(folder))


@cache
def _registry(folder: Path) -> Any:
    """The definitions that the schemas of one version refer to; nothing is asked of the network."""
    resource: Any = Resource.from_contents(_read(folder / "_definitions.json"))
    return Registry().with_resource(_DEFINITIONS, resource)


@cache
def _of_a_crd(group: str, kind: str, api: str) -> Draft202012Validator:
    module, version, checksum, path = _CRDS[group]
    plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    crd = yaml.load((go_module(module, version, checksum) / path.format(plural)).read_bytes(), Loader=yaml.CSafeLoader)
    (schema,) = (entry["schema"]["openAPIV3Schema"] for entry in crd["spec"]["versions"] if entry["name"] == api)
    properties = schema["properties"]
    return Draft202012Validator(_strict(schema | {"properties": properties | {"metadata": {}}}))


def _strict(schema: Any) -> Any:
    """A CRD's schema in which an unknown field is an error, as `kubectl apply` has it."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not open_ended:
        made["additionalProperties"] = False
    return made


def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_bytes())
    return read
