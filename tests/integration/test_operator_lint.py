# SPDX-License-Identifier: Apache-2.0
"""Training data is judged before nodes are bought: the operator as a process, a test cluster, and a fake Azure.

Pods that judge do here what a test says; tests/apps/test_tune_lint.py has what they do by themselves.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azure_rig import azure_of, azure_settings
from cluster.client import Client
from cluster.container_state import Script
from cluster.fake_arm import FakeArm
from cluster.fixture import Cluster
from cluster.ray_job_simulator import Running
from helm_template import render_chart
from kaito_ray.tuning_event import Data, Event, Failed, Finished, Waiting
from operator_rig import Operator, running_operator
from workspace_rig import (
    API,
    RAY,
    a_serving,
    condition,
    get,
    quiet_writes,
    simulated_cluster,
    wait_for,
    wait_until_gone,
)

pytestmark = pytest.mark.timeout(240)

Object = dict[str, Any]
PATIENCE_S = 60
DATA = Data(rows=15011, format="messages", tokens=3_000_000, summary=("15,011 rows of messages",))
BAD = Failed("InvalidData", "train.jsonl:17 column 15: is no JSON")
AWAY = Waiting("ServerError", "https://example.com/data/train.jsonl: example.com answers 503")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        secret = {"name": "push", "namespace": "default"}
        kind, data = "kubernetes.io/dockerconfigjson", {".dockerconfigjson": "e30="}
        cluster.client.create({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "type": kind, "data": data})
        result = Finished("sha256:" + "a" * 64, image="registry.example.com/phi:1", steps=300)
        cluster.set_running("default", "", Running(log=result.line()))
        yield cluster


@pytest.fixture(scope="module")
def azure(cluster: Cluster) -> Iterator[FakeArm]:
    with azure_of(cluster) as arm:
        yield arm


@pytest.fixture
def arm(azure: FakeArm) -> FakeArm:
    """Azure without memories of other tests."""
    azure.requests.clear()
    return azure


@pytest.fixture(scope="module")
def account(cluster: Cluster) -> Path:
    """The kubeconfig of the account that the chart gives the operator, with the chart's rights."""
    cluster.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kaito-ray"}})
    for document in render_chart():
        if document["kind"] in {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}:
            cluster.client.create(document)
    return cluster.kubeconfig_of("kaito-ray", "kaito-ray")


def an_operator(account: Path, arm: FakeArm, folder: Path) -> Any:
    return running_operator(account, folder, namespace="kaito-ray", **azure_settings(arm))


@pytest.fixture(scope="module")
def operator(account: Path, azure: FakeArm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with an_operator(account, azure, tmp_path_factory.mktemp("operator")) as operator:
        yield operator


@pytest.fixture
def client(cluster: Cluster, operator: Operator) -> Client:
    assert operator.running
    return cluster.client


def a_tuning(name: str, **given: Any) -> Object:
    """A tuning Workspace that gives its nodes back when it is done; `given` goes to `tuning.input`."""
    document = a_serving(name, name, metadata={"annotations": {"kaito-ray.io/after-tuning": "release"}})
    del document["inference"]
    document["tuning"] = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": given or {"urls": ["https://example.com/data/train.jsonl"]},
        "output": {"image": "registry.example.com/phi:1", "imagePushSecret": "push"},
    }
    return document


def judges(workspace: str) -> tuple[tuple[str, str], ...]:
    """The labels of the pods that judge for a Workspace."""
    return (("kaito-ray.io/part", "lint"), ("kaito.sh/workspace", workspace))


def says(workspace: str, event: Event) -> Script:
    """Its pods end with these words."""
    code = 0 if isinstance(event, Data) else 1
    return Script("exit", judges(workspace), exit_code=code, message=event.line())


def pods(client: Client, workspace: str) -> list[Object]:
    selector = ",".join(f"{key}={value}" for key, value in judges(workspace))
    found: list[Object] = client.list("v1", "Pod", "default", labelSelector=selector)
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def a_pod(client: Client, workspace: str) -> Object:
    """The one pod that judges, once it is there."""
    (pod,) = client.wait(lambda: pods(client, workspace), bool)
    return dict(pod)


def asked(client: Client, arm: FakeArm) -> Object:
    """What Azure is asked for, once it is."""
    (put,) = client.wait(lambda: arm.calls("PUT"), bool, PATIENCE_S)
    return dict(put.body["properties"])


def events(client: Client, workspace: str) -> dict[str, str]:
    """The newest message of each reason."""
    found = client.list("v1", "Event", "default")
    return {one["reason"]: one["message"] for one in found if one["involvedObject"]["name"] == workspace}


def gone(client: Client, workspace: str) -> None:
    client.delete(get(client, workspace))
    wait_until_gone(client, API, "Workspace", workspace, PATIENCE_S)
    client.wait(lambda: pods(client, workspace), empty)


