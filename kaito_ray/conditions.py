# SPDX-License-Identifier: Apache-2.0
"""What was observed in, one judgement per condition out. Pure; status.py makes conditions of them.

Reasons are KAITO's where it has one. Each function answers from what is there now: nothing is stepped from the last
status, so that a crash loop after Ready is as visible as one before it.
"""

from collections.abc import Iterator

from kaito_ray.adapter_status import ADAPTERS_PENDING
from kaito_ray.after_tuning import RELEASED
from kaito_ray.kuberay import RayApplication, RayServiceStatus
from kaito_ray.lint import JUDGING
from kaito_ray.observe import Observed
from kaito_ray.plan import Plan, ServePlan
from kaito_ray.pod import Pod, Trouble
from kaito_ray.serve_message import sentence
from kaito_ray.verdict import Verdict

PENDING = "WorkspaceInferenceStatusPending"
# Reasons that say no more than that things take their time: no Event is worth posting for them.
WAITING = frozenset(
    {
        PENDING,
        ADAPTERS_PENDING,
        "WorkspaceTuningJobStatusPending",
        "workspacePending",
        RELEASED,
        JUDGING,
        "workspaceResourceStatusNotReady",
        "NodeNotReady",
        "Recreating",
    }
)
_BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")


def resource_ready(observed: Observed) -> Verdict:
    """The nodes have the GPUs the plan asks for."""
    nodes = observed.nodes
    return Verdict(nodes.ready, "workspaceResourceStatusSuccess" if nodes.ready else nodes.reason, nodes.message)


def inference_ready(plan: Plan | None, observed: Observed) -> Verdict:
    """Every copy of the model answers, with the specification as it is now."""
    service = observed.ray_service
    stopped = refused(observed)
    if stopped is not None:
        return stopped
    if service is None:
        waits = "the nodes are not ready" if not observed.nodes.ready else "the RayService is being made"
        return Verdict(False, PENDING, waits)
    if service.suspend:
        return Verdict(False, "Recreating", "the Ray cluster is replaced: the old one gives its GPUs to the new one")
    trouble = _trouble(plan, observed, service)
    if trouble is not None:
        return Verdict(False, trouble.reason, trouble.message)
    if _serves(observed, service):
        return Verdict(True, "WorkspaceInferenceStatusSuccess", "the model is served")
    return _not_serving(service, observed)


def serving_succeeded(ready: Verdict) -> Verdict:
    """KAITO's summary for Workspaces that serve."""
    if ready.holds:
        return Verdict(True, "workspaceSucceeded", ready.message)
    return Verdict(False, "workspacePending", ready.message)


def workspace_ready(parts: tuple[Verdict, ...]) -> Verdict:
    """All of `parts` hold; otherwise the first that does not, in its own words."""
    return next((part for part in parts if not part.holds), Verdict(True, "WorkspaceReady", parts[-1].message))


def refused(observed: Observed) -> Verdict | None:
    """Something a person must settle stands in the way."""
    if observed.refusal is not None:
        return Verdict(False, observed.refusal.reason, str(observed.refusal))
    if observed.applied.contested:
        objects = ", ".join(observed.applied.contested)
        return Verdict(False, "RepairContested", f"somebody else keeps changing {objects}; kaito-ray has given way")
    return None


def _serves(observed: Observed, service: RayServiceStatus) -> bool:
    return service.ready or (observed.in_place and service.serves_on)


def _trouble(plan: Plan | None, observed: Observed, service: RayServiceStatus) -> Trouble | None:
    """What is wrong with the pods that serve, or with those that are to serve when there are none yet."""
    active = service.active.cluster if service.active else ""
    pods = [pod for pod in observed.pods if not pod.deleting and (not active or pod.cluster == active)]
    trouble = next(troubles(pods), None)
    if trouble is not None or not _serves(observed, service):
        return trouble
    # A pod that carries the rest of an engine has no Serve proxy and is never ready.
    followers = isinstance(plan, ServePlan) and plan.nodes_per_replica > 1
    workers = [pod for pod in pods if not pod.head]
    for pod in pods:
        if pod.ready is False and pod.restarts and (pod.head or not followers):
            return Trouble(PENDING, f"pod {pod.name} was restarted {pod.restarts} times and is not ready again")
    if workers and all(pod.ready is False for pod in workers):
        return Trouble(PENDING, f"no worker pod is ready, {workers[0].name} among them")
    return None


def troubles(pods: list[Pod] | tuple[Pod, ...]) -> Iterator[Trouble]:
    """What is wrong with any of `pods`."""
    return (pod.trouble for pod in pods if pod.trouble is not None)


def _not_serving(service: RayServiceStatus, observed: Observed) -> Verdict:
    """Why a RayService does not serve, from the most to the least telling source."""
    for cluster in observed.ray_clusters:
        if cluster.failure:
            return Verdict(False, "ReplicaFailure", f"RayCluster {cluster.name}: {cluster.failure}")
    ready = service.conditions.get("Ready")
    if ready is not None and ready.reason in {"ValidationFailed", "InitializingTimeout"}:
        return Verdict(False, ready.reason, f"RayService {service.name}: {ready.message}")
    applications = [one for side in (service.pending, service.active) if side for one in side.applications]
    broken = next((one for one in applications if one.status in _BROKEN), None)
    if broken is not None:
        reason = "DeployFailed" if broken.status == "DEPLOY_FAILED" else "Unhealthy"
        return Verdict(False, reason, f"Serve application {broken.name}: {sentence(broken.text) or broken.status}")
    return Verdict(False, PENDING, _progress(service, observed, applications))


def _progress(service: RayServiceStatus, observed: Observed, applications: list[RayApplication]) -> str:
    """What is being waited for, the farthest stage first."""
    if not service.current:
        return "KubeRay has not looked at the newest specification yet"
    deploying = next((one for one in applications if one.status != "RUNNING"), None)
    if deploying is not None:
        text = sentence(deploying.text) or "the model is loading"
        return f"Serve application {deploying.name} is {deploying.status}: {text}"
    if applications and service.holds("UpgradeInProgress"):
        return "a second Ray cluster takes over"
    if applications:
        return "the Service has no endpoint yet"
    pulling = next((pod for pod in observed.pods if pod.pulling), None)
    if pulling is not None:
        return f"pod {pulling.name} is being made from image {pulling.pulling}"
    fetching = next((pod for pod in observed.pods if pod.fetch is not None and not pod.fetch.finished), None)
    if fetching is not None and fetching.fetch is not None and fetching.fetch.started:
        return f"pod {fetching.name} fetches the model since {fetching.fetch.started}"
    if observed.pods:
        up = sum(pod.phase == "Running" for pod in observed.pods)
        return f"the Ray cluster is starting: {up} of {len(observed.pods)} pods run"
    return "KubeRay is making the Ray cluster"
