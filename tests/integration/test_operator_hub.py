# SPDX-License-Identifier: Apache-2.0
"""A model that only the hub knows, in a cluster: asked once, kept at its revision, refused with the hub's reason."""

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fixture import Cluster
from fake_hub import SHA, FakeHub
from operator_rig import running_operator
from workspace_rig import RAY, a_serving, condition, get, simulated_cluster, wait_for, wait_until_ready

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def served(cluster: Cluster, name: str) -> str:
    """All that the pods of a Workspace are told."""
    return json.dumps(cluster.client.get(RAY, "RayService", name, "default")["spec"])


def test_a_model_of_the_hub_is_served_at_the_revision_it_had(hub: FakeHub, tmp_path: Path) -> None:
    hub.put("me/llama")
    with simulated_cluster(tmp_path) as cluster:
        client = cluster.client
        cluster.add_node("gpu-1", gpus=1, labels={"apps": "llama"})
        secret = {"name": "token", "namespace": "default"}
        data = {"HF_TOKEN": base64.b64encode(b"hf_secret").decode()}
        client.create({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "data": data})
        preset = {"name": "me/llama", "presetOptions": {"modelAccessSecret": "token"}}
        client.create(a_serving("llama", "llama", inference={"preset": preset}))
        client.create(a_serving("none", "llama", inference={"preset": {"name": "me/none"}}))
        environment = {"HF_ENDPOINT": hub.url, "XDG_CACHE_HOME": str(tmp_path / "first")}
        with running_operator(cluster.kubeconfig, tmp_path, environment=environment) as operator:
            wait_until_ready(client, "llama")
            assert SHA in served(cluster, "llama")
            workspace = wait_for(client, "none", "ResourceReady", "False", reason="ModelNotFound")
            assert "me/none" in condition(workspace, "ResourceReady")["message"]
            assert "hf_secret" not in operator.log
        assert "Bearer hf_secret" in hub.tokens
        # Another operator, without this one's memory, while the hub has forgotten the model.
        hub.models.clear()
        environment["XDG_CACHE_HOME"] = str(tmp_path / "second")
        with running_operator(cluster.kubeconfig, tmp_path, environment=environment):
            client.patch(get(client, "llama"), {"inference": {"adapters": []}, "metadata": {"labels": {"a": "b"}}})
            service = client.get(RAY, "RayService", "llama", "default")
            client.delete(service)
            client.wait(
                lambda: client.find(RAY, "RayService", "llama", "default"),
                lambda one: one is not None and one["metadata"]["uid"] != service["metadata"]["uid"],
            )
            assert SHA in served(cluster, "llama")


def test_a_later_workspace_of_that_name_gets_its_own_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.put("me/one")
    hub.put("me/two", sha="f" * 40)
    environment = {"HF_ENDPOINT": hub.url, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with (
        simulated_cluster(tmp_path) as cluster,
        running_operator(cluster.kubeconfig, tmp_path, environment=environment),
    ):
        client = cluster.client
        cluster.add_node("gpu-1", gpus=1, labels={"apps": "llama"})
        client.create(a_serving("llama", "llama", inference={"preset": {"name": "me/one"}}))
        wait_until_ready(client, "llama")
        assert SHA in served(cluster, "llama")
        client.delete(get(client, "llama"))
        client.create(a_serving("llama", "llama", inference={"preset": {"name": "me/two"}}))
        wait_until_ready(client, "llama", 60)
        assert "f" * 40 in served(cluster, "llama")
        facts = client.get("v1", "ConfigMap", "llama-model", "default")
        assert facts["data"]["model"] == "me/two"
