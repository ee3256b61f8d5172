# SPDX-License-Identifier: Apache-2.0
"""A running RayJob in, what it says of itself out: the operator's look into the log of tuning jobs. For reconcile.py.

Ray's dashboard is asked for the last lines of the job's log, every ten seconds while the job runs and once more when
it ends; a job that failed has the last lines in its own message (World.last_words). What was seen is kept in memory:
the log goes with the Ray cluster of an attempt, and the next one begins with an empty one.
"""

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from kaito_ray import names
from kaito_ray.cluster import Cluster, KubeObject
from kaito_ray.errors import ClusterUnavailable
from kaito_ray.informer import Key
from kaito_ray.kinds import SECRET
from kaito_ray.kuberay import RayJobStatus, parse_ray_job
from kaito_ray.observe import Observed
from kaito_ray.service_http import get_from_service
from kaito_ray.tuning_event import Progress, parse_events, progress_of
from kaito_ray.tuning_retry import backoff_limit
from kaito_ray.world import World

logger = logging.getLogger(__name__)

_EVERY = timedelta(seconds=10)
_LINES = 400
# A result that cannot be read is waited for this often: without it the adapter is served by its tag, not its digest.
_TRIES, _AGAIN = 3, timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class _Look:
    """The last look at a job."""

    job: RayJobStatus
    at: datetime
    progress: Progress
    words: str = ""
    """What it said when it failed last."""
    tries: int = 0
    """How often its result was looked for."""
    limit: int = 0
    """The `backoffLimit` it should have."""


class TuningWatch:
    """Looks at the jobs of all Workspaces."""

    def __init__(self, cluster: Cluster, world: World) -> None:
        self._cluster = cluster
        self._world = world
        self._looks: dict[Key, _Look] = {}

    async def look(self, workspace: Key, observed: Observed, now: datetime) -> Observed:
        """What was observed, and in it how far the job is by its own words."""
        job = observed.ray_job
        if job is None:
            self._looks.pop(workspace, None)
            return observed
        before = self._looks.get(workspace)
        if before is None or before.job.uid != job.uid:
            self._looks = {key: look for key, look in self._looks.items() if self._world.workspace(key)}
            before = _Look(job, now - _EVERY, Progress(), limit=job.backoff_limit)
        look = replace(before, job=job)
        words = self._world.last_words.get((workspace[0], job.name), "")
        if words != before.words:
            look = replace(look, words=words, progress=_merged(before.progress, words))
        there = any(one.name == job.cluster for one in observed.ray_clusters)
        if there and _is_due(before, job, now):
            progress = _merged(look.progress, await self._log(workspace, job))
            look = replace(look, at=now, progress=progress, tries=look.tries + 1 if job.succeeded else 0)
        look = replace(look, limit=backoff_limit(before.limit, job.failed, before.progress, look.progress))
        self._looks[workspace] = look
        waits = there and job.succeeded and look.progress.finished is None and look.tries < _TRIES
        pause = _AGAIN if waits else _EVERY if there and job.job_status == "RUNNING" else None
        if look.limit != before.limit:
            pause = timedelta()  # the next pass writes it, before the job has ended
        return replace(
            observed,
            progress=look.progress,
            result_due=waits,
            look_again_s=max((look.at + pause - now).total_seconds(), 0.1) if pause is not None else None,
        )

    def backoff_limit(self, workspace: Key, job: KubeObject) -> int:
        """The `backoffLimit` that a Workspace's RayJob should have by what was seen of it."""
        status, look = parse_ray_job(job), self._looks.get(workspace)
        return look.limit if look is not None and look.job.uid == status.uid else status.backoff_limit

    async def _log(self, workspace: Key, job: RayJobStatus) -> str:
        """The last lines of the job's log; empty when nobody answers."""
        namespace, name = workspace
        # Ray resolves the node by itself but refuses a request that names none (2.60, util/state/common.py).
        path = f"/api/v0/logs/file?submission_id={job.name}&lines={_LINES}&node_id=any"
        headers = {"X-Ray-Authorization": f"Bearer {self._token(namespace, name)}"}
        service = f"{job.cluster}-head-svc"
        try:
            status, body = await get_from_service(
                self._cluster, namespace, service, names.PORT_DASHBOARD, path, headers=headers
            )
        except ClusterUnavailable as error:
            logger.info("the log of RayJob %s cannot be read: %s", job.name, error)
            return ""
        if status != 200:
            logger.info("the log of RayJob %s cannot be read: the dashboard answers %d", job.name, status)
            return ""
        return body.decode(errors="replace")

    def _token(self, namespace: str, workspace: str) -> str:
        secret = self._world.child(SECRET, (namespace, names.token_secret_name(workspace)))
        data: Mapping[str, str] = (secret or {}).get("data") or {}
        return base64.b64decode(data.get(names.TOKEN_SECRET_KEY, "")).decode()


def _is_due(before: _Look, job: RayJobStatus, now: datetime) -> bool:
    if job.job_status in {"", "PENDING"}:
        return False
    if job.job_status != before.job.job_status:
        return True
    if job.succeeded:
        return before.progress.finished is None and before.tries < _TRIES and now - before.at >= _AGAIN
    return job.job_status == "RUNNING" and now - before.at >= _EVERY


def _merged(before: Progress, log: str) -> Progress:
    """What is true after this piece of a log; why the attempt before failed stays true until the next one trains."""
    seen = progress_of(parse_events(log))
    if seen == Progress():
        return before
    moved = seen.started or seen.step or seen.finished or seen.failed
    return Progress(
        data=seen.data or before.data,
        started=seen.started or before.started,
        step=seen.step if seen.started else seen.step or before.step,
        waiting=seen.waiting,
        finished=seen.finished,
        failed=seen.failed if moved else before.failed,
    )
