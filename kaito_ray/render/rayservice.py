# SPDX-License-Identifier: Apache-2.0
"""A ServePlan in, the RayService out, with the Service that KubeRay makes of it. Called by objects.py."""

import math

from kaito_ray import names
from kaito_ray.plan import ServePlan
from kaito_ray.render.dumper import dump_yaml
from kaito_ray.render.metadata import KubeObject, labels, metadata
from kaito_ray.render.pods import fetch_env
from kaito_ray.render.raycluster import ray_cluster
from kaito_ray.render.volumes import serve_mounts
from kaito_ray.serve_config import serve_config, serve_env
from kaito_ray.settings import Settings


def ray_service(plan: ServePlan, settings: Settings) -> KubeObject:
    """The RayService; everything that may change while it serves stands in `serveConfigV2`, nowhere else."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(plan, names.child_name(plan.name)),
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            # Requests go straight to the GPU nodes. The head answers only where it may be all that is left, to
            # wake a service that was scaled to zero.
            "excludeHeadPodFromServeSvc": not (plan.autoscaling and plan.autoscaling.min_replicas == 0),
            "serveService": _service(plan),
            # Sorted, because KubeRay compares the text and PUTs it again when it differs.
            "serveConfigV2": dump_yaml([serve_config(plan)], sort_keys=True, explicit_start=False),
            "rayClusterConfig": ray_cluster(
                plan,
                settings.serve_image,
                {**serve_env(plan), **fetch_env(settings)},
                serve_mounts(plan),
                groups=worker_groups(plan),
                hosts=plan.nodes_per_replica,
                autoscaler=plan.autoscaling is not None,
                serves=True,
                hub_secret=plan.hf_token_secret,
                settings=settings,
            ),
        },
    }


def worker_groups(plan: ServePlan) -> tuple[int, int]:
    """The least and greatest number of worker replicas, each made of `nodes_per_replica` pods."""
    if plan.autoscaling is None:
        count = plan.nodes // plan.nodes_per_replica
        return count, count
    per_group = max(1, plan.gpus_per_node * plan.nodes_per_replica // (plan.tensor_parallel * plan.pipeline_parallel))
    return (
        math.ceil(plan.autoscaling.min_replicas / per_group),
        math.ceil(plan.autoscaling.max_replicas / per_group),
    )


def _service(plan: ServePlan) -> KubeObject:
    """KubeRay owns this Service and repoints it when it switches clusters."""
    return {
        "metadata": {"name": names.service_name(plan.name), "labels": labels(plan)},
        "spec": {
            "type": "LoadBalancer" if plan.load_balancer else "ClusterIP",
            "ports": [
                {"name": "serve", "port": names.PORT_SERVICE, "targetPort": names.PORT_SERVE, "protocol": "TCP"},
                {"name": "torch", "port": names.PORT_TORCH, "targetPort": names.PORT_TORCH, "protocol": "TCP"},
            ],
        },
    }
