# SPDX-License-Identifier: Apache-2.0
"""Bring your own nodes: a selector in, which of its nodes can be used out. Makes and releases nothing."""

from collections.abc import Collection
from datetime import datetime

from kaito_ray.nodes.node import Node, NodeLister
from kaito_ray.nodes.provisioner import NodesObserved
from kaito_ray.plan import Plan
from kaito_ray.workspace import Workspace

REASON_READY = "NodesReady"
REASON_NOT_READY = "NodeNotReady"
# A message names this many nodes and counts the rest.
_NAMED = 5


class ByoNodes:
    """A NodeProvisioner of nodes that somebody else makes and labels."""

    def __init__(self, nodes: NodeLister) -> None:
        self._nodes = nodes

    async def ensure(self, plan: Plan, workspace: Workspace, now: datetime) -> NodesObserved:  # noqa: ARG002
        """Look at the nodes the selector finds; a size named by the Workspace does not bind nodes brought along."""
        nodes = self._nodes(plan.node_labels)
        missing = {node.name: text for node in nodes if (text := _missing(node, plan))}
        usable = len(nodes) - len(missing)
        names = tuple(node.name for node in nodes)
        if usable >= plan.nodes:
            return NodesObserved(True, names, REASON_READY, f"{usable} of {plan.nodes} nodes are ready")
        return NodesObserved(False, names, REASON_NOT_READY, _waiting(plan, usable, missing))

    async def release(self, workspace: Workspace) -> bool:  # noqa: ARG002
        """Nothing was made, so nothing is left."""
        return True

    async def collect(self, uids: Collection[str], now: datetime) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing was made, so nothing can be left behind."""
        return ()

    async def close(self) -> None:
        """There is no connection of its own."""


def _missing(node: Node, plan: Plan) -> str:
    return node.what_is_missing(plan.gpus_per_node, plan.worker.gpu_resource)


def _waiting(plan: Plan, usable: int, missing: dict[str, str]) -> str:
    wanted = ", ".join(f"{key}={value}" for key, value in sorted(plan.node_labels.items()))
    text = f"{usable} of {plan.nodes} nodes with {wanted} are ready"
    if not missing:
        return f"{text}; label a node with {plan.gpus_per_node} free GPU(s) to let it serve this Workspace"
    named = "; ".join(f"node {name} {problem}" for name, problem in sorted(missing.items())[:_NAMED])
    more = len(missing) - _NAMED
    return f"{text}: {named}" + (f"; and {more} more" if more > 0 else "")
