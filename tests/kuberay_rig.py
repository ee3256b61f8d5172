# SPDX-License-Identifier: Apache-2.0
"""What tests beside KubeRay's own operator apply there, look for, and take away again."""

import functools
from typing import Any

from cluster.client import Client
from cluster.real import RealCluster
from workspace_rig import RAY, get, wait_until_gone

Object = dict[str, Any]
PATIENCE_S = 30.0


def start(cluster: RealCluster, document: Object) -> str:
    """Create a Workspace and a node with one GPU for it; its name."""
    name: str = document["metadata"]["name"]
    resource = document["resource"]
    labels = resource["labelSelector"]["matchLabels"]
    cluster.add_node(f"gpu-{name}", gpus=1, labels=labels, instance_type=resource["instanceType"])
    cluster.client.create(document)
    return name


def ray_clusters(client: Client, workspace: str) -> list[Object]:
    """The RayClusters of a Workspace."""
    found: list[Object] = client.list(RAY, "RayCluster", "default", labelSelector=f"kaito.sh/workspace={workspace}")
    return found


def head_pods(client: Client, workspace: str) -> list[Object]:
    """The pods of the heads of those."""
    labels = f"kaito.sh/workspace={workspace},ray.io/node-type=head"
    found: list[Object] = client.list("v1", "Pod", "default", labelSelector=labels)
    return found


def remove(cluster: RealCluster, name: str) -> None:
    """The Workspace goes, and everything with it."""
    client = cluster.client
    client.delete(get(client, name))
    for kind in ("RayService", "RayJob"):
        client.wait(
            functools.partial(client.list, RAY, kind, "default", labelSelector=f"kaito.sh/workspace={name}"),
            lambda left: not left,
            PATIENCE_S,
        )
    client.wait(lambda: ray_clusters(client, name), lambda left: not left, PATIENCE_S)
    wait_until_gone(client, "kaito.sh/v1beta1", "Workspace", name, PATIENCE_S)
    cluster.remove_node(f"gpu-{name}")