def test_nodes_are_asked_for_once_the_data_is_good(cluster: Cluster, client: Client, arm: FakeArm) -> None:
    client.create(a_tuning("good"))
    workspace = wait_for(client, "good", "ResourceReady", "False", reason="JudgingData")
    pod = a_pod(client, "good")
    assert pod["spec"]["containers"][0]["command"][:3] == ["python", "-m", "tune_jobs.lint"]
    client.wait(lambda: a_pod(client, "good")["status"].get("phase"), {"Running"}.__contains__)
    workspace = client.wait(lambda: get(client, "good"), lambda one: "tuning" in one["status"])
    assert workspace["status"]["tuning"]["state"] == "Judging"
    assert workspace["status"]["state"] == "Pending"
    assert arm.calls("PUT") == []
    cluster.script(says("good", DATA))
    workspace = client.wait(lambda: get(client, "good"), judged)
    tuning = workspace["status"]["tuning"]
    assert (tuning["job"], tuning["rows"]) == (pod["metadata"]["labels"]["kaito-ray.io/job"], 15011)
    assert tuning["message"].startswith("15,011 rows of messages; 2,817 steps, 3 epochs, about ")
    assert tuning["message"].endswith(" of training on Standard_NC24ads_A100_v4")
    assert "$" in tuning["message"]
    assert asked(client, arm)["nodeLabels"]["apps"] == "good"
    client.wait(lambda: pods(client, "good"), empty)
    workspace = wait_for(client, "good", "WorkspaceSucceeded", timeout_s=PATIENCE_S)
    assert [one["stage"] for one in workspace["status"]["timeline"]][:2] == ["DataJudged", "NodesReady"]
    assert events(client, "good")["DataJudged"] == tuning["message"]
    (job,) = client.list(RAY, "RayJob", "default", labelSelector="kaito.sh/workspace=good")
    assert job["metadata"]["name"] == tuning["job"]
    wait_until_gone(client, "v1", "ConfigMap", pod["metadata"]["name"])
    # Another wish after nodes were given back buys again, and so is judged first.
    wait_for(client, "good", "ResourceReady", "False", reason="NodesReleased", timeout_s=PATIENCE_S)
    arm.requests.clear()
    cluster.script(says("good", BAD))
    client.patch(get(client, "good"), {"tuning": {"input": {"urls": ["https://example.com/data/more.jsonl"]}}})
    workspace = wait_for(client, "good", "ResourceReady", "False", reason="InvalidData")
    assert workspace["status"]["output"]["job"] == tuning["job"]
    assert arm.calls("PUT") == []
    gone(client, "good")


def test_bad_data_buys_nothing_and_is_judged_again_when_it_is_mended(
    cluster: Cluster, client: Client, arm: FakeArm
) -> None:
    script = says("bad", BAD)
    cluster.script(script)
    client.create(a_tuning("bad"))
    workspace = wait_for(client, "bad", "ResourceReady", "False", reason="InvalidData")
    for kind in ("ResourceReady", "WorkspaceSucceeded", "WorkspaceReady"):
        found = condition(workspace, kind)
        assert (found["reason"], found["message"]) == ("InvalidData", "train.jsonl:17 column 15: is no JSON")
    tuning = workspace["status"]["tuning"]
    assert (tuning["state"], tuning["message"]) == ("Refused", BAD.message)
    assert workspace["status"]["state"] == "Failed"
    client.wait(lambda: events(client, "bad").get("InvalidData"), {BAD.message}.__contains__)
    first = a_pod(client, "bad")
    assert quiet_writes(cluster) == []
    assert arm.calls("PUT") == []
    # Whoever mends the file itself deletes the pod; then it is judged at once, not only after a while.
    client.delete(first)
    client.wait(lambda: a_pod(client, "bad")["metadata"]["uid"], lambda uid: uid != first["metadata"]["uid"])
    wait_for(client, "bad", "ResourceReady", "False", reason="InvalidData")
    # Whoever names another one need not.
    cluster.unscript(script)
    client.patch(get(client, "bad"), {"tuning": {"input": {"urls": ["https://example.com/data/mended.jsonl"]}}})
    wait_for(client, "bad", "ResourceReady", "False", reason="JudgingData")
    client.wait(lambda: [one["metadata"]["labels"]["kaito-ray.io/job"] for one in pods(client, "bad")], another(first))
    assert arm.calls("PUT") == []
    cluster.script(says("bad", DATA))
    asked(client, arm)
    gone(client, "bad")


