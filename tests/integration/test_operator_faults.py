# SPDX-License-Identifier: Apache-2.0
"""The API server fails and forgets its history; names are long; objects are older than the rules."""

import time
from collections.abc import Iterator

import pytest

from cluster.client import Refused
from cluster.fixture import Cluster
from operator_rig import running_operator
from workspace_rig import (
    API,
    RAY,
    a_serving,
    condition,
    get,
    simulated_cluster,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with an operator."""
    folder = tmp_path_factory.mktemp("cluster")
    with simulated_cluster(folder) as cluster, running_operator(cluster.kubeconfig, folder):
        yield cluster


def add(cluster: Cluster, name: str) -> None:
    """A Workspace and a node for it."""
    cluster.add_node(f"gpu-{name[-10:]}", gpus=1, labels={"apps": name[-10:]})
    cluster.client.create(a_serving(name, name[-10:]))


def test_history_is_gone_and_nothing_is_missed(cluster: Cluster) -> None:
    client = cluster.client
    add(cluster, "gone")
    wait_until_ready(client, "gone")
    # While nobody can watch, an object of ours vanishes, a node is lost and a Workspace is made; then history is
    # forgotten, so that no event will ever tell.
    faults = [
        cluster.fail(503, verb=verb, user_agent=agent) for verb in ("list", "watch") for agent in ("kaito", "kopf")
    ]
    cluster.drop_watches(abort=True)
    client.delete(client.get("networking.k8s.io/v1", "NetworkPolicy", "gone", "default"))
    add(cluster, "gone-2")
    cluster.compact()
    for fault in faults:
        fault.clear()
    client.wait(lambda: client.find("networking.k8s.io/v1", "NetworkPolicy", "gone", "default"), bool, 40)
    wait_until_ready(client, "gone-2", 40)
    cluster.expire_watches()
    client.delete(get(client, "gone-2"))
    wait_until_gone(client, RAY, "RayService", "gone-2")
    wait_until_ready(client, "gone")


@pytest.mark.parametrize("code", [429, 500])
def test_the_api_server_refuses_for_a_while(cluster: Cluster, code: int) -> None:
    name = f"refused-{code}"
    fault = cluster.fail(code, user_agent="kaito-ray")
    add(cluster, name)
    time.sleep(15)  # the outage itself
    assert cluster.client.find(RAY, "RayService", name, "default") is None
    assert fault.hits < 15 * 20, "requests must back off"
    fault.clear()
    wait_until_ready(cluster.client, name, 40)


def test_the_api_server_does_not_answer_for_a_while(cluster: Cluster) -> None:
    client = cluster.client
    add(cluster, "silent")
    service = client.wait(lambda: client.find(RAY, "RayService", "silent", "default"), bool)
    assert service
    cluster.pause()
    time.sleep(15)  # the outage itself, longer than the Lease lasts
    cluster.resume()
    wait_until_ready(client, "silent", 60)
    client.delete(client.get("networking.k8s.io/v1", "NetworkPolicy", "silent", "default"))
    client.wait(lambda: client.find("networking.k8s.io/v1", "NetworkPolicy", "silent", "default"), bool, 60)


def test_long_names_never_meet(cluster: Cluster) -> None:
    stem = "a" * 50
    names = [f"{stem}-{'x' * 12}", f"{stem}-{'y' * 12}", "0-starts-with-a-digit"]
    assert {len(name) for name in names[:2]} == {63}
    for name in names:
        add(cluster, name)
    for name in names:
        workspace = wait_until_ready(cluster.client, name)
        (service,) = cluster.client.list(RAY, "RayService", "default", labelSelector=f"kaito.sh/workspace={name}")
        assert len(service["metadata"]["name"]) <= 47
        endpoint = workspace["status"]["endpoint"].removeprefix("http://").partition(".")[0]
        assert cluster.client.find("v1", "Service", endpoint, "default") is not None
    assert len({one["metadata"]["name"] for one in cluster.client.list(RAY, "RayService", "default")}) >= 3


@pytest.mark.parametrize("name", ["Upper-Case", "ünïcode", "a" * 254])
def test_names_that_no_object_can_have(cluster: Cluster, name: str) -> None:
    with pytest.raises(Refused) as refused:
        cluster.client.create(a_serving(name))
    assert "name" in refused.value.message


@pytest.mark.parametrize("name", ["a" * 64, "dots.in.name", "b" * 253])
def test_names_that_no_workspace_can_have(cluster: Cluster, name: str) -> None:
    """Refused by the CRD's rule; where an old CRD let one in, a condition says it."""
    refusal = ""
    try:
        cluster.client.create(a_serving(name))
    except Refused as refused:
        refusal = refused.message
    if refusal:
        assert "metadata.name" in refusal
        return
    workspace = wait_for(cluster.client, name, "ResourceReady", "False", reason="InvalidManifest")
    assert "metadata.name" in condition(workspace, "ResourceReady")["message"]


def test_an_object_that_an_older_release_accepted(cluster: Cluster) -> None:
    """Stored before today's rules: an unknown model and a field that today's CRD does not know."""
    client = cluster.client
    document = a_serving("older", inference={"preset": {"name": "retired-model-of-2023"}})
    client.create(document)
    workspace = wait_for(client, "older", "ResourceReady", "False", reason="UnknownPreset")
    assert "retired-model-of-2023" in condition(workspace, "ResourceReady")["message"]
    edited = client.patch(workspace, {"metadata": {"labels": {"team": "a"}}})
    assert edited["metadata"]["labels"] == {"team": "a"}
    client.delete(edited)
    wait_until_gone(client, API, "Workspace", "older")
