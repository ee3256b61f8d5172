# SPDX-License-Identifier: Apache-2.0
"""Changes that need another Ray cluster: beside the old one where GPUs are free, instead of it where none are."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.client import Client
from cluster.fixture import Cluster
from cluster.ray_job_simulator import Running
from operator_rig import running_operator
from workspace_rig import (
    RAY,
    a_serving,
    condition,
    get,
    simulated_cluster,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with an operator, and a Secret with keys that a Workspace may name."""
    folder = tmp_path_factory.mktemp("cluster")
    with simulated_cluster(folder) as cluster, running_operator(cluster.kubeconfig, folder):
        cluster.client.create(secret("keys", {"alice": "c2VjcmV0"}))
        yield cluster


def secret(name: str, data: dict[str, str], kind: str = "Opaque") -> Object:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": data}


def ask_for_keys(client: Client, name: str) -> None:
    """A change of the pods: another volume."""
    client.patch(get(client, name), {"metadata": {"annotations": {"kaito-ray.io/api-keys": "keys"}}})


def clusters(client: Client, name: str) -> set[str]:
    found = client.list(RAY, "RayCluster", "default", labelSelector=f"kaito.sh/workspace={name}")
    return {one["metadata"]["name"] for one in found}


def events(client: Client, name: str) -> set[str]:
    return {
        event["reason"]
        for event in client.list("v1", "Event", "default")
        if event["involvedObject"]["name"] == name and event["involvedObject"]["kind"] == "Workspace"
    }


def test_without_free_gpus_the_old_cluster_goes_first(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-lone", gpus=1, labels={"apps": "lone"})
    client.create(a_serving("lone", "lone"))
    wait_until_ready(client, "lone")
    (old,) = clusters(client, "lone")
    ask_for_keys(client, "lone")
    wait_for(client, "lone", "InferenceReady", "False")
    wait_until_ready(client, "lone", 30)
    (new,) = client.wait(lambda: clusters(client, "lone"), lambda names: len(names) == 1 and old not in names)
    assert new != old
    service = client.get(RAY, "RayService", "lone", "default")
    assert not service["spec"].get("suspend")
    assert "Recreating" in events(client, "lone")


def test_with_free_gpus_the_new_cluster_takes_over(cluster: Cluster) -> None:
    client = cluster.client
    for number in (1, 2):
        cluster.add_node(f"gpu-pair-{number}", gpus=1, labels={"apps": "pair"})
    client.create(a_serving("pair", "pair"))
    wait_until_ready(client, "pair")
    (old,) = clusters(client, "pair")
    ask_for_keys(client, "pair")
    client.wait(lambda: clusters(client, "pair"), lambda names: len(names) == 1 and old not in names, 30)
    wait_until_ready(client, "pair", 30)
    assert "RollingOut" in events(client, "pair")
    assert "Recreating" not in events(client, "pair")


def test_a_secret_that_is_named_but_missing_is_waited_for(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-keyless", gpus=1, labels={"apps": "keyless"})
    document = a_serving("keyless", "keyless", metadata={"annotations": {"kaito-ray.io/api-keys": "not-yet"}})
    client.create(document)
    workspace = wait_for(client, "keyless", "InferenceReady", "False", reason="ReferenceMissing")
    assert "Secret not-yet" in condition(workspace, "InferenceReady")["message"]
    client.create(secret("not-yet", {"alice": "c2VjcmV0"}))
    wait_until_ready(client, "keyless")


def test_pull_secrets_are_gathered_and_followed(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-pulling", gpus=1, labels={"apps": "pulling"})
    pull = secret("pull", {".dockerconfigjson": "e30="}, "kubernetes.io/dockerconfigjson")
    client.create(pull)
    source = {"name": "sql", "image": "registry.example.com/sql:1", "imagePullSecrets": ["pull"]}
    client.create(a_serving("pulling", "pulling", inference={"adapters": [{"source": source}]}))
    wait_until_ready(client, "pulling")
    gathered = client.get("v1", "Secret", "pulling-registry", "default")
    assert gathered["data"] == {"pull.json": "e30="}
    (before,) = clusters(client, "pulling")
    client.patch(pull, {"data": {".dockerconfigjson": "eyJhdXRocyI6e319"}})
    client.wait(
        lambda: client.get("v1", "Secret", "pulling-registry", "default")["data"],
        lambda data: data == {"pull.json": "eyJhdXRocyI6e319"},
    )
    assert clusters(client, "pulling") == {before}


def a_tuning(name: str, image: str) -> Object:
    document = a_serving(name, name)
    del document["inference"]
    document["tuning"] = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data/train.parquet"]},
        "output": {"image": image, "imagePushSecret": "push"},
    }
    return document


def test_tuning_runs_once_for_each_wish(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-tuned", gpus=1, labels={"apps": "tuned"})
    client.create(secret("push", {".dockerconfigjson": "e30="}, "kubernetes.io/dockerconfigjson"))
    client.create(a_tuning("tuned", "registry.example.com/adapters/phi:1"))
    workspace = wait_for(client, "tuned", "WorkspaceSucceeded")
    assert condition(workspace, "JobStarted")["status"] == "True"
    (job,) = client.list(RAY, "RayJob", "default")
    # What was done is not done again when somebody tidies up.
    client.delete(job)
    wait_until_gone(client, RAY, "RayJob", job["metadata"]["name"])
    client.patch(get(client, "tuned"), {"metadata": {"labels": {"team": "a"}}})
    wait_for(client, "tuned", "WorkspaceSucceeded")
    assert client.list(RAY, "RayJob", "default") == []
    # Another wish is another job.
    client.patch(get(client, "tuned"), {"tuning": {"output": {"image": "registry.example.com/adapters/phi:2"}}})
    (second,) = client.wait(lambda: client.list(RAY, "RayJob", "default"), bool)
    assert second["metadata"]["name"] != job["metadata"]["name"]
    wait_for(client, "tuned", "WorkspaceSucceeded")


def test_a_changed_wish_replaces_the_job_that_runs(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-replaced", gpus=1, labels={"apps": "replaced"})
    cluster.set_running("default", "", Running(run_s=None))
    client.create(a_tuning("replaced", "registry.example.com/adapters/phi:1"))
    wait_for(client, "replaced", "JobStarted")
    (first,) = client.list(RAY, "RayJob", "default", labelSelector="kaito.sh/workspace=replaced")
    client.patch(get(client, "replaced"), {"tuning": {"output": {"image": "registry.example.com/adapters/phi:2"}}})
    wait_until_gone(client, RAY, "RayJob", first["metadata"]["name"])
    (second,) = client.list(RAY, "RayJob", "default", labelSelector="kaito.sh/workspace=replaced")
    assert second["metadata"]["name"] != first["metadata"]["name"]
    cluster.set_running("default", "", Running(run_s=0.05, status="FAILED", message="loss is NaN"))
    workspace = wait_for(client, "replaced", "JobStarted", "False", reason="WorkspaceTuningJobStatusFailed")
    assert "loss is NaN" in condition(workspace, "JobStarted")["message"]
    assert workspace["status"]["state"] == "Failed"
