# SPDX-License-Identifier: Apache-2.0
"""The chart on the test cluster: applied with kubectl, and the operator runs with exactly the rights it gives."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.fixture import Cluster
from helm_template import CHART, render_chart
from operator_rig import running_operator
from waiting import free_port, until
from workspace_rig import (
    RAY,
    a_serving,
    get,
    kubectl,
    simulated_cluster,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]
_INSTALL = CHART.parent / "install"
# Asked for by clusters that enforce permissions on owner references, which the test cluster does not.
_UNUSED = {("update", "workspaces/finalizers")}
# Granted for what this test does not bring about: budgets, policies and claims that are no longer rendered, a
# certificate that is renewed, a finalizer where nodes are given back, data that is judged before nodes are bought
# (test_operator_lint.py has the chart's rights, too).
_RARE = {
    ("create", "pods"),
    ("delete", "pods"),
    ("delete", "networkpolicies"),
    ("delete", "poddisruptionbudgets"),
    ("delete", "rayservices"),
    ("patch", "workspaces"),
    ("get", "leases"),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with the chart installed as the plain manifests say, and an operator with the chart's account."""
    folder, port = tmp_path_factory.mktemp("cluster"), free_port()
    with simulated_cluster(folder) as cluster:
        kubectl(cluster.kubeconfig, "apply", "--server-side", "-k", str(_INSTALL))
        cluster.route_service("kaito-ray", "kaito-ray-webhook", f"https://127.0.0.1:{port}")
        kubeconfig = cluster.kubeconfig_of("kaito-ray", "kaito-ray")
        with running_operator(
            kubeconfig, folder, namespace="kaito-ray", webhook_port=str(port), operator_namespace="kaito-ray"
        ) as operator:
            yield cluster
        assert "forbidden" not in operator.log


def test_everything_the_operator_does_is_allowed_and_nothing_more(cluster: Cluster) -> None:
    client = cluster.client
    cluster.add_node("gpu-1", gpus=1, labels={"apps": "phi"})
    pull = {"name": "pull", "namespace": "default"}
    client.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": pull,
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": "e30="},
        }
    )
    client.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "engine", "namespace": "default"},
            "data": {"inference_config.yaml": "vllm:\n  max-model-len: 2048\n"},
        }
    )
    source = {"name": "sql", "image": "registry.example.com/sql:1", "imagePullSecrets": ["pull"]}
    client.create(a_serving("phi", "phi", inference={"config": "engine", "adapters": [{"source": source}]}))
    wait_until_ready(client, "phi")
    # A change that prunes the gathered Secret, drift that is repaired, deletion.
    client.patch(get(client, "phi"), {"inference": {"adapters": None}})
    wait_until_gone(client, "v1", "Secret", "phi-registry")
    client.delete(get(client, "phi"))
    wait_until_gone(client, RAY, "RayService", "phi")
    # Tuning, with its ConfigMap and its volume, replaced by another.
    tuning = a_serving("tuned", "phi")
    del tuning["inference"]
    tuning["tuning"] = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data/train.parquet"]},
        "output": {"image": "registry.example.com/adapters/phi:1", "imagePushSecret": "pull"},
    }
    client.create(tuning)
    wait_for(client, "tuned", "WorkspaceSucceeded")
    (first,) = client.list(RAY, "RayJob", "default")
    client.patch(get(client, "tuned"), {"tuning": {"output": {"image": "registry.example.com/adapters/phi:2"}}})
    wait_until_gone(client, "v1", "PersistentVolumeClaim", f"{first['metadata']['name']}-checkpoints")
    wait_until_gone(client, RAY, "RayJob", first["metadata"]["name"])
    if not cluster.is_simulated:
        # Nobody tells what was used here; that nothing was forbidden is seen in the operator's log.
        return
    # The operator introduces its webhook beside its other work.
    until(lambda: any(one.verb == "patch" and "webhook" in one.resource for one in cluster.requests), 60)
    used = {
        (verb, f"{one.resource.partition('.')[0]}{'/' + one.subresource if one.subresource else ''}")
        for one in cluster.requests
        if one.user_agent.startswith(("kaito-ray", "kopf"))
        # A server-side apply needs the right to patch, and to create what is not there.
        for verb in ([one.verb] if one.verb != "apply" else ["patch", "create"] if one.code == 201 else ["patch"])
    }
    granted = {
        (verb, resource)
        for one in render_chart()
        for rule in one.get("rules", [])
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    assert granted - used - _UNUSED - _RARE == set()
