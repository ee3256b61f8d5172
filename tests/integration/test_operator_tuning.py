# SPDX-License-Identifier: Apache-2.0
"""Tuning Workspaces on the test cluster, from `kubectl apply` to the served adapter, and what goes wrong meanwhile."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.fixture import Cluster
from cluster.ray_job_simulator import Running
from kaito_ray.tuning_event import Data, Event, Failed, Finished, Started, Step, Waiting
from operator_rig import Operator, running_operator
from workspace_rig import (
    MANIFESTS,
    RAY,
    a_push_secret,
    a_serving,
    condition,
    get,
    kubectl,
    simulated_cluster,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]
DATA = Data(rows=15011, format="messages", tokens=3_000_000, summary=("15,011 rows",))
STARTED = Started(attempt=1, workers=1, total_steps=300)
STEP = Step(
    step=20,
    total_steps=300,
    epoch=0.2,
    time="2026-11-21T05:00:00Z",
    loss=3.21,
    learning_rate=1.8e-4,
    tokens_per_second=512.0,
    eta_seconds=840,
    gpu_memory_gib=11.5,
)
DIGEST = "sha256:" + "a" * 64


def log(*events: Event) -> str:
    """A driver's log: its own lines among others."""
    return "\n".join(["2026-11-21 INFO worker.py: Connected to Ray", *(event.line() for event in events), "a warning"])


def running(*events: Event) -> Running:
    return Running(run_s=None, log=log(*events))


