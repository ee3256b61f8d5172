# SPDX-License-Identifier: Apache-2.0
"""The simulators of the test cluster: nodes, pods, endpoints and KubeRay behave as the real ones are known to."""

from typing import Any

import pytest
import yaml

from cluster.client import Client, condition_of
from cluster.container_state import Script
from cluster.fixture import RAY_CRDS, Cluster
from cluster.ray_job_simulator import Running
from cluster.ray_service_simulator import Serving
from cluster.server import TestCluster

RAY = "ray.io/v1"


def a_template(name: str, **resources: Any) -> dict[str, Any]:
    limits = {"cpu": "1", "memory": "1Gi", **resources}
    return {"spec": {"containers": [{"name": name, "image": "ray:1", "resources": {"limits": limits}}]}}


def a_ray_cluster(image: str = "ray:1", replicas: int = 1, hosts: int = 1) -> dict[str, Any]:
    head, worker = a_template("ray-head"), a_template("ray-worker", **{"nvidia.com/gpu": 1})
    worker["spec"]["containers"][0]["image"] = image
    group = {"groupName": "workers", "replicas": replicas, "minReplicas": 0, "maxReplicas": 8, "numOfHosts": hosts,
             "rayStartParams": {}, "template": worker}  # fmt: skip
    head_group = {"rayStartParams": {}, "template": head}
    return {"rayVersion": "2.60.0", "headGroupSpec": head_group, "workerGroupSpecs": [group]}


def a_service(cluster: dict[str, Any] | None = None, adapters: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    deployment = {"name": "Chat", "user_config": {"adapters": list(adapters)}}
    config = {"applications": [{"name": "chat", "deployments": [deployment]}]}
    serve_service = {
        "metadata": {"name": "phi"},
        "spec": {"ports": [{"name": "serve", "port": 80, "targetPort": 8000}]},
    }
    return {
        "apiVersion": RAY,
        "kind": "RayService",
        "metadata": {"name": "phi", "namespace": "default", "labels": {"team": "a"}},
        "spec": {
            "serveConfigV2": yaml.safe_dump(config),
            "rayClusterConfig": cluster or a_ray_cluster(),
            "serveService": serve_service,
            "excludeHeadPodFromServeSvc": True,
            **spec,
        },
    }


def a_job(name: str = "tune", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": RAY,
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "entrypoint": "python -m tune",
            "submissionMode": "HTTPMode",
            "rayClusterSpec": a_ray_cluster(),
            **spec,
        },
    }


@pytest.fixture
def client(ray_cluster: Cluster, simulated: TestCluster) -> Client:
    simulated.add_node("gpu-0", gpus=4, labels={"pool": "gpu"})
    return ray_cluster.client


def status_of(client: Client, obj: dict[str, Any]) -> dict[str, Any]:
    found = client.get(obj["apiVersion"], obj["kind"], obj["metadata"]["name"], "default")
    status: dict[str, Any] = found.get("status") or {}
    return {**status, "generation": found["metadata"]["generation"]}


