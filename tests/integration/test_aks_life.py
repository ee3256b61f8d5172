# SPDX-License-Identifier: Apache-2.0
"""Agent pools in use: evictions, lost nodes, changed wishes, idle hours, restarts, leftovers and strangers."""

from datetime import timedelta

import pytest

from cluster import azure_errors as azure
from cluster.aks_rig import Rig, aks_rig
from cluster.fake_pool import size
from kaito_ray.errors import LeaseLost, NotReadyYet

A100 = "Standard_NC24ads_A100_v4"


async def _ready(rig: Rig, name: str = "one", nodes: int = 1) -> None:
    rig.node_counts[A100] = nodes
    rig.apply(name)
    await rig.run(lambda: rig.ready(name))


async def test_an_evicted_spot_machine_is_asked_for_again() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        rig.annotate("one", spot="prefer")
        await rig.run(lambda: rig.ready("one"))
        (pool,) = rig.ours()
        assert (pool.properties["scaleSetPriority"], pool.properties["scaleSetEvictionPolicy"]) == ("Spot", "Delete")
        assert rig.last("one").node_pool["priority"] == "Spot"

        evicted = rig.clock.now
        rig.arm.evict(pool.name)
        rig.apply("one")  # the node's own event brings a pass
        await rig.run(lambda: not rig.ready("one"), 30)
        await rig.run(lambda: rig.ready("one"), 900)
        assert "NodesLost" in {notice.reason for notice in rig.notices}
        _, repair = rig.arm.calls("PUT")
        assert repair.at - evicted <= timedelta(seconds=30)
        assert repair.headers["If-Match"].startswith('"etag-')
        assert repair.body["properties"]["count"] == 1
        assert [one.name for one in rig.ours()] == [pool.name]


async def test_spot_that_does_not_come_back_is_replaced_on_demand() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        rig.annotate("one", spot="prefer")
        await rig.run(lambda: rig.ready("one"))
        rig.arm.fail(azure.SKU_UNAVAILABLE, when=size(priority="Spot"), after_s=30)
        rig.arm.evict(rig.ours()[0].name)
        rig.apply("one")
        await rig.run(lambda: not rig.ready("one"), 30)
        await rig.run(lambda: rig.ready("one"), 1800)
        assert rig.sizes_asked_for() == [f"{A100} spot", A100]
        assert "SkuNotAvailable" in rig.reasons("one")
        assert rig.last("one").node_pool["priority"] == "Regular"


async def test_a_silent_node_shows_at_once_and_is_replaced() -> None:
    async with aks_rig() as rig:
        await _ready(rig, nodes=2)
        lost = rig.last("one").nodes[0]
        rig.nodes.lose(lost)
        rig.apply("one")
        await rig.run(lambda: not rig.ready("one"), 30)
        assert f"node {lost} is not Ready (Kubelet stopped posting node status.)" in rig.last("one").message
        before = rig.clock.now
        await rig.run(lambda: rig.ready("one"), 1200)
        (removal,) = rig.arm.calls("POST")
        assert removal.body == {"machineNames": [lost]}
        assert removal.at - before >= timedelta(minutes=4), "a node that restarts is not replaced"
        assert lost not in rig.last("one").nodes
        assert len(rig.last("one").nodes) == 2


async def test_a_node_that_is_back_soon_is_not_replaced() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        (name,) = rig.last("one").nodes
        rig.nodes.lose(name)
        rig.apply("one")
        await rig.run_for(120)
        assert not rig.ready("one")
        rig.ours()[0].machines[0].lost_at = None
        await rig.run(lambda: rig.ready("one"), 60)
        assert rig.arm.calls("POST") == []


async def test_a_machine_that_vanished_is_asked_for_again() -> None:
    async with aks_rig() as rig:
        await _ready(rig, nodes=2)
        rig.nodes.vanish(rig.last("one").nodes[0])
        rig.apply("one")
        await rig.run(lambda: not rig.ready("one"), 30)
        await rig.run(lambda: rig.ready("one"), 1200)
        assert [put.body["properties"]["count"] for put in rig.arm.calls("PUT")] == [2, 2]


async def test_a_pool_that_still_serves_is_kept_when_a_repair_fails() -> None:
    async with aks_rig() as rig:
        await _ready(rig, nodes=2)
        rig.arm.fail(azure.CAPACITY, after_s=30)
        rig.nodes.vanish(rig.last("one").nodes[0])
        rig.apply("one")
        await rig.run(lambda: rig.reasons("one")[-1] == "AllocationFailed", 1800)
        await rig.run_for(1200)
        assert rig.arm.calls("DELETE") == []
        assert "1 of 2 nodes are ready" in rig.last("one").message
        rig.arm.forget()
        await rig.run(lambda: rig.ready("one"), 1800)


