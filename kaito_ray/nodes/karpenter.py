# SPDX-License-Identifier: Apache-2.0
"""A NodeProvisioner that leaves the work to Karpenter: one static NodePool per Workspace.

Karpenter keeps the nodes; here the NodePool is applied, and what keeps its NodeClaims from becoming nodes is passed on
in Karpenter's own words. While all nodes are there a pass makes no request.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from kaito_ray import names
from kaito_ray.cluster import Cluster, KubeObject, NotFound
from kaito_ray.drift import covers
from kaito_ray.errors import NameTaken, NotReadyYet
from kaito_ray.kinds import NODE_CLAIM, NODE_CLASS, NODE_POOL, Kind
from kaito_ray.nodes.candidate import Priority, Spot, spot_of
from kaito_ray.nodes.moment import parse_moment
from kaito_ray.nodes.node import Node, NodeLister
from kaito_ray.nodes.provisioner import NodesObserved
from kaito_ray.plan import Plan
from kaito_ray.render.node_pool import node_pool_name, render_node_class, render_node_pool
from kaito_ray.settings import Settings
from kaito_ray.workspace import Workspace

REASON_READY = "NodesReady"
REASON_WAITING = "NodesJoining"
REASON_NO_KARPENTER = "KarpenterMissing"
_WATCH_S = 15.0
_NAMED = 5
_MESSAGE_MAX = 512
ORPHAN_AGE = timedelta(minutes=2)
# The way of a NodePool and then of a NodeClaim; the first of these that is not True is what it waits for.
_POOL_CONDITIONS = ("ValidationSucceeded", "NodeClassReady", "Ready")
_CLAIM_CONDITIONS = ("Launched", "Registered", "Initialized", "Ready")
_PRIORITIES = {
    Spot.PREFER: (Priority.SPOT, Priority.REGULAR),
    Spot.REQUIRE: (Priority.SPOT,),
    Spot.NEVER: (Priority.REGULAR,),
}


class KarpenterNodes:
    """NodePools of a cluster where Karpenter for Azure runs, as it does with node auto-provisioning of AKS."""

    def __init__(self, cluster: Cluster, nodes: NodeLister, settings: Settings) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._namespaces = settings.namespaces

    async def ensure(self, plan: Plan, workspace: Workspace, now: datetime) -> NodesObserved:  # noqa: ARG002
        """Apply the NodePool, or find all of its nodes there; see NodeProvisioner."""
        name = node_pool_name(plan.namespace, plan.name)
        nodes = self._nodes({names.LABEL_NODE_POOL: name})
        missing = {node.name: text for node in nodes if (text := _missing(node, plan))}
        usable = len(nodes) - len(missing)
        reason, message = REASON_READY, f"{usable} of {plan.nodes} nodes are ready"
        ready = usable >= plan.nodes
        if not ready or _is_news(plan, workspace, name):
            try:
                pool = await self._apply(plan, workspace)
                waits_for = None if ready else await self._waits_for(pool)
            except NotFound:
                reason, ready = REASON_NO_KARPENTER, False
                message = (
                    f"the cluster has no {NODE_POOL.crd} or {NODE_CLASS.crd}: Karpenter for Azure is not installed"
                    " (AKS brings it with --node-provisioning-mode Auto); KAITO_RAY_PROVISIONER may also be aks or byo"
                )
            else:
                if not ready:
                    reason, message = _progress(plan, message, missing, waits_for)
        return NodesObserved(
            ready=ready,
            nodes=tuple(node.name for node in nodes),
            reason=reason,
            message=message,
            requeue_after_s=None if ready else _WATCH_S,
            node_pool={
                "name": name,
                "provisioner": "karpenter",
                "instanceType": plan.instance_type,
                "ready": usable,
                "wanted": plan.nodes,
                "message": message,
                **({"hourlyUsd": plan.hourly_usd} if plan.hourly_usd is not None else {}),
            },
        )

    async def release(self, workspace: Workspace) -> bool:
        """Delete the NodePool, then its node class; True when both are gone. See NodeProvisioner."""
        metadata = workspace.metadata
        name = node_pool_name(metadata.namespace, metadata.name)
        return await self._delete(name, lambda uid: uid == metadata.uid)

    async def collect(self, uids: Collection[str], now: datetime) -> tuple[str, ...]:
        """Delete NodePools whose Workspace is gone; see NodeProvisioner."""
        try:
            pools, _ = await self._cluster.list(NODE_POOL, labels=f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}")
        except NotFound:
            return ()
        gone = [pool["metadata"]["name"] for pool in pools if self._is_orphan(pool, uids, now)]
        for name in gone:
            await self._delete(name, lambda uid: uid not in uids)
        return tuple(gone)

    async def close(self) -> None:
        """There is no connection of its own."""

    async def _apply(self, plan: Plan, workspace: Workspace) -> KubeObject:
        annotations = workspace.metadata.annotations
        node_class = annotations.get(names.ANNOTATION_NODE_CLASS, "")
        if not node_class:
            family = annotations.get(names.ANNOTATION_NODE_IMAGE_FAMILY, "")
            rendered = render_node_class(plan, family)
            await self._converge(NODE_CLASS, rendered)
            node_class = rendered["metadata"]["name"]
        return await self._converge(NODE_POOL, render_node_pool(plan, node_class, _PRIORITIES[spot_of(workspace)]))

    async def _converge(self, kind: Kind, document: KubeObject) -> KubeObject:
        name = document["metadata"]["name"]
        try:
            live = await self._cluster.get(kind, None, name)
        except NotFound:
            return await self._cluster.apply(kind, document)
        if _uid(live) != _uid(document):
            if live["metadata"].get("deletionTimestamp"):
                raise NotReadyYet(f"{kind.kind} {name} of a former Workspace is still being deleted")
            raise NameTaken(f"{kind.kind} {name} exists and is not of this Workspace; delete one of them")
        if live["metadata"].get("deletionTimestamp"):
            raise NotReadyYet(f"{kind.kind} {name} is being deleted; it is made anew when it is gone")
        return live if covers(document, live) else await self._cluster.apply(kind, document)

    async def _waits_for(self, pool: KubeObject) -> tuple[str, str] | None:
        """Reason and message of the first thing that is not as it should be, in Karpenter's words."""
        if (found := _first_false(pool, _POOL_CONDITIONS)) is not None:
            return found
        claims, _ = await self._cluster.list(NODE_CLAIM, labels=f"{names.LABEL_NODE_POOL}={pool['metadata']['name']}")
        return next((found for claim in claims if (found := _first_false(claim, _CLAIM_CONDITIONS))), None)

    async def _delete(self, name: str, is_ours: Callable[[str], bool]) -> bool:
        for kind in (NODE_POOL, NODE_CLASS):
            try:
                live = await self._cluster.get(kind, None, name)
            except NotFound:
                continue
            if not is_ours(_uid(live)):
                continue
            metadata = live["metadata"]
            if not metadata.get("deletionTimestamp"):
                await self._cluster.delete(kind, None, name, uid=metadata["uid"])
            return False
        return True

    def _is_orphan(self, pool: KubeObject, uids: Collection[str], now: datetime) -> bool:
        metadata = pool["metadata"]
        namespace = (metadata.get("labels") or {}).get(names.LABEL_WORKSPACE_NAMESPACE, "")
        made = parse_moment(metadata.get("creationTimestamp"))
        return (
            bool(_uid(pool))
            and _uid(pool) not in uids
            and (not self._namespaces or namespace in self._namespaces)
            and made is not None
            and now - made >= ORPHAN_AGE
        )


