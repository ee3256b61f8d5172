# SPDX-License-Identifier: Apache-2.0
"""Where a pod fits: selectors, affinity, taints and what a node has left. Pure; the pod simulator acts on it."""

from collections import Counter
from collections.abc import Iterable, Mapping

from cluster.pod_validation import amount_of
from cluster.resource import Object


def requested(pod: Object) -> dict[str, float]:
    """What a pod asks for, by resource; pods that run side by side add up, init containers count by their largest."""
    total: dict[str, float] = {"pods": 1.0}
    for container in pod["spec"].get("containers", ()):
        for name, amount in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = total.get(name, 0.0) + amount_of(amount)
    for container in pod["spec"].get("initContainers", ()):
        for name, amount in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = max(total.get(name, 0.0), amount_of(amount))
    return total


def place(pod: Object, nodes: Iterable[Object], used: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """The name of a node that fits, or an empty name and the scheduler's sentence why none does."""
    refusals: Counter[str] = Counter()
    count = 0
    wanted = requested(pod)
    for node in nodes:
        count += 1
        why = _refusal(pod, node, wanted, used.get(node["metadata"]["name"], {}))
        if not why:
            return node["metadata"]["name"], ""
        refusals.update(why)
    reasons = ", ".join(f"{times} {text}" for text, times in sorted(refusals.items()))
    if not count:
        return "", "no nodes available to schedule pods"
    preemption = f"0/{count} nodes are available: {count} Preemption is not helpful for scheduling."
    return "", f"0/{count} nodes are available: {reasons}. preemption: {preemption}"


def _refusal(pod: Object, node: Object, wanted: Mapping[str, float], used: Mapping[str, float]) -> list[str]:
    spec, labels = pod["spec"], node["metadata"].get("labels") or {}
    if node["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"]
    ready = next((one["status"] for one in node["status"].get("conditions", ()) if one["type"] == "Ready"), "False")
    taints = list(node["spec"].get("taints") or ())
    if ready != "True":
        key = "node.kubernetes.io/unreachable" if ready == "Unknown" else "node.kubernetes.io/not-ready"
        taints.append({"key": key, "effect": "NoSchedule"})
    for taint in taints:
        if taint["effect"] != "PreferNoSchedule" and not _tolerated(taint, spec.get("tolerations") or ()):
            value = f": {taint['value']}" if taint.get("value") else ": "
            return [f"node(s) had untolerated taint {{{taint['key']}{value}}}"]
    selector = spec.get("nodeSelector") or {}
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if any(labels.get(key) != value for key, value in selector.items()) or not _affine(affinity, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    allocatable = node["status"].get("allocatable") or {}
    short = [
        name for name, amount in wanted.items() if used.get(name, 0.0) + amount > amount_of(allocatable.get(name, 0))
    ]
    return [f"Insufficient {name}" if name != "pods" else "Too many pods" for name in short]


def _tolerated(taint: Object, tolerations: Iterable[Object]) -> bool:
    for one in tolerations:
        if one.get("effect") not in (None, "", taint["effect"]):
            continue
        if one.get("key") in (None, ""):
            if one.get("operator") == "Exists":
                return True
        elif one["key"] == taint["key"] and (
            one.get("operator", "Equal") == "Exists" or one.get("value", "") == taint.get("value", "")
        ):
            return True
    return False


def _affine(affinity: Object | None, node: Object) -> bool:
    if not affinity:
        return True
    labels = node["metadata"].get("labels") or {}
    return any(
        all(_expression(one, labels) for one in term.get("matchExpressions") or ())
        and all(_expression(one, {"metadata.name": node["metadata"]["name"]}) for one in term.get("matchFields") or ())
        for term in affinity.get("nodeSelectorTerms") or ()
    )


def _expression(expression: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or [""]
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case _:
            return value is not None and int(value) < int(values[0])
