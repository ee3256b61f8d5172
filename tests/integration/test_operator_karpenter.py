# SPDX-License-Identifier: Apache-2.0
"""GPU nodes by Karpenter: the operator as a process on a test cluster, where the test plays Karpenter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client
from cluster.fixture import Cluster
from kaito_ray.render.node_pool import node_pool_name
from operator_rig import Operator, running_operator
from workspace_rig import (
    API,
    RAY,
    SHARED,
    a_serving,
    condition,
    get,
    simulated_cluster,
    wait_for,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(180)

A100 = "Standard_NC24ads_A100_v4"
KARPENTER, NODE_CLASS = "karpenter.sh/v1", "karpenter.azure.com/v1beta1"
# Only what the tests look at; Azure's own has more fields.
NODE_CLASS_CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: aksnodeclasses.karpenter.azure.com}
spec:
  group: karpenter.azure.com
  names: {kind: AKSNodeClass, listKind: AKSNodeClassList, plural: aksnodeclasses, singular: aksnodeclass}
  scope: Cluster
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              imageFamily: {type: string, enum: [Ubuntu, Ubuntu2204, Ubuntu2404, AzureLinux]}
              osDiskSizeGB: {type: integer, minimum: 30, maximum: 2048}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with running_operator(cluster.kubeconfig, tmp_path_factory.mktemp("operator"), provisioner="karpenter") as operator:
        yield operator


@pytest.fixture
def client(cluster: Cluster, operator: Operator) -> Client:
    assert operator.running
    return cluster.client


def install_karpenter(client: Client, folder: Path) -> None:
    crd = folder / "aksnodeclasses.yaml"
    crd.write_text(NODE_CLASS_CRD)
    files = [crd]
    for file in sorted((SHARED / "crds").glob("karpenter.sh_*.json")):
        files.append(folder / file.name)
        # CEL allows a comma after the last element of a list; the parser of the test cluster does not.
        files[-1].write_text(file.read_text().replace(", ]", " ]"))
    client.install(files)


def a_claim(client: Client, pool: str, **condition: str) -> dict[str, Any]:
    node_class = {"group": "karpenter.azure.com", "kind": "AKSNodeClass", "name": pool}
    claim = client.create(
        {
            "apiVersion": KARPENTER,
            "kind": "NodeClaim",
            "metadata": {"name": f"{pool}-x", "labels": {"karpenter.sh/nodepool": pool}},
            "spec": {"nodeClassRef": node_class, "requirements": []},
        }
    )
    moment = {"lastTransitionTime": "2026-09-01T12:00:00Z"}
    return client.patch(claim, {"status": {"conditions": [condition | moment]}}, "status")


def test_karpenter_that_comes_late(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    annotations = {"kaito-ray.io/spot": "prefer", "kaito.sh/node-image-family": "azurelinux"}
    client.create(a_serving("late", "late", metadata={"annotations": annotations}))
    workspace = wait_for(client, "late", "ResourceReady", "False", reason="KarpenterMissing")
    assert "nodepools.karpenter.sh" in condition(workspace, "ResourceReady")["message"]

    install_karpenter(client, tmp_path)
    name = node_pool_name("default", "late")
    pool = client.wait(lambda: client.find(KARPENTER, "NodePool", name, ""), bool, 40)
    spec = pool["spec"]
    assert spec["replicas"] == 1
    template = spec["template"]["spec"]
    assert {one["key"]: one["values"] for one in template["requirements"]} == {
        "node.kubernetes.io/instance-type": [A100],
        "kubernetes.io/os": ["linux"],
        "karpenter.sh/capacity-type": ["spot", "on-demand"],
        "karpenter.azure.com/placement-scope": ["regional"],
    }
    assert template["taints"] == [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]
    assert template["nodeClassRef"]["name"] == name
    assert spec["template"]["metadata"]["labels"]["apps"] == "late"
    node_class = client.get(NODE_CLASS, "AKSNodeClass", name)
    assert node_class["spec"] == {"imageFamily": "AzureLinux", "osDiskSizeGB": 300}

    refused = {"type": "Launched", "status": "False", "reason": "InsufficientCapacity", "message": "no A100 today"}
    claim = a_claim(client, name, **refused)
    workspace = wait_for(client, "late", "ResourceReady", "False", reason="InsufficientCapacity", timeout_s=40)
    assert "Karpenter: no A100 today" in condition(workspace, "ResourceReady")["message"]
    assert client.find(RAY, "RayService", "late", "default") is None

    client.delete(claim)
    labels = spec["template"]["metadata"]["labels"] | {"karpenter.sh/nodepool": name}
    cluster.add_node("gpu-late", gpus=1, labels=labels, instance_type=A100, taints=template["taints"])
    workspace = wait_until_ready(client, "late", 40)
    assert workspace["status"]["nodePool"]["name"] == name
    assert workspace["status"]["workerNodes"] == ["gpu-late"]

    if cluster.is_simulated:
        cluster.requests.clear()
        client.patch(get(client, "late"), {"metadata": {"labels": {"team": "a"}}})
        assert cluster.requests.select("get", user_agent="kaito-ray", resource="nodepools.karpenter.sh") == []

    # A spot node is taken back, and Karpenter makes another of the same pool.
    uid = client.get(KARPENTER, "NodePool", name)["metadata"]["uid"]
    cluster.remove_node("gpu-late")
    workspace = wait_for(client, "late", "ResourceReady", "False", timeout_s=30)
    assert condition(workspace, "ResourceReady")["message"].startswith("0 of 1 nodes are ready")
    cluster.add_node("gpu-later", gpus=1, labels=labels, instance_type=A100, taints=template["taints"])
    workspace = wait_until_ready(client, "late", 40)
    assert workspace["status"]["workerNodes"] == ["gpu-later"]
    assert client.get(KARPENTER, "NodePool", name)["metadata"]["uid"] == uid

    cluster.set_node("gpu-later", ready=False)
    wait_for(client, "late", "ResourceReady", "False", timeout_s=30)
    client.delete(get(client, "late"))
    wait_until_gone(client, API, "Workspace", "late", 40)
    assert client.find(KARPENTER, "NodePool", name, "") is None
    assert client.find(NODE_CLASS, "AKSNodeClass", name, "") is None