def wait_ready(client: Client, obj: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = client.wait(
        lambda: status_of(client, obj),
        lambda found: (
            condition_of({"status": found}, "Ready") == "True"
            and condition_of({"status": found}, "UpgradeInProgress") == "False"
            and found["observedGeneration"] == found["generation"]
        ),
    )
    return status


def pods(client: Client, **labels: str) -> list[dict[str, Any]]:
    selector = ",".join(f"ray.io/{key.replace('_', '-')}={value}" for key, value in labels.items())
    return client.list("v1", "Pod", "default", labelSelector=selector)


def test_a_ray_service_becomes_ready_with_its_service(client: Client) -> None:
    service = a_service()
    client.create(service)
    status = wait_ready(client, service)
    chat = status["activeServiceStatus"]["applicationStatuses"]["chat"]
    assert (chat["status"], chat["serveDeploymentStatuses"]["Chat"]["status"]) == ("RUNNING", "HEALTHY")
    assert (status["numServeEndpoints"], status["serviceStatus"]) == (1, "Running")
    name = status["activeServiceStatus"]["rayClusterName"]
    cluster = client.get(RAY, "RayCluster", name, "default")
    assert cluster["metadata"]["labels"]["team"] == "a"
    assert (cluster["status"]["state"], cluster["status"]["readyWorkerReplicas"]) == ("ready", 1)
    found = client.get("v1", "Service", "phi", "default")["spec"]
    assert found["selector"] == {"ray.io/cluster": name, "ray.io/serve": "true"}
    assert [(port["port"], port["targetPort"]) for port in found["ports"]] == [(80, 8000)]
    (head,) = pods(client, node_type="head")
    assert head["metadata"]["labels"]["ray.io/serve"] == "false"
    (worker,) = pods(client, node_type="worker")
    assert worker["spec"]["nodeName"] == "gpu-0"


def test_simulators_take_up_what_stood_before_them(simulated: TestCluster) -> None:
    absent = [path for path in RAY_CRDS if not path.exists()]
    if absent:
        pytest.skip(f"needs KubeRay's CustomResourceDefinitions at {absent[0].parent}")
    client = simulated.client
    client.install(RAY_CRDS)
    simulated.add_node("gpu-0", gpus=1)
    client.create(a_service())
    simulated.simulate()
    wait_ready(client, a_service())


def test_the_serve_config_changes_in_place(client: Client) -> None:
    client.create(a_service())
    before = wait_ready(client, a_service())
    config = a_service(adapters=("a",))["spec"]["serveConfigV2"]
    changed = client.patch(a_service(), {"spec": {"serveConfigV2": config}})
    after = wait_ready(client, changed)
    assert after["activeServiceStatus"]["rayClusterName"] == before["activeServiceStatus"]["rayClusterName"]
    assert len(client.list(RAY, "RayCluster", "default")) == 1


def test_another_image_brings_up_a_second_cluster_first(client: Client) -> None:
    client.create(a_service())
    before = wait_ready(client, a_service())
    client.patch(a_service(), {"spec": {"rayClusterConfig": a_ray_cluster("ray:2")}})
    client.wait(
        lambda: status_of(client, a_service()),
        lambda found: condition_of({"status": found}, "UpgradeInProgress") == "True",
    )
    assert condition_of({"status": status_of(client, a_service())}, "Ready") == "True"
    after = wait_ready(client, a_service())
    assert after["activeServiceStatus"]["rayClusterName"] != before["activeServiceStatus"]["rayClusterName"]
    client.wait(lambda: client.list(RAY, "RayCluster", "default"), lambda found: len(found) == 1)


def test_a_second_cluster_without_gpus_waits_and_the_first_serves_on(client: Client, simulated: TestCluster) -> None:
    client.create(a_service(a_ray_cluster(replicas=4)))
    wait_ready(client, a_service())
    client.patch(a_service(), {"spec": {"rayClusterConfig": a_ray_cluster("ray:2", replicas=4)}})
    (stuck, *_) = client.wait(
        lambda: [pod for pod in pods(client, node_type="worker") if not pod["spec"].get("nodeName")],
        lambda found: len(found) == 4 and all(condition_of(pod, "PodScheduled") == "False" for pod in found),
    )
    scheduled = next(one for one in stuck["status"]["conditions"] if one["type"] == "PodScheduled")
    assert (scheduled["reason"], "Insufficient nvidia.com/gpu" in scheduled["message"]) == ("Unschedulable", True)
    assert condition_of({"status": status_of(client, a_service())}, "Ready") == "True"
    simulated.add_node("gpu-1", gpus=4)
    wait_ready(client, a_service())


def test_suspend_and_resume(client: Client) -> None:
    client.create(a_service())
    wait_ready(client, a_service())
    client.patch(a_service(), {"spec": {"suspend": True}})
    client.wait(
        lambda: status_of(client, a_service()), lambda found: condition_of({"status": found}, "Suspended") == "True"
    )
    assert client.list(RAY, "RayCluster", "default") == []
    client.wait(lambda: pods(client, is_ray_node="yes"), lambda found: found == [])
    client.patch(a_service(), {"spec": {"suspend": False, "rayClusterConfig": a_ray_cluster("ray:2")}})
    wait_ready(client, a_service())
    (worker,) = pods(client, node_type="worker")
    assert worker["spec"]["containers"][0]["image"] == "ray:2"


def test_a_failing_application_says_why_and_gets_no_service(client: Client, simulated: TestCluster) -> None:
    simulated.set_serving("default", "phi", Serving("DEPLOY_FAILED", "CUDA out of memory"))
    client.create(a_service())
    status = client.wait(
        lambda: status_of(client, a_service()),
        lambda found: (
            "chat" in ((found.get("pendingServiceStatus") or {}).get("applicationStatuses") or {})
            and found["pendingServiceStatus"]["applicationStatuses"]["chat"]["status"] == "DEPLOY_FAILED"
        ),
    )
    assert status["pendingServiceStatus"]["applicationStatuses"]["chat"]["message"] == "CUDA out of memory"
    assert condition_of({"status": status}, "Ready") == "False"
    assert client.find("v1", "Service", "phi", "default") is None
    simulated.set_serving("default", "phi", None)
    wait_ready(client, a_service())


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("crash", "CrashLoopBackOff"), ("oom", "CrashLoopBackOff"), ("image", "ImagePullBackOff")]
)
def test_pods_that_fail_after_ready_take_readiness_away(
    client: Client, simulated: TestCluster, behaviour: Any, reason: str
) -> None:
    client.create(a_service())
    wait_ready(client, a_service())
    script = Script(behaviour, labels=(("ray.io/node-type", "worker"),), log="Traceback: no luck")
    simulated.script(script)
    client.wait(
        lambda: status_of(client, a_service()), lambda found: condition_of({"status": found}, "Ready") == "False"
    )
    (worker,) = pods(client, node_type="worker")
    (status,) = worker["status"]["containerStatuses"]
    assert status["state"]["waiting"]["reason"] == reason
    if behaviour != "image":
        wanted = (137, "OOMKilled") if behaviour == "oom" else (1, "Error")
        ended = status["lastState"]["terminated"]
        assert ((ended["exitCode"], ended["reason"]), status["restartCount"] > 0) == (wanted, True)
        path = client.path("v1", "Pod", "default", worker["metadata"]["name"], "log")
        assert client.request("GET", path) == "Traceback: no luck"
    reasons = {one["reason"] for one in client.list("v1", "Event", "default") if one["type"] == "Warning"}
    assert reasons & {"BackOff", "Failed"}
    simulated.unscript(script)
    wait_ready(client, a_service())


