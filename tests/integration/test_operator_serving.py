# SPDX-License-Identifier: Apache-2.0
"""Workspaces that serve, from `kubectl apply` to Ready and back, with the operator as a process and a test cluster."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.container_state import Script
from cluster.fixture import Cluster
from cluster.ray_service_simulator import Serving
from operator_rig import Operator, running_operator
from waiting import until
from workspace_rig import (
    MANIFESTS,
    RAY,
    a_serving,
    condition,
    get,
    kubectl,
    quiet_writes,
    simulated_cluster,
    user_manifest,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]
A100 = "Standard_NC24ads_A100_v4"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with running_operator(cluster.kubeconfig, tmp_path_factory.mktemp("operator")) as operator:
        yield operator


@pytest.fixture
def client(cluster: Cluster, operator: Operator) -> Client:
    assert operator.running
    return cluster.client


def gpu_node(cluster: Cluster, label: str, name: str = "") -> str:
    name = name or f"gpu-{label}"
    cluster.add_node(name, gpus=1, labels={"apps": label}, instance_type=A100)
    return name


def serving(cluster: Cluster, client: Client, name: str, **overrides: Any) -> Object:
    """A Workspace of its own node that is Ready."""
    gpu_node(cluster, name)
    client.create(a_serving(name, name, **overrides))
    return wait_until_ready(client, name)


@pytest.mark.parametrize(("number", "label"), [("01", "phi-3"), ("03", "phi-3-adapter")])
def test_a_users_manifest_from_apply_to_ready(cluster: Cluster, client: Client, number: str, label: str) -> None:
    name = user_manifest(number)["metadata"]["name"]
    gpu_node(cluster, label)
    (path,) = MANIFESTS.glob(f"{number}-*.yaml")
    kubectl(cluster.kubeconfig, "apply", "-f", str(path))
    wait_until_ready(client, name)
    columns, row = kubectl(cluster.kubeconfig, "get", "workspace", name).splitlines()
    assert columns.split() == ["NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY", "AGE"]
    assert row.split()[:5] == [name, "Standard_NC6s_v3", "True", "True", "True"]
    service = kubectl(cluster.kubeconfig, "get", "svc", name).splitlines()[1].split()
    assert (service[1], service[3], service[4]) == ("ClusterIP", "<none>", "80/TCP,29500/TCP")
    assert kubectl(cluster.kubeconfig, "get", "svc", name, "-o", "jsonpath={.spec.clusterIPs[0]}") == service[2]


def test_it_takes_few_writes_and_then_none(cluster: Cluster, client: Client) -> None:
    # What other tests made comes to rest first.
    client.wait(lambda: quiet_writes(cluster), lambda writes: writes == [])
    cluster.requests.clear()
    name = serving(cluster, client, "few-writes")["metadata"]["name"]
    # Disruption budgets come once it is Ready.
    budget = functools.partial(client.find, "policy/v1", "PodDisruptionBudget", f"{name}-workers", "default")
    client.wait(budget, bool)
    spared = ("leases", "poddisruptionbudgets")
    writes = [one for one in cluster.requests.writes("kaito-ray") if not one.resource.startswith(spared)]
    assert len(writes) <= 6, [f"{one.verb} {one.resource} {one.subresource} {one.name}" for one in writes]
    assert quiet_writes(cluster) == []
    # A change of no concern makes a pass that neither writes nor reads an object.
    cluster.requests.clear()
    client.patch(get(client, name), {"metadata": {"labels": {"team": "a"}}})
    assert quiet_writes(cluster) == []
    assert cluster.requests.select("get", user_agent="kaito-ray", resource="rayservices") == []


def test_its_own_count_of_writes_says_the_same(cluster: Cluster, client: Client, operator: Operator) -> None:
    """The test before, for any API server: no write, not even one that changes nothing, once it is Ready."""

    def writes() -> dict[str, float]:
        counted = re.findall(r'kaito_ray_api_requests_total{code="\d+",(.*?)} (\S+)', operator.probe("metrics")[1])
        return {labels: float(count) for labels, count in counted if '"GET"' not in labels and '"leases"' not in labels}

    before = writes()
    serving(cluster, client, "counted")
    budget = functools.partial(client.find, "policy/v1", "PodDisruptionBudget", "counted-workers", "default")
    client.wait(budget, bool)
    made = {labels: count - before.get(labels, 0) for labels, count in writes().items() if count != before.get(labels)}
    spared = ('"events"', '"poddisruptionbudgets"')
    counted = sum(count for labels, count in made.items() if not any(kind in labels for kind in spared))
    assert 3 <= counted <= 6, made
    assert quiet_writes(cluster) == []
    settled = writes()
    client.patch(get(client, "counted"), {"metadata": {"labels": {"team": "a"}}})
    assert quiet_writes(cluster) == []
    assert writes() == settled


def test_nodes_come_first(cluster: Cluster, client: Client) -> None:
    client.create(a_serving("waiting", "waiting"))
    workspace = wait_for(client, "waiting", "ResourceReady", "False")
    assert "apps=waiting" in condition(workspace, "ResourceReady")["message"]
    assert client.find(RAY, "RayService", "waiting", "default") is None
    node = gpu_node(cluster, "waiting")
    wait_until_ready(client, "waiting")
    # A lost node shows.
    cluster.set_node(node, ready=False)
    workspace = wait_for(client, "waiting", "WorkspaceReady", "False")
    assert node in condition(workspace, "ResourceReady")["message"]
    cluster.set_node(node, ready=True)
    wait_until_ready(client, "waiting")


def test_another_adapter_changes_only_the_serve_config(cluster: Cluster, client: Client) -> None:
    workspace = serving(cluster, client, "adapters")
    before = client.get(RAY, "RayService", "adapters", "default")
    clusters = [one["metadata"]["uid"] for one in _clusters(client, "adapters")]
    adapter = {"source": {"name": "sql", "image": "registry.example.com/sql:1"}, "strength": "0.5"}
    client.patch(workspace, {"inference": {"adapters": [adapter]}})

    def has_adapter(service: Object) -> bool:
        return "sql:1" in service["spec"]["serveConfigV2"]

    after = client.wait(lambda: client.get(RAY, "RayService", "adapters", "default"), has_adapter)
    assert {**after["spec"], "serveConfigV2": ""} == {**before["spec"], "serveConfigV2": ""}
    (deployment,) = yaml.safe_load(after["spec"]["serveConfigV2"])["applications"][0]["deployments"]
    assert deployment["user_config"]["adapters"][0]["strength"] == 0.5
    workspace = client.wait(
        lambda: get(client, "adapters"),
        lambda one: condition(one, "WorkspaceReady").get("observedGeneration") == one["metadata"]["generation"],
    )
    workspace = wait_until_ready(client, "adapters")
    assert [one["metadata"]["uid"] for one in _clusters(client, "adapters")] == clusters
    # The way to Ready is told to the first token, by what was seen of each stage.
    assert [entry["stage"] for entry in workspace["status"]["timeline"]] == [
        "NodesReady",
        "ImagePulled",
        "ModelFetched",
        "EngineStarted",
        "FirstToken",
        "ModelLoaded",
        "Ready",
    ]


def test_a_changed_config_map_takes_effect(cluster: Cluster, client: Client) -> None:
    gpu_node(cluster, "config")
    client.create(a_serving("config", "config", inference={"config": "engine"}))
    workspace = wait_for(client, "config", "ResourceReady", "False")
    assert condition(workspace, "ResourceReady")["reason"] == "ConfigMapMissing"
    config = _config_map("engine", 2048)
    client.create(config)
    wait_until_ready(client, "config")
    assert _engine(client, "config")["max-model-len"] == 2048
    client.patch(config, {"data": _config_map("engine", 1024)["data"]})
    client.wait(lambda: _engine(client, "config"), lambda engine: engine["max-model-len"] == 1024)


def test_our_fields_are_put_back_and_others_are_left_alone(cluster: Cluster, client: Client) -> None:
    serving(cluster, client, "drift")
    service = client.get(RAY, "RayService", "drift", "default")
    client.patch(service, {"metadata": {"annotations": {"theirs": "1"}}, "spec": {"rayClusterDeletionDelaySeconds": 7}})
    client.patch(service, {"spec": {"serveConfigV2": "applications: []\n"}})
    after = client.wait(
        lambda: client.get(RAY, "RayService", "drift", "default"),
        lambda one: one["spec"]["serveConfigV2"] == service["spec"]["serveConfigV2"],
    )
    assert after["metadata"]["annotations"]["theirs"] == "1"
    assert after["spec"]["rayClusterDeletionDelaySeconds"] == 7
    # What was deleted comes back.
    uid = service["metadata"]["uid"]
    client.delete(service)
    client.wait(
        lambda: client.find(RAY, "RayService", "drift", "default"),
        lambda one: one is not None and one["metadata"]["uid"] != uid,
    )
    policy = client.get("networking.k8s.io/v1", "NetworkPolicy", "drift", "default")
    client.delete(policy)
    client.wait(lambda: client.find("networking.k8s.io/v1", "NetworkPolicy", "drift", "default"), bool)
    wait_until_ready(client, "drift")
    assert "Repaired" in _events(client, "drift")


def test_another_writer_is_reported_rather_than_fought(cluster: Cluster, client: Client) -> None:
    serving(cluster, client, "quarrel")
    wanted = client.get(RAY, "RayService", "quarrel", "default")["spec"]["serveConfigV2"]
    for attempt in range(4):
        service = client.wait(
            lambda: client.get(RAY, "RayService", "quarrel", "default"),
            lambda one: one["spec"]["serveConfigV2"] == wanted,
        )
        client.patch(service, {"spec": {"serveConfigV2": f"applications: []\n# {attempt}\n"}})
    workspace = wait_for(client, "quarrel", "InferenceReady", "False", reason="RepairContested")
    assert "RayService quarrel" in condition(workspace, "InferenceReady")["message"]
    # Its Event may come a moment after the condition.
    until(lambda: quiet_writes(cluster) == [], 10, lambda: "it goes on writing")


def test_a_service_of_somebody_else_is_not_taken_over(cluster: Cluster, client: Client) -> None:
    gpu_node(cluster, "taken")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": "default"},
        "spec": {"ports": [{"port": 80}]},
    }
    client.create(service)
    client.create(a_serving("taken", "taken"))
    workspace = wait_for(client, "taken", "InferenceReady", "False", reason="NameTaken")
    assert "Service taken" in condition(workspace, "InferenceReady")["message"]
    assert client.find(RAY, "RayService", "taken", "default") is None
    client.delete(service)
    wait_until_ready(client, "taken")


def test_deletion_leaves_nothing(cluster: Cluster, client: Client) -> None:
    workspace = serving(cluster, client, "deleted")
    client.delete(workspace, propagationPolicy="Background")
    wait_until_gone(client, "kaito.sh/v1beta1", "Workspace", "deleted")
    for api_version, kind, name in (
        (RAY, "RayService", "deleted"),
        ("v1", "Service", "deleted"),
        ("v1", "Secret", "deleted-ray-token"),
        ("networking.k8s.io/v1", "NetworkPolicy", "deleted"),
        ("policy/v1", "PodDisruptionBudget", "deleted-head"),
    ):
        wait_until_gone(client, api_version, kind, name)
    client.wait(lambda: _clusters(client, "deleted"), lambda clusters: not clusters)
    # A new one of that name is a new beginning.
    client.create(a_serving("deleted", "deleted"))
    wait_until_ready(client, "deleted")


def test_a_crash_loop_after_ready_turns_it_off(cluster: Cluster, client: Client) -> None:
    serving(cluster, client, "crashing")
    script = Script("crash", (("kaito.sh/workspace", "crashing"), ("ray.io/node-type", "worker")), message="no memory")
    cluster.script(script)
    workspace = wait_for(client, "crashing", "InferenceReady", "False", timeout_s=30)
    assert workspace["status"]["state"] == "NotReady"
    wait_for(client, "crashing", "InferenceReady", "False", reason="ContainerCrashLoopBackOff", timeout_s=30)
    cluster.unscript(script)
    wait_until_ready(client, "crashing")


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ("image", "ImagePullError", "cannot be pulled"),
        ("oom", "ContainerOOMKilled", "memory"),
        ("config", "ContainerStartError", "cannot start"),
        ("unschedulable", "Unschedulable", "cannot be scheduled"),
    ],
)
def test_what_is_wrong_with_pods_is_said(
    cluster: Cluster, client: Client, behaviour: Any, reason: str, words: str
) -> None:
    name = f"pods-{behaviour}"
    gpu_node(cluster, name)
    script = Script(behaviour, (("kaito.sh/workspace", name), ("ray.io/node-type", "worker")))
    cluster.script(script)
    client.create(a_serving(name, name))
    workspace = wait_for(client, name, "InferenceReady", "False", reason=reason)
    assert words in condition(workspace, "WorkspaceReady")["message"]
    cluster.unscript(script)
    wait_until_ready(client, name)


def test_why_an_application_does_not_deploy_is_said(cluster: Cluster, client: Client) -> None:
    gpu_node(cluster, "failing")
    cluster.set_serving("default", "failing", Serving("DEPLOY_FAILED", "401 from huggingface.co"))
    client.create(a_serving("failing", "failing"))
    workspace = wait_for(client, "failing", "InferenceReady", "False", reason="DeployFailed")
    assert "401 from huggingface.co" in condition(workspace, "InferenceReady")["message"]
    cluster.set_serving("default", "failing", None)
    wait_until_ready(client, "failing")
    # KubeRay still says Ready when an application turns unhealthy later.
    cluster.set_serving("default", "failing", Serving("UNHEALTHY", "the engine died"))
    workspace = wait_for(client, "failing", "InferenceReady", "False", reason="Unhealthy")
    cluster.set_serving("default", "failing", None)
    wait_until_ready(client, "failing")


def _clusters(client: Client, name: str) -> list[Object]:
    return client.list(RAY, "RayCluster", "default", labelSelector=f"kaito.sh/workspace={name}")


def _events(client: Client, name: str) -> set[str]:
    return {
        str(event["reason"])
        for event in client.list("v1", "Event", "default")
        if event["involvedObject"]["name"] == name and event["involvedObject"]["kind"] == "Workspace"
    }


def _config_map(name: str, length: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"inference_config.yaml": f"vllm:\n  max-model-len: {length}\n"},
    }


def _engine(client: Client, name: str) -> Object:
    service = client.get(RAY, "RayService", name, "default")
    engine: Object = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["engine"]
    return engine
