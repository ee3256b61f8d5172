# SPDX-License-Identifier: Apache-2.0
"""Judges Kubernetes objects as an API server and KubeRay would: `problems(object)` is empty when both accept it.

Custom resources are held against the CRDs in ../shared/crds (defaults first, as an API server does; keys that the
schema does not know count, although a server would drop them silently), the kinds of Kubernetes itself against the
models of its Python client.
"""

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes import client

from kuberay_rules import ray_job_problems, ray_service_problems
from pod_rules import pod_problems

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
_CRDS = SHARED / "crds"
CORE_KINDS = {
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
}


def problems(thing: Mapping[str, Any]) -> list[str]:
    """Everything wrong with one object."""
    kind = (thing["apiVersion"], thing["kind"])
    found = list(_metadata_problems(thing["metadata"]))
    if kind in CORE_KINDS:
        return [*found, *model_problems(thing, CORE_KINDS[kind])]
    found += crd_problems(thing)
    if thing["kind"] == "RayService":
        found += ray_service_problems(with_defaults(thing, _schema(*kind)))
    elif thing["kind"] == "RayJob":
        found += ray_job_problems(with_defaults(thing, _schema(*kind)))
    for path, template in pod_templates(thing["spec"]):
        found += [f"{path}: {problem}" for problem in pod_problems(template)]
    return found


def pod_templates(part: Any, path: str = "spec") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template inside a custom resource, with the way to it."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "template" and "spec" in value:
                yield f"{path}.{key}", value
            else:
                yield from pod_templates(value, f"{path}.{key}")
    elif isinstance(part, list):
        for index, item in enumerate(part):
            yield from pod_templates(item, f"{path}[{index}]")


def crd_problems(thing: Mapping[str, Any]) -> list[str]:
    """What the CRD's schema refuses or does not know."""
    schema = _schema(thing["apiVersion"], thing["kind"])
    filled = with_defaults(thing, schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(filled)
    return [*(f"{error.json_path}: {error.message}" for error in errors), *_unknown_keys(filled, schema, "$")]


def with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """`value` with the defaults of `schema` filled in, at every depth."""
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        filled = {key: deepcopy(part["default"]) for key, part in properties.items() if "default" in part}
        filled |= value
        extra = schema.get("additionalProperties", {})
        return {key: with_defaults(item, properties.get(key, extra)) for key, item in filled.items()}
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    return value


def _unknown_keys(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        if schema.get("x-kubernetes-preserve-unknown-fields") or "properties" not in schema:
            # `metadata` of the whole object, and maps of free keys.
            for key, item in value.items():
                yield from _unknown_keys(item, schema.get("additionalProperties", {}), f"{path}.{key}")
            return
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{path}.{key}: no such field"
            else:
                yield from _unknown_keys(item, schema["properties"][key], f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_keys(item, schema.get("items", {}), f"{path}[{index}]")


@cache
def _schema(api_version: str, kind: str) -> dict[str, Any]:
    group, version = api_version.split("/")
    for file in sorted(_CRDS.glob(f"{group}_*.json")):
        crd = json.loads(file.read_text())
        if crd["spec"]["names"]["kind"] == kind:
            [schema] = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version]
            assert isinstance(schema, dict)
            return schema
    raise LookupError(f"no CRD of {kind} in {_CRDS}")


def model_problems(value: Any, kind: str, path: str = "$") -> list[str]:
    """What the client's model `kind`, such as `V1ConfigMap` or `Dict[str, str]`, does not know or types otherwise."""
    if part := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        items = enumerate(value)
        return [found for index, item in items for found in model_problems(item, part[1], f"{path}[{index}]")]
    if part := re.fullmatch(r"[Dd]ict[\[(]str, (.*)[\])]", kind):
        if not isinstance(value, dict):
            return [f"{path}: not a map"]
        return [found for key, item in value.items() for found in model_problems(item, part[1], f"{path}.{key}")]
    model = getattr(client, kind, None)
    if model is None:
        plain: dict[str, type] = {"str": str, "int": int, "bool": bool, "object": object}
        return [] if isinstance(value, plain[kind]) else [f"{path}: {value!r} is no {kind}"]
    if not isinstance(value, dict):
        return [f"{path}: not a {kind}"]
    attributes = {name: attribute for attribute, name in model.attribute_map.items()}
    found = [f"{path}.{key}: no such field of {kind}" for key in value if key not in attributes]
    for key, item in value.items():
        if key in attributes:
            found += model_problems(item, model.openapi_types[attributes[key]], f"{path}.{key}")
    return found


def _metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    name = metadata["name"]
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
        yield f"metadata.name: {name!r} is no DNS subdomain"
    for key, value in metadata.get("labels", {}).items():
        if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value):
            yield f"metadata.labels.{key}: {value!r} is no label value"
