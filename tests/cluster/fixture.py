# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests that need a cluster; a conftest imports them.

By default the cluster is our own, simulated one. With `KAITO_RAY_TEST_KUBECONFIG=<file>` it is the real one of that
kubeconfig: each test gets a namespace of its own there, and what only a simulated cluster can do is skipped.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from cluster.client import Client
from cluster.real import RealCluster, given_kubeconfig
from cluster.server import TestCluster
from cluster.widget import install_widgets, remove_widgets

_SHARED = Path(__file__).resolve().parents[2].parent / "shared"
_WORKSPACE_CRD = Path(__file__).resolve().parents[2] / "manifests" / "crds" / "kaito.sh_workspaces.yaml"
RAY_CRDS = tuple(_SHARED / "crds" / f"ray.io_{plural}.json" for plural in ("rayclusters", "rayservices", "rayjobs"))


Cluster = TestCluster | RealCluster


class Kubectl(Protocol):
    """Runs kubectl against the test's cluster and namespace and gives what it printed; a failure fails the test."""

    def __call__(self, *arguments: str, stdin: str = "", fails: bool = False) -> str:
        """`fails` expects a failure and gives what kubectl printed about it."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster: no CustomResourceDefinitions, no nodes but a real one's."""
    given = given_kubeconfig()
    if given is None:
        with TestCluster() as simulated:
            yield simulated
        return
    found = RealCluster(given, tmp_path, f"kaito-ray-test-{secrets.token_hex(4)}")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": found.namespace}}
    found.client.create(namespace)
    yield found
    found.client.delete(namespace)


@pytest.fixture
def simulated(cluster: Cluster) -> TestCluster:
    """The cluster, where a test needs what no real one lets it do."""
    if not isinstance(cluster, TestCluster):
        pytest.skip("needs the simulated cluster: it injects faults or scripts what happens")
    return cluster


@pytest.fixture
def ray_cluster(cluster: Cluster) -> Cluster:
    """A cluster with the CustomResourceDefinitions of Workspaces and of KubeRay, and KubeRay itself when simulated."""
    absent = [path for path in RAY_CRDS if not path.exists()]
    if absent and cluster.is_simulated:
        pytest.skip(f"needs KubeRay's CustomResourceDefinitions at {absent[0].parent}")
    cluster.client.install([_WORKSPACE_CRD, *(path for path in RAY_CRDS if path.exists())])
    if isinstance(cluster, TestCluster):
        cluster.simulate()
        cluster.add_node("system-0")
    return cluster


@pytest.fixture
def kubectl(cluster: Cluster, tmp_path: Path) -> Kubectl:
    """The real kubectl, where it is installed."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "HOME": str(tmp_path)}

    def run(*arguments: str, stdin: str = "", fails: bool = False) -> str:
        done = subprocess.run(
            [program, "-n", cluster.namespace, *arguments],
            input=stdin, env=environment, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


@pytest.fixture
def widgets(cluster: Cluster) -> Iterator[Client]:
    """A client of a cluster that serves the widgets of widget.py."""
    install_widgets(cluster.client)
    yield cluster.client
    if not cluster.is_simulated:
        remove_widgets(cluster.client)