async def test_more_nodes_and_fewer() -> None:
    async with aks_rig() as rig:
        await _ready(rig, nodes=1)
        rig.node_counts[A100] = 3
        rig.apply("one")
        await rig.run(lambda: not rig.ready("one"), 30)
        await rig.run(lambda: rig.ready("one"), 900)
        assert len(rig.last("one").nodes) == 3
        rig.node_counts[A100] = 2
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("POST") != [], 120)
        assert rig.ready("one"), "giving back what is spare interrupts nothing"
        await rig.run_for(600)
        assert len(rig.last("one").nodes) == 2
        assert len(rig.arm.calls("PUT")) == 2
        assert len(rig.arm.calls("POST")) == 1


async def test_somebody_elses_change_of_the_pool_is_not_overwritten() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        rig.node_counts[A100] = 2
        rig.ours()[0].etag += 1  # after the operator read the list
        await rig.step("one")
        assert rig.last("one").reason == "OperationPreempted"
        assert rig.arm.calls("PUT")[-1].status == 412
        await rig.run(lambda: rig.ready("one") and len(rig.last("one").nodes) == 2, 900)


async def test_an_idle_workspace_costs_nothing_and_comes_back() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        rig.annotate("one", idle_after="30m")
        await rig.run(lambda: rig.ready("one"))
        await rig.run_for(7200)
        assert rig.ready("one"), "where nobody sees traffic nothing is scaled down"

        rig.annotate("one", last_request=f"{rig.clock.now:%Y-%m-%dT%H:%M:%SZ}")
        await rig.run_for(29 * 60)
        assert rig.ready("one")
        await rig.run(lambda: rig.last("one").reason == "Idle", 300)
        await rig.run_for(600)
        assert rig.ours()[0].properties["count"] == 0
        assert rig.last("one").node_pool.get("hourlyUsd") == 0.0
        assert "about 10 minutes" in rig.last("one").message

        rig.annotate("one", last_request=f"{rig.clock.now:%Y-%m-%dT%H:%M:%SZ}")
        await rig.run(lambda: rig.ready("one"), 900)
        assert len(rig.arm.calls("PUT")) == 3
        assert "Waking" in rig.reasons("one")


async def test_a_restarted_operator_adopts_what_it_made() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("PUT") != [])
        rig.documents["one"]["status"] = {}  # the status was not written any more
        rig.restart()
        await rig.run(lambda: rig.ready("one"))
        rig.restart()
        await rig.run_for(600)
        assert rig.ready("one")
        assert len(rig.arm.calls("PUT")) == 1


async def test_a_restarted_operator_reports_why_a_pool_failed() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.FAMILY_QUOTA, after_s=60)
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("PUT") != [])
        rig.clock.turn(120)
        rig.restart()
        await rig.step("one")
        assert rig.last("one").reason == "SkuFamilyQuotaExceeded"
        await rig.run_for(400)
        rig.restart()
        await rig.run_for(60)
        assert rig.last("one").reason == "SkuFamilyQuotaExceeded"
        assert len(rig.arm.calls("PUT")) == 1, "what was learned survives in the status"


async def test_an_operator_that_no_longer_leads_writes_nothing() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        rig.leads = False
        rig.apply("two")
        rig.clock.turn(20)
        with pytest.raises(LeaseLost):
            await rig.step("two")
        with pytest.raises(LeaseLost):
            await rig.provisioner.release(rig.workspace("one"))
        assert await rig.provisioner.collect(set(), rig.clock.now + timedelta(hours=1)) == ()
        assert len(rig.arm.calls("PUT")) == 1
        assert rig.arm.calls("DELETE") == []


async def test_a_pool_of_the_same_name_that_is_not_ours_is_left_alone() -> None:
    from kaito_ray.nodes.pool import pool_name

    async with aks_rig() as rig:
        taken = pool_name("uid-of-one", 1)
        rig.arm.add_pool(taken, mode="User", tags={"owner": "somebody"})
        before = dict(rig.arm.pools[taken].properties)
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))
        assert rig.arm.pools[taken].properties == before
        assert [request.path.split("/")[-1] for request in rig.arm.calls("PUT")] == [taken, pool_name("uid-of-one", 2)]
        await rig.delete("one")
        assert rig.arm.pools[taken].properties == before


async def test_of_two_pools_one_is_kept() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        (pool,) = rig.ours()
        rig.arm.add_pool("kextra", **pool.properties)
        rig.apply("one")
        rig.clock.turn(20)
        await rig.run(lambda: len(rig.ours()) == 1, 600)
        assert [one.name for one in rig.ours()] == [pool.name]
        assert rig.ready("one")


