# SPDX-License-Identifier: Apache-2.0
"""One pass of the provisioner of agent pools as a process of its own, for tests that kill it.

    python tests/cluster/aks_pass.py WORKSPACE.json NOW      with KAITO_RAY_* in the environment

Reads the Workspace, does one pass at time NOW, and writes the Workspace with its new status back by rename.
"""

import asyncio
import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from builders import a_serve_plan
from kaito_ray.nodes.aks import AksNodes
from kaito_ray.nodes.arm import Arm
from kaito_ray.nodes.azure_client import azure_client
from kaito_ray.plan import Plan
from kaito_ray.settings import Settings
from kaito_ray.sku import load_sizes
from kaito_ray.workspace import Workspace, parse_workspace

Json = Any


async def one_pass(document: Json, now: datetime) -> Json:
    """The Workspace with the status that a pass gives it."""

    async def planner(workspace: Workspace, size: str) -> Plan:
        metadata = workspace.metadata
        return a_serve_plan(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid, instance_type=size)

    workspace = parse_workspace(document)
    settings = Settings.from_env(os.environ)
    async with azure_client(settings, os.environ) as client:
        arm = Arm(client, settings, lambda: now)
        provisioner = AksNodes(arm, lambda _: [], load_sizes(), planner, settings)
        plan = await planner(workspace, workspace.resource.instance_type)
        observed = await provisioner.ensure(plan, workspace, now)
    return document | {"status": {"nodePool": dict(observed.node_pool)}}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    document = asyncio.run(one_pass(json.loads(file.read_text()), datetime.fromisoformat(sys.argv[2])))
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.rename(file)
