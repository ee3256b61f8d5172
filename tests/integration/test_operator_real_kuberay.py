# SPDX-License-Identifier: Apache-2.0
"""What we render, before KubeRay's own operator: accepted, acted upon, reported, and gone with its Workspace."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.real import RealCluster
from operator_rig import running_operator
from workspace_rig import RAY, condition, get, kuberay_cluster, user_manifest, wait_for, wait_until_gone

pytestmark = pytest.mark.timeout(180)
_PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster with KubeRay and an operator."""
    folder = tmp_path_factory.mktemp("cluster")
    with kuberay_cluster(folder) as cluster, running_operator(cluster.kubeconfig, folder):
        yield cluster


def apply(cluster: RealCluster, number: str) -> str:
    """One of the user's manifests, and a node for it; its name."""
    document = user_manifest(number)
    name: str = document["metadata"]["name"]
    resource = document["resource"]
    labels = resource["labelSelector"]["matchLabels"]
    cluster.add_node(f"gpu-{name}", gpus=1, labels=labels, instance_type=resource["instanceType"])
    cluster.client.create(document)
    return name


def clusters(client: Client, workspace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.list(
        RAY, "RayCluster", "default", labelSelector=f"kaito.sh/workspace={workspace}"
    )
    return found


def head_pods(client: Client, workspace: str) -> list[dict[str, Any]]:
    labels = f"kaito.sh/workspace={workspace},ray.io/node-type=head"
    found: list[dict[str, Any]] = client.list("v1", "Pod", "default", labelSelector=labels)
    return found


def pods_of(service: dict[str, Any]) -> dict[str, Any]:
    """What decides about pods, without the empty fields that KubeRay adds when it writes."""
    config = service["spec"]["rayClusterConfig"]
    groups = [{key: value for key, value in one.items() if value != {}} for one in config["workerGroupSpecs"]]
    return {**config, "workerGroupSpecs": groups}


def remove(cluster: RealCluster, name: str) -> None:
    """The Workspace goes, and everything with it."""
    client = cluster.client
    client.delete(get(client, name))
    for kind in ("RayService", "RayJob"):
        client.wait(
            functools.partial(client.list, RAY, kind, "default", labelSelector=f"kaito.sh/workspace={name}"),
            lambda left: not left,
            _PATIENCE_S,
        )
    client.wait(lambda: clusters(client, name), lambda left: not left, _PATIENCE_S)
    wait_until_gone(client, "kaito.sh/v1beta1", "Workspace", name, _PATIENCE_S)
    cluster.remove_node(f"gpu-{name}")


@pytest.mark.parametrize("number", ["01", "03"])
def test_a_ray_service_is_taken_and_its_adapters_change_in_place(cluster: RealCluster, number: str) -> None:
    client, name = cluster.client, apply(cluster, number)

    def taken(service: dict[str, Any]) -> bool:
        status = service.get("status") or {}
        return bool(status.get("observedGeneration") == service["metadata"]["generation"] and head_pods(client, name))

    client.wait(lambda: client.find(RAY, "RayService", name, "default"), bool, _PATIENCE_S)
    service = client.wait(lambda: client.get(RAY, "RayService", name, "default"), taken, _PATIENCE_S)
    reasons = {one["type"]: one["reason"] for one in service["status"]["conditions"]}
    assert reasons["Ready"] == "Initializing"
    workspace = wait_for(client, name, "InferenceReady", "False", timeout_s=_PATIENCE_S)
    assert condition(workspace, "ResourceReady")["status"] == "True"
    assert condition(workspace, "InferenceReady")["message"]
    (before,) = clusters(client, name)

    adapter = {"source": {"name": "sql", "image": "registry.example.com/sql:1"}}
    client.patch(get(client, name), {"inference": {"adapters": [adapter]}})

    def wished(service: dict[str, Any]) -> bool:
        (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        return [one["name"] for one in application["deployments"][0]["user_config"]["adapters"]] == ["sql"]

    edited = client.wait(lambda: client.get(RAY, "RayService", name, "default"), wished, _PATIENCE_S)
    assert pods_of(edited) == pods_of(service)
    (after,) = clusters(client, name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    remove(cluster, name)


@pytest.mark.parametrize("number", ["02", "04", "05"])
def test_a_ray_job_is_taken(cluster: RealCluster, number: str) -> None:
    client, name = cluster.client, apply(cluster, number)

    def initializing(jobs: list[dict[str, Any]]) -> bool:
        return [(one.get("status") or {}).get("jobDeploymentStatus") for one in jobs] == ["Initializing"]

    client.wait(
        lambda: client.list(RAY, "RayJob", "default", labelSelector=f"kaito.sh/workspace={name}"),
        initializing,
        _PATIENCE_S,
    )
    client.wait(lambda: head_pods(client, name), bool, _PATIENCE_S)
    workspace = wait_for(client, name, "JobStarted", "False", timeout_s=_PATIENCE_S)
    assert condition(workspace, "JobStarted")["reason"] == "WorkspaceTuningJobStatusPending"
    remove(cluster, name)
