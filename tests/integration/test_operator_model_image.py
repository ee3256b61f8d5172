# SPDX-License-Identifier: Apache-2.0
"""A model as an image on the test cluster: from apply to Ready, and what is said when it cannot be fetched."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.client import Client
from cluster.container_state import Script
from cluster.fixture import Cluster
from operator_rig import Operator, running_operator
from workspace_rig import RAY, a_serving, condition, get, simulated_cluster, wait_for, wait_until_ready

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]
A100 = "Standard_NC24ads_A100_v4"
IMAGE = "registry.example/models/phi-3:1.0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with running_operator(
        cluster.kubeconfig, tmp_path_factory.mktemp("operator"), model_cache_dir="/mnt/nvme", model_cache_gib="500"
    ) as operator:
        yield operator


@pytest.fixture
def client(cluster: Cluster, operator: Operator) -> Client:
    assert operator.running
    return cluster.client


def from_image(cluster: Cluster, name: str) -> Object:
    """A v1alpha1 Workspace with a private image, on a node of its own."""
    cluster.add_node(f"gpu-{name}", gpus=1, labels={"apps": name}, instance_type=A100)
    options = {"image": IMAGE, "imagePullSecrets": [f"{name}-pull"]}
    preset = {"name": "phi-3-mini-4k-instruct", "accessMode": "private", "presetOptions": options}
    return a_serving(name, name, inference={"preset": preset}) | {"apiVersion": "kaito.sh/v1alpha1"}


def pull_secret(name: str) -> Object:
    config = json.dumps({"auths": {"registry.example": {"username": "me", "password": "correct horse"}}})
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{name}-pull", "namespace": "default"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(config.encode()).decode()},
    }


def test_an_image_with_a_pull_secret_from_apply_to_ready(cluster: Cluster, client: Client) -> None:
    client.create(from_image(cluster, "image"))
    waiting = wait_for(client, "image", "InferenceReady", "False", reason="ReferenceMissing")
    assert "image-pull" in condition(waiting, "InferenceReady")["message"]
    client.create(pull_secret("image"))
    ready = wait_until_ready(client, "image")
    stages = [entry["stage"] for entry in ready["status"]["timeline"]]
    assert stages.index("ImagePulled") < stages.index("ModelFetched") < stages.index("Ready")

    service = client.get(RAY, "RayService", "image", "default")
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    prepare, fetch = spec["initContainers"]
    assert prepare["name"] == "prepare-cache"
    wish = json.loads(fetch["command"][3])
    assert wish["source"] == {"image": IMAGE, "imagePullSecrets": ["image-pull"]}
    assert wish["limit_gib"] == 500
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["model"]["hostPath"]["path"] == "/mnt/nvme"
    [source] = volumes["model-registry"]["projected"]["sources"]
    assert source["secret"]["name"] == "image-pull"
    assert "correct horse" not in json.dumps(service)


def test_a_model_that_cannot_be_fetched_says_why_and_heals(cluster: Cluster, client: Client) -> None:
    said = "Unauthorized: registry.example/models/phi-3:1.0: registry.example refused the login of refused-pull (401)"
    labels = (("kaito.sh/workspace", "refused"),)
    script = Script("crash", labels=(*labels, ("ray.io/node-type", "worker")), container="fetch-model", message=said)
    cluster.script(script)
    client.create(pull_secret("refused"))
    client.create(from_image(cluster, "refused"))
    refused = wait_for(client, "refused", "InferenceReady", "False", reason="ModelUnauthorized")
    message = condition(refused, "InferenceReady")["message"]
    assert "refused the login of refused-pull (401)" in message
    assert condition(refused, "WorkspaceReady")["reason"] == "ModelUnauthorized"
    cluster.unscript(script)
    wait_until_ready(client, "refused")
    assert condition(get(client, "refused"), "InferenceReady")["status"] == "True"
