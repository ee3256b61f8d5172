# SPDX-License-Identifier: Apache-2.0
"""Whether KubeRay's own operator acts in a cluster that tests were given: beside it the simulated one has no place.

It may run as a Deployment, a process or anything else, so it is known by what it does.
"""

import functools
import time
from pathlib import Path

from cluster.client import Client

_DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayclusters.ray.io")
_PROBE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayCluster",
    "metadata": {"name": "kaito-ray-probe", "namespace": "default"},
    "spec": {
        "headGroupSpec": {
            "rayStartParams": {},
            "template": {"spec": {"containers": [{"name": "ray-head", "image": "none"}]}},
        }
    },
}
_SOON_S = 5.0


@functools.cache
def kuberay_acts(kubeconfig: Path) -> bool:
    """Whether somebody makes pods and a Service of a RayCluster; asked once, with a RayCluster that is taken away."""
    client = Client(kubeconfig)
    if client.find(*_DEFINITION) is None:
        return False
    probe = client.create(_PROBE)
    try:
        deadline = time.monotonic() + _SOON_S
        while time.monotonic() < deadline:
            if client.find("v1", "Service", "kaito-ray-probe-head-svc", "default") is not None:
                return True
            time.sleep(0.1)
        return False
    finally:
        client.delete(probe)
        client.wait(
            lambda: client.find("ray.io/v1", "RayCluster", "kaito-ray-probe", "default"), lambda one: one is None
        )
