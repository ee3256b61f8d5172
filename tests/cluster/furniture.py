# SPDX-License-Identifier: Apache-2.0
"""What stands in every cluster from the start."""

from collections.abc import Iterator

from cluster.resource import Object
from cluster.strategy import STORAGE_CLASS

_RBAC = "rbac.authorization.k8s.io"


def furniture() -> Iterator[tuple[str, Object]]:
    """Tables and the objects in them."""
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    yield f"clusterroles.{_RBAC}", {"metadata": {"name": "cluster-admin"}, "rules": everything}
    port = {"name": "https", "port": 443, "targetPort": 6443}
    service = {"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"ports": [port]}}
    yield "services", service
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    metadata = {"name": STORAGE_CLASS, "annotations": annotations}
    yield "storageclasses.storage.k8s.io", {"metadata": metadata, "provisioner": "disk.csi.azure.com"}
