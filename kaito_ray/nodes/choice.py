# SPDX-License-Identifier: Apache-2.0
"""Settings in, the provisioner they name out. Called by operator/main.py, once, before anything is watched."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import assert_never

from kaito_ray.cluster import Cluster
from kaito_ray.controller import MakeProvisioner
from kaito_ray.model_facts import remembered_facts
from kaito_ray.nodes.aks import AksNodes
from kaito_ray.nodes.arm import Arm
from kaito_ray.nodes.azure_client import azure_client
from kaito_ray.nodes.byo import ByoNodes
from kaito_ray.nodes.karpenter import KarpenterNodes
from kaito_ray.nodes.provisioner import NodeProvisioner
from kaito_ray.plan import Plan
from kaito_ray.settings import Provisioner
from kaito_ray.wish import Planner, observe_config
from kaito_ray.workspace import Workspace
from kaito_ray.world import World


def choose_provisioner(planner: Planner, environ: Mapping[str, str]) -> MakeProvisioner:
    """How to make the provisioner; raises InvalidManifest naming each Azure setting that is missing or wrong."""
    settings = planner.settings
    match settings.provisioner:
        case Provisioner.BYO:
            return lambda _, world: ByoNodes(world.nodes)
        case Provisioner.KARPENTER:
            return lambda cluster, world: KarpenterNodes(cluster, world.nodes, settings)
        case Provisioner.AKS:
            # Made here, so that a missing identity is told when the operator starts and not at the first Workspace.
            client = azure_client(settings, environ)

            def make(cluster: Cluster, world: World) -> NodeProvisioner:
                arm = Arm(client, settings, _now, lambda: cluster.may_write)

                async def plan(workspace: Workspace, size: str) -> Plan:
                    key = (workspace.metadata.namespace, workspace.metadata.name)
                    config = await observe_config(world, key, workspace)
                    return planner.plan(workspace, config, size, remembered_facts(world, workspace))

                return AksNodes(arm, world.nodes, planner.sizes, plan, settings)

            return make
        case _:
            assert_never(settings.provisioner)


def _now() -> datetime:
    return datetime.now(UTC)
