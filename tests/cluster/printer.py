# SPDX-License-Identifier: Apache-2.0
"""The columns of built-in kinds, as `kubectl get` shows them; (name, priority), priority 1 only with `-o wide`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.resource import Object

Cells: TypeAlias = list[Any]


@dataclass(frozen=True, slots=True)
class Printer:
    """The columns after the name, and the function that fills them."""

    columns: tuple[tuple[str, int], ...]
    cells: Callable[[Object], Cells]
    named: bool = True
    """Whether the name comes first; events are shown without."""


def _columns(shown: str, wide: str = "") -> tuple[tuple[str, int], ...]:
    return (*((name, 0) for name in shown.split(",")), *((name, 1) for name in wide.split(",") if name))


def _age(obj: Object, field: str = "creationTimestamp") -> str:
    from cluster.table import age

    return age(obj["metadata"].get(field))


def _pod(obj: Object) -> Cells:
    spec, status = obj["spec"], obj.get("status", {})
    statuses = status.get("containerStatuses") or []
    ready = sum(bool(one.get("ready")) for one in statuses)
    restarts = sum(one.get("restartCount", 0) for one in statuses)
    reason = status.get("reason") or status.get("phase", "Pending")
    for one in statuses:
        state = one.get("state", {})
        word = (state.get("waiting") or state.get("terminated") or {}).get("reason")
        reason = word or reason
    if "deletionTimestamp" in obj["metadata"]:
        reason = "Terminating"
    shown = f"{ready}/{len(spec.get('containers', ()))}"
    where = [status.get("podIP", "<none>"), spec.get("nodeName", "<none>"), "<none>", "<none>"]
    return [shown, reason, str(restarts), _age(obj), *where]


def _service(obj: Object) -> Cells:
    spec = obj["spec"]
    ingress = obj.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    external = ",".join(spec.get("externalIPs") or [one.get("ip") or one.get("hostname", "") for one in ingress])
    if not external:
        external = "<pending>" if spec["type"] == "LoadBalancer" else "<none>"
    ports = ",".join(
        f"{port['port']}:{port['nodePort']}/{port['protocol']}"
        if "nodePort" in port
        else f"{port['port']}/{port['protocol']}"
        for port in spec.get("ports", ())
    )
    selector = ",".join(f"{key}={value}" for key, value in (spec.get("selector") or {}).items())
    return [
        spec["type"],
        spec.get("clusterIP") or "<none>",
        external,
        ports or "<none>",
        _age(obj),
        selector or "<none>",
    ]


def _node(obj: Object) -> Cells:
    status = obj.get("status", {})
    ready = next((one["status"] for one in status.get("conditions", ()) if one["type"] == "Ready"), "Unknown")
    word = {"True": "Ready", "False": "NotReady"}.get(ready, "Unknown")
    if obj["spec"].get("unschedulable"):
        word += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = ",".join(
        sorted(key.removeprefix(prefix) for key in obj["metadata"].get("labels", {}) if key.startswith(prefix))
    )
    addresses = {one["type"]: one["address"] for one in status.get("addresses", ())}
    info = status.get("nodeInfo", {})
    return [word, roles or "<none>", _age(obj), info.get("kubeletVersion", ""), addresses.get("InternalIP", "<none>"),
            addresses.get("ExternalIP", "<none>"), info.get("osImage", "<unknown>"),
            info.get("kernelVersion", "<unknown>"), info.get("containerRuntimeVersion", "<unknown>")]  # fmt: skip


def _workload(obj: Object) -> Cells:
    spec, status = obj["spec"], obj.get("status", {})
    return [f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}", str(status.get("updatedReplicas", 0)),
            str(status.get("availableReplicas", 0)), _age(obj)]  # fmt: skip


def _stateful_set(obj: Object) -> Cells:
    return [f"{obj.get('status', {}).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 1)}", _age(obj)]


def _job(obj: Object) -> Cells:
    status = obj.get("status", {})
    conditions = {one["type"] for one in status.get("conditions", ()) if one["status"] == "True"}
    word = "Complete" if "Complete" in conditions else "Failed" if "Failed" in conditions else "Running"
    return [word, f"{status.get('succeeded', 0)}/{obj['spec'].get('completions', 1)}", "", _age(obj)]


def _event(obj: Object) -> Cells:
    from cluster.table import age

    about = obj.get("involvedObject") or obj.get("regarding") or {}
    seen = obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp") or obj.get("eventTime")
    kind = str(about.get("kind", "")).lower()
    text = obj.get("message") or obj.get("note", "")
    return [age(seen), obj.get("type", ""), obj.get("reason", ""), f"{kind}/{about.get('name', '')}", str(text).strip(),
            str(obj.get("count", 1)), obj["metadata"]["name"]]  # fmt: skip


def _slice(obj: Object) -> Cells:
    endpoints = obj.get("endpoints") or []
    addresses = ",".join(address for one in endpoints for address in one.get("addresses", ()))
    ports = ",".join(str(port.get("port", "")) for port in obj.get("ports") or ())
    return [obj.get("addressType", ""), ports or "<unset>", addresses or "<unset>", _age(obj)]


def _claim(obj: Object) -> Cells:
    spec, status = obj["spec"], obj.get("status", {})
    modes = ",".join("".join(c for c in mode if c.isupper()) for mode in status.get("accessModes", ()))
    return [status.get("phase", ""), spec.get("volumeName", ""), status.get("capacity", {}).get("storage", ""), modes,
            spec.get("storageClassName", ""), _age(obj)]  # fmt: skip


def _lease(obj: Object) -> Cells:
    return [obj.get("spec", {}).get("holderIdentity", ""), _age(obj)]


def _budget(obj: Object) -> Cells:
    spec = obj.get("spec", {})
    allowed = obj.get("status", {}).get("disruptionsAllowed", 0)
    return [str(spec.get("minAvailable", "N/A")), str(spec.get("maxUnavailable", "N/A")), str(allowed), _age(obj)]


def _policy(obj: Object) -> Cells:
    labels = obj["spec"].get("podSelector", {}).get("matchLabels") or {}
    return [",".join(f"{key}={value}" for key, value in labels.items()) or "<none>", _age(obj)]


PRINTERS: dict[str, Printer] = {
    "Pod": Printer(_columns("Ready,Status,Restarts,Age", "IP,Node,Nominated Node,Readiness Gates"), _pod),
    "Service": Printer(_columns("Type,Cluster-IP,External-IP,Port(s),Age", "Selector"), _service),
    "Node": Printer(
        _columns("Status,Roles,Age,Version", "Internal-IP,External-IP,OS-Image,Kernel-Version,Container-Runtime"), _node
    ),
    "Namespace": Printer(_columns("Status,Age"), lambda obj: [obj["status"]["phase"], _age(obj)]),
    "Deployment": Printer(_columns("Ready,Up-to-date,Available,Age"), _workload),
    "StatefulSet": Printer(_columns("Ready,Age"), _stateful_set),
    "Job": Printer(_columns("Status,Completions,Duration,Age"), _job),
    "ConfigMap": Printer(_columns("Data,Age"), lambda obj: [str(len(obj.get("data", {}))), _age(obj)]),
    "Secret": Printer(
        _columns("Type,Data,Age"), lambda obj: [obj.get("type", ""), str(len(obj.get("data", {}))), _age(obj)]
    ),
    "ServiceAccount": Printer(_columns("Secrets,Age"), lambda obj: [str(len(obj.get("secrets", ()))), _age(obj)]),
    "EndpointSlice": Printer(_columns("AddressType,Ports,Endpoints,Age"), _slice),
    "PersistentVolumeClaim": Printer(_columns("Status,Volume,Capacity,Access Modes,StorageClass,Age"), _claim),
    "Lease": Printer(_columns("Holder,Age"), _lease),
    "PodDisruptionBudget": Printer(_columns("Min Available,Max Unavailable,Allowed Disruptions,Age"), _budget),
    "NetworkPolicy": Printer(_columns("Pod-Selector,Age"), _policy),
    "CustomResourceDefinition": Printer(
        _columns("Created At"), lambda obj: [obj["metadata"].get("creationTimestamp", "")]
    ),
    "Role": Printer(_columns("Created At"), lambda obj: [obj["metadata"].get("creationTimestamp", "")]),
    "ClusterRole": Printer(_columns("Created At"), lambda obj: [obj["metadata"].get("creationTimestamp", "")]),
    "Event": Printer(_columns("Last Seen,Type,Reason,Object,Message", "Count,Name"), _event, named=False),
}
