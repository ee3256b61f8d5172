# SPDX-License-Identifier: Apache-2.0
"""Workspaces to Ready with KubeRay's own operator, which asks Ray's dashboard; nodes, pods and Ray are simulated."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.client import Client
from cluster.ray_dashboard import Dashboards
from cluster.ray_job_simulator import Running
from cluster.real import RealCluster
from kaito_ray.tuning_event import Data, Finished, Started
from kuberay_rig import PATIENCE_S, head_pods, ray_clusters, remove, start
from operator_rig import running_operator
from tuning_script import PUSH_SECRET
from workspace_rig import (
    RAY,
    condition,
    get,
    kuberay_cluster,
    user_manifest,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(240)

Object = dict[str, Any]
IMAGE, DIGEST = "registry.example.com/phi:0.0.1", "sha256:" + "a" * 64
BEGUN = (
    Data(rows=15011, format="messages", tokens=3_000_000, summary=("15,011 rows",)),
    Started(attempt=1, workers=1, total_steps=300),
)
TRAINING = Running(run_s=None, log="\n".join(one.line() for one in BEGUN))
DONE = Running(log="\n".join(one.line() for one in (*BEGUN, Finished(DIGEST, image=IMAGE, steps=300))))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster with KubeRay, an operator, a node for Ray's heads and a push secret."""
    folder = tmp_path_factory.mktemp("cluster")
    with kuberay_cluster(folder) as cluster, running_operator(cluster.kubeconfig, folder):
        cluster.add_node("cpu-1", cpu="1000", memory="4Ti")
        cluster.client.create(PUSH_SECRET)
        yield cluster


@pytest.fixture(scope="module")
def dashboards(cluster: RealCluster) -> Dashboards:
    return cluster.simulate_pods()


def endpoints(client: Client, service: str) -> list[Object]:
    """The pods that a Service sends requests to."""
    slices = client.list(
        "discovery.k8s.io/v1", "EndpointSlice", "default", labelSelector=f"kubernetes.io/service-name={service}"
    )
    return [one for part in slices for one in part.get("endpoints") or () if one["conditions"]["ready"]]


def a_tuning(number: str) -> Object:
    """A manifest of the user with its placeholders filled in, and nothing else changed."""
    document = user_manifest(number)
    document["tuning"]["output"] = {"image": IMAGE, "imagePushSecret": "push"}
    return document


@pytest.mark.usefixtures("dashboards")
@pytest.mark.parametrize("number", ["01", "03"])
def test_a_users_manifest_serves_and_takes_an_adapter_without_a_pause(cluster: RealCluster, number: str) -> None:
    client, name = cluster.client, start(cluster, user_manifest(number))
    workspace = wait_until_ready(client, name, PATIENCE_S)
    since = condition(workspace, "InferenceReady")["lastTransitionTime"]
    (pod,) = [one["targetRef"]["name"] for one in endpoints(client, name)]
    (before,) = ray_clusters(client, name)

    adapter = {"source": {"name": "sql", "image": "registry.example.com/sql:1"}}
    client.patch(get(client, name), {"inference": {"adapters": [adapter]}})

    def loaded(workspace: Object) -> bool:
        found = {one["name"]: one["state"] for one in workspace["status"].get("adapters", ())}
        return found == {"sql": "Loaded"}

    workspace = client.wait(lambda: get(client, name), loaded, PATIENCE_S)
    assert condition(workspace, "InferenceReady").items() >= {"status": "True", "lastTransitionTime": since}.items()
    (after,) = ray_clusters(client, name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert [one["targetRef"]["name"] for one in endpoints(client, name)] == [pod]
    remove(cluster, name)


@pytest.mark.parametrize("number", ["02", "04", "05"])
def test_a_users_manifest_is_tuned_and_served(cluster: RealCluster, dashboards: Dashboards, number: str) -> None:
    client = cluster.client
    cluster.call(lambda: dashboards.set_running(TRAINING))
    name = start(cluster, a_tuning(number))
    wait_for(client, name, "JobStarted", timeout_s=PATIENCE_S)
    cluster.call(lambda: dashboards.set_running(DONE))
    wait_for(client, name, "WorkspaceSucceeded", timeout_s=PATIENCE_S)
    wait_until_ready(client, name, PATIENCE_S)
    workspace = wait_for(client, name, "AdaptersReady", timeout_s=PATIENCE_S)
    assert workspace["status"]["output"].items() >= {"image": IMAGE, "digest": DIGEST}.items()
    assert [(one["name"], one["state"]) for one in workspace["status"]["adapters"]] == [(name, "Loaded")]
    # The job's cluster gave its GPU to the one that serves.
    (serving,) = ray_clusters(client, name)
    assert serving["metadata"]["ownerReferences"][0]["kind"] == "RayService"
    assert endpoints(client, name)
    remove(cluster, name)


def test_a_job_that_fails_once_is_tried_again(cluster: RealCluster, dashboards: Dashboards) -> None:
    client = cluster.client
    cluster.call(lambda: dashboards.set_running(Running(status="FAILED", message="CUDA error: out of memory")))
    name = start(cluster, a_tuning("05"))

    def failed(jobs: list[Object]) -> bool:
        return [one.get("status", {}).get("failed") for one in jobs] == [1]

    client.wait(
        lambda: client.list(RAY, "RayJob", "default", labelSelector=f"kaito.sh/workspace={name}"), failed, PATIENCE_S
    )
    cluster.call(lambda: dashboards.set_running(DONE))
    wait_until_ready(client, name, PATIENCE_S)
    remove(cluster, name)


def test_a_running_job_is_stopped_when_its_workspace_goes(cluster: RealCluster, dashboards: Dashboards) -> None:
    client = cluster.client
    cluster.call(lambda: dashboards.set_running(TRAINING))
    name = start(cluster, a_tuning("05"))
    wait_for(client, name, "JobStarted", timeout_s=PATIENCE_S)
    (job,) = client.list(RAY, "RayJob", "default", labelSelector=f"kaito.sh/workspace={name}")
    remove(cluster, name)
    assert job["metadata"]["name"] in cluster.call(dashboards.stopped)
    wait_until_gone(client, "v1", "Secret", f"{name}-ray-token", PATIENCE_S)
    client.wait(lambda: head_pods(client, name), lambda left: not left, PATIENCE_S)
