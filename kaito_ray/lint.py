# SPDX-License-Identifier: Apache-2.0
"""How far the judging of a tuning Workspace's data is in; whether nodes may be bought for it out. Pure.

Called by after_tuning.py before any node is asked for. A pod on a node without GPUs judges (render/lint.py). That it is
over stands in `status.tuning`, under the name of the RayJob, which stands for what was asked: a changed wish is judged
anew. What was refused, or could not be fetched, is looked at again after a while by another pod, whose number is one
higher. Where no pod can judge, the job does, on its nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from kaito_ray import names
from kaito_ray.cluster import KubeObject
from kaito_ray.errors import KaitoRayError
from kaito_ray.informer import Key
from kaito_ray.kinds import CLAIM, POD
from kaito_ray.nodes.provisioner import NodesObserved, Notice
from kaito_ray.plan import TunePlan
from kaito_ray.pod import parse_pod
from kaito_ray.render.lint import DEADLINE_S
from kaito_ray.timeline import parse_timestamp
from kaito_ray.tuning_event import Data, Failed, Waiting, parse_events
from kaito_ray.tuning_schedule import outlook
from kaito_ray.workspace_status import TuningStatus
from kaito_ray.world import World

JUDGING = "JudgingData"
"""The reason of ResourceReady meanwhile."""
# A pod that cannot start within this never holds up a Workspace: clusters may have no room beside their GPUs.
_START = timedelta(seconds=30)
# The kubelet ends the pod after DEADLINE_S; when it does not, nobody else will.
_END = timedelta(seconds=DEADLINE_S) + 2 * _START
_PAUSE, _PAUSE_MAX = timedelta(minutes=5), timedelta(hours=1)
_WORDS = 300
# Volumes that are another one, and empty, in every pod.
_OWN = {"emptyDir", "ephemeral"}


class Stage(StrEnum):
    """`status.tuning.state` until the job is there."""

    JUDGING = "Judging"
    REFUSED = "Refused"
    UNAVAILABLE = "Unavailable"
    JUDGED = "Judged"
    UNJUDGED = "Unjudged"


_OVER = {Stage.JUDGED, Stage.UNJUDGED}
_REFUSALS = {Stage.REFUSED, Stage.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class Lint:
    """What is known of the data, and what is to be done; `reason` and `message` are those of conditions.

    `make` is the number of a pod to make now, 0 for none; `keep` names the pods that stay.
    """

    stage: Stage
    reason: str
    message: str
    rows: int | None = None
    make: int = 0
    keep: tuple[str, ...] = ()
    again_s: float | None = None
    """When to look again even if nothing changes."""

    @property
    def over(self) -> bool:
        """Whether nodes may be asked for from the next pass on, which finds that in the status."""
        return self.stage in _OVER

    @property
    def refuses(self) -> bool:
        """Whether something is wrong that somebody outside must mend."""
        return self.stage in _REFUSALS

    def nodes(self) -> NodesObserved:
        """The nodes meanwhile: none."""
        return NodesObserved(False, (), self.reason, self.message)

    def status(self, job: str) -> TuningStatus:
        """`status.tuning` meanwhile."""
        return TuningStatus(job=job, state=self.stage, rows=self.rows, message=self.message)

    def notices(self) -> tuple[Notice, ...]:
        """What is worth an Event; refusals are told as conditions turn."""
        if self.stage is Stage.JUDGED:
            return (Notice("Normal", "DataJudged", self.message),)
        if self.stage is Stage.UNJUDGED:
            return (Notice("Warning", "DataNotJudged", self.message),)
        return ()


def is_due(workspace: Mapping[str, Any], job: str, *, released: bool) -> bool:
    """Whether nodes are still to be asked for, so that the data is judged first.

    `released` says that nodes were given back.
    """
    status = workspace.get("status") or {}
    tuning = status.get("tuning") or {}
    state = tuning.get("state", "")
    if state in _OVER and tuning.get("job") == job:
        return False
    if state in {Stage.JUDGING, *_REFUSALS}:
        return True
    # Whatever else it says comes after nodes were asked for; before that there is only what an older release did.
    return released if tuning else "nodePool" not in status


def derive_lint(world: World, plan: TunePlan, job: str, missing: tuple[str, ...], now: datetime) -> Lint:
    """How far judging is; `missing` are sentences about Secrets and ConfigMaps that the Workspace names in vain."""
    if elsewhere := _elsewhere(world, plan):
        return _unjudged(elsewhere)
    pods = (pod for pod in world.children(POD, (plan.namespace, plan.name)) if _label(pod, names.LABEL_JOB) == job)
    attempts = sorted((_Attempt.of(pod) for pod in pods), key=lambda one: one.number)
    last = attempts[-1].number if attempts else 0
    return _judgement([one for one in attempts if not one.deleting], plan, missing, last + 1, now)


def give_up(error: KaitoRayError) -> Lint:
    """What is left when the pod may not be made."""
    return _unjudged(f"no pod can be made that judges it: {error}")


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One pod that judges, or has judged."""

    name: str
    number: int
    deleting: bool
    made: datetime
    ended: datetime | None
    verdict: Data | Failed | Waiting | None
    how: str
    """How it ended, where it left no verdict."""
    trouble: str
    """What keeps it from starting."""
    placed: bool

    @classmethod
    def of(cls, document: KubeObject) -> "_Attempt":
        metadata, status = document["metadata"], document.get("status") or {}
        pod = parse_pod(document)
        # A cluster may have put containers of its own beside ours.
        ours: Mapping[str, Any] = next(
            (one for one in status.get("containerStatuses") or () if one["name"] == names.PART_LINT), {}
        )
        end: Mapping[str, Any] = (ours.get("state") or {}).get("terminated") or {}
        said = str(end.get("message") or "")
        made = parse_timestamp(metadata["creationTimestamp"])
        over = pod.phase in {"Succeeded", "Failed"}
        return cls(
            name=pod.name,
            number=int(_label(document, names.LABEL_ATTEMPT)),
            deleting=pod.deleting,
            made=made,
            ended=(parse_timestamp(end["finishedAt"]) if end.get("finishedAt") else made) if over else None,
            verdict=next((one for one in parse_events(said) if isinstance(one, Data | Failed | Waiting)), None),
            how=_how(status, end, said) if over else "",
            trouble=pod.trouble.message if pod.trouble else "",
            placed=bool(pod.node),
        )

    def stuck(self, now: datetime) -> str:
        """Why it is waited for no longer; empty while it is."""
        if self.ended is not None:
            return f"pod {self.name} {self.how}"
        age = now - self.made
        if age >= _START and self.trouble:
            return self.trouble
        if age >= _START and not self.placed:
            return f"pod {self.name} was not scheduled within {_START.seconds} s"
        return f"pod {self.name} does not end" if age >= _END else ""

    def look_s(self, now: datetime) -> float:
        """Seconds until time alone may have it stuck."""
        age = now - self.made
        return ((_START if age < _START else _END) - age).total_seconds()


