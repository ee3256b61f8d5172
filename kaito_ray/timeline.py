# SPDX-License-Identifier: Apache-2.0
"""What was observed in, `status.timeline` out: the way of a Workspace from applied to ready, stage by stage. Pure.

Called by status.py. A stage is there once something says that it was reached: the nodes themselves, the kubelet for
image and weights, a replica for its engine and the first token of that, KubeRay for the rest.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kaito_ray.workspace_status import TimelineEntry

if TYPE_CHECKING:
    from kaito_ray.observe import Observed
    from kaito_ray.replica_report import ReplicaReport

(
    DATA_JUDGED,
    NODES_READY,
    IMAGE_PULLED,
    MODEL_FETCHED,
    ENGINE_STARTED,
    FIRST_TOKEN,
    MODEL_LOADED,
    JOB_STARTED,
    TUNED,
    READY,
) = (
    "DataJudged",
    "NodesReady",
    "ImagePulled",
    "ModelFetched",
    "EngineStarted",
    "FirstToken",
    "ModelLoaded",
    "JobStarted",
    "Tuned",
    "Ready",
)
# What a replica tells of itself; it can be asked only once everything else is done.
_TOLD = (ENGINE_STARTED, FIRST_TOKEN)
# A replica that has not told by then, because its model makes no tokens or nobody gets through to it, never will.
_ASKED_FOR = timedelta(minutes=10)

KubeObject = dict[str, Any]


def derive_timeline(
    workspace: KubeObject, observed: "Observed", holds: Mapping[str, bool], now: datetime
) -> tuple[TimelineEntry, ...]:
    """The stages reached so far, each at its first time, in the order in which they were reached.

    `holds` says which conditions hold.
    """
    entries = _entries(workspace)
    known = {(entry.stage, entry.message) for entry in entries}
    fetched = any(entry.stage == MODEL_FETCHED for entry in entries)
    last = parse_timestamp(entries[-1].time) if entries else _created(workspace, now)
    for stage, moment, message in sorted(_reached(observed, holds, now), key=lambda one: one[1]):
        # Each pod has words of its own on what it fetched; those of the first are kept.
        if (stage, message) in known or (stage == MODEL_FETCHED and fetched):
            continue
        # Clocks of nodes differ; a stage is never before the one that made it possible.
        seconds = round(max(0.0, (moment - last).total_seconds()), 1)
        last = max(moment, last)
        entries.append(TimelineEntry(stage=stage, time=timestamp(last), seconds=seconds, message=message))
    return tuple(_with_told(entries, observed.heard.reports, _created(workspace, now)))


def first_token_is_due(workspace: KubeObject, now: datetime) -> bool:
    """Whether the replicas are to be asked for their first token: nobody has told of it, and there was one lately."""
    entries = _entries(workspace)
    ready = next((parse_timestamp(one.time) for one in entries if one.stage == READY), now)
    return all(one.stage != FIRST_TOKEN for one in entries) and now - ready < _ASKED_FOR


def timestamp(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """A time as Kubernetes writes it, with or without fractions of a second."""
    return datetime.fromisoformat(text)


def _reached(observed: "Observed", holds: Mapping[str, bool], now: datetime) -> Iterator[tuple[str, datetime, str]]:
    if observed.lint is not None and observed.lint.rows is not None:
        yield DATA_JUDGED, now, ""
    if observed.nodes.ready:
        yield NODES_READY, now, ""
    started = [parse_timestamp(pod.started) for pod in observed.pods if pod.started and not pod.head]
    if started:
        yield IMAGE_PULLED, min(started), ""
    fetches = [pod.fetch for pod in observed.pods if pod.fetch is not None and not pod.deleting]
    if fetches and all(fetch.finished for fetch in fetches):
        last = max(fetches, key=lambda fetch: parse_timestamp(fetch.finished))
        yield MODEL_FETCHED, parse_timestamp(last.finished), last.message
    job = observed.ray_job
    if job is not None and holds["JobStarted"]:
        yield JOB_STARTED, now, job.name
        if holds["WorkspaceSucceeded"]:
            yield TUNED, now, job.name
    active = observed.ray_service.active if observed.ray_service is not None else None
    if active is not None and active.applications and all(one.status == "RUNNING" for one in active.applications):
        yield MODEL_LOADED, now, ""
    if holds["WorkspaceReady"]:
        yield READY, now, ""


def _with_told(
    entries: list[TimelineEntry], reports: "tuple[ReplicaReport, ...]", created: datetime
) -> list[TimelineEntry]:
    """The same with what the first replica tells of itself, where it belongs: before the model was seen to serve."""
    told = [one for one in reports if one.engine_started_at and one.first_token_at]
    place = next((index for index, one in enumerate(entries) if one.stage in (MODEL_LOADED, READY)), None)
    if not told or place is None or any(one.stage in _TOLD for one in entries):
        return entries
    first = min(told, key=lambda one: parse_timestamp(one.first_token_at))
    before = parse_timestamp(entries[place - 1].time) if place else created
    after = entries[place]
    if not before <= parse_timestamp(first.first_token_at) <= parse_timestamp(entries[-1].time):
        return entries  # of a later replica, or by a clock that cannot be trusted
    found = []
    left = after.seconds or 0.0
    for stage, text in ((ENGINE_STARTED, first.engine_started_at), (FIRST_TOKEN, first.first_token_at)):
        moment = min(max(parse_timestamp(text), before), parse_timestamp(after.time))
        seconds = round((moment - before).total_seconds(), 1)
        found.append(TimelineEntry(stage=stage, time=timestamp(moment), seconds=seconds))
        before, left = moment, left - seconds
    rest = after.model_copy(update={"seconds": round(max(0.0, left), 1)})
    return [*entries[:place], *found, rest, *entries[place + 1 :]]


def _entries(workspace: KubeObject) -> list[TimelineEntry]:
    status = workspace.get("status") or {}
    return [TimelineEntry.model_validate(entry) for entry in status.get("timeline") or ()]


def _created(workspace: KubeObject, now: datetime) -> datetime:
    created = workspace["metadata"].get("creationTimestamp")
    return parse_timestamp(created) if created else now
