# SPDX-License-Identifier: Apache-2.0
"""What was observed of a tuning job in, JobStarted, WorkspaceSucceeded and InferenceReady of its Workspace out.

Pure; called by status.py. The job's own words come first (tuning_event.py): Ray's say only that a command ended.
"""

from kaito_ray.after_tuning import RELEASED
from kaito_ray.conditions import PENDING, inference_ready, refused, troubles, workspace_ready
from kaito_ray.observe import Observed
from kaito_ray.plan import Plan, TunePlan
from kaito_ray.tuning_event import PREFIX
from kaito_ray.verdict import Verdict

_FAILED = "WorkspaceTuningJobStatusFailed"
_PENDING = "WorkspaceTuningJobStatusPending"
_STARTED = "WorkspaceTuningJobStatusStarted"
_WORDS = 500


def job_started(observed: Observed, *, tuned_before: bool) -> Verdict:
    """The tuning job runs, or has run."""
    job = observed.ray_job
    if tuned_before and job is None:
        return Verdict(True, _STARTED, "tuning is done")
    stopped = refused(observed) if not tuned_before else None
    if stopped is not None:
        return stopped
    if observed.lint is not None:
        return Verdict(False, _PENDING, observed.lint.message)
    if job is None:
        waits = "the nodes are not ready" if not observed.nodes.ready else "the RayJob is being made"
        return Verdict(False, _PENDING, waits)
    if job.over and not job.succeeded:
        return Verdict(False, _FAILED, _failure(observed))
    if job.job_status in {"RUNNING", "SUCCEEDED"} or job.succeeded:
        return Verdict(True, _STARTED, f"RayJob {job.name} is {job.job_status.lower()}")
    trouble = next(troubles(observed.pods), None)
    if trouble is not None:
        return Verdict(False, trouble.reason, trouble.message)
    return Verdict(False, _PENDING, _pending(observed))


def tuning_succeeded(observed: Observed, started: Verdict, *, tuned_before: bool) -> Verdict:
    """The adapter was made. That cannot be undone: a job that was cleaned up after it succeeded has succeeded."""
    job, progress = observed.ray_job, observed.progress
    if tuned_before or (job is not None and job.succeeded and not observed.result_due):
        return Verdict(True, "workspaceSucceeded", "tuning is done")
    if observed.lint is not None and observed.lint.refuses:
        return Verdict(False, observed.lint.reason, observed.lint.message)
    if job is None:
        return Verdict(False, "workspacePending", started.message)
    if progress.failed is not None:
        again = "" if job.over or progress.failed.final else f"; RayJob {job.name} tries again"
        return Verdict(False, progress.failed.reason, f"{progress.failed.message}{again}")
    if job.over and not job.succeeded:
        return Verdict(False, "workspaceFailed", _failure(observed))
    if progress.waiting is not None:
        return Verdict(False, progress.waiting.reason, progress.waiting.message)
    if started.holds and progress.step is not None:
        step = progress.step
        return Verdict(False, "workspacePending", f"{step.step} of {step.total_steps} steps are done")
    return Verdict(False, "workspacePending", "tuning is not done yet" if started.holds else started.message)


def tuned_is_served(plan: Plan | None, observed: Observed) -> Verdict:
    """The model answers with what was tuned."""
    if observed.rests:
        return Verdict(False, RELEASED, observed.rests)
    if isinstance(plan, TunePlan):
        return Verdict(False, PENDING, "the model is served once it is tuned")
    return inference_ready(plan, observed)


def tuned_and_ready(resources: Verdict, succeeded: Verdict, served: Verdict) -> Verdict:
    """Tuned and served; why tuning failed comes before nodes that were given back for it."""
    parts = (resources, succeeded, served)
    return workspace_ready((succeeded, *parts) if resources.reason == RELEASED else parts)


def _failure(observed: Observed) -> str:
    """Why a job is over without a result."""
    job, failed = observed.ray_job, observed.progress.failed
    if failed is not None:
        return f"{failed.reason}: {failed.message}"
    trouble = next(troubles(observed.pods), None)
    if trouble is not None:
        return f"{trouble.reason}: {trouble.message}"
    if job is None:
        return "there is no RayJob"
    said = " ".join(line for line in job.message.splitlines() if line.strip() and PREFIX not in line)
    said = said if len(said) <= _WORDS else f"{said[:100]} ... {said[-(_WORDS - 100) :]}"
    return f"RayJob {job.name}: {': '.join(part for part in (job.reason, said) if part) or 'it failed'}"


def _pending(observed: Observed) -> str:
    """Why a job does not run yet, or not any more."""
    job = observed.ray_job
    if job is None:
        return "there is no RayJob"
    for cluster in observed.ray_clusters:
        if cluster.failure:
            return f"RayCluster {cluster.name}: {cluster.failure}"
    if job.failed:
        failed = observed.progress.failed
        why = f": {failed.reason}: {failed.message}" if failed is not None else ""
        attempts = "a failed attempt" if job.failed == 1 else f"{job.failed} failed attempts"
        return f"RayJob {job.name} is tried again after {attempts}{why}"
    if job.message or job.reason:
        return f"RayJob {job.name}: {': '.join(part for part in (job.reason, job.message) if part)}"
    return f"RayJob {job.name} is {job.deployment_status or 'being started'}"
