# SPDX-License-Identifier: Apache-2.0
"""What stands in the cluster for one Workspace, read once per pass from the caches of world.py as one frozen value.

Called by reconcile.py after objects were applied; status.py derives the status from it.
"""

from dataclasses import dataclass, field

from kaito_ray import names
from kaito_ray.apply import Applied
from kaito_ray.errors import KaitoRayError
from kaito_ray.informer import Key
from kaito_ray.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE
from kaito_ray.kuberay import (
    RayClusterStatus,
    RayJobStatus,
    RayServiceStatus,
    parse_ray_cluster,
    parse_ray_job,
    parse_ray_service,
)
from kaito_ray.nodes.provisioner import NodesObserved
from kaito_ray.pod import Pod
from kaito_ray.world import World


@dataclass(frozen=True, slots=True)
class Observed:
    """The world as one Workspace sees it.

    `job` is the name of the RayJob that does what the Workspace asks for now; empty when it does not tune.
    `refusal` is why this pass could not apply what it wanted; what stands in the cluster is then what an earlier one
    applied.
    """

    nodes: NodesObserved
    job: str = ""
    ray_service: RayServiceStatus | None = None
    ray_job: RayJobStatus | None = None
    ray_clusters: tuple[RayClusterStatus, ...] = ()
    pods: tuple[Pod, ...] = ()
    applied: Applied = field(default_factory=Applied)
    refusal: KaitoRayError | None = None


def observe(
    world: World,
    workspace: Key,
    nodes: NodesObserved,
    *,
    job: str,
    applied: Applied,
    refusal: KaitoRayError | None,
) -> Observed:
    """Everything about a Workspace; for the arguments see Observed."""
    namespace, name = workspace
    service = world.child(RAY_SERVICE, (namespace, names.child_name(name)))
    ray_job = world.child(RAY_JOB, (namespace, job)) if job else None
    return Observed(
        nodes=nodes,
        job=job,
        ray_service=parse_ray_service(service) if service else None,
        ray_job=parse_ray_job(ray_job) if ray_job else None,
        ray_clusters=tuple(parse_ray_cluster(document) for document in world.children(RAY_CLUSTER, workspace)),
        pods=tuple(world.pods(workspace)),
        applied=applied,
        refusal=refusal,
    )
