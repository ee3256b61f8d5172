# SPDX-License-Identifier: Apache-2.0
"""A fake Azure on the clock of the wall beside a test cluster, and the settings with which an operator asks it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from cluster.fake_arm import FakeArm
from cluster.fake_nodes import FakeNodes
from cluster.fixture import Cluster


@contextmanager
def azure_of(cluster: Cluster, *, joins: bool = True) -> Iterator[FakeArm]:
    """Azure in the loop of the cluster, with a system pool; its machines join the cluster, or never do."""
    arm = FakeArm(lambda: datetime.now(UTC), create_s=1.5, scale_s=1.0, delete_s=1.0)
    arm.add_pool("system", count=0)
    cluster.run(arm.__aenter__())
    nodes = FakeNodes(arm, register_s=0.2, plugin_s=0.8)
    kubelets = cluster.simulate().nodes
    mirror = cluster.call(lambda: asyncio.ensure_future(nodes.mirror(kubelets))) if joins else None
    try:
        yield arm
    finally:
        if mirror is not None:
            cluster.call(mirror.cancel)
        cluster.run(arm.__aexit__(None, None, None))


def azure_settings(arm: FakeArm) -> dict[str, Any]:
    """What running_operator and Operator take beside a cluster."""
    return {
        "provisioner": "aks",
        "subscription_id": arm.subscription,
        "resource_group": arm.group,
        "cluster_name": arm.cluster,
        "location": arm.location,
        "arm_endpoint": arm.url,
        "azure_credential": "fake",
    }
