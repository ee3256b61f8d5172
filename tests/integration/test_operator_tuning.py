# SPDX-License-Identifier: Apache-2.0
"""Tuning Workspaces on the test cluster, from `kubectl apply` to the served adapter, and what goes wrong meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.ray_job_simulator import Running
from cluster.server import TestCluster
from kaito_ray.tuning_event import Data, Event, Finished, Started, Step
from operator_rig import Operator, running_operator
from workspace_rig import (
    MANIFESTS,
    RAY,
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
def cluster(folder: Path) -> Iterator[TestCluster]:
    """A cluster with a push secret and no operator yet."""
    with simulated_cluster(folder) as cluster:
        cluster.client.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "push", "namespace": "default"},
                "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": "e30="},
            }
        )
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: TestCluster, folder: Path) -> Iterator[Operator]:
    with running_operator(cluster.kubeconfig, folder) as operator:
        yield operator


def a_tuning(cluster: TestCluster, name: str, **overrides: Any) -> Object:
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


def script(cluster: TestCluster, workspace: str, running: Running) -> str:
    """Have the job of a Workspace, which is there, go so; its name."""
    name: str = job(cluster.client, workspace)["metadata"]["name"]
    cluster.set_running("default", name, running)
    return name


def adapters(client: Client, ray_service: str) -> list[Object]:
    """What the replicas are asked to load."""
    config = yaml.safe_load(client.get(RAY, "RayService", ray_service, "default")["spec"]["serveConfigV2"])
    found: list[Object] = config["applications"][0]["deployments"][0]["user_config"]["adapters"]
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
    [("02", "workspace-phi-3-mini", "phi-3-adapter"), ("05", "workspace-tuning-phi-3", "tuning-phi-3")],
)
def test_the_users_manifests_from_apply_to_ready(
    cluster: TestCluster, folder: Path, number: str, name: str, label: str
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
        client.wait(lambda kind=kind: condition(get(client, name), kind).get("status"), lambda status: status == "True")
    assert (
        workspace["status"]["output"].items() >= {"image": "registry.example.com/phi:0.0.1", "digest": DIGEST}.items()
    )
    assert workspace["status"]["tuning"]["state"] == "Succeeded"
    # The job's GPUs were free before the model asked for them, and what it did can still be looked at.
    (cluster_of_service,) = client.list(RAY, "RayCluster", "default", labelSelector=f"kaito.sh/workspace={name}")
    assert cluster_of_service["metadata"]["ownerReferences"][0]["kind"] == "RayService"
    assert job(client, name)["status"]["jobStatus"] == "SUCCEEDED"
    [adapter] = adapters(client, name)
    assert adapter["name"] == name
    assert adapter["source"].items() >= {"image": "registry.example.com/phi:0.0.1", "digest": DIGEST}.items()
    service = kubectl(cluster.kubeconfig, "get", "svc", name)
    assert "80/TCP,29500/TCP" in service
    columns = kubectl(cluster.kubeconfig, "get", "workspace", name).splitlines()[-1].split()
    assert columns[:5] == [name, "Standard_NC6s_v3", "True", "True", "True"]
    client.delete(get(client, name))
    wait_until_gone(client, RAY, "RayService", name)