async def test_deletion_while_the_pool_is_being_made() -> None:
    async with aks_rig() as rig:
        rig.arm.refuses_delete_while_creating = True
        rig.arm.create_s = 3000
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("PUT") != [])
        await rig.delete("one", 1200)
        assert rig.ours() == []
        assert [request.path.split("/")[-1] for request in rig.arm.calls("POST")] == ["abort"]


async def test_deletion_before_anything_was_made() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        assert await rig.delete("one") == 1
        assert {request.method for request in rig.arm.requests} == {"GET"}


async def test_deletion_waits_while_azure_does_not_answer() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        rig.arm.down = True
        workspace = rig.workspace("one")
        rig.clock.turn(20)
        before, delays = len(rig.arm.requests), []
        for _ in range(8):
            with pytest.raises(NotReadyYet) as refused:
                await rig.provisioner.release(workspace)
            assert refused.value.reason == "AzureUnavailable"
            delays.append(refused.value.delay_s)
            rig.clock.turn(refused.value.delay_s)
        assert delays == [15, 30, 60, 120, 240, 300, 300, 300]
        assert len(rig.arm.requests) - before <= 2 * 8, "aiohttp sends again once when a connection drops"
        rig.arm.down = False
        await rig.delete("one")
        assert rig.ours() == []


async def test_deletion_waits_for_a_stopped_cluster_and_says_so() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        rig.arm.power = "Stopped"
        rig.clock.turn(20)
        with pytest.raises(NotReadyYet, match="az aks start -g rg -n aks"):
            await rig.provisioner.release(rig.workspace("one"))
        assert rig.arm.calls("DELETE") == []


async def test_a_workspace_stays_ready_while_azure_does_not_answer() -> None:
    async with aks_rig() as rig:
        await _ready(rig)
        rig.arm.down = True
        await rig.run_for(3600)
        assert rig.ready("one")
        assert "1 of 1 nodes are ready" in rig.last("one").message
        rig.nodes.cordoned.add(rig.last("one").nodes[0])
        rig.apply("one")
        await rig.step("one")
        assert rig.last("one").reason == "AzureUnavailable"


async def test_pools_whose_workspace_is_gone_are_collected_and_no_others() -> None:
    async with aks_rig(namespaces=("default", "team-a")) as rig:
        await _ready(rig)
        tags = rig.ours()[0].properties["tags"]
        rig.arm.add_pool("korphan", mode="User", tags=tags | {"kaito-ray-workspace-uid": "gone"})
        rig.arm.add_pool(
            "kother", mode="User", tags=tags | {"kaito-ray-workspace-uid": "x", "kaito-ray-namespace": "team-b"}
        )
        young = {"kaito-ray-workspace-uid": "new", "kaito-ray-created": f"{rig.clock.now:%Y-%m-%dT%H:%M:%SZ}"}
        rig.arm.add_pool("kyoung", mode="User", tags=tags | young)
        rig.arm.add_pool("theirs", mode="User", tags={"owner": "somebody"})
        rig.clock.turn(60)
        assert await rig.provisioner.collect({"uid-of-one"}, rig.clock.now) == ("korphan",)
        rig.clock.turn(60)
        assert await rig.provisioner.collect({"uid-of-one"}, rig.clock.now) == ("kyoung",)
        rig.clock.turn(300)
        rig.arm.advance()
        assert sorted(rig.arm.pools) == sorted(["system", "theirs", "kother", rig.ours()[0].name])


async def test_sizes_are_compared_in_any_case_and_cordoned_nodes_do_not_count() -> None:
    async with aks_rig() as rig:
        rig.nodes.upper_case_sizes = True
        await _ready(rig)
        (name,) = rig.last("one").nodes
        rig.nodes.cordoned.add(name)
        rig.apply("one")
        await rig.step("one")
        assert not rig.ready("one")
        assert f"node {name} is cordoned; `kubectl uncordon` it" in rig.last("one").message
        await rig.run_for(3600)
        assert len(rig.arm.calls("PUT")) == 1, "what a person cordoned is left to that person"


async def test_a_cluster_with_its_own_network_has_it_copied() -> None:
    async with aks_rig() as rig:
        subnet = "/subscriptions/x/subnets/nodes"
        rig.arm.add_pool("system", vnetSubnetID=subnet, maxPods=50)
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("PUT") != [])
        properties = rig.arm.calls("PUT")[0].body["properties"]
        assert (properties["vnetSubnetID"], properties["maxPods"]) == (subnet, 50)


async def test_pools_beyond_the_first_page_are_seen() -> None:
    async with aks_rig() as rig:
        rig.arm.page = 2
        for number in range(5):
            rig.arm.add_pool(f"user{number}", mode="User")
        await _ready(rig)
        rig.restart()
        await rig.run_for(120)
        assert rig.ready("one")
        assert len(rig.arm.calls("PUT")) == 1
