# SPDX-License-Identifier: Apache-2.0
"""Every way in which Azure fails to give nodes: what the Workspace shows within 30 seconds, and what is done next."""

from datetime import timedelta
from typing import Any

import pytest

from cluster import azure_errors as azure
from cluster.aks_rig import Rig, aks_rig
from cluster.fake_pool import size

A100, A100_TWICE, H100 = "Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4", "Standard_NC40ads_H100_v5"


def _shown_after_s(rig: Rig, reason: str, since_s: float) -> float:
    """Seconds between `since_s` after the start and the first pass that showed the reason."""
    start = rig.seen["one"][0].at
    first = next(seen for seen in rig.seen["one"] if seen.observed.reason == reason)
    return (first.at - start - timedelta(seconds=since_s)).total_seconds()


# Pools of A100 are accepted and fail after 60 seconds; then the next of these is asked for and works.
@pytest.mark.parametrize(
    ("error", "annotations", "reason", "asked"),
    [
        (azure.FAMILY_QUOTA, {"instance_types": H100}, "SkuFamilyQuotaExceeded", [A100, H100]),
        (azure.FAMILY_QUOTA, {"instance_types": f"{A100_TWICE},{H100}"}, "SkuFamilyQuotaExceeded", [A100, H100]),
        (azure.SKU_UNAVAILABLE, {"instance_types": H100}, "SkuNotAvailable", [A100, H100]),
        (azure.SIZE_UNSUPPORTED, {"instance_types": H100}, "SkuNotAvailable", [A100, H100]),
        (azure.CAPACITY, {"instance_types": H100}, "AllocationFailed", [A100, H100]),
        (azure.SPOT_QUOTA, {"spot": "prefer"}, "SpotQuotaExceeded", [f"{A100} spot", A100]),
        (azure.CAPACITY, {"spot": "prefer"}, "AllocationFailed", [f"{A100} spot", A100]),
        (azure.SKU_UNAVAILABLE, {"spot": "prefer"}, "SkuNotAvailable", [f"{A100} spot", A100]),
        (azure.CAPACITY, {}, "AllocationFailed", [A100, f"{A100} zone 1"]),
        (azure.CAPACITY, {"spot": "require"}, "AllocationFailed", [f"{A100} spot", f"{A100} spot zone 1"]),
        (azure.BOOTSTRAP, {"instance_types": H100}, "NodeBootstrapFailed", [A100, A100]),
        (azure.PREEMPTED, {"instance_types": H100}, "OperationPreempted", [A100, A100]),
        (azure.VNET_BUSY, {"instance_types": H100}, "AzureUnavailable", [A100, A100]),
        (azure.SUBNET, {"instance_types": H100}, "SubnetTooSmall", [A100, A100]),
        (azure.INVALID, {"instance_types": H100}, "AgentPoolInvalid", [A100, H100]),
        (azure.UNHEARD_OF, {"instance_types": H100}, "ProvisioningFailed", [A100, H100]),
    ],
)
async def test_a_pool_that_fails_is_deleted_and_followed_by_what_helps(
    error: dict[str, Any], annotations: dict[str, str], reason: str, asked: list[str]
) -> None:
    async with aks_rig() as rig:
        rig.arm.fail(error, after_s=60, times=1)
        rig.apply("one")
        rig.annotate("one", **annotations)
        await rig.run(lambda: rig.ready("one"))

        assert rig.sizes_asked_for() == asked
        assert 0 <= _shown_after_s(rig, reason, 60) <= 30
        failed = next(seen.observed for seen in rig.seen["one"] if seen.observed.reason == reason)
        words = error["details"][0]["message"] if error["details"] else error["message"]
        assert words in failed.message
        assert "; next: " in failed.message or "; tried again at " in failed.message
        # The failed pool is gone before the next is asked for.
        delete, second_put = rig.arm.calls("DELETE")[0], rig.arm.calls("PUT")[1]
        assert second_put.at >= delete.at + timedelta(seconds=rig.arm.delete_s)
        assert [pool.state for pool in rig.ours()] == ["Succeeded"]
        assert "attempts" not in rig.last("one").node_pool
        assert reason in {notice.reason for notice in rig.notices}


