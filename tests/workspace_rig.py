# SPDX-License-Identifier: Apache-2.0
"""A cluster with everything kaito-ray needs in it, and what tests ask of Workspaces there."""

import copy
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.fixture import Cluster
from cluster.kuberay import kuberay_acts
from cluster.real import RealCluster, given_kubeconfig
from cluster.server import TestCluster
from cluster.simulation import Pace
from kaito_ray.crd import crd_yaml

Object = dict[str, Any]
SHARED = Path(__file__).resolve().parents[2] / "shared"
MANIFESTS = SHARED / "user-manifests"
API = "kaito.sh/v1beta1"
RAY = "ray.io/v1"
_MADE = (
    (RAY, "RayService"),
    (RAY, "RayJob"),
    ("v1", "Service"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)


@contextmanager
def bare_cluster(folder: Path, *, kuberay: bool = True) -> Iterator[Cluster]:
    """A cluster with the CRDs and nothing that acts, the one that was given or a simulated one."""
    if not (SHARED / "crds").is_dir():
        pytest.skip("needs ../shared/crds")
    given = given_kubeconfig()
    with TestCluster() if given is None else RealCluster(given, folder) as cluster:
        if isinstance(cluster, RealCluster) and not kuberay:
            cluster.forget_kuberay()
        cluster.client.install([workspace_crd(folder), *(ray_crds() if kuberay else [])], renew=True)
        yield cluster


@contextmanager
def kuberay_cluster(folder: Path) -> Iterator[RealCluster]:
    """The cluster that was given, where KubeRay's own operator acts in it; nothing is simulated but nodes."""
    given = given_kubeconfig()
    if given is None or not kuberay_acts(given):
        pytest.skip("needs a cluster with KubeRay's own operator, named by KAITO_RAY_TEST_KUBECONFIG")
    with RealCluster(given, folder) as cluster:
        cluster.client.install([workspace_crd(folder)], renew=True)
        yield cluster


@contextmanager
def simulated_cluster(folder: Path, *, pace: Pace | None = None, kuberay: bool = True) -> Iterator[Cluster]:
    """The same with nodes for Ray's heads and everything simulated."""
    with bare_cluster(folder, kuberay=kuberay) as cluster:
        cluster.simulate(pace)
        cluster.add_node("cpu-1", cpu="1000", memory="4Ti")
        yield cluster


def workspace_crd(folder: Path) -> Path:
    """The CRD of the Workspace as a file."""
    path = folder / "workspaces.yaml"
    path.write_text(crd_yaml())
    return path


def ray_crds() -> list[Path]:
    """KubeRay's CRDs."""
    return sorted((SHARED / "crds").glob("ray.io*.json"))


def user_manifest(number: str) -> Object:
    """One of the user's manifests, in namespace default; skips where there are none."""
    if not MANIFESTS.is_dir():
        pytest.skip("needs ../shared/user-manifests")
    (path,) = MANIFESTS.glob(f"{number}-*.yaml")
    document: Object = yaml.safe_load(path.read_text())
    document["metadata"]["namespace"] = "default"
    return document


def a_serving(name: str, label: str = "serving", **overrides: Any) -> Object:
    """A Workspace that serves phi-3-mini on nodes with the label `apps: <label>`."""
    inference = {"preset": {"name": "phi-3-mini-4k-instruct"}, **overrides.pop("inference", {})}
    return {
        "apiVersion": API,
        "kind": "Workspace",
        "metadata": {"name": name, "namespace": "default", **overrides.pop("metadata", {})},
        "resource": {
            "instanceType": "Standard_NC24ads_A100_v4",
            "labelSelector": {"matchLabels": {"apps": label}},
        },
        "inference": inference,
        **overrides,
    }


def a_push_secret() -> Object:
    """The Secret `push`, with which a registry takes images."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "push", "namespace": "default"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": "e30="},
    }


def get(client: Client, name: str, namespace: str = "default") -> Object:
    """A Workspace."""
    return client.get(API, "Workspace", name, namespace)


def condition(workspace: Object, kind: str) -> Object:
    """A condition of a Workspace; empty when it has none of that type."""
    conditions = (workspace.get("status") or {}).get("conditions") or ()
    return next((dict(one) for one in conditions if one["type"] == kind), {})


def wait_for(
    client: Client, name: str, kind: str, status: str = "True", *, reason: str = "", timeout_s: float = 20.0
) -> Object:
    """The Workspace once a condition has a status (and reason)."""

    def wanted(workspace: Object) -> bool:
        found = condition(workspace, kind)
        return found.get("status") == status and reason in ("", found.get("reason"))

    workspace: Object = client.wait(lambda: get(client, name), wanted, timeout_s)
    return workspace


def wait_until_ready(client: Client, name: str, timeout_s: float = 20.0) -> Object:
    """The Workspace once it is WorkspaceReady."""
    return wait_for(client, name, "WorkspaceReady", timeout_s=timeout_s)


def wait_until_gone(client: Client, api_version: str, kind: str, name: str, timeout_s: float = 20.0) -> None:
    """Return once there is no such object in namespace default."""
    client.wait(lambda: client.find(api_version, kind, name, "default"), lambda found: found is None, timeout_s)


def changed(document: Object, change: Callable[[Object], None]) -> Object:
    """A copy of an object with `change` applied."""
    copied = copy.deepcopy(document)
    change(copied)
    return copied


def kubectl(kubeconfig: Path, *arguments: str, check: bool = True) -> str:
    """What kubectl prints; skips where it is not installed."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("needs kubectl")
    done = subprocess.run(
        [program, "--kubeconfig", str(kubeconfig), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout + done.stderr


def quiet_writes(cluster: Cluster, settle_s: float = 1.0) -> list[str]:
    """What the operator writes within `settle_s`, the Lease apart; on a real server only what its writes change."""
    if isinstance(cluster, RealCluster):
        before = _versions(cluster.client)
        time.sleep(settle_s)
        return sorted(_versions(cluster.client) - before)
    cluster.requests.clear()
    time.sleep(settle_s)
    return [
        f"{one.verb} {one.resource} {one.name}"
        for one in cluster.requests.writes("kaito-ray")
        if not one.resource.startswith("leases")
    ]


def _versions(client: Client) -> set[str]:
    """Every Workspace with its version; every object we make, with its generation where others write its status."""
    return {
        f"{one['metadata']['name']} {one['metadata']['resourceVersion']}" for one in client.list(API, "Workspace")
    } | {
        f"{kind} {one['metadata']['name']} {one['metadata'].get('generation') or one['metadata']['resourceVersion']}"
        for api_version, kind in _MADE
        for one in client.list(api_version, kind)
    }
