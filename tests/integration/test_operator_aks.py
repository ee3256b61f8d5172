# SPDX-License-Identifier: Apache-2.0
"""GPU nodes that come and go by themselves: the operator as a process, a test cluster, and a fake Azure."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from azure_rig import azure_of, azure_settings
from cluster import azure_errors as azure
from cluster.client import Client
from cluster.container_state import Script
from cluster.fake_arm import FakeArm
from cluster.fake_pool import size
from cluster.fixture import Cluster
from cluster.ray_job_simulator import Running
from operator_rig import Operator, running_operator
from tuning_script import DATA, PUSH_SECRET, STARTED, STEP, a_tuning, finished, resumed, running
from waiting import until
from workspace_rig import API, RAY, a_serving, condition, get, simulated_cluster, wait_for, wait_until_gone

pytestmark = pytest.mark.timeout(180)

A100, H100 = "Standard_NC24ads_A100_v4", "Standard_NC40ads_H100_v5"
# Passes are 10 seconds and more apart while Azure works, as they are in real life.
PATIENCE_S = 60
ORPHAN = "korphan"
SPOT_LOST = (
    "0 of 1 nodes are ready; 1 not in the cluster; Azure takes spot nodes back when it needs them, and others are"
    " asked for"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a push secret, where training data is found good."""
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.client.create(PUSH_SECRET)
        cluster.script(Script("exit", (("kaito-ray.io/part", "lint"),), exit_code=0, message=DATA.line()))
        yield cluster


@pytest.fixture(scope="module")
def azure_of_all(cluster: Cluster) -> Iterator[FakeArm]:
    """Azure with a pool that was made for a Workspace of the past."""
    with azure_of(cluster) as arm:
        orphan = {"kaito-ray-workspace-uid": "gone", "kaito-ray-created": "2026-01-01T00:00:00Z"}
        arm.add_pool(ORPHAN, count=0, mode="User", tags=orphan)
        yield arm


@pytest.fixture
def arm(azure_of_all: FakeArm) -> FakeArm:
    """The same without scripts and memories of other tests."""
    azure_of_all.forget()
    azure_of_all.requests.clear()
    return azure_of_all


def an_operator(cluster: Cluster, arm: FakeArm, folder: Path) -> Any:
    return running_operator(cluster.kubeconfig, folder, **azure_settings(arm))