def test_a_missing_secret_keeps_the_container_from_starting(client: Client) -> None:
    options = {"mode": "token", "secretName": "token"}
    client.create(a_service({**a_ray_cluster(), "authOptions": options}))

    def waiting() -> list[str]:
        return [
            one.get("state", {}).get("waiting", {}).get("reason", "")
            for pod in pods(client, is_ray_node="yes")
            for one in pod.get("status", {}).get("containerStatuses", ())
        ]

    client.wait(waiting, lambda found: "CreateContainerConfigError" in found)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token", "namespace": "default"}}
    client.create({**secret, "stringData": {"auth_token": "x"}})
    wait_ready(client, a_service())


def test_a_lost_node_takes_its_pods_and_a_new_one_gets_them(client: Client, simulated: TestCluster) -> None:
    client.create(a_service())
    wait_ready(client, a_service())
    simulated.remove_node("gpu-0")
    client.wait(
        lambda: status_of(client, a_service()), lambda found: condition_of({"status": found}, "Ready") == "False"
    )
    simulated.add_node("gpu-1", gpus=1)
    wait_ready(client, a_service())


def test_gpus_appear_with_the_device_plugin(client: Client, simulated: TestCluster) -> None:
    simulated.remove_node("gpu-0")
    simulated.add_node("gpu-2")
    client.create(a_service())
    client.wait(
        lambda: [pod for pod in pods(client, node_type="worker") if condition_of(pod, "PodScheduled") == "False"],
        lambda found: len(found) == 1,
    )
    simulated.set_node("gpu-2", gpus=1)
    wait_ready(client, a_service())