def finished(digest: str = DIGEST, image: str = "registry.example.com/phi:0.0.1") -> Running:
    return Running(log=log(DATA, STARTED, STEP, Finished(digest, image=image, steps=300)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with a push secret and no operator yet."""
    with simulated_cluster(folder) as cluster:
        cluster.client.create(a_push_secret())
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: Cluster, folder: Path) -> Iterator[Operator]:
    with running_operator(cluster.kubeconfig, folder) as operator:
        yield operator


def a_tuning(cluster: Cluster, name: str, **overrides: Any) -> Object:
    """A tuning Workspace with a node of its own."""
    cluster.add_node(f"gpu-{name}", gpus=1, labels={"apps": name})
    document = a_serving(name, name, **overrides)
    del document["inference"]
    document["tuning"] = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data/train.parquet"]},
        "output": {"image": "registry.example.com/phi:0.0.1", "imagePushSecret": "push"},
    }
    return document


def jobs(client: Client, workspace: str) -> list[Object]:
    found: list[Object] = client.list(RAY, "RayJob", "default", labelSelector=f"kaito.sh/workspace={workspace}")
    return found


def job(client: Client, workspace: str) -> Object:
    (found,) = client.wait(lambda: jobs(client, workspace), bool)
    return dict(found)


def script(cluster: Cluster, workspace: str, running: Running) -> str:
    """Have the job of a Workspace, which is there, go so; its name."""
    name: str = job(cluster.client, workspace)["metadata"]["name"]
    cluster.set_running("default", name, running)
    return name


def asked_of_replicas(client: Client, ray_service: str) -> Object:
    """What may change while they serve."""
    config = yaml.safe_load(client.get(RAY, "RayService", ray_service, "default")["spec"]["serveConfigV2"])
    return dict(config["applications"][0]["deployments"][0]["user_config"])


def adapters(client: Client, ray_service: str) -> list[Object]:
    found: list[Object] = asked_of_replicas(client, ray_service)["adapters"]
    return found


def seed(folder: Path, number: str) -> Path:
    """A manifest of the user with its placeholders filled in, and nothing else changed."""
    if not MANIFESTS.is_dir():
        pytest.skip("needs ../shared/user-manifests")
    (path,) = MANIFESTS.glob(f"{number}-*.yaml")
    text = path.read_text().replace("ACR_REPO_HERE.azurecr.io/IMAGE_NAME_HERE", "registry.example.com/phi")
    file = folder / path.name
    file.write_text(text.replace("ACR_REGISTRY_SECRET_HERE", "push"))
    return file


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("number", "name", "label"),
    [
        ("02", "workspace-phi-3-mini", "phi-3-adapter"),
        ("04", "workspace-phi-3-mini-adapter", "phi-3-adapter"),
        ("05", "workspace-tuning-phi-3", "tuning-phi-3"),
    ],
)
def test_the_users_manifests_from_apply_to_ready(
    cluster: Cluster, folder: Path, number: str, name: str, label: str
) -> None:
    client = cluster.client
    cluster.add_node(
        f"gpu-{name}", gpus=1, labels={"app": label, "node.kubernetes.io/instance-type": "Standard_NC6s_v3"}
    )
    cluster.set_running("default", "", running(DATA, STARTED, STEP))
    kubectl(cluster.kubeconfig, "apply", "-f", str(seed(folder, number)))
    wait_for(client, name, "JobStarted")
    client.wait(lambda: get(client, name).get("status", {}).get("tuning"), bool)
    shown = yaml.safe_load(kubectl(cluster.kubeconfig, "get", "workspace", name, "-o", "yaml"))["status"]["tuning"]
    ray_job = job(client, name)
    assert shown == {
        "job": ray_job["metadata"]["name"],
        "state": "Training",
        "step": 20,
        "totalSteps": 300,
        "epoch": 0.2,
        "loss": 3.21,
        "learningRate": 0.00018,
        "tokensPerSecond": 512.0,
        "etaSeconds": 840,
        "gpuMemoryGib": 11.5,
        "rows": 15011,
        "attempt": 1,
        "updated": "2026-11-21T05:00:00Z",
    }
    assert condition(get(client, name), "InferenceReady")["status"] == "False"
    script(cluster, name, finished())
    workspace = wait_until_ready(client, name)
    for kind in ("ResourceReady", "JobStarted", "WorkspaceSucceeded", "InferenceReady", "AdaptersReady"):
        wait_for(client, name, kind)
    made = {"image": "registry.example.com/phi:0.0.1", "digest": DIGEST}
    assert workspace["status"]["output"].items() >= made.items()
    assert workspace["status"]["tuning"]["state"] == "Succeeded"
    # The job's GPUs were free before the model asked for them, and what it did can still be looked at.
    (cluster_of_service,) = client.list(RAY, "RayCluster", "default", labelSelector=f"kaito.sh/workspace={name}")
    assert cluster_of_service["metadata"]["ownerReferences"][0]["kind"] == "RayService"
    assert job(client, name)["status"]["jobStatus"] == "SUCCEEDED"
    [adapter] = adapters(client, name)
    assert adapter["name"] == asked_of_replicas(client, name)["default_adapter"] == name
    assert adapter["source"].items() >= made.items()
    service = kubectl(cluster.kubeconfig, "get", "svc", name)
    assert "80/TCP,29500/TCP" in service
    columns = kubectl(cluster.kubeconfig, "get", "workspace", name).splitlines()[-1].split()
    assert columns[:5] == [name, "Standard_NC6s_v3", "True", "True", "True"]
    client.delete(get(client, name))
    wait_until_gone(client, RAY, "RayService", name)


@pytest.mark.usefixtures("operator")
def test_a_running_job_goes_with_its_workspace(cluster: Cluster) -> None:
    client = cluster.client
    cluster.set_running("default", "", running(DATA, STARTED, STEP))
    client.create(a_tuning(cluster, "dropped"))
    wait_for(client, "dropped", "JobStarted")
    client.delete(get(client, "dropped"))
    client.wait(lambda: jobs(client, "dropped"), empty)
    client.wait(lambda: client.list(RAY, "RayCluster", "default", labelSelector="kaito.sh/workspace=dropped"), empty)
    wait_until_gone(client, "v1", "Secret", "dropped-ray-token")


@pytest.mark.usefixtures("operator")
def test_nodes_are_given_back_instead_of_serving(cluster: Cluster) -> None:
    client = cluster.client
    cluster.set_running("default", "", finished())
    client.create(a_tuning(cluster, "released", metadata={"annotations": {"kaito-ray.io/after-tuning": "release"}}))
    workspace = wait_for(client, "released", "InferenceReady", "False", reason="NodesReleased")
    assert condition(workspace, "WorkspaceSucceeded")["status"] == "True"
    assert workspace["status"]["state"] == "Succeeded"
    assert workspace["status"]["output"]["digest"] == DIGEST
    ray_job = job(client, "released")
    wait_until_gone(client, "v1", "PersistentVolumeClaim", f"{ray_job['metadata']['name']}-checkpoints")
    client.wait(lambda: client.list(RAY, "RayCluster", "default", labelSelector="kaito.sh/workspace=released"), empty)
    # Serving is a matter of the annotation alone; nothing is tuned again.
    client.patch(get(client, "released"), {"metadata": {"annotations": {"kaito-ray.io/after-tuning": None}}})
    wait_until_ready(client, "released")
    assert job(client, "released")["metadata"]["uid"] == ray_job["metadata"]["uid"]


@pytest.mark.usefixtures("operator")
def test_a_failed_job_does_not_keep_nodes_that_were_to_be_given_back(cluster: Cluster) -> None:
    client = cluster.client
    lost = Failed("LossDiverged", "the loss rose from 2.00 to 9.00 by step 40; lower the learning rate")
    cluster.set_running("default", "", Running(status="FAILED", log=log(DATA, lost)))
    client.create(a_tuning(cluster, "given-up", metadata={"annotations": {"kaito-ray.io/after-tuning": "release"}}))
    wait_for(client, "given-up", "JobStarted", "False", reason="WorkspaceTuningJobStatusFailed")
    # KubeRay keeps the cluster for its logs, and deletes it after a while.
    (failed,) = client.list(RAY, "RayCluster", "default", labelSelector="kaito.sh/workspace=given-up")
    client.delete(failed)
    workspace = wait_for(client, "given-up", "InferenceReady", "False", reason="NodesReleased")
    assert condition(workspace, "WorkspaceReady")["reason"] == "LossDiverged"
    assert job(client, "given-up")["status"]["jobDeploymentStatus"] == "Failed"
    # Deleting the job is how to try the same once more.
    cluster.set_running("default", "", finished())
    client.delete(job(client, "given-up"))
    wait_for(client, "given-up", "WorkspaceSucceeded")


@pytest.mark.usefixtures("operator")
def test_what_the_configmap_says_is_part_of_the_wish(cluster: Cluster) -> None:
    client = cluster.client
    text = "training_config:\n  LoraConfig:\n    r: 16\n"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "training", "namespace": "default"},
        "data": {"training_config.yaml": text},
    }
    client.create(config)
    cluster.set_running("default", "", finished())
    document = a_tuning(cluster, "again")
    document["tuning"]["config"] = "training"
    client.create(document)
    wait_until_ready(client, "again")
    first = job(client, "again")
    # A comment asks for nothing else.
    client.patch(config, {"data": {"training_config.yaml": f"# ours\n{text}"}})
    client.patch(get(client, "again"), {"metadata": {"labels": {"team": "a"}}})
    wait_until_ready(client, "again")
    assert job(client, "again")["metadata"]["uid"] == first["metadata"]["uid"]
    # The nodes go from serving to tuning and back; until then the Workspace keeps what it had.
    cluster.set_running("default", "", running(DATA, STARTED, STEP))
    client.patch(config, {"data": {"training_config.yaml": text.replace("16", "32")}})
    wait_until_gone(client, RAY, "RayJob", first["metadata"]["name"])
    wait_until_gone(client, RAY, "RayService", "again")
    workspace = wait_for(client, "again", "WorkspaceSucceeded", "False")
    assert workspace["status"]["output"]["digest"] == DIGEST
    assert condition(workspace, "WorkspaceReady")["status"] == "False"
    wait_for(client, "again", "JobStarted")
    script(cluster, "again", finished("sha256:" + "b" * 64))
    wait_until_ready(client, "again")
    [adapter] = adapters(client, "again")
    assert adapter["source"]["digest"] == "sha256:" + "b" * 64


@pytest.mark.usefixtures("operator")
def test_a_registry_that_is_down_is_said(cluster: Cluster) -> None:
    client = cluster.client
    waiting = Waiting("ConnectionFailed", "registry.example.com does not answer; the adapter is kept")
    cluster.set_running("default", "", running(DATA, STARTED, STEP, waiting))
    client.create(a_tuning(cluster, "pushing"))
    workspace = wait_for(client, "pushing", "WorkspaceSucceeded", "False", reason="ConnectionFailed")
    assert condition(workspace, "WorkspaceSucceeded")["message"] == waiting.message
    assert workspace["status"]["tuning"].items() >= {"state": "Waiting", "message": waiting.message, "step": 20}.items()
    assert condition(workspace, "JobStarted")["status"] == "True"
    script(cluster, "pushing", finished())
    wait_until_ready(client, "pushing")


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("nan", "LossNotFinite", "the loss is nan at step 40; lower the learning rate"),
        ("broken-data", "DatasetInvalid", "train.jsonl:17: column `messages` is not a list"),
    ],
)
def test_a_job_that_fails_says_why(cluster: Cluster, name: str, reason: str, message: str) -> None:
    client = cluster.client
    cluster.set_running("default", "", Running(status="FAILED", log=log(DATA, Failed(reason, message))))
    client.create(a_tuning(cluster, name))
    workspace = wait_for(client, name, "JobStarted", "False", reason="WorkspaceTuningJobStatusFailed")
    assert condition(workspace, "JobStarted")["message"] == f"{reason}: {message}"
    assert (condition(workspace, "WorkspaceSucceeded")["reason"], condition(workspace, "WorkspaceReady")["reason"]) == (
        reason,
        reason,
    )
    assert condition(workspace, "WorkspaceReady")["message"] == message
    assert workspace["status"]["state"] == workspace["status"]["tuning"]["state"] == "Failed"
    # Another wish is another chance.
    cluster.set_running("default", "", finished())
    client.patch(get(client, name), {"tuning": {"input": {"urls": ["https://example.com/data/mended.parquet"]}}})
    wait_until_ready(client, name)


@pytest.mark.usefixtures("operator")
def test_why_an_attempt_failed_is_known_while_the_next_one_starts(cluster: Cluster) -> None:
    client = cluster.client
    cluster.set_running("default", "", running(DATA, STARTED, STEP))
    client.create(a_tuning(cluster, "retried"))
    wait_for(client, "retried", "JobStarted")
    name = job(client, "retried")["metadata"]["name"]
    lost = Failed("WorkerLost", "a worker was killed")
    cluster.set_node("gpu-retried", gpus=0)  # the next cluster has no room, so that its start takes a while
    cluster.set_running("default", name, Running(failures=1, log=log(DATA, STARTED, STEP, lost)))
    workspace = wait_for(client, "retried", "WorkspaceSucceeded", "False", reason="WorkerLost")
    assert "tries again" in condition(workspace, "WorkspaceSucceeded")["message"]
    assert workspace["status"]["tuning"]["state"] == "Retrying"
    resumed = replace(STARTED, attempt=2, resumed_from=20)
    cluster.set_running("default", name, replace(running(DATA, resumed), failures=1))
    cluster.set_node("gpu-retried", gpus=1)
    client.wait(lambda: get(client, "retried")["status"]["tuning"].get("resumedFrom"), is_20, 30)
    assert get(client, "retried")["status"]["tuning"].items() >= {"state": "Training", "attempt": 2, "step": 20}.items()
    cluster.set_running("default", name, replace(finished(), failures=1))
    wait_until_ready(client, "retried")


@pytest.mark.usefixtures("operator")
def test_another_workspace_gets_the_adapter_hot_and_follows_it(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-serves", gpus=1, labels={"apps": "serves"})
    source = {"name": "sql", "workspace": "teacher"}
    client.create(a_serving("serves", "serves", inference={"adapters": [{"source": source}]}))
    workspace = wait_until_ready(client, "serves")
    waits = "adapter sql: there is no Workspace teacher in this namespace"
    assert (condition(workspace, "AdaptersReady")["status"], condition(workspace, "AdaptersReady")["message"]) == (
        "False",
        waits,
    )
    (before,) = client.list(RAY, "RayCluster", "default", labelSelector="kaito.sh/workspace=serves")
    cluster.set_running("default", "", finished())
    client.create(a_tuning(cluster, "teacher", metadata={"annotations": {"kaito-ray.io/after-tuning": "release"}}))
    client.wait(lambda: adapters(client, "serves")[0]["source"].get("digest"), {DIGEST}.__contains__, 30)
    assert adapters(client, "serves")[0]["source"]["image"] == "registry.example.com/phi:0.0.1"
    assert client.get("v1", "Secret", "serves-registry", "default")["data"] == {"push.json": "e30="}
    wait_for(client, "serves", "AdaptersReady")
    # Tuned again: the one there was goes on until the next is made.
    cluster.set_running("default", "", running(DATA, STARTED))
    client.patch(get(client, "teacher"), {"tuning": {"input": {"urls": ["https://example.com/data/more.parquet"]}}})
    wait_for(client, "teacher", "WorkspaceSucceeded", "False")
    assert adapters(client, "serves")[0]["source"]["digest"] == DIGEST
    later = "sha256:" + "c" * 64
    wait_for(client, "teacher", "JobStarted")
    script(cluster, "teacher", finished(later))
    client.wait(lambda: adapters(client, "serves")[0]["source"].get("digest"), {later}.__contains__, 30)
    (after,) = client.list(RAY, "RayCluster", "default", labelSelector="kaito.sh/workspace=serves")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_an_operator_that_restarts_goes_on(cluster: Cluster, folder: Path, operator: Operator) -> None:
    client = cluster.client
    cluster.set_running("default", "", running(DATA, STARTED, STEP))
    client.create(a_tuning(cluster, "halfway"))
    wait_for(client, "halfway", "JobStarted")
    client.wait(lambda: get(client, "halfway")["status"].get("tuning"), bool)
    before = get(client, "halfway")
    first = job(client, "halfway")
    operator.stop()
    # It ends while nobody looks.
    script(cluster, "halfway", finished())
    client.wait(lambda: job(client, "halfway")["status"]["jobStatus"], {"SUCCEEDED"}.__contains__)
    with running_operator(cluster.kubeconfig, folder):
        workspace = wait_until_ready(client, "halfway")
        assert job(client, "halfway")["metadata"]["uid"] == first["metadata"]["uid"]
        assert workspace["status"]["output"]["digest"] == DIGEST
        assert workspace["status"]["tuning"].items() >= {"rows": 15011, "step": 20, "state": "Succeeded"}.items()
        before_started = condition(before, "JobStarted")["lastTransitionTime"]
        assert condition(workspace, "JobStarted")["lastTransitionTime"] == before_started


def empty(found: Any) -> bool:
    return not found


def is_20(step: int | None) -> bool:
    return step == 20
