# SPDX-License-Identifier: Apache-2.0
"""A Workspace that tunes in; what comes before its nodes, and once it is done: serve what it tuned, or give them back.

Called by reconcile.py. That it is done stands in `status.output`, under the name of the RayJob, which stands for what
was asked: a changed wish is another job, and tuning begins anew.
"""

from dataclasses import dataclass
from datetime import datetime

from kaito_ray import names
from kaito_ray.cluster import Cluster, KubeObject
from kaito_ray.errors import KaitoRayError, NotReadyYet
from kaito_ray.informer import Key, key_of
from kaito_ray.kinds import RAY_CLUSTER, RAY_JOB
from kaito_ray.kuberay import parse_ray_cluster, parse_ray_job
from kaito_ray.lint import Lint, derive_lint, is_due
from kaito_ray.nodes.provisioner import NodeProvisioner, NodesObserved
from kaito_ray.plan import Plan, TunePlan
from kaito_ray.plan_served import releases_nodes
from kaito_ray.preset import Preset
from kaito_ray.render.rayjob import ray_job_name
from kaito_ray.settings import Provisioner
from kaito_ray.sku import Sku
from kaito_ray.tuning_status import tuned_before
from kaito_ray.wish import Planner
from kaito_ray.workspace import Workspace
from kaito_ray.world import World

RELEASED, _RELEASING = "NodesReleased", "Releasing"
_RETRY_S = 10.0
_RELEASE = f"{names.ANNOTATION_AFTER_TUNING}: release"


@dataclass(frozen=True, slots=True)
class Next:
    """What is to be done now.

    `job` is the RayJob of what the Workspace asks for, empty when it does not tune; `tuned` says that it has done its
    work. `rests` is why nothing is done from then on; empty when something is. `lint` is the judging of its data, as
    long as that comes first.
    """

    plan: Plan
    job: str = ""
    tuned: bool = False
    rests: str = ""
    lint: Lint | None = None


def next_step(
    planner: Planner,
    world: World,
    document: KubeObject,
    workspace: Workspace,
    plan: Plan,
    on: str | Sku,
    facts: Preset | None,
    missing: tuple[str, ...],
    now: datetime,
) -> Next:
    """The plan as it is, until tuning by it is done; then one that serves, with the image pinned that was pushed.

    `on` and `facts` are what the plan was made with, `missing` are sentences about what the Workspace names in vain.
    """
    if not isinstance(plan, TunePlan):
        return Next(plan)
    job = ray_job_name(plan)
    if not tuned_before(document, job):
        given_up = releases_nodes(workspace) and _failed_for_good(world, (plan.namespace, job))
        if given_up:
            return Next(plan, job, rests=f"tuning failed, and {_RELEASE} asks for no more")
        buys = planner.settings.provisioner is not Provisioner.BYO
        first = buys and world.child(RAY_JOB, (plan.namespace, job)) is None
        if first and is_due(document, job, released=_reason(document) == RELEASED):
            return Next(plan, job, lint=derive_lint(world, plan, job, missing, now))
        return Next(plan, job)
    if releases_nodes(workspace):
        return Next(plan, job, tuned=True, rests=f"it is tuned, and {_RELEASE} asks for no more")
    digest = ((document.get("status") or {}).get("output") or {}).get("digest", "")
    try:
        served = planner.plan_served(workspace, plan, on, facts, digest)
    except KaitoRayError as error:
        return Next(plan, job, tuned=True, rests=f"it is tuned, but cannot be served on these nodes: {error}")
    return Next(served, job, tuned=True)


def _failed_for_good(world: World, job: Key) -> bool:
    """Whether a job is over without a result; as long as KubeRay keeps its cluster, somebody may want its logs."""
    found = world.child(RAY_JOB, job)
    status = parse_ray_job(found) if found is not None else None
    if status is None or not status.over or status.succeeded:
        return False
    return world.anyones(RAY_CLUSTER, (job[0], status.cluster)) is None


async def clear_job(cluster: Cluster, world: World, document: KubeObject, job: str) -> bool:
    """Take the GPUs from a job that is done; True once its Ray cluster and the pods of that are gone.

    KubeRay would delete the cluster too, but leaves time for its log to be read.
    """
    key = key_of(document)
    left = [one for one in world.children(RAY_CLUSTER, key) if parse_ray_cluster(one).owner == job]
    for one in left:
        metadata = one["metadata"]
        if not metadata.get("deletionTimestamp"):
            await cluster.delete(RAY_CLUSTER, metadata["namespace"], metadata["name"], uid=metadata["uid"])
    return not left and not any(pod.cluster.startswith(f"{job}-") for pod in world.pods(key))


async def give_back(
    provisioner: NodeProvisioner, document: KubeObject, workspace: Workspace, why: str
) -> NodesObserved:
    """The nodes of a Workspace that rests, given back; nothing is asked of the cloud once they are."""
    message = f"the nodes were given back: {why}"
    if _reason(document) == RELEASED:
        return NodesObserved(False, (), RELEASED, message)
    try:
        gone = await provisioner.release(workspace)
    except NotReadyYet as error:
        return NodesObserved(False, (), error.reason, str(error), requeue_after_s=error.delay_s)
    if gone:
        return NodesObserved(False, (), RELEASED, message)
    return NodesObserved(False, (), _RELEASING, "the nodes are being given back", requeue_after_s=_RETRY_S)


def _reason(document: KubeObject) -> str:
    """The reason of ResourceReady."""
    conditions = {one["type"]: one for one in (document.get("status") or {}).get("conditions") or ()}
    return str(conditions.get("ResourceReady", {}).get("reason", ""))
