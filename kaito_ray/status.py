# SPDX-License-Identifier: Apache-2.0
"""Plan, observation and the previous status in, the new status out. Pure; called once per pass by reconcile.py.

The previous status is only asked for what the world cannot tell any more: since when a condition holds, when a stage
was reached, and whether a Workspace has ever been ready.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from kaito_ray import names
from kaito_ray.adapter_status import adapter_statuses, adapters_ready, loaded_count
from kaito_ray.conditions import (
    WAITING,
    inference_ready,
    resource_ready,
    serving_succeeded,
    workspace_ready,
)
from kaito_ray.lint import Stage
from kaito_ray.nodes.provisioner import Notice
from kaito_ray.observe import Observed
from kaito_ray.plan import Plan, TunePlan
from kaito_ray.timeline import derive_timeline, timestamp
from kaito_ray.tuning_conditions import job_started, tuned_and_ready, tuned_is_served, tuning_succeeded
from kaito_ray.tuning_status import output_status, tuned_before, tuning_status
from kaito_ray.verdict import Verdict
from kaito_ray.workspace_status import AdapterStatus, Condition, NodePoolStatus, OutputStatus, Status, TuningStatus

KubeObject = dict[str, Any]


def derive_status(workspace: KubeObject, plan: Plan | None, observed: Observed, now: datetime) -> Status:
    """The whole status of a Workspace as the API has it, so that one which cannot be parsed gets one too."""
    previous = _before(workspace)
    adapters = _adapters(previous, plan, observed)
    verdicts = _verdicts(workspace, plan, observed, adapters)
    conditions = tuple(_condition(kind, verdict, workspace, now) for kind, verdict in verdicts.items())
    holds = {kind: verdict.holds for kind, verdict in verdicts.items()}
    return Status(
        conditions=conditions,
        state=_state(workspace, verdicts, observed),
        worker_nodes=observed.nodes.nodes,
        target_node_count=plan.nodes if plan is not None else previous.get("targetNodeCount"),
        endpoint=_endpoint(workspace, verdicts, observed),
        adapters=adapters,
        adapters_loaded=loaded_count(adapters),
        tuning=_tuning(previous, observed),
        output=_output(previous, plan, observed, verdicts),
        node_pool=NodePoolStatus.model_validate(observed.nodes.node_pool) if observed.nodes.node_pool else None,
        timeline=derive_timeline(workspace, observed, holds, now),
    )


def document_of(status: Status) -> dict[str, Any]:
    """The status as it is stored."""
    document: dict[str, Any] = status.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return document


def differs_only_in_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether nothing but messages and stages reached changed: such a status can wait to be written."""
    return _essence(before) == _essence(after)


def transitions(before: Mapping[str, Any], after: Status) -> Iterator[Notice]:
    """What turned since the previous status, as Events; the whole stands for its parts when it turns with them."""
    known = {one["type"]: one for one in before.get("conditions") or ()}
    turned = [one for one in after.conditions if _turned(known.get(one.type), one)]
    whole = [one for one in turned if one.type == "WorkspaceReady" and one.type in known]
    for one in whole or [one for one in turned if one.type != "WorkspaceSucceeded"]:
        yield Notice("Normal" if one.status == "True" else "Warning", one.reason, one.message)


def _before(workspace: KubeObject) -> Mapping[str, Any]:
    return workspace.get("status") or {}


def _verdicts(
    workspace: KubeObject, plan: Plan | None, observed: Observed, adapters: Sequence[AdapterStatus]
) -> dict[str, Verdict]:
    resources = resource_ready(observed)
    # The base model serves whatever its adapters do, so the whole does not wait for them.
    loaded = {"AdaptersReady": adapters_ready(adapters, observed.heard.silence)} if adapters else {}
    if "tuning" in workspace:
        done = tuned_before(workspace, observed.job)
        started = job_started(observed, tuned_before=done)
        succeeded = tuning_succeeded(observed, started, tuned_before=done)
        served = tuned_is_served(plan, observed)
        return {
            "ResourceReady": resources,
            "JobStarted": started,
            "WorkspaceSucceeded": succeeded,
            "InferenceReady": served,
            **loaded,
            "WorkspaceReady": tuned_and_ready(resources, succeeded, served),
        }
    inference = inference_ready(plan, observed)
    whole = workspace_ready((resources, inference))
    return {
        "ResourceReady": resources,
        "InferenceReady": inference,
        **loaded,
        "WorkspaceSucceeded": serving_succeeded(whole),
        "WorkspaceReady": whole,
    }


