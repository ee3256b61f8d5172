# SPDX-License-Identifier: Apache-2.0
"""A plan in, the agent pool that AKS is asked for out; and an agent pool as AKS shows it in, a `Pool` out. Pure.

Bodies are in wire form, as the REST API documents them. A pool is ours when its tags name the UID of a Workspace;
nothing else is ever written to. Called by aks.py.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kaito_ray import names
from kaito_ray.nodes.candidate import Candidate, Priority
from kaito_ray.nodes.moment import parse_moment, render_moment
from kaito_ray.plan import Plan, Target

Json = Any

NAME_MAX = 12
# Room on the OS disk, where images and the model's files lie: images of vLLM have 10 to 20 GB and a new one comes
# beside the old, and the disk must never fill beyond the kubelet's eviction threshold of 85 %.
_DISK_BASE_GB = 128
_DISK_MIN_GB = 300
_DISK_MAX_GB = 2048
# AKS or Karpenter refuse these as labels that a user chooses; what a node needs of them it gets from the kubelet.
_RESERVED_DOMAINS = ("kubernetes.io", "k8s.io", "kubernetes.azure.com", "karpenter.sh", "karpenter.azure.com")
_RESERVED_LABELS = frozenset({"agentpool", "accelerator", "storageprofile", "storagetier"})
_OS_SKUS = {"ubuntu": "Ubuntu", "azurelinux": "AzureLinux"}

# Azure's list of states is open; any other than these says that an operation is running.
_FAILED = frozenset({"Failed", "Canceled"})
_AT_REST = _FAILED | {"Succeeded"}


@dataclass(frozen=True, slots=True)
class Pool:
    """An agent pool. `uid` and `attempt` are of the Workspace whose it is, empty and 0 when it is not ours."""

    name: str
    state: str
    count: int
    candidate: Candidate
    uid: str = ""
    workspace: str = ""
    namespace: str = ""
    attempt: int = 0
    created_at: datetime | None = None
    etag: str = ""
    stopped: bool = False
    error: Json = None
    """Why it failed: what `provisioningError` says, as classify_provisioning_error reads it."""
    wire: Mapping[str, Json] = field(default_factory=dict, compare=False, repr=False)

    @property
    def busy(self) -> bool:
        """Whether an operation on it is running."""
        return self.state not in _AT_REST

    @property
    def failed(self) -> bool:
        """Whether its last operation failed."""
        return self.state in _FAILED

    @property
    def deleting(self) -> bool:
        """Whether it is on its way out."""
        return self.state == "Deleting"


def pool_name(uid: str, attempt: int) -> str:
    """The name of a Workspace's pool: the same whenever it is computed, so that a crash cannot make a second one."""
    digest = hashlib.sha256(f"{uid}/{attempt}".encode()).digest()
    return f"k{base64.b32encode(digest).decode().lower()[: NAME_MAX - 1]}"


def render_pool(
    plan: Plan,
    candidate: Candidate,
    nodes: int,
    attempt: int,
    now: datetime,
    *,
    image_family: str = "",
    network: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    """The body of the PUT that makes the pool. `network` is what `network_of` found in the cluster's own pools."""
    properties: dict[str, Json] = {
        "mode": "User",
        "type": "VirtualMachineScaleSets",
        "vmSize": candidate.instance_type,
        "count": nodes,
        "osType": "Linux",
        "osSKU": _OS_SKUS.get(image_family.replace(" ", "").lower(), "Ubuntu"),
        "osDiskSizeGB": disk_gb(plan),
        "nodeLabels": render_labels(plan),
        "nodeTaints": [f"{names.TAINT_GPU['key']}={names.TAINT_GPU['value']}:{names.TAINT_GPU['effect']}"],
        "tags": {
            names.TAG_UID: plan.uid,
            names.TAG_WORKSPACE: plan.name,
            names.TAG_NAMESPACE: plan.namespace,
            names.TAG_ATTEMPT: str(attempt),
            names.TAG_CREATED: render_moment(now),
        },
        **(network or {}),
    }
    if candidate.priority is Priority.SPOT:
        # -1: up to the price on demand, evicted for capacity alone. All three are fixed once the pool exists.
        properties |= {"scaleSetPriority": "Spot", "scaleSetEvictionPolicy": "Delete", "spotMaxPrice": -1}
    if candidate.zone:
        properties["availabilityZones"] = [candidate.zone]
    return {"properties": properties}


def render_labels(plan: Target) -> dict[str, str]:
    """What nodes made for a Workspace carry: the labels its user selects by, and whose they are."""
    wanted = {key: value for key, value in plan.node_labels.items() if not _is_reserved(key)}
    return wanted | {
        names.LABEL_WORKSPACE: plan.name,
        names.LABEL_WORKSPACE_NAMESPACE: plan.namespace,
        names.LABEL_NODE_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_MACHINE_TYPE: "gpu",
    }


def disk_gb(plan: Target) -> int:
    """The OS disk in GB: the model twice (the files, and those of a new revision or a checkpoint) and the images."""
    return min(_DISK_MAX_GB, max(_DISK_MIN_GB, math.ceil(plan.weights_gib * 1.074 * 2) + _DISK_BASE_GB))


def parse_pool(wire: Mapping[str, Json]) -> Pool:
    """A pool as the API, or a model of the SDK, shows it."""
    properties = wire.get("properties") or {}
    tags = properties.get("tags") or {}
    zones = properties.get("availabilityZones") or []
    attempt = tags.get(names.TAG_ATTEMPT, "")
    return Pool(
        name=wire.get("name") or "",
        state=properties.get("provisioningState") or "",
        count=int(properties.get("count") or 0),
        candidate=Candidate(
            properties.get("vmSize") or "",
            Priority(properties.get("scaleSetPriority") or Priority.REGULAR),
            zones[0] if len(zones) == 1 else "",
        ),
        uid=tags.get(names.TAG_UID, ""),
        workspace=tags.get(names.TAG_WORKSPACE, ""),
        namespace=tags.get(names.TAG_NAMESPACE, ""),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        created_at=parse_moment(tags.get(names.TAG_CREATED)),
        etag=properties.get("eTag") or "",
        stopped=(properties.get("powerState") or {}).get("code") == "Stopped",
        error=(properties.get("status") or {}).get("provisioningError"),
        wire=wire,
    )


def network_of(pools: Iterable[Pool]) -> dict[str, Json]:
    """The subnets of a cluster that brings its own network, which a new pool must name too; empty otherwise.

    On a network that AKS manages no pool shows a subnet, and naming one there is refused.
    """
    for pool in pools:
        properties = pool.wire.get("properties") or {}
        if properties.get("mode") == "System" and properties.get("vnetSubnetID"):
            return {key: properties[key] for key in ("vnetSubnetID", "podSubnetID", "maxPods") if properties.get(key)}
    return {}


def _is_reserved(key: str) -> bool:
    prefix = key.rpartition("/")[0]
    return key in _RESERVED_LABELS or any(prefix == one or prefix.endswith(f".{one}") for one in _RESERVED_DOMAINS)