@pytest.mark.parametrize(
    ("status", "error", "reason", "asked"),
    [
        (409, azure.FAMILY_QUOTA, "SkuFamilyQuotaExceeded", [A100, H100]),
        (409, azure.SKU_UNAVAILABLE, "SkuNotAvailable", [A100, H100]),
        (400, azure.INVALID, "AgentPoolInvalid", [A100, H100]),
        (409, azure.BUSY, "OperationInProgress", [A100, A100]),
        (409, azure.PREEMPTED, "OperationPreempted", [A100, A100]),
        (500, azure.an_error("InternalOperationError", "oops"), "AzureUnavailable", [A100, A100]),
        (429, azure.THROTTLED, "Throttled", [A100, A100]),
        (403, azure.NO_ROLE, "AuthorizationFailed", [A100, A100]),
    ],
)
async def test_a_pool_that_is_refused_at_once(
    status: int, error: dict[str, Any], reason: str, asked: list[str]
) -> None:
    async with aks_rig() as rig:
        rig.arm.answer("PUT", "agentPools/", status, {"error": error}, headers={"Retry-After": "120"})
        rig.apply("one")
        rig.annotate("one", instance_types=H100)
        await rig.run(lambda: rig.ready("one"))

        assert rig.sizes_asked_for() == asked
        assert _shown_after_s(rig, reason, 0) <= 30
        assert rig.arm.calls("DELETE") == []
        if asked[0] == asked[1]:  # the moment was wrong, not the size: Azure said for how long
            first, second = rig.arm.calls("PUT")
            assert second.at - first.at >= timedelta(seconds=120)


async def test_a_region_without_quota_is_not_asked_again_and_again() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.REGIONAL_QUOTA, after_s=10)
        rig.apply("one")
        rig.annotate("one", instance_types=H100)
        await rig.run_for(3600)

        assert rig.last("one").reason == "RegionalQuotaExceeded"
        assert "Total Regional Cores quota" in rig.last("one").message
        assert "tried again at 2026-09-01T" in rig.last("one").message
        assert set(rig.sizes_asked_for()) == {A100}
        assert len(rig.arm.calls("PUT")) <= 5

        rig.arm.forget()
        await rig.run(lambda: rig.ready("one"), 1800)


async def test_a_family_without_any_quota_waits_an_hour_and_says_when() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.NO_FAMILY_QUOTA, after_s=10)
        rig.apply("one")
        await rig.run_for(3000)
        assert len(rig.arm.calls("PUT")) == 1
        assert rig.last("one").reason == "SkuFamilyQuotaExceeded"
        assert rig.last("one").node_pool["nextAttemptAt"].startswith("2026-09-01T13:0")
        assert [attempt["reason"] for attempt in rig.last("one").node_pool["attempts"]] == ["SkuFamilyQuotaExceeded"]


async def test_zones_are_tried_one_by_one_after_the_region_failed() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.CAPACITY, when=size(zone=""), after_s=10)
        rig.arm.fail(azure.ZONAL_CAPACITY, when=size(zone="1"), after_s=10)
        rig.arm.fail(azure.ZONAL_CAPACITY, when=size(zone="2"), after_s=10)
        rig.apply("one")
        rig.annotate("one", instance_types=H100)
        await rig.run(lambda: rig.ready("one"))
        assert rig.sizes_asked_for() == [A100, H100, f"{A100} zone 1", f"{A100} zone 2", f"{A100} zone 3"]
        assert "ZonalAllocationFailed" in rig.reasons("one")


