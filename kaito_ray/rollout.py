# SPDX-License-Identifier: Apache-2.0
"""A rendered RayService and the live one in, the RayService to apply now out. Pure; called by reconcile.py.

What stands in `serveConfigV2` changes in place. Any other change of the Ray cluster makes KubeRay start a second
cluster beside the first, which needs a second set of GPUs. Where there is none, the service is suspended with the new
specification already in it, which deletes the old cluster, and is resumed once that is gone: a gap in service, rather
than a new cluster that waits for GPUs for ever.
"""

from collections.abc import Callable, Sequence
from typing import Any

from kaito_ray import names
from kaito_ray.drift import digest
from kaito_ray.kuberay import parse_ray_service
from kaito_ray.nodes.node import Node
from kaito_ray.nodes.provisioner import Notice
from kaito_ray.plan import Plan
from kaito_ray.pod import Pod

KubeObject = dict[str, Any]

# What KubeRay leaves out of its own hash (controllers/ray/utils/util.go): it changes without a new cluster.
_MUTED_OF_GROUPS = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")
_MUTED_OF_PODS = ("tolerations", "schedulingGates")


def roll_out(
    rendered: KubeObject, live: KubeObject | None, *, has_room: Callable[[], bool]
) -> tuple[KubeObject, Notice | None]:
    """The RayService to apply; a Notice when this is where its cluster begins to be replaced.

    `has_room` is asked only when a second cluster would be needed: whether there are GPUs for it.
    """
    config = cluster_hash(rendered["spec"]["rayClusterConfig"])
    metadata = rendered["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_CLUSTER_CONFIG: config}
    marked = {**rendered, "metadata": {**metadata, "annotations": annotations}}
    if live is None:
        return marked, None
    suspended = {**marked, "spec": {**marked["spec"], "suspend": True}}
    status = parse_ray_service(live)
    if status.suspend:
        return (marked if status.holds("Suspended") and status.current else suspended), None
    before = (live["metadata"].get("annotations") or {}).get(names.ANNOTATION_CLUSTER_CONFIG)
    if before in {None, config}:
        return marked, None
    if has_room():
        return marked, Notice("Normal", "RollingOut", "a second Ray cluster comes up and takes over: GPUs are free")
    return suspended, Notice(
        "Warning",
        "Recreating",
        "the Ray cluster must be replaced and no GPUs are free for a second one: serving stops until the new one is up",
    )


def cluster_hash(config: KubeObject) -> str:
    """A hash of what cannot change without a new Ray cluster."""
    kept = {key: value for key, value in config.items() if key != "upgradeStrategy"}
    kept["headGroupSpec"] = _without_muted(config["headGroupSpec"])
    kept["workerGroupSpecs"] = [_without_muted(group) for group in config.get("workerGroupSpecs", [])]
    return digest(kept)


def has_room(plan: Plan, nodes: Sequence[Node], pods: Sequence[Pod]) -> bool:
    """Whether `nodes`, which carry the Workspace's labels, have GPUs for a second cluster beside all `pods`."""
    busy = {pod.node for pod in pods if not pod.head and not pod.deleting}
    free = [
        node
        for node in nodes
        if node.name not in busy and not node.what_is_missing(plan.gpus_per_node, plan.worker.gpu_resource)
    ]
    return len(free) >= plan.nodes


def _without_muted(group: KubeObject) -> KubeObject:
    kept = {key: value for key, value in group.items() if key not in _MUTED_OF_GROUPS}
    template = group["template"]
    spec = {key: value for key, value in template["spec"].items() if key not in _MUTED_OF_PODS}
    return {**kept, "template": {**template, "spec": spec}}
