# SPDX-License-Identifier: Apache-2.0
"""What stands in the cluster for one Workspace, read once per pass from the caches of world.py as one frozen value.

Called by reconcile.py after objects were applied; status.py derives the status from it.
"""

import base64
from dataclasses import dataclass, field
from datetime import datetime

from kaito_ray import names
from kaito_ray.after_tuning import Next
from kaito_ray.apply import Applied
from kaito_ray.errors import KaitoRayError, ObjectRefused
from kaito_ray.informer import Key
from kaito_ray.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE, SECRET
from kaito_ray.kuberay import (
    RayClusterStatus,
    RayJobStatus,
    RayServiceStatus,
    parse_ray_cluster,
    parse_ray_job,
    parse_ray_service,
)
from kaito_ray.lint import Lint, give_up
from kaito_ray.nodes.provisioner import NodesObserved
from kaito_ray.plan import Plan, ServePlan
from kaito_ray.pod import Pod
from kaito_ray.replica_watch import NOTHING, Heard, Question
from kaito_ray.timeline import first_token_is_due
from kaito_ray.tuning_event import Progress
from kaito_ray.world import World


@dataclass(frozen=True, slots=True)
class Observed:
    """The world as one Workspace sees it.

    `job` is the name of the RayJob that does what the Workspace asks for now; empty when it does not tune. `heard` is
    what the replicas say. `refusal` is why this pass could not apply what it wanted; what stands in
    the cluster is then what an earlier one applied.
    """

    nodes: NodesObserved
    job: str = ""
    ray_service: RayServiceStatus | None = None
    ray_job: RayJobStatus | None = None
    ray_clusters: tuple[RayClusterStatus, ...] = ()
    pods: tuple[Pod, ...] = ()
    in_place: bool = False
    """All that is not served yet is what replicas take over while they serve (in_place.py)."""
    heard: Heard = NOTHING
    applied: Applied = field(default_factory=Applied)
    refusal: KaitoRayError | None = None
    progress: Progress = field(default_factory=Progress)
    """What the job said of itself (tuning_watch.py)."""
    result_due: bool = False
    """The job succeeded, and what it says of its result is still to be read."""
    look_again_s: float | None = None
    """When the job, or the judging of its data, is to be looked at again."""
    rests: str = ""
    """Why nothing is served although tuning is done; empty when it is, or when there is something to do first."""
    lint: Lint | None = None
    """The judging of the data, as long as it comes before nodes."""


def observe(
    world: World,
    workspace: Key,
    nodes: NodesObserved,
    *,
    step: Next | None,
    applied: Applied,
    refusal: KaitoRayError | None,
    now: datetime,
) -> Observed:
    """Everything about a Workspace; for the arguments see Observed."""
    namespace, name = workspace
    plan, job = (step.plan, step.job) if step is not None else (None, "")
    service = world.child(RAY_SERVICE, (namespace, names.child_name(name)))
    ray_service = parse_ray_service(service) if service else None
    pods = tuple(world.pods(workspace))
    ray_job = world.child(RAY_JOB, (namespace, job)) if job else None
    lint = step.lint if step is not None else None
    if lint is not None and isinstance(refusal, ObjectRefused):
        lint, refusal = give_up(refusal), None
    return Observed(
        nodes=nodes,
        job=job,
        ray_service=ray_service,
        ray_job=parse_ray_job(ray_job) if ray_job else None,
        ray_clusters=tuple(parse_ray_cluster(document) for document in world.children(RAY_CLUSTER, workspace)),
        pods=pods,
        in_place=bool(service and ray_service and world.in_place.is_under_way(workspace, service, ray_service)),
        heard=_hear(world, workspace, plan, ray_service, pods, now),
        applied=applied,
        refusal=refusal,
        rests=step.rests if step is not None else "",
        look_again_s=lint.again_s if lint is not None else None,
        lint=lint,
    )


def _hear(
    world: World,
    workspace: Key,
    plan: Plan | None,
    service: RayServiceStatus | None,
    pods: tuple[Pod, ...],
    now: datetime,
) -> Heard:
    """What the replicas say; they are asked while there is something to ask for and somebody can answer."""
    document = world.workspace(workspace)
    due = document is not None and first_token_is_due(document, now)
    if not isinstance(plan, ServePlan) or not (plan.adapters or due):
        return world.replicas.see(workspace, None)
    secret = world.child(SECRET, (workspace[0], names.token_secret_name(plan.name)))
    if service is None or service.active is None or not service.endpoints or secret is None:
        world.replicas.see(workspace, None)
        return Heard(silence="the model is not served yet")
    token = base64.b64decode(secret["data"][names.TOKEN_SECRET_KEY]).decode()
    serving = frozenset(pod for pod in pods if pod.cluster == service.active.cluster)
    return world.replicas.see(
        workspace, Question(names.service_name(plan.name), names.PORT_SERVICE, token, plan, serving)
    )
