# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes Node in, what decides whether a Workspace can use it out. Pure; used by every provisioner."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_ray.nodes.moment import parse_moment

INSTANCE_TYPE_LABELS = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `gpus` counts per extended resource what the node can still give to pods (its allocatable)."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    ready: bool
    not_ready_reason: str
    cordoned: bool
    gpus: Mapping[str, int]
    instance_type: str
    provider_id: str
    deleting: bool
    not_ready_since: datetime | None = None
    cpus: float = 0.0
    memory_gib: float = 0.0
    """What the machine has in all (its capacity); 0 when it does not say."""

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Whether the node carries all of `labels`."""
        return all(self.labels.get(key) == value for key, value in labels.items())

    def what_is_missing(self, gpus: int, gpu_resource: str, instance_type: str = "") -> str:
        """What keeps `gpus` GPUs of this node from being used, as half a sentence; empty when nothing does.

        `instance_type` is compared in any case when it is given. A node counts its GPUs as allocatable only once
        the device plugin runs, so that is the last thing to come.
        """
        if self.deleting:
            return "is being deleted"
        if instance_type and self.instance_type.lower() != instance_type.lower():
            return f"is a {self.instance_type or 'node without an instance type'}, not a {instance_type}"
        if not self.ready:
            return f"is not Ready ({self.not_ready_reason})"
        if self.cordoned:
            return "is cordoned; `kubectl uncordon` it"
        seen = self.gpus.get(gpu_resource, 0)
        if seen < gpus:
            return f"has {seen} allocatable {gpu_resource}, {gpus} are needed (is the device plugin running?)"
        return ""


NodeLister = Callable[[Mapping[str, str]], Sequence[Node]]
"""Labels in, the nodes that carry all of them out, sorted by name, from the operator's cache: costs no API call."""


def parse_node(document: Mapping[str, Any]) -> Node:
    """A Node object of the API; absent parts count as not there yet."""
    metadata = document.get("metadata") or {}
    spec = document.get("spec") or {}
    status = document.get("status") or {}
    labels = metadata.get("labels") or {}
    conditions: list[Mapping[str, Any]] = status.get("conditions") or []
    ready = next((one for one in conditions if one.get("type") == "Ready"), {})
    return Node(
        name=metadata.get("name", ""),
        labels=labels,
        annotations=metadata.get("annotations") or {},
        ready=ready.get("status") == "True",
        not_ready_reason=ready.get("message") or ready.get("reason") or "the kubelet has not reported yet",
        cordoned=bool(spec.get("unschedulable")),
        gpus={
            name: int(quantity)
            for name, quantity in (status.get("allocatable") or {}).items()
            # Extended resources are whole numbers; cpu, memory and storage have no slash in their names.
            if "/" in name and str(quantity).isdecimal()
        },
        instance_type=next((labels[key] for key in INSTANCE_TYPE_LABELS if key in labels), ""),
        provider_id=spec.get("providerID", ""),
        deleting=bool(metadata.get("deletionTimestamp")),
        not_ready_since=None if ready.get("status") == "True" else parse_moment(ready.get("lastTransitionTime")),
        cpus=_cpus(str((status.get("capacity") or {}).get("cpu", ""))),
        memory_gib=_gib(str((status.get("capacity") or {}).get("memory", ""))),
    )


def _cpus(quantity: str) -> float:
    """`64` and `63500m` in cores."""
    number = quantity.removesuffix("m")
    return int(number) / (1000 if quantity.endswith("m") else 1) if number.isdecimal() else 0.0


def _gib(quantity: str) -> float:
    """Memory as kubelets report it, in Ki, Mi or Gi, in GiB."""
    number, unit = quantity[:-2], quantity[-2:]
    shift = {"Ki": 2**20, "Mi": 2**10, "Gi": 1}.get(unit)
    return round(int(number) / shift, 2) if shift and number.isdecimal() else 0.0