def _judgement(attempts: list[_Attempt], plan: TunePlan, missing: tuple[str, ...], number: int, now: datetime) -> Lint:
    newest = attempts[-1] if attempts else None
    if newest is None:
        if missing:
            return Lint(Stage.JUDGING, "ReferenceMissing", "; ".join(missing))
        return Lint(Stage.JUDGING, JUDGING, "the data is judged before nodes are asked for", make=number)
    if isinstance(newest.verdict, Data):
        return _judged(newest.verdict, plan)
    known = next((one for one in reversed(attempts) if isinstance(one.verdict, Failed | Waiting)), None)
    if known is None:
        if stuck := newest.stuck(now):
            return _unjudged(stuck)
        message = f"pod {newest.name} judges the data before nodes are asked for"
        return Lint(Stage.JUDGING, JUDGING, message, keep=(newest.name,), again_s=newest.look_s(now))
    # What was refused stays refused until a pod has found it mended, however long that one takes to start.
    refusal = _refused(known, keep=tuple(dict.fromkeys((known.name, newest.name))))
    if newest.ended is None:
        return refusal
    left = (newest.ended + min(_PAUSE * 2 ** min(newest.number - 1, 8), _PAUSE_MAX) - now).total_seconds()
    return replace(refusal, again_s=left) if left > 0 else replace(refusal, make=number)


def _refused(attempt: _Attempt, keep: tuple[str, ...]) -> Lint:
    verdict = attempt.verdict
    assert isinstance(verdict, Failed | Waiting)  # noqa: S101 the caller looked
    stage = Stage.REFUSED if isinstance(verdict, Failed) else Stage.UNAVAILABLE
    return Lint(stage, verdict.reason, verdict.message, keep=keep)


def _judged(data: Data, plan: TunePlan) -> Lint:
    message = "; ".join((*data.summary, outlook(plan, data.rows, data.tokens), *data.warnings))
    return Lint(Stage.JUDGED, JUDGING, message, rows=data.rows, again_s=0.0)


def _unjudged(why: str) -> Lint:
    return Lint(Stage.UNJUDGED, JUDGING, f"the job judges the data, on its nodes: {why}", again_s=0.0)


def _elsewhere(world: World, plan: TunePlan) -> str:
    """Why no pod on another node can see the data; empty when one can."""
    volume = plan.input.get("volumeSource") or {}
    if "hostPath" in volume:
        return "hostPath is a folder of those"
    if own := _OWN & volume.keys():
        return f"{own.pop()} is a volume of its pods alone"
    if claim := volume.get("persistentVolumeClaim"):
        key: Key = (plan.namespace, claim["claimName"])
        found = world.anyones(CLAIM, key)
        if found is None or (found.get("status") or {}).get("phase") != "Bound":
            # The first pod that uses a claim may choose the zone of its disk, where there may be no GPUs.
            return f"PersistentVolumeClaim {claim['claimName']} is not bound yet"
    return ""


def _how(status: Mapping[str, Any], end: Mapping[str, Any], said: str) -> str:
    """How a pod ended that leaves no verdict."""
    lines = said.strip().splitlines()
    words = lines[-1] if lines else status.get("message") or status.get("reason") or end.get("reason") or ""
    code = f" with exit code {end['exitCode']}" if "exitCode" in end else ""
    return f"ended{code} and without a verdict" + (f": {words[:_WORDS]}" if words else "")


def _label(document: KubeObject, label: str) -> str:
    return str(document["metadata"]["labels"].get(label, ""))
