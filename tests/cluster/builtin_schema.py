# SPDX-License-Identifier: Apache-2.0
"""Schemas of Kubernetes' own kinds, derived from the models of the `kubernetes` client.

The models tell fields, types, requirements and descriptions. What they leave out, how lists merge and which maps are
atoms, stands in the tables below, as the markers of k8s.io/api's types have it.
"""

import datetime
import functools
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from kubernetes.client import models
from pydantic import BaseModel, StrictBool, StrictBytes, StrictFloat, StrictInt, StrictStr

from cluster.schema import Node, RawSchema, node_of

# (model, field) -> keys by which server-side apply identifies the items of a list.
LIST_KEYS: dict[tuple[str, str], tuple[str, ...]] = {
    ("ObjectMeta", "ownerReferences"): ("uid",),
    ("PodSpec", "containers"): ("name",),
    ("PodSpec", "initContainers"): ("name",),
    ("PodSpec", "ephemeralContainers"): ("name",),
    ("PodSpec", "volumes"): ("name",),
    ("PodSpec", "imagePullSecrets"): ("name",),
    ("PodSpec", "hostAliases"): ("ip",),
    ("PodSpec", "topologySpreadConstraints"): ("topologyKey", "whenUnsatisfiable"),
    ("PodSpec", "resourceClaims"): ("name",),
    ("PodSpec", "schedulingGates"): ("name",),
    ("Container", "env"): ("name",),
    ("Container", "ports"): ("containerPort", "protocol"),
    ("Container", "volumeMounts"): ("mountPath",),
    ("Container", "volumeDevices"): ("devicePath",),
    ("EphemeralContainer", "env"): ("name",),
    ("EphemeralContainer", "ports"): ("containerPort", "protocol"),
    ("EphemeralContainer", "volumeMounts"): ("mountPath",),
    ("EphemeralContainer", "volumeDevices"): ("devicePath",),
    ("ContainerStatus", "volumeMounts"): ("mountPath",),
    ("ResourceRequirements", "claims"): ("name",),
    ("PodStatus", "conditions"): ("type",),
    ("PodStatus", "podIPs"): ("ip",),
    ("PodStatus", "resourceClaimStatuses"): ("name",),
    ("ServiceSpec", "ports"): ("port", "protocol"),
    ("ServiceStatus", "conditions"): ("type",),
    ("ServiceAccount", "secrets"): ("name",),
    ("NodeStatus", "addresses"): ("type",),
    ("NodeStatus", "conditions"): ("type",),
    ("NamespaceStatus", "conditions"): ("type",),
    ("PersistentVolumeClaimStatus", "conditions"): ("type",),
    ("DeploymentStatus", "conditions"): ("type",),
    ("ReplicaSetStatus", "conditions"): ("type",),
    ("StatefulSetStatus", "conditions"): ("type",),
    ("DaemonSetStatus", "conditions"): ("type",),
    ("PodDisruptionBudgetStatus", "conditions"): ("type",),
    ("CustomResourceDefinitionStatus", "conditions"): ("type",),
    ("ValidatingWebhookConfiguration", "webhooks"): ("name",),
    ("MutatingWebhookConfiguration", "webhooks"): ("name",),
    ("ValidatingWebhook", "matchConditions"): ("name",),
    ("MutatingWebhook", "matchConditions"): ("name",),
}
SETS = {
    ("ObjectMeta", "finalizers"),
    ("NodeSpec", "podCIDRs"),
    ("Endpoint", "addresses"),
    ("UncountedTerminatedPods", "succeeded"),
    ("UncountedTerminatedPods", "failed"),
}
# Where strategic merge uses another key than the first of LIST_KEYS, or merges a list that apply takes as an atom.
MERGE_KEYS = {
    ("PodStatus", "hostIPs"): "ip",
    ("NodeSpec", "taints"): "key",
    ("JobStatus", "conditions"): "type",
    ("ObjectMeta", "finalizers"): "",
    ("NodeSpec", "podCIDRs"): "",
}
ATOMIC_MODELS = {
    "LabelSelector", "LocalObjectReference", "ObjectReference", "TypedLocalObjectReference", "OwnerReference",
    "ConfigMapKeySelector", "SecretKeySelector", "ObjectFieldSelector", "ResourceFieldSelector", "NodeSelector",
    "NodeSelectorTerm", "FileKeySelector", "EndpointPort", "RoleRef", "Subject",
}  # fmt: skip
ATOMIC_MAPS = {("PodSpec", "nodeSelector"), ("ServiceSpec", "selector")}
DEFAULTS = {("ContainerPort", "protocol"): "TCP", ("ServicePort", "protocol"): "TCP"}
# Quantities are strings in the models; the API also reads numbers.
QUANTITIES = {"limits", "requests", "capacity", "allocatable", "overhead", "hard", "used", "allocatedResources"}
QUANTITY_FIELDS = {"sizeLimit", "divisor", "storage"}

