# SPDX-License-Identifier: Apache-2.0
"""What a server changes in an object before it stores it, per kind: status and spec kept apart, generation counted.

These are the PrepareForCreate and PrepareForUpdate of Kubernetes' registries.
"""

from typing import Any

from cluster.addresses import Addresses
from cluster.claim_protection import FINALIZER as CLAIM_FINALIZER
from cluster.fields import Paths
from cluster.resource import Object, Resource

# The default class of a cluster on AKS.
STORAGE_CLASS = "default"
# Kinds that write their first status themselves, when they register.
_STATUS_AT_CREATE = {"nodes"}
_FIRST_STATUS: dict[str, Any] = {
    "pods": lambda obj: {"phase": "Pending", "qosClass": _quality(obj)},
    "namespaces": lambda _: {"phase": "Active"},
    "services": lambda _: {"loadBalancer": {}},
    "persistentvolumeclaims": lambda _: {"phase": "Pending"},
    "customresourcedefinitions": lambda _: {
        "conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": [],
    },
}  # fmt: skip


def prepare_create(resource: Resource, obj: Object, addresses: Addresses) -> None:
    """Make a decoded object ready to be stored for the first time, in place."""
    if resource.has_status() and resource.plural not in _STATUS_AT_CREATE:
        obj.pop("status", None)
        first = _FIRST_STATUS.get(resource.plural) if not resource.custom else None
        if first:
            obj["status"] = first(obj)
        elif not resource.custom:
            obj["status"] = {}
    if resource.custom or resource.spec_generation:
        obj["metadata"]["generation"] = 1
    if resource.custom:
        return
    if resource.plural == "pods":
        _admit_pod(obj["spec"])
    elif resource.plural == "services":
        addresses.assign(obj)
    elif resource.plural == "persistentvolumeclaims":
        obj["spec"].setdefault("storageClassName", STORAGE_CLASS)
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if CLAIM_FINALIZER not in finalizers:
            finalizers.append(CLAIM_FINALIZER)


def prepare_update(resource: Resource, subresource: str, new: Object, old: Object) -> Object:
    """The object to store when `new` is written over `old` through the main resource or its status."""
    if subresource == "status":
        prepared = _with_status(resource, new, old)
    else:
        prepared = new
        if resource.has_status():
            prepared = {key: value for key, value in new.items() if key != "status"}
            if "status" in old:
                prepared["status"] = old["status"]
        if resource.plural == "namespaces" and not resource.custom:
            prepared["spec"] = old["spec"]
        elif resource.plural == "services" and not resource.custom:
            _keep_addresses(prepared["spec"], old["spec"])
    if (resource.custom or resource.spec_generation) and _content(resource, prepared) != _content(resource, old):
        prepared["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
    return prepared


def reset_fields(resource: Resource, subresource: str) -> Paths:
    """The fields a request cannot write, so that nobody owns them for having sent them."""
    if not resource.has_status():
        return frozenset()
    return frozenset({("f:spec",)} if subresource == "status" else {("f:status",)})


def _with_status(resource: Resource, new: Object, old: Object) -> Object:
    if resource.custom:
        prepared = {key: value for key, value in old.items() if key != "status"}
        prepared["metadata"] = {**old["metadata"]}
    else:
        prepared = {**old, "metadata": {**new["metadata"]}}
        prepared["metadata"]["ownerReferences"] = old["metadata"].get("ownerReferences", [])
        if not prepared["metadata"]["ownerReferences"]:
            del prepared["metadata"]["ownerReferences"]
    prepared.pop("status", None)
    if "status" in new:
        prepared["status"] = new["status"]
    return prepared


def _content(resource: Resource, obj: Object) -> Object:
    """What metadata.generation counts the changes of."""
    left_out = {"metadata", "status"} if resource.has_status() else {"metadata"}
    return {key: value for key, value in obj.items() if key not in left_out and key not in ("apiVersion", "kind")}


def _keep_addresses(spec: Object, before: Object) -> None:
    """An update that leaves the allocated fields of a Service out keeps them."""
    if spec.get("type") == "ExternalName":
        return
    for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"):
        if key in before and not spec.get(key):
            spec[key] = before[key]
    ports = {(port.get("port"), port.get("protocol")): port for port in before.get("ports", ())}
    for port in spec.get("ports", ()):
        known = ports.get((port.get("port"), port.get("protocol")), {})
        if "nodePort" in known and spec.get("type") in ("NodePort", "LoadBalancer"):
            port.setdefault("nodePort", known["nodePort"])


def _admit_pod(spec: Object) -> None:
    """What the admission plugins of every cluster add to a pod."""
    spec.setdefault("serviceAccountName", "default")
    spec["serviceAccount"] = spec["serviceAccountName"]
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(
            one.get("key") in (key, None, "") and one.get("effect") in ("NoExecute", None) for one in tolerations
        ):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})


def _quality(pod: Object) -> str:
    containers = [*pod["spec"].get("containers", ()), *pod["spec"].get("initContainers", ())]
    resources = [container.get("resources", {}) for container in containers]
    if not any(one.get("limits") or one.get("requests") for one in resources):
        return "BestEffort"
    guaranteed = all(
        {"cpu", "memory"} <= set(one.get("limits", {})) and one.get("requests") == one.get("limits")
        for one in resources
    )
    return "Guaranteed" if guaranteed else "Burstable"