def test_refused_pods_show_as_replica_failure(client: Client, simulated: TestCluster) -> None:
    del simulated
    broken = a_ray_cluster()
    (container,) = broken["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    container["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    metadata = {"name": "c", "namespace": "default"}
    client.create({"apiVersion": RAY, "kind": "RayCluster", "metadata": metadata, "spec": broken})
    found = client.wait(
        lambda: client.get(RAY, "RayCluster", "c", "default"), lambda one: condition_of(one, "ReplicaFailure") == "True"
    )
    failure = next(one for one in found["status"]["conditions"] if one["type"] == "ReplicaFailure")
    assert 'volumeMounts[0].name: Not found: "v"' in failure["message"]


def test_replicas_of_several_hosts_come_as_a_whole(client: Client) -> None:
    client.create(a_service(a_ray_cluster(replicas=2, hosts=2)))
    wait_ready(client, a_service())
    found = pods(client, node_type="worker")
    replicas = {pod["metadata"]["labels"]["ray.io/worker-group-replica-name"] for pod in found}
    assert (len(found), len(replicas)) == (4, 2)


def test_a_name_that_is_too_long_is_a_condition(client: Client) -> None:
    service = a_service()
    service["metadata"]["name"] = "a" * 48
    client.create(service)
    status = client.wait(lambda: status_of(client, service), lambda found: bool(found.get("conditions")))
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert (ready["reason"], "no more than 47 characters" in ready["message"]) == ("ValidationFailed", True)


def test_deleting_a_ray_service_leaves_nothing_behind(client: Client) -> None:
    made = client.create(a_service())
    wait_ready(client, a_service())
    client.delete(made)
    for api_version, kind in ((RAY, "RayService"), (RAY, "RayCluster"), ("v1", "Pod")):
        client.wait(lambda: client.list(api_version, kind, "default"), lambda found: found == [])  # noqa: B023 - called at once
    services = [one["metadata"]["name"] for one in client.list("v1", "Service", "default")]
    assert services == ["kubernetes"]


def job_status(client: Client, wanted: str, name: str = "tune") -> dict[str, Any]:
    status: dict[str, Any] = client.wait(
        lambda: status_of(client, a_job(name)), lambda found: found.get("jobDeploymentStatus") == wanted
    )
    return status


def test_a_ray_job_succeeds_and_its_cluster_goes_by_rule(client: Client) -> None:
    rule = {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 0}}
    client.create(a_job(jobId="given", deletionStrategy={"deletionRules": [rule]}))
    status = job_status(client, "Complete")
    assert (status["jobStatus"], status["jobId"], status["succeeded"]) == ("SUCCEEDED", "given", 1)
    client.wait(lambda: client.list(RAY, "RayCluster", "default"), lambda found: found == [])


def test_a_ray_job_is_retried_on_new_clusters(client: Client, simulated: TestCluster) -> None:
    simulated.set_running("default", "tune", Running(failures=2, message="boom"))
    client.create(a_job(backoffLimit=2))
    status = job_status(client, "Complete")
    assert (status["failed"], status["succeeded"]) == (2, 1)
    simulated.set_running("default", "other", Running(status="FAILED", message="boom"))
    client.create(a_job("other"))
    status = job_status(client, "Failed", "other")
    assert (status["reason"], status["message"], status["jobStatus"]) == ("AppFailed", "boom", "FAILED")


def test_a_running_ray_job_can_be_suspended(client: Client, simulated: TestCluster) -> None:
    simulated.set_running("default", "tune", Running(run_s=None))
    client.create(a_job(shutdownAfterJobFinishes=True))
    client.wait(lambda: status_of(client, a_job()), lambda found: found.get("jobStatus") == "RUNNING")
    client.patch(a_job(), {"spec": {"suspend": True}})
    job_status(client, "Suspended")
    assert client.list(RAY, "RayCluster", "default") == []
