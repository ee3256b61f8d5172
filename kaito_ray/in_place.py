# SPDX-License-Identifier: Apache-2.0
"""RayServices that are not yet what they are to be, and serve all the same. Called by observe.py.

KubeRay and Ray Serve report every change of the Serve config as a deployment under way. Adapters and the limit of the
queue stand in `user_config` and stop nothing, so a model stays ready meanwhile; AdaptersReady tells about adapters.
"""

import functools

import yaml

from kaito_ray import names
from kaito_ray.cluster import KubeObject
from kaito_ray.drift import digest
from kaito_ray.informer import Key
from kaito_ray.kuberay import RayServiceStatus


class InPlace:
    """Remembers which specification of each Workspace was served last; without memory a change is like any other."""

    def __init__(self) -> None:
        self._served: dict[Key, tuple[str, str]] = {}

    def is_under_way(self, workspace: Key, document: KubeObject, status: RayServiceStatus) -> bool:
        """Whether the RayService differs from what it served last in nothing but that."""
        fixed, moving = _parts(document["spec"].get("serveConfigV2", ""))
        annotations = document["metadata"].get("annotations") or {}
        now = f"{annotations.get(names.ANNOTATION_CLUSTER_CONFIG, '')} {fixed}", moving
        if status.ready:
            self._served[workspace] = now
        before = self._served.get(workspace)
        return before is not None and before[0] == now[0] and before[1] != now[1]

    def forget(self, workspace: Key) -> None:
        """The Workspace is gone."""
        self._served.pop(workspace, None)


@functools.lru_cache(maxsize=2048)
def _parts(config: str) -> tuple[str, str]:
    """A digest of what replicas are made from, and one of what they take over later."""
    document = yaml.load(config, yaml.CSafeLoader) or {}
    moving = [
        deployment.pop("user_config", None)
        for application in document.get("applications") or ()
        for deployment in application.get("deployments") or ()
    ]
    return digest(document), digest(moving)
