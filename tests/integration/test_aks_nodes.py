# SPDX-License-Identifier: Apache-2.0
"""Agent pools from apply to delete: the real SDK against a fake ARM."""

from cluster.aks_rig import aks_rig


async def test_a_pool_is_made_once_with_the_right_body_and_becomes_ready() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))

        (put,) = rig.arm.calls("PUT")
        assert put.headers["If-None-Match"] == "*"
        properties = put.body["properties"]
        assert {key: properties[key] for key in ("mode", "type", "vmSize", "count", "osType", "osSKU")} == {
            "mode": "User",
            "type": "VirtualMachineScaleSets",
            "vmSize": "Standard_NC24ads_A100_v4",
            "count": 1,
            "osType": "Linux",
            "osSKU": "Ubuntu",
        }
        assert properties["nodeLabels"] == {
            "apps": "phi-3",
            "kaito.sh/workspace": "one",
            "kaito.sh/workspacenamespace": "default",
            "kaito-ray.io/managed-by": "kaito-ray",
            "kaito.sh/machine-type": "gpu",
        }
        assert properties["nodeTaints"] == ["sku=gpu:NoSchedule"]
        assert properties["tags"]["kaito-ray-workspace-uid"] == "uid-of-one"
        assert rig.reasons("one") == ["AgentPoolCreating", "NodesJoining", "NodesReady"]
        pool = rig.last("one").node_pool
        assert (pool["instanceType"], pool["priority"], pool["ready"], pool["hourlyUsd"]) == (
            "Standard_NC24ads_A100_v4",
            "Regular",
            1,
            3.673,
        )
        assert rig.last("one").nodes == tuple(machine.name for machine in rig.ours()[0].machines)


async def test_a_pool_in_use_costs_no_write_and_few_reads() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))
        before = len(rig.arm.requests)
        await rig.run_for(3600)
        later = rig.arm.requests[before:]
        assert {request.method for request in later} == {"GET"}
        assert len(later) <= 60


async def test_deletion_ends_when_azure_has_no_pool_left() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))
        assert await rig.delete("one") > 2
        assert rig.ours() == []
        (delete,) = rig.arm.calls("DELETE")
        assert delete.status == 202
        assert list(rig.arm.pools) == ["system"]
