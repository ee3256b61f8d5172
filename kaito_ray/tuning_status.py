# SPDX-License-Identifier: Apache-2.0
"""The progress of a tuning job in, `status.tuning` and `status.output` out. Pure; called by status.py.

The operator has the progress from the job's log (tuning_watch.py), and a log is gone with its cluster: what stands in
the status is kept until there is something newer. `status.output` also tells which wish was last fulfilled: it names
the RayJob, and that name stands for everything that was asked.
"""

from collections.abc import Mapping
from typing import Any

from kaito_ray.kuberay import RayJobStatus
from kaito_ray.plan import TunePlan
from kaito_ray.tuning_event import Progress
from kaito_ray.workspace_status import OutputStatus, TuningStatus

# What is said once and may have left the lines that are read.
_KEPT = ("rows", "attempt", "totalSteps", "resumedFrom")


def tuned_before(workspace: Mapping[str, Any], job: str) -> bool:
    """Whether the job of that name made what the Workspace has, whatever became of the job since."""
    made = (workspace.get("status") or {}).get("output") or {}
    return bool(job) and made.get("job") == job


def tuning_status(progress: Progress, job: RayJobStatus | None, before: Mapping[str, Any]) -> TuningStatus | None:
    """How far tuning is; None before the job said anything. `before` is the `status.tuning` there is."""
    known = before if job is not None and before.get("job") == job.name else {}
    if job is None or progress == Progress():
        if not before or (job is not None and not known):
            return None
        state = {"state": _state(progress, job)} if job is not None and job.over else {}
        return TuningStatus.model_validate({**before, **state})
    data, started, step = progress.data, progress.started, progress.step
    message = ""
    if progress.failed is not None:
        message = progress.failed.message
    elif progress.waiting is not None:
        message = progress.waiting.message
    elif step is None and data is not None:
        message = "; ".join((*data.summary, *data.warnings))
    status = TuningStatus(
        job=job.name,
        state=_state(progress, job),
        step=step.step if step else started.resumed_from if started else None,
        total_steps=step.total_steps if step else started.total_steps if started else None,
        epoch=step.epoch if step else None,
        loss=_short(step.loss) if step else None,
        eval_loss=_short(step.eval_loss) if step else None,
        reward_accuracy=_short(step.reward_accuracy) if step else None,
        reward_margin=_short(step.reward_margin) if step else None,
        learning_rate=_short(step.learning_rate) if step else None,
        tokens_per_second=step.tokens_per_second if step else None,
        eta_seconds=step.eta_seconds if step else None,
        gpu_memory_gib=step.gpu_memory_gib if step else None,
        rows=data.rows if data else None,
        attempt=started.attempt if started else None,
        resumed_from=started.resumed_from or None if started else None,
        message=message,
        updated=step.time if step else None,
    )
    document = status.model_dump(by_alias=True, exclude_none=True)
    kept = {key: known[key] for key in _KEPT if key in known and not (started and key == "resumedFrom")}
    return TuningStatus.model_validate({**kept, **document})


def _short(value: float | None) -> float | None:
    """Four digits, as people read it."""
    return None if value is None else float(f"{value:.4g}")


def output_status(progress: Progress, plan: TunePlan, job: str) -> OutputStatus:
    """What the job made, which is done; a path counts from the root of the user's volume."""
    finished = progress.finished
    return OutputStatus(
        job=job,
        image=finished.image if finished else plan.output.get("image", ""),
        digest=finished.digest if finished else "",
        path="/" if plan.output.get("volumeSource") else "",
        pushed=finished.time or None if finished else None,
    )


def _state(progress: Progress, job: RayJobStatus) -> str:
    if job.succeeded:
        return "Succeeded"
    if job.over or (progress.failed is not None and progress.failed.final):
        return "Failed"
    # KubeRay says Retrying for a moment only, and Initializing until the next attempt has its pods.
    starting = job.failed > 0 and job.deployment_status != "Running"
    if job.deployment_status == "Retrying" or starting or progress.failed is not None:
        return "Retrying"
    if progress.waiting is not None:
        return "Waiting"
    return "Training" if progress.started is not None else "Preparing"