async def test_when_there_is_no_capacity_anywhere_each_candidate_is_named_and_none_is_hammered() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.CAPACITY, after_s=10)
        rig.apply("one")
        rig.annotate("one", instance_types=H100, spot="prefer")
        await rig.run_for(7200)
        assert rig.last("one").reason == "AllocationFailed"
        for candidate in (A100, f"{A100} (spot)", H100, f"{H100} (spot)"):
            assert candidate in rig.last("one").message
        # 4 candidates in the region and 3 zones of each, at most once an hour.
        assert len(rig.arm.calls("PUT")) <= 2 * 16
        assert len(rig.ours()) <= 1


async def test_machines_that_do_not_start_are_tried_twice_and_then_reported() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.BOOTSTRAP, after_s=60)
        rig.apply("one")
        await rig.run(lambda: len(rig.arm.calls("DELETE")) == 2)
        await rig.run_for(600)
        assert rig.sizes_asked_for() == [A100, A100]
        assert rig.last("one").reason == "NodeBootstrapFailed"
        assert "outbound network" in rig.last("one").message


async def test_what_the_region_cannot_give_is_not_even_asked_for() -> None:
    async with aks_rig() as rig:
        rig.arm.quotas = {"standardNCADSA100v4Family": (24, 12), "cores": (1000, 100)}
        rig.apply("one")
        await rig.run_for(300)
        assert rig.arm.calls("PUT") == []
        assert rig.last("one").reason == "SkuFamilyQuotaExceeded"
        assert "needs 24 vCPUs of StandardNCADSA100v4Family in eastus, of which 12 of 24 are in use" in (
            rig.last("one").message
        )
        rig.arm.quotas = {"standardNCADSA100v4Family": (48, 12), "cores": (1000, 100)}
        await rig.run(lambda: rig.ready("one"), 1200)


async def test_a_quota_that_was_raised_is_noticed_before_the_hour_is_over() -> None:
    async with aks_rig() as rig:
        rig.arm.fail(azure.NO_FAMILY_QUOTA, after_s=10, times=1)
        rig.arm.quotas = {"standardncadsa100v4family": (100, 0), "cores": (1000, 0)}
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"), 1500)


async def test_gpus_that_never_show_up_cost_no_more_than_the_deadline() -> None:
    async with aks_rig() as rig:
        rig.nodes.no_plugin = True
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("DELETE") != [], 4000)
        assert 2700 <= (rig.clock.now - rig.seen["one"][0].at).total_seconds() <= 2760
        timed_out = next(seen.observed for seen in rig.seen["one"] if seen.observed.reason == "NodesTimedOut")
        assert "has 0 allocatable nvidia.com/gpu, 1 are needed (is the device plugin running?)" in timed_out.message
        rig.nodes.no_plugin = False
        await rig.run(lambda: rig.ready("one"), 1500)


async def test_the_deadline_may_also_be_the_end() -> None:
    async with aks_rig(node_timeout_policy="stop", node_timeout_minutes=20) as rig:
        rig.nodes.no_plugin = True
        rig.apply("one")
        await rig.run_for(4 * 3600)
        assert len(rig.arm.calls("PUT")) == 1
        assert rig.ours() == []
        assert rig.last("one").reason == "NodesTimedOut"
        assert "KAITO_RAY_NODE_TIMEOUT_POLICY is stop" in rig.last("one").message
        rig.nodes.no_plugin = False
        rig.annotate("one", instance_types=H100)
        await rig.run(lambda: rig.ready("one"), 1500)


async def test_a_slow_node_is_shown_and_left_alone() -> None:
    async with aks_rig() as rig:
        rig.arm.make(takes_s=15 * 60)
        rig.nodes.register_s, rig.nodes.plugin_s = 300, 900
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"), 2000)
        assert len(rig.arm.calls("PUT")) == 1
        assert rig.arm.calls("DELETE") == []
        assert rig.reasons("one") == ["AgentPoolCreating", "NodesJoining", "NodesReady"]
        messages = [seen.observed.message for seen in rig.seen["one"]]
        assert any("is Creating since 2026-09-01T12:00:00Z, which is longer than usual" in text for text in messages)
        assert any("1 not in the cluster yet" in text for text in messages)