_SCALARS: dict[Any, dict[str, str]] = {
    str: {"type": "string"},
    StrictStr: {"type": "string"},
    int: {"type": "integer"},
    StrictInt: {"type": "integer"},
    bool: {"type": "boolean"},
    StrictBool: {"type": "boolean"},
    float: {"type": "number"},
    StrictFloat: {"type": "number"},
    bytes: {"type": "string", "format": "byte"},
    StrictBytes: {"type": "string", "format": "byte"},
    datetime.datetime: {"type": "string", "format": "date-time"},
}


def short_name(model: str) -> str:
    """`V1PodSpec` -> `PodSpec`; `CoreV1Event` -> `Event`."""
    return re.sub(r"^(Core|Events|Discovery|Admissionregistration|Authentication|Rbac|Storage|Apiextensions|Flowcontrol)?V\d+(alpha\d+|beta\d+)?", "", model)  # noqa: E501  # fmt: skip


def schema_of(model: str) -> Node:
    """The typed tree of a model such as `V1Pod`."""
    return node_of({"$ref": model}, raw_schema)


@functools.cache
def raw_schema(model: str) -> RawSchema:
    """One model as a schema; its fields refer to other models by `$ref` and the model's name."""
    found: type[BaseModel] = getattr(models, model)
    name = short_name(model)
    properties: dict[str, Any] = {}
    required = []
    for attribute, info in found.model_fields.items():
        key = info.serialization_alias or attribute
        schema = _property(name, key, info.annotation)
        if info.description:
            schema = {"description": info.description, **schema}
        properties[key] = schema
        if info.is_required():
            required.append(key)
    schema = {"type": "object", "properties": properties}
    if found.__doc__:
        schema["description"] = found.__doc__.split("\n\n    Attributes:")[0].strip()
    if required:
        schema["required"] = required
    if name in ATOMIC_MODELS:
        schema["x-kubernetes-map-type"] = "atomic"
    return schema


def _property(model: str, field: str, annotation: Any) -> dict[str, Any]:
    schema = dict(_type(annotation))
    place = (model, field)
    if place in DEFAULTS:
        schema["default"] = DEFAULTS[place]
    if field in QUANTITY_FIELDS and schema.get("type") == "string":
        schema = {"x-kubernetes-int-or-string": True, "x-quantity": True}
    if field in QUANTITIES and schema.get("type") == "object":
        schema["additionalProperties"] = {"x-kubernetes-int-or-string": True, "x-quantity": True}
    if place in ATOMIC_MAPS:
        schema["x-kubernetes-map-type"] = "atomic"
    if schema.get("type") == "array":
        keys = LIST_KEYS.get(place)
        schema["x-kubernetes-list-type"] = "map" if keys else "set" if place in SETS else "atomic"
        if keys:
            schema["x-kubernetes-list-map-keys"] = list(keys)
        if keys or place in MERGE_KEYS:
            schema["x-kubernetes-patch-strategy"] = "merge"
            merge_key = MERGE_KEYS.get(place, keys[0] if keys else "")
            if merge_key:
                schema["x-kubernetes-patch-merge-key"] = merge_key
    return schema


def _type(annotation: Any) -> Mapping[str, Any]:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"$ref": annotation.__name__}
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        given = [one for one in arguments if one is not type(None)]
        kinds = [_type(one) for one in given]
        if len(kinds) == 1:
            return kinds[0]
        names = {kind.get("type") for kind in kinds}
        if names == {"integer", "string"}:
            return {"x-kubernetes-int-or-string": True}
        if names == {"string"}:
            return next((kind for kind in kinds if "format" in kind), kinds[0])
        if names == {"integer", "number"}:
            return {"type": "number"}
        return {"x-kubernetes-preserve-unknown-fields": True}
    if origin is list:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is dict:
        if arguments[1] is Any:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return {"type": "object", "additionalProperties": _type(arguments[1])}
    return {"x-kubernetes-preserve-unknown-fields": True}
