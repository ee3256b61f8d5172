# SPDX-License-Identifier: Apache-2.0
"""Fifty Workspaces at once on one cluster: the limits of the AKS resource provider hold, and all settle."""

from cluster import azure_errors as azure
from cluster.aks_rig import Rig, aks_rig
from cluster.fake_pool import size

NAMES = [f"workspace-{number}" for number in range(50)]


def _watch_operations(rig: Rig) -> list[int]:
    """How many pools were busy after each request, filled while the rig runs."""
    busy: list[int] = []
    rig.arm.on_request = lambda _, __: busy.append(sum(pool.busy for pool in rig.arm.pools.values()))
    return busy


async def test_fifty_workspaces_at_once() -> None:
    async with aks_rig() as rig:
        busy = _watch_operations(rig)
        for name in NAMES:
            rig.apply(name)
        start = rig.clock.now
        await rig.run(lambda: rig.ready(*NAMES), 3 * 3600)
        took_s = (rig.clock.now - start).total_seconds()

        assert rig.arm.throttled == []
        assert max(busy) <= 4
        assert len(rig.arm.calls("PUT")) == 50, "one PUT per Workspace"
        reads = [request for request in rig.arm.requests if request.method == "GET"]
        lists = [request for request in reads if request.path == "agentPools"]
        assert len(lists) <= took_s / 10 + 1, "one list per interval for all of them"
        assert len(reads) <= 2.2 * len(lists)
        # 13 rounds of four pools at four minutes each, and the nodes of the last one.
        assert took_s <= 13 * (240 + 45) + 120

        gone = list(NAMES)
        for name in gone:
            await rig.delete(name)
        assert rig.ours() == []
        assert rig.arm.throttled == []


async def test_one_family_without_quota_is_learned_once_for_all() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.NO_FAMILY_QUOTA, when=size("Standard_NC24ads_A100_v4"), after_s=30)
        for name in NAMES[:12]:
            rig.apply(name)
            rig.annotate(name, instance_types="Standard_NC40ads_H100_v5")
        await rig.run(lambda: rig.ready(*NAMES[:12]), 3 * 3600)
        asked = rig.sizes_asked_for()
        assert asked.count("Standard_NC24ads_A100_v4") <= 8, "only those begun before the first was seen to fail"
        assert asked.count("Standard_NC40ads_H100_v5") == 12
