# SPDX-License-Identifier: Apache-2.0
"""What a provisioner of GPU nodes does for one Workspace: make its nodes, say how far they are, give them back.

Implemented by byo.py, aks.py and karpenter.py; called by reconcile.py in every pass. An implementation may write to
a cloud or to the cluster, but reads from caches that others keep: a pass that changes nothing costs no call.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from kaito_ray.plan import Plan
from kaito_ray.workspace import Workspace

Json = Any


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened and that `kubectl describe` should show, as an Event of the Workspace."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class NodesObserved:
    """How far the nodes of a Workspace are.

    `reason` is CamelCase and becomes the reason of ResourceReady, `message` its sentence, both also when `ready`.
    `nodes` are the names of the nodes the Workspace may use, ready or not. `requeue_after_s` asks for another pass
    when nothing that is watched will bring one. `node_pool` is `status.nodePool`, empty where there is no pool.
    `notices` are posted once each, so an implementation reports one only in the pass in which it happened.
    """

    ready: bool
    nodes: tuple[str, ...]
    reason: str
    message: str
    requeue_after_s: float | None = None
    node_pool: Mapping[str, Json] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()


class NodeProvisioner(Protocol):
    """Makes, watches and gives back the GPU nodes of Workspaces."""

    async def ensure(self, plan: Plan, workspace: Workspace, now: datetime) -> NodesObserved:
        """Bring the nodes of the plan one step closer and say how far they are.

        Idempotent, and safe to repeat after a crash at any point: what exists is adopted by its name and tags.
        Failures that a user can act on are a NodesObserved that is not ready; only bugs and an unreachable cluster
        or cloud are raised (NotReadyYet for the latter).
        """

    async def release(self, workspace: Workspace) -> bool:
        """Give back what was made for the Workspace; True when nothing is left and the finalizer may go.

        Called again until it answers True. Raises NotReadyYet with a reason while the cloud does not answer.
        """

    async def collect(self, uids: Collection[str], now: datetime) -> tuple[str, ...]:
        """Give back what was made for Workspaces that are gone; the names of what was.

        `uids` are those of all Workspaces, read just now and not from a cache. Called every minute by the leader.
        """

    async def close(self) -> None:
        """Close connections; called once, at the end."""
