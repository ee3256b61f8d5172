# SPDX-License-Identifier: Apache-2.0
"""What a Kubernetes server refuses in the built-in kinds kaito-ray writes, beyond types and metadata."""

import re
from collections.abc import Callable
from typing import Any

from cluster import failure
from cluster.definition_validation import definition_problems
from cluster.failure import Problem
from cluster.metadata import label_problems
from cluster.pod_validation import choice_problem, pod_spec_problems
from cluster.resource import Object, Resource

_DATA_MAX = 1024 * 1024
_PORT_RANGE = "must be between 1 and 65535, inclusive"
_MUTABLE_POD = {"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"}
_MUTABLE_SET = {"replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "minReadySeconds",
                "persistentVolumeClaimRetentionPolicy"}  # fmt: skip
_FORBIDDEN_POD = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"  # noqa: E501  # fmt: skip


def builtin_problems(resource: Resource, obj: Object, old: Object | None, subresource: str) -> list[Problem]:
    """What is wrong with an object of a built-in kind, and with its change from `old`."""
    check = _CHECKS.get(resource.kind)
    if check is None or subresource:
        return []
    return check(obj, old)


def _immutable(path: str, new: Any, old: Any) -> list[Problem]:
    return [failure.bad_value(path, new, "field is immutable")] if new != old else []


def _pod(obj: Object, old: Object | None) -> list[Problem]:
    spec = obj["spec"]
    if old is None:
        return pod_spec_problems(spec, "spec")
    if _fixed_part(spec) != _fixed_part(old["spec"]):
        return [failure.not_permitted("spec", _FORBIDDEN_POD)]
    return []


def _fixed_part(spec: Object) -> Object:
    kept = {key: value for key, value in spec.items() if key not in _MUTABLE_POD}
    for field in ("containers", "initContainers"):
        if field in kept:
            kept[field] = [{key: value for key, value in one.items() if key != "image"} for one in kept[field]]
    return kept


def _template(spec: Object) -> list[Problem]:
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    problems = label_problems("spec.template.metadata.labels", labels)
    return problems + pod_spec_problems(template.get("spec") or {}, "spec.template.spec")


def _selector(spec: Object, old: Object | None) -> list[Problem]:
    selector = spec.get("selector")
    if not selector:
        return [failure.required("spec.selector")]
    problems = []
    labels = (spec.get("template", {}).get("metadata") or {}).get("labels") or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        detail = "`selector` does not match template `labels`"
        problems.append(failure.bad_value("spec.template.metadata.labels", labels, detail))
    if old is not None:
        problems += _immutable("spec.selector", selector, old["spec"].get("selector"))
    return problems


def _workload(obj: Object, old: Object | None) -> list[Problem]:
    problems = _selector(obj["spec"], old) + _template(obj["spec"])
    policy = obj["spec"]["template"]["spec"].get("restartPolicy")
    if policy != "Always":
        problems.append(failure.not_supported("spec.template.spec.restartPolicy", policy, ["Always"]))
    return problems


def _stateful_set(obj: Object, old: Object | None) -> list[Problem]:
    problems = _workload(obj, None)
    if old is not None:
        new_part = {key: value for key, value in obj["spec"].items() if key not in _MUTABLE_SET}
        if new_part != {key: value for key, value in old["spec"].items() if key not in _MUTABLE_SET}:
            text = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"  # noqa: E501  # fmt: skip
            problems.append(failure.not_permitted("spec", text))
    return problems


def _job(obj: Object, old: Object | None) -> list[Problem]:
    problems = _template(obj["spec"])
    policy = obj["spec"]["template"]["spec"].get("restartPolicy")
    if policy not in ("OnFailure", "Never"):
        problems.append(
            Problem(
                "spec.template.spec.restartPolicy",
                "FieldValueRequired",
                'Required value: valid values: "OnFailure", "Never"',
            )
        )
    if old is not None:
        problems += _immutable("spec.template", obj["spec"].get("template"), old["spec"].get("template"))
    return problems


def _service(obj: Object, old: Object | None) -> list[Problem]:
    spec = obj["spec"]
    problems: list[Problem] = []
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    if spec["type"] not in kinds:
        problems.append(failure.not_supported("spec.type", spec["type"], kinds))
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != "None" and spec["type"] != "ExternalName":
        problems.append(failure.required("spec.ports"))
    names: set[str] = set()
    pairs: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        if len(ports) > 1 and not port.get("name"):
            problems.append(failure.required(f"{path}.name"))
        if port.get("name") and port["name"] in names:
            problems.append(failure.duplicate(f"{path}.name", port["name"]))
        names.add(port.get("name", ""))
        pair = (port.get("port"), port.get("protocol"))
        if pair in pairs:
            problems.append(failure.duplicate(path, {"port": pair[0], "protocol": pair[1]}))
        pairs.add(pair)
        if not 0 < (port.get("port") or 0) < 65_536:
            problems.append(failure.bad_value(f"{path}.port", port.get("port", 0), _PORT_RANGE))
        problems += choice_problem(f"{path}.protocol", "protocol", port.get("protocol"))
    problems += label_problems("spec.selector", spec.get("selector") or {})
    if old is not None and old["spec"].get("clusterIP") and spec["type"] != "ExternalName":
        before = old["spec"]["clusterIP"]
        if spec.get("clusterIP") != before:
            problems.append(failure.bad_value("spec.clusterIPs[0]", spec.get("clusterIPs"), "may not change once set"))
    return problems


