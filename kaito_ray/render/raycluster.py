# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster of a plan, as rayservice.py and rayjob.py put it into their specs."""

from collections.abc import Mapping, Sequence

from kaito_ray import names
from kaito_ray.plan import Target
from kaito_ray.render.metadata import KubeObject
from kaito_ray.render.model import model_parts
from kaito_ray.render.pods import CONTAINER_SECURITY, head_template, pod_env, worker_template
from kaito_ray.render.volumes import Mount
from kaito_ray.settings import Settings

RAY_VERSION = "2.60.0"
# New GPU nodes take ten minutes to come back, so an idle one is kept for longer than Ray's minute.
_IDLE_TIMEOUT_S = 600


def ray_cluster(
    target: Target,
    image: str,
    env: Mapping[str, str],
    mounts: Sequence[Mount],
    *,
    groups: tuple[int, int],
    hosts: int = 1,
    autoscaler: bool = False,
    serves: bool = False,
    hub_secret: str | None = None,
    before: Sequence[KubeObject] = (),
    settings: Settings,
) -> KubeObject:
    """The `rayClusterConfig` of a RayService or `rayClusterSpec` of a RayJob.

    `groups` is the least and greatest number of worker replicas, each `hosts` pods that live and die together. With
    `autoscaler` Ray moves between the two, and `replicas` is left to it. `hub_secret` has the token with which a model
    of the hub is fetched, `before` are more containers that run before Ray.
    """
    env = pod_env(env)
    model = model_parts(target, image, hub_secret, settings)
    least, most = groups
    workers: KubeObject = {
        "groupName": names.GROUP_WORKERS,
        **({} if autoscaler else {"replicas": least}),
        "minReplicas": least,
        "maxReplicas": most,
        "numOfHosts": hosts,
        "rayStartParams": {},
        "template": worker_template(
            target,
            image,
            env,
            (*mounts, *model.mounts),
            serves=serves,
            private=model.private,
            before=(*model.before, *before),
            pull_secrets=model.pull_secrets,
        ),
    }
    cluster: KubeObject = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token", "secretName": names.token_secret_name(target.name)},
        "headGroupSpec": {
            # Zero, so that neither replicas nor training ever land beside the control plane.
            "rayStartParams": {"num-cpus": "0"},
            "template": head_template(target, image, env, autoscaler=autoscaler),
        },
        "workerGroupSpecs": [workers],
    }
    if autoscaler:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": _IDLE_TIMEOUT_S,
            "securityContext": dict(CONTAINER_SECURITY),
        }
    return cluster