@pytest.mark.parametrize(("state", "power"), [("Succeeded", "Stopped"), ("Updating", "Running"), ("Failed", "Running")])
async def test_nothing_is_written_while_the_cluster_is_not_running(state: str, power: str) -> None:
    async with aks_rig() as rig:
        rig.arm.cluster_state, rig.arm.power = state, power
        rig.apply("one")
        await rig.run_for(600)
        assert {request.method for request in rig.arm.requests} == {"GET"}
        assert rig.last("one").reason == "ClusterNotReady"
        rig.arm.cluster_state, rig.arm.power = "Succeeded", "Running"
        await rig.run(lambda: rig.ready("one"), 900)


async def test_a_missing_role_is_told_and_not_asked_for_every_second() -> None:
    async with aks_rig() as rig:
        rig.arm.answer("GET", "agentPools$", 403, {"error": azure.NO_ROLE}, times=None)
        rig.apply("one")
        await rig.run_for(1800)
        assert rig.last("one").reason == "AuthorizationFailed"
        assert "agentPools/read" in rig.last("one").message
        assert "role" in rig.last("one").message
        assert len(rig.arm.requests) <= 7
        rig.arm.forget()
        await rig.run(lambda: rig.ready("one"), 1200)


async def test_a_cluster_of_another_name_is_told() -> None:
    async with aks_rig() as rig:
        body = azure.an_error("ResourceNotFound", "The Resource 'managedClusters/aks' was not found.")
        rig.arm.answer("GET", "agentPools$", 404, {"error": body}, times=None)
        rig.apply("one")
        await rig.run_for(60)
        assert rig.last("one").reason == "ClusterNotFound"
        assert "KAITO_RAY_CLUSTER_NAME" in rig.last("one").message


async def test_a_fallback_is_planned_for_its_own_size() -> None:
    async with aks_rig() as rig:
        rig.node_counts = {A100: 2, H100: 1}
        rig.too_small = {"Standard_NV36ads_A10_v5"}
        rig.arm.fail(azure.CAPACITY, when=size(A100), after_s=10)
        rig.apply("one")
        rig.annotate("one", instance_types=f"Standard_NV36ads_A10_v5,{H100},Standard_Nonsense")
        await rig.run(lambda: rig.ready("one"))
        assert [
            (put.body["properties"]["vmSize"], put.body["properties"]["count"]) for put in rig.arm.calls("PUT")
        ] == [
            (A100, 2),
            (H100, 1),
        ]
        assert rig.last("one").node_pool["instanceType"] == H100


async def test_sizes_that_cannot_be_used_are_named_when_nothing_else_is_left() -> None:
    async with aks_rig() as rig:
        rig.too_small = {H100}
        rig.arm.fail(azure.FAMILY_QUOTA, after_s=10)
        rig.apply("one")
        rig.annotate("one", instance_types=f"{H100},Standard_Nonsense")
        await rig.run_for(400)
        assert f"{H100}: the model does not fit" in rig.last("one").message
        assert 'no GPU size is called "Standard_Nonsense"' in rig.last("one").message


async def test_caps_on_all_pools_together() -> None:
    async with aks_rig(max_total_nodes=1) as rig:
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))
        rig.apply("two")
        await rig.run_for(300)
        assert rig.last("two").reason == "NodeCapReached"
        assert "1 GPU nodes exist and 1 more would pass the cap of 1 (KAITO_RAY_MAX_TOTAL_NODES)" in (
            rig.last("two").message
        )
        await rig.delete("one")
        await rig.run(lambda: rig.ready("two"), 900)
    async with aks_rig(max_total_hourly_usd=5.0) as rig:
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))
        rig.apply("two")
        await rig.run_for(300)
        assert rig.last("two").reason == "CostCapReached"
        assert "agent pools cost $3.67 an hour and $3.67 more would pass the cap of $5.00" in rig.last("two").message