def test_a_source_that_is_away_is_said_and_buys_nothing(cluster: Cluster, client: Client, arm: FakeArm) -> None:
    cluster.script(says("away", AWAY))
    client.create(a_tuning("away"))
    workspace = wait_for(client, "away", "WorkspaceSucceeded", "False", reason="ServerError")
    assert condition(workspace, "ResourceReady")["message"] == AWAY.message
    assert (workspace["status"]["state"], workspace["status"]["tuning"]["state"]) == ("Pending", "Unavailable")
    assert arm.calls("PUT") == []
    gone(client, "away")


def test_a_cluster_without_room_for_the_pod_is_no_obstacle(cluster: Cluster, client: Client, arm: FakeArm) -> None:
    script = Script("unschedulable", judges("full"), message="0/1 nodes are available: 1 Insufficient cpu.")
    cluster.script(script)
    client.create(a_tuning("full"))
    a_pod(client, "full")
    assert arm.calls("PUT") == []
    asked(client, arm)
    said = events(client, "full")["DataNotJudged"]
    assert said.startswith("the job judges the data, on its nodes: pod full-")
    assert said.endswith("cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu.")
    workspace = get(client, "full")
    assert workspace["status"]["tuning"].items() >= {"state": "Unjudged", "message": said}.items()
    client.wait(lambda: pods(client, "full"), empty)
    gone(client, "full")


def test_data_that_lies_on_the_nodes_is_left_to_the_job(client: Client, arm: FakeArm) -> None:
    client.create(a_tuning("host", volumeSource={"hostPath": {"path": "/srv/data"}}))
    asked(client, arm)
    assert pods(client, "host") == []
    assert "hostPath" in events(client, "host")["DataNotJudged"]
    gone(client, "host")


def test_a_missing_secret_is_waited_for_before_anything_is_bought(
    cluster: Cluster, client: Client, arm: FakeArm
) -> None:
    cluster.script(says("secret", DATA))
    client.create(a_tuning("secret", image="registry.example.com/data:1", imagePullSecrets=["late"]))
    workspace = wait_for(client, "secret", "ResourceReady", "False", reason="ReferenceMissing")
    assert "Secret late is not in namespace default" in condition(workspace, "ResourceReady")["message"]
    assert (pods(client, "secret"), arm.calls("PUT")) == ([], [])
    secret = {"name": "late", "namespace": "default"}
    kind, data = "kubernetes.io/dockerconfigjson", {".dockerconfigjson": "e30="}
    client.create({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "type": kind, "data": data})
    asked(client, arm)
    gone(client, "secret")


def test_a_deleted_workspace_takes_its_pod_along(client: Client, arm: FakeArm) -> None:
    client.create(a_tuning("dropped"))
    pod = a_pod(client, "dropped")
    gone(client, "dropped")
    wait_until_gone(client, "v1", "Pod", pod["metadata"]["name"])
    assert arm.calls("PUT") == []


def test_an_operator_that_restarts_reads_what_came_meanwhile(
    cluster: Cluster, arm: FakeArm, account: Path, operator: Operator, tmp_path: Path
) -> None:
    client = cluster.client
    client.create(a_tuning("restart"))
    pod = a_pod(client, "restart")
    operator.stop()
    assert "forbidden" not in operator.log
    cluster.script(says("restart", DATA))
    client.wait(lambda: a_pod(client, "restart")["status"].get("phase"), {"Succeeded"}.__contains__)
    with an_operator(account, arm, tmp_path):
        workspace = client.wait(lambda: get(client, "restart"), judged)
        assert workspace["status"]["tuning"]["job"] == pod["metadata"]["labels"]["kaito-ray.io/job"]
        asked(client, arm)
        client.wait(lambda: pods(client, "restart"), empty)
        gone(client, "restart")


def test_an_operator_with_the_rights_of_an_older_release_goes_on(
    cluster: Cluster, arm: FakeArm, account: Path, operator: Operator, tmp_path: Path
) -> None:
    client = cluster.client
    operator.stop()
    role = client.get("rbac.authorization.k8s.io/v1", "ClusterRole", "kaito-ray")
    rules = [rule | ({"verbs": ["list", "watch"]} if rule["resources"] == ["pods"] else {}) for rule in role["rules"]]
    client.patch(role, {"rules": rules})
    with an_operator(account, arm, tmp_path):
        client.create(a_tuning("older"))
        asked(client, arm)
        assert "no pod can be made that judges it: pods is forbidden" in events(client, "older")["DataNotJudged"]
        gone(client, "older")


def judged(workspace: Object) -> bool:
    return bool((workspace.get("status") or {}).get("tuning", {}).get("state") == "Judged")


def another(pod: Object) -> Any:
    """The one pod there is judges for another job."""
    before = pod["metadata"]["labels"]["kaito-ray.io/job"]
    return lambda jobs: len(jobs) == 1 and before not in jobs


def empty(found: Any) -> bool:
    return not found
