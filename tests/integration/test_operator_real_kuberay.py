# SPDX-License-Identifier: Apache-2.0
"""What we render, before KubeRay's own operator: accepted, acted upon, reported, and gone with its Workspace."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.real import RealCluster
from kuberay_rig import PATIENCE_S, head_pods, ray_clusters, remove, start
from operator_rig import running_operator
from workspace_rig import RAY, condition, get, kuberay_cluster, user_manifest, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster with KubeRay and an operator."""
    folder = tmp_path_factory.mktemp("cluster")
    with kuberay_cluster(folder) as cluster, running_operator(cluster.kubeconfig, folder):
        yield cluster


def pods_of(service: dict[str, Any]) -> dict[str, Any]:
    """What decides about pods, without the empty fields that KubeRay adds when it writes."""
    config = service["spec"]["rayClusterConfig"]
    groups = [{key: value for key, value in one.items() if value != {}} for one in config["workerGroupSpecs"]]
    return {**config, "workerGroupSpecs": groups}


@pytest.mark.parametrize("number", ["01", "03"])
def test_a_ray_service_is_taken_and_its_adapters_change_in_place(cluster: RealCluster, number: str) -> None:
    client, name = cluster.client, start(cluster, user_manifest(number))

    def taken(service: dict[str, Any]) -> bool:
        status = service.get("status") or {}
        return bool(status.get("observedGeneration") == service["metadata"]["generation"] and head_pods(client, name))

    client.wait(lambda: client.find(RAY, "RayService", name, "default"), bool, PATIENCE_S)
    service = client.wait(lambda: client.get(RAY, "RayService", name, "default"), taken, PATIENCE_S)
    reasons = {one["type"]: one["reason"] for one in service["status"]["conditions"]}
    assert reasons["Ready"] == "Initializing"
    workspace = wait_for(client, name, "InferenceReady", "False", timeout_s=PATIENCE_S)
    assert condition(workspace, "ResourceReady")["status"] == "True"
    assert condition(workspace, "InferenceReady")["message"]
    (before,) = ray_clusters(client, name)

    adapter = {"source": {"name": "sql", "image": "registry.example.com/sql:1"}}
    client.patch(get(client, name), {"inference": {"adapters": [adapter]}})

    def wished(service: dict[str, Any]) -> bool:
        (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        return [one["name"] for one in application["deployments"][0]["user_config"]["adapters"]] == ["sql"]

    edited = client.wait(lambda: client.get(RAY, "RayService", name, "default"), wished, PATIENCE_S)
    assert pods_of(edited) == pods_of(service)
    (after,) = ray_clusters(client, name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    remove(cluster, name)


@pytest.mark.parametrize("number", ["02", "04", "05"])
def test_a_ray_job_is_taken(cluster: RealCluster, number: str) -> None:
    client, name = cluster.client, start(cluster, user_manifest(number))

    def initializing(jobs: list[dict[str, Any]]) -> bool:
        return [(one.get("status") or {}).get("jobDeploymentStatus") for one in jobs] == ["Initializing"]

    client.wait(
        lambda: client.list(RAY, "RayJob", "default", labelSelector=f"kaito.sh/workspace={name}"),
        initializing,
        PATIENCE_S,
    )
    client.wait(lambda: head_pods(client, name), bool, PATIENCE_S)
    workspace = wait_for(client, name, "JobStarted", "False", timeout_s=PATIENCE_S)
    assert condition(workspace, "JobStarted")["reason"] == "WorkspaceTuningJobStatusPending"
    remove(cluster, name)