def _adapters(previous: Mapping[str, Any], plan: Plan | None, observed: Observed) -> tuple[AdapterStatus, ...]:
    """What cannot be planned changes nothing in the cluster."""
    if plan is None:
        return tuple(AdapterStatus.model_validate(one) for one in previous.get("adapters") or ())
    return adapter_statuses(plan, observed.heard.reports)


def _tuning(previous: Mapping[str, Any], observed: Observed) -> TuningStatus | None:
    if observed.lint is not None:
        return observed.lint.status(observed.job)
    return tuning_status(observed.progress, observed.ray_job, previous.get("tuning") or {})


def _output(
    previous: Mapping[str, Any], plan: Plan | None, observed: Observed, verdicts: Mapping[str, Verdict]
) -> OutputStatus | None:
    """What tuning made last, which is still there while it tunes again."""
    if isinstance(plan, TunePlan) and not observed.rests and verdicts["WorkspaceSucceeded"].holds:
        return output_status(observed.progress, plan, observed.job)
    return OutputStatus.model_validate(previous["output"]) if "output" in previous else None


def _condition(kind: str, verdict: Verdict, workspace: KubeObject, now: datetime) -> Condition:
    status = "True" if verdict.holds else "False"
    before = next((one for one in _before(workspace).get("conditions") or () if one.get("type") == kind), None)
    same = before is not None and before.get("status") == status
    return Condition(
        type=kind,
        status=status,
        reason=verdict.reason,
        message=verdict.message,
        last_transition_time=before["lastTransitionTime"] if before is not None and same else timestamp(now),
        observed_generation=workspace["metadata"].get("generation"),
    )


def _state(workspace: KubeObject, verdicts: Mapping[str, Verdict], observed: Observed) -> str:
    if "tuning" in workspace:
        if verdicts["WorkspaceSucceeded"].holds:
            return "Succeeded"
        if observed.ray_job is not None and observed.ray_job.over and not observed.ray_job.succeeded:
            return "Failed"
        if observed.lint is not None and observed.lint.stage is Stage.REFUSED:
            return "Failed"
        return "Running" if verdicts["JobStarted"].holds else "Pending"
    if verdicts["WorkspaceReady"].holds:
        return "Ready"
    return "NotReady" if _before(workspace).get("state") in {"Ready", "NotReady"} else "Pending"


def _endpoint(workspace: KubeObject, verdicts: Mapping[str, Verdict], observed: Observed) -> str:
    """Where the server is, once there was one; it keeps its address while it is away."""
    ready = "InferenceReady" in verdicts and verdicts["InferenceReady"].holds
    if ready or (_before(workspace).get("endpoint") and observed.ray_service is not None):
        metadata = workspace["metadata"]
        return f"http://{names.service_name(metadata['name'])}.{metadata['namespace']}.svc"
    return ""


def _essence(status: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in status.items() if key not in {"conditions", "timeline", "tuning"}}
    tuning = status.get("tuning") or {}
    rest["tuning"] = {key: tuning.get(key) for key in ("job", "state", "attempt")}
    conditions = status.get("conditions") or ()
    rest["conditions"] = {
        one["type"]: (one["status"], one["reason"], one.get("observedGeneration")) for one in conditions
    }
    return rest


def _turned(before: Mapping[str, Any] | None, after: Condition) -> bool:
    """Whether a person would want to hear of it: what turned, and a new reason for what still does not hold."""
    telling = after.status == "True" or after.reason not in WAITING
    if before is None:
        return after.status == "False" and telling
    return before["status"] != after.status or (before["reason"] != after.reason and telling)