def _missing(node: Node, plan: Plan) -> str:
    return node.what_is_missing(plan.gpus_per_node, plan.worker.gpu_resource, plan.instance_type)


def _is_news(plan: Plan, workspace: Workspace, name: str) -> bool:
    """Whether something else is wanted than the status says was asked for."""
    told = workspace.status.get("nodePool") or {}
    return (told.get("name"), told.get("instanceType"), told.get("wanted")) != (name, plan.instance_type, plan.nodes)


def _progress(
    plan: Plan, message: str, missing: Mapping[str, str], waits_for: tuple[str, str] | None
) -> tuple[str, str]:
    """Reason and sentence while nodes are missing."""
    parts = [message, *(f"node {name} {text}" for name, text in sorted(missing.items())[:_NAMED])]
    if waits_for is not None:
        parts.append(f"Karpenter: {waits_for[1]}")
    elif not missing:
        parts.append(f"waiting for Karpenter to make {plan.nodes} x {plan.instance_type}")
    return (waits_for[0] if waits_for is not None else REASON_WAITING), "; ".join(parts)


def _first_false(document: KubeObject, types: Sequence[str]) -> tuple[str, str] | None:
    conditions = {one["type"]: one for one in (document.get("status") or {}).get("conditions") or ()}
    for kind in types:
        condition = conditions.get(kind)
        if condition is not None and condition["status"] != "True":
            reason = condition.get("reason") or f"{kind}{condition['status']}"
            return reason, (condition.get("message") or f"{kind} is {condition['status']}")[:_MESSAGE_MAX]
    return None


def _uid(document: KubeObject) -> str:
    """The UID of the Workspace that a cluster-wide object was made for."""
    return str((document["metadata"].get("annotations") or {}).get(names.ANNOTATION_WORKSPACE_UID, ""))
