# SPDX-License-Identifier: Apache-2.0
"""The progress of a tuning job in, `status.tuning` and `status.output` out. Pure; for status.py.

The operator gets the progress with `progress_of(parse_events(log))` (tuning_event.py) from the last lines of the job's
log, and from a failed RayJob's message. What the last look saw is kept when there is nothing newer: a log is gone with
its cluster.
"""

from kaito_ray.plan import TunePlan
from kaito_ray.tuning_event import Progress
from kaito_ray.workspace_status import OutputStatus, TuningStatus


def tuning_status(progress: Progress) -> TuningStatus | None:
    """How far tuning is; None before it said anything."""
    data, started, step = progress.data, progress.started, progress.step
    if data is None and started is None and step is None:
        return None
    message = ""
    if progress.waiting is not None:
        message = progress.waiting.message
    elif step is None and data is not None:
        message = "; ".join((*data.summary, *data.warnings))
    return TuningStatus(
        step=step.step if step else started.resumed_from if started else None,
        total_steps=step.total_steps if step else started.total_steps if started else None,
        epoch=step.epoch if step else None,
        loss=step.loss if step else None,
        eval_loss=step.eval_loss if step else None,
        learning_rate=step.learning_rate if step else None,
        tokens_per_second=step.tokens_per_second if step else None,
        eta_seconds=step.eta_seconds if step else None,
        gpu_memory_gib=step.gpu_memory_gib if step else None,
        rows=data.rows if data else None,
        attempt=started.attempt if started else None,
        message=message,
        updated=step.time if step else None,
    )


def output_status(progress: Progress, plan: TunePlan) -> OutputStatus | None:
    """What tuning made; None before it is done. A path counts from the root of the user's volume."""
    finished = progress.finished
    if finished is None:
        return None
    return OutputStatus(
        image=finished.image,
        digest=finished.digest,
        path="/" if plan.output.get("volumeSource") else "",
        pushed=finished.time or None,
    )
