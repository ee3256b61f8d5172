# SPDX-License-Identifier: Apache-2.0
"""A cluster where KubeRay is missing, comes later, or is too old."""

import json
from pathlib import Path

import pytest

from cluster.fixture import Cluster
from operator_rig import running_operator
from workspace_rig import a_serving, condition, ray_crds, simulated_cluster, wait_for, wait_until_ready

pytestmark = pytest.mark.timeout(180)


def add(cluster: Cluster, name: str) -> None:
    """A Workspace and a node for it."""
    cluster.add_node(f"gpu-{name[-10:]}", gpus=1, labels={"apps": name[-10:]})
    cluster.client.create(a_serving(name, name[-10:]))


def test_without_kuberay_it_waits_and_says_so(tmp_path: Path) -> None:
    with simulated_cluster(tmp_path, kuberay=False) as cluster, running_operator(cluster.kubeconfig, tmp_path):
        add(cluster, "early")
        workspace = wait_for(cluster.client, "early", "InferenceReady", "False", reason="KubeRayMissing")
        assert "rayservices.ray.io" in condition(workspace, "InferenceReady")["message"]
        assert condition(workspace, "ResourceReady")["status"] == "True"
        cluster.client.install(ray_crds())
        wait_until_ready(cluster.client, "early", 30)
        # And they may go again.
        cluster.client.delete(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": "rayservices.ray.io"},
            }
        )
        wait_for(cluster.client, "early", "WorkspaceReady", "False", timeout_s=30)


def test_a_kuberay_that_is_too_old_is_named(tmp_path: Path) -> None:
    with simulated_cluster(tmp_path, kuberay=False) as cluster, running_operator(cluster.kubeconfig, tmp_path):
        for path in ray_crds():
            definition = json.loads(path.read_text())
            if definition["spec"]["names"]["kind"] == "RayService":
                for version in definition["spec"]["versions"]:
                    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["serveService"]
            cluster.client.create(definition)
        add(cluster, "old-kuberay")
        workspace = wait_for(
            cluster.client, "old-kuberay", "InferenceReady", "False", reason="CustomResourceTooOld", timeout_s=30
        )
        message = condition(workspace, "InferenceReady")["message"]
        assert "rayservices.ray.io" in message
        assert "serveService" in message