def _data(obj: Object, old: Object | None) -> list[Problem]:
    problems = []
    total = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            total += len(value.encode())
            if not re.fullmatch(r"[-._a-zA-Z0-9]+", key) or len(key) > 253:
                detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"  # noqa: E501  # fmt: skip
                problems.append(failure.bad_value(f"{field}[{key}]", key, detail))
    if total > _DATA_MAX:
        problems.append(failure.too_long("" if obj["kind"] == "ConfigMap" else "data", _DATA_MAX))
    if old is not None and old.get("immutable"):
        problems += [
            failure.not_permitted(field, "field is immutable when `immutable` is set")
            for field in ("data", "binaryData", "immutable")
            if obj.get(field) != old.get(field)
        ]
    if obj["kind"] == "Secret" and old is not None:
        problems += _immutable("type", obj.get("type"), old.get("type"))
    return problems


def _claim(obj: Object, old: Object | None) -> list[Problem]:
    spec = obj["spec"]
    if old is None:
        problems = (
            []
            if spec.get("accessModes")
            else [failure.required("spec.accessModes", "at least 1 access mode is required")]
        )
        if not (spec.get("resources", {}).get("requests") or {}).get("storage"):
            problems.append(failure.required("spec.resources[storage]"))
        return problems
    fixed = {
        key: value for key, value in spec.items() if key not in ("resources", "volumeName", "volumeAttributesClassName")
    }
    before = {
        key: value
        for key, value in old["spec"].items()
        if key not in ("resources", "volumeName", "volumeAttributesClassName")
    }
    if fixed != before:
        text = (
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        )
        return [failure.not_permitted("spec", text)]
    return []


def _budget(obj: Object, old: Object | None) -> list[Problem]:
    del old
    spec = obj.get("spec") or {}
    if "minAvailable" in spec and "maxUnavailable" in spec:
        return [
            failure.bad_value(
                "spec", {"minAvailable": spec["minAvailable"]}, "minAvailable and maxUnavailable cannot be both set"
            )
        ]
    return []


def _role(obj: Object, old: Object | None) -> list[Problem]:
    del old
    problems = []
    for index, rule in enumerate(obj.get("rules") or ()):
        if not rule.get("verbs"):
            problems.append(failure.required(f"rules[{index}].verbs", "verbs must contain at least one value"))
        if not rule.get("nonResourceURLs"):
            problems += [
                failure.required(f"rules[{index}].{key}", f"resource rules must supply at least one {word}")
                for key, word in (("apiGroups", "api group"), ("resources", "resource"))
                if not rule.get(key)
            ]
    return problems


def _binding(obj: Object, old: Object | None) -> list[Problem]:
    if old is not None and obj.get("roleRef") != old.get("roleRef"):
        return [failure.bad_value("roleRef", obj.get("roleRef"), "cannot change roleRef")]
    return []


def _lease(obj: Object, old: Object | None) -> list[Problem]:
    del old
    spec = obj.get("spec") or {}
    problems = []
    if "leaseDurationSeconds" in spec and spec["leaseDurationSeconds"] <= 0:
        problems.append(
            failure.bad_value("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0")
        )
    if spec.get("leaseTransitions", 0) < 0:
        problems.append(
            failure.bad_value("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")
        )
    return problems


def _event(obj: Object, old: Object | None) -> list[Problem]:
    if old is not None:
        return []
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    namespace, wanted = obj["metadata"].get("namespace"), about.get("namespace") or "default"
    if namespace != wanted:
        return [
            failure.bad_value("involvedObject.namespace", about.get("namespace", ""), "does not match event.namespace")
        ]
    return []


def _slice(obj: Object, old: Object | None) -> list[Problem]:
    kinds = ("FQDN", "IPv4", "IPv6")
    if obj.get("addressType") not in kinds:
        return [failure.required("addressType")]
    return _immutable("addressType", obj["addressType"], old["addressType"]) if old is not None else []


_CHECKS: dict[str, Callable[[Object, Object | None], list[Problem]]] = {
    "Pod": _pod,
    "Deployment": _workload,
    "ReplicaSet": _workload,
    "DaemonSet": _workload,
    "StatefulSet": _stateful_set,
    "Job": _job,
    "Service": _service,
    "ConfigMap": _data,
    "Secret": _data,
    "PersistentVolumeClaim": _claim,
    "PodDisruptionBudget": _budget,
    "Role": _role,
    "ClusterRole": _role,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "Lease": _lease,
    "Event": _event,
    "EndpointSlice": _slice,
    "CustomResourceDefinition": definition_problems,
}
