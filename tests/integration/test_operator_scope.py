# SPDX-License-Identifier: Apache-2.0
"""One namespace only, with rights in no other; and any cluster, simulated or real."""

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client
from cluster.fixture import Cluster
from helm_template import render_chart
from operator_rig import running_operator
from workspace_rig import API, RAY, a_serving, condition, simulated_cluster

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]


def test_one_namespace(tmp_path: Path) -> None:
    with simulated_cluster(tmp_path) as cluster:
        client = cluster.client
        for namespace in ("kaito-ray", "team-a", "team-b"):
            client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for one in render_chart({"settings": {"namespaces": ["team-a"]}, "crds": {"install": False}}):
            client.create(one)
        cluster.add_node("gpu-1", gpus=1, labels={"apps": "phi"})
        kubeconfig = cluster.kubeconfig_of("kaito-ray", "kaito-ray")
        with running_operator(
            kubeconfig, tmp_path, namespace="kaito-ray", scope=["--namespace=team-a"], namespaces="team-a"
        ) as operator:
            for namespace in ("team-b", "team-a"):
                client.create(a_serving("phi", "phi", metadata={"namespace": namespace}))
            _until_ready(client, "phi", "team-a")
            assert "status" not in client.get(API, "Workspace", "phi", "team-b")
            client.delete(client.get(API, "Workspace", "phi", "team-a"))
            client.wait(lambda: client.find(RAY, "RayService", "phi", "team-a"), lambda found: found is None)
            assert "forbidden" not in operator.log


def test_any_cluster(ray_cluster: Cluster, tmp_path: Path) -> None:
    """On a real server nothing may run pods or play KubeRay; then the test writes what they would report."""
    client, namespace = ray_cluster.client, ray_cluster.namespace
    label = f"phi-{namespace[-8:]}"
    node = _gpu_node(client, f"gpu-{label}", label)
    workspace = a_serving("phi", label, metadata={"namespace": namespace})
    try:
        with running_operator(ray_cluster.kubeconfig, tmp_path, namespace=namespace, namespaces=namespace):
            client.create(workspace)
            service = client.wait(lambda: client.find(RAY, "RayService", "phi", namespace), bool, 30)
            if not ray_cluster.is_simulated:
                _serve(client, service)
            _until_ready(client, "phi", namespace)
            client.patch(service, {"spec": {"serveConfigV2": "applications: []\n"}})
            client.wait(
                lambda: client.get(RAY, "RayService", "phi", namespace)["spec"]["serveConfigV2"],
                lambda config: config == service["spec"]["serveConfigV2"],
                30,
            )
            client.delete(workspace)
            client.wait(lambda: client.find(RAY, "RayService", "phi", namespace), lambda found: found is None, 60)
    finally:
        client.delete(node)


def _until_ready(client: Client, name: str, namespace: str) -> None:
    client.wait(
        lambda: client.get(API, "Workspace", name, namespace),
        lambda one: condition(one, "WorkspaceReady").get("status") == "True",
        30,
    )


def _gpu_node(client: Client, name: str, label: str) -> Object:
    metadata = {"name": name, "labels": {"apps": label, "kubernetes.io/os": "linux"}}
    node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}}
    client.create(node)
    status = {
        "capacity": {"cpu": "24", "memory": "220Gi", "pods": "110", "nvidia.com/gpu": "1"},
        "allocatable": {"cpu": "24", "memory": "220Gi", "pods": "110", "nvidia.com/gpu": "1"},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
                "lastHeartbeatTime": _now(),
                "lastTransitionTime": _now(),
            }
        ],
    }
    client.patch(node, {"status": status}, subresource="status")
    return node


def _serve(client: Client, service: Object) -> None:
    """What KubeRay writes when everything runs."""
    application = {"status": "RUNNING", "message": "", "serveDeploymentStatuses": {}}
    status = {
        "observedGeneration": service["metadata"]["generation"],
        "numServeEndpoints": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "NonZeroServeEndpoints",
                "message": "",
                "lastTransitionTime": _now(),
            }
        ],
        "activeServiceStatus": {"rayClusterName": "phi-abcde", "applicationStatuses": {"chat": application}},
    }
    client.patch(service, {"status": status}, subresource="status")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