@pytest.fixture(scope="module")
def operator(cluster: Cluster, azure_of_all: FakeArm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with an_operator(cluster, azure_of_all, tmp_path_factory.mktemp("operator")) as operator:
        yield operator


@pytest.fixture
def client(cluster: Cluster, operator: Operator) -> Client:
    assert operator.running
    return cluster.client


def a_tuning_on(size: str, name: str, annotations: dict[str, str]) -> dict[str, Any]:
    """A tuning Workspace on a size for which the operator of these tests does not remember that there is no quota."""
    document = a_tuning(name, metadata={"annotations": annotations})
    document["resource"]["instanceType"] = size
    return document


def ready(client: Client, name: str) -> dict[str, Any]:
    return wait_for(client, name, "WorkspaceReady", timeout_s=PATIENCE_S)


def gone(client: Client, name: str) -> None:
    client.delete(get(client, name))
    wait_until_gone(client, API, "Workspace", name, PATIENCE_S)


def test_from_apply_to_ready_to_gone(client: Client, arm: FakeArm) -> None:
    client.create(a_serving("phi", "phi"))
    wait_for(client, "phi", "ResourceReady", "False", reason="AgentPoolCreating", timeout_s=PATIENCE_S)
    assert client.find(RAY, "RayService", "phi", "default") is None, "no RayService before there are nodes"
    workspace = ready(client, "phi")
    (put,) = arm.calls("PUT")
    assert put.body["properties"]["nodeLabels"]["apps"] == "phi"
    assert put.body["properties"]["tags"]["kaito-ray-workspace-uid"] == workspace["metadata"]["uid"]
    pool = workspace["status"]["nodePool"]
    assert (pool["state"], pool["instanceType"], pool["ready"], pool["wanted"]) == ("Succeeded", A100, 1, 1)
    (node,) = workspace["status"]["workerNodes"]
    assert node.startswith(f"aks-{pool['name']}-")

    client.delete(get(client, "phi"))
    client.wait(lambda: arm.calls("DELETE", put.path), bool, PATIENCE_S)
    assert get(client, "phi")["metadata"]["finalizers"], "the finalizer stays until the pool is gone"
    wait_until_gone(client, API, "Workspace", "phi", PATIENCE_S)
    assert arm.pools.keys() - {ORPHAN} == {"system"}
    assert [one["metadata"]["name"] for one in client.list("v1", "Node")] == ["cpu-1"]


def test_a_quota_is_told_and_the_next_size_is_served_on(client: Client, arm: FakeArm) -> None:
    arm.fail(azure.FAMILY_QUOTA, when=size(A100), after_s=0.5)
    annotations = {"kaito-ray.io/instance-types": H100}
    client.create(a_serving("fallback", "fallback", metadata={"annotations": annotations}))
    workspace = wait_for(
        client, "fallback", "ResourceReady", "False", reason="SkuFamilyQuotaExceeded", timeout_s=PATIENCE_S
    )
    message = condition(workspace, "ResourceReady")["message"]
    assert "exceeding approved standardNCADSA100v4Family Cores quota" in message
    workspace = ready(client, "fallback")
    assert workspace["status"]["nodePool"]["instanceType"] == H100
    assert [request.body["properties"]["vmSize"] for request in arm.calls("PUT")] == [A100, H100]
    events = {event["reason"] for event in client.list("v1", "Event", "default")}
    assert {"SkuFamilyQuotaExceeded", "AgentPoolRequested", "AgentPoolDeleted", "NodesReady"} <= events
    gone(client, "fallback")


def test_an_evicted_node_shows_and_is_replaced(client: Client, arm: FakeArm) -> None:
    client.create(a_serving("spot", "spot", metadata={"annotations": {"kaito-ray.io/spot": "prefer"}}))
    workspace = ready(client, "spot")
    assert workspace["status"]["nodePool"]["priority"] == "Spot"
    arm.evict(workspace["status"]["nodePool"]["name"])
    # For a moment it may say that the next pod finds no node, which is as true.
    wait_for(client, "spot", "WorkspaceReady", "False", timeout_s=30)
    client.wait(lambda: condition(get(client, "spot"), "WorkspaceReady")["message"], {SPOT_LOST}.__contains__, 30)
    ready(client, "spot")
    assert len(arm.calls("PUT")) == 2
    gone(client, "spot")


def test_tuning_goes_on_after_every_eviction(cluster: Cluster, client: Client, arm: FakeArm) -> None:
    cluster.set_running("default", "", running(DATA, STARTED, STEP))
    client.create(a_tuning_on(H100, "evicted", {"kaito-ray.io/spot": "prefer"}))
    client.wait(lambda: get(client, "evicted").get("status", {}).get("tuning", {}).get("step"), {20}.__contains__, 60)
    (job,) = client.list(RAY, "RayJob", "default")
    pool = get(client, "evicted")["status"]["nodePool"]
    assert pool["priority"] == "Spot"
    for attempt in (2, 3, 4):
        step = 20 * attempt
        arm.evict(pool["name"])
        workspace = wait_for(client, "evicted", "ResourceReady", "False")
        assert condition(workspace, "ResourceReady")["message"] == SPOT_LOST
        assert condition(workspace, "WorkspaceReady")["status"] == "False"
        cluster.set_running("default", job["metadata"]["name"], running(*resumed(attempt, step)))
        client.wait(
            lambda: get(client, "evicted")["status"]["tuning"].get("resumedFrom"), {step}.__contains__, PATIENCE_S
        )
        workspace = wait_for(client, "evicted", "ResourceReady", timeout_s=PATIENCE_S)
        shown = {"state": "Training", "attempt": attempt, "step": step + 10}
        assert workspace["status"]["tuning"].items() >= shown.items()
        assert condition(workspace, "JobStarted")["status"] == "True"
    cluster.set_running("default", job["metadata"]["name"], finished(started=replace(STARTED, attempt=4)))
    ready(client, "evicted")
    wait_for(client, "evicted", "WorkspaceSucceeded")
    (same,) = client.list(RAY, "RayJob", "default")
    assert same["metadata"]["uid"] == job["metadata"]["uid"]
    assert [one.body["properties"]["count"] for one in arm.calls("PUT")] == [1, 1, 1, 1]
    gone(client, "evicted")
    cluster.set_running("default", "", Running())


def test_a_pool_whose_workspace_is_gone_is_collected(client: Client, arm: FakeArm) -> None:
    assert client.list(API, "Workspace", "default") == []
    until(lambda: ORPHAN not in arm.pools or arm.pools[ORPHAN].state == "Deleting", 90)


def test_nodes_are_given_back_when_tuning_is_done(client: Client, arm: FakeArm) -> None:
    annotations = {"kaito-ray.io/after-tuning": "release"}
    document = a_tuning_on(H100, "tuned", annotations)
    client.create(document)
    wait_for(client, "tuned", "WorkspaceSucceeded", timeout_s=PATIENCE_S)
    workspace = wait_for(client, "tuned", "ResourceReady", "False", reason="NodesReleased", timeout_s=PATIENCE_S)
    assert arm.pools.keys() - {ORPHAN} == {"system"}
    assert workspace["status"]["state"] == "Succeeded"
    assert condition(workspace, "WorkspaceReady")["reason"] == "NodesReleased"
    assert "workerNodes" not in workspace["status"]
    # Another wish gets nodes again.
    client.patch(workspace, {"tuning": {"output": {"image": "registry.example.com/phi:2"}}})
    wait_for(client, "tuned", "ResourceReady", timeout_s=PATIENCE_S)
    wait_for(client, "tuned", "ResourceReady", "False", reason="NodesReleased", timeout_s=PATIENCE_S)
    assert get(client, "tuned")["status"]["output"]["image"] == "registry.example.com/phi:2"
    gone(client, "tuned")


def test_an_operator_killed_after_the_pool_was_asked_for(
    cluster: Cluster, arm: FakeArm, operator: Operator, tmp_path: Path
) -> None:
    client = cluster.client
    operator.stop()
    with an_operator(cluster, arm, tmp_path) as first:

        def kill(_: int, when: str) -> None:
            if when == "after" and arm.requests[-1].method == "PUT":
                arm.on_request = None
                first.kill()

        arm.on_request = kill
        client.create(a_serving("orphan", "orphan"))
        client.wait(lambda: first.running, lambda running: not running, PATIENCE_S)
    assert len(arm.calls("PUT")) == 1
    assert "nodePool" not in (get(client, "orphan").get("status") or {})
    with an_operator(cluster, arm, tmp_path):
        workspace = ready(client, "orphan")
        assert len(arm.calls("PUT")) == 1
        assert workspace["status"]["nodePool"]["attempt"] == 1
        gone(client, "orphan")
    assert arm.pools.keys() - {ORPHAN} == {"system"}


def test_an_operator_without_an_identity_says_what_is_missing(cluster: Cluster, tmp_path: Path) -> None:
    operator = Operator(cluster.kubeconfig, tmp_path, provisioner="aks", cluster_name="aks", location="eastus")
    until(lambda: not operator.running, 30, lambda: "it stops instead of running without nodes")
    for words in (
        "KAITO_RAY_SUBSCRIPTION_ID: is not set",
        "KAITO_RAY_RESOURCE_GROUP: is not set",
        "AZURE_CLIENT_ID AZURE_TENANT_ID AZURE_FEDERATED_TOKEN_FILE: are not set",
        "azure.workload.identity/client-id",
    ):
        assert words in operator.log
