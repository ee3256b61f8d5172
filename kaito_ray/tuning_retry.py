# SPDX-License-Identifier: Apache-2.0
"""What a tuning job says in, how often KubeRay may try it again out. Pure; called by tuning_watch.py.

KubeRay makes a new Ray cluster for an attempt that failed as long as `backoffLimit` allows, and reads that limit anew
each time (rayjob_controller.go, checkBackoffLimitAndUpdateStatusIfNeeded). It counts an eviction like a mistake, so the
limit follows what the attempts were worth: one that got further than the one before it was none in vain.
"""

from kaito_ray.tuning_event import Progress

RETRIES = 2
"""Attempts in a row that may fail without getting further."""


def backoff_limit(limit: int, failed: int, before: Progress, after: Progress) -> int:
    """The `backoffLimit` that a RayJob should have in place of `limit`.

    `failed` attempts are counted by KubeRay; `before` and `after` is what was known of the job until now, and is now.
    """
    if after.failed is not None and after.failed.final:
        return min(limit, failed)
    if _resumed(after) > _resumed(before):
        return failed + RETRIES
    return limit


def _resumed(progress: Progress) -> int:
    """The step of the checkpoint that the newest attempt began with."""
    return progress.started.resumed_from if progress.started is not None else 0
