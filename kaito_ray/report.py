# SPDX-License-Identifier: Apache-2.0
"""A status in, the same status in the cluster out, with an Event for whatever turned. Called once per pass.

A status that equals the one there is not written. One that differs only in words waits until the last write is half a
minute old, so that a model that loads for minutes does not cost a write per progress message.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from kaito_ray.cluster import Cluster, Conflict, KubeObject, NotFound
from kaito_ray.errors import NameTaken, NotReadyYet, ObjectRefused
from kaito_ray.event import event_of
from kaito_ray.informer import Key, key_of
from kaito_ray.kinds import WORKSPACE
from kaito_ray.metrics import TIME_TO_READY
from kaito_ray.nodes.provisioner import Notice
from kaito_ray.observe import Observed
from kaito_ray.status import differs_only_in_words, document_of, transitions
from kaito_ray.timeline import READY, parse_timestamp, timestamp
from kaito_ray.workspace_status import Status
from kaito_ray.world import World

logger = logging.getLogger(__name__)

_WORDS_S = 30.0
_REFUSED_S = 60.0


class Reporter:
    """Writes the status of Workspaces."""

    def __init__(self, cluster: Cluster, world: World) -> None:
        self._cluster = cluster
        self._world = world
        self._written: dict[Key, datetime] = {}

    async def report(self, workspace: KubeObject, status: Status, observed: Observed, now: datetime) -> float | None:
        """Write what is new; the seconds after which another pass is wanted, None for never."""
        before: dict[str, Any] = workspace.get("status") or {}
        after = document_of(status)
        delays = [observed.nodes.requeue_after_s, observed.look_again_s, _delay_s(observed)]
        if before != after:
            wait_s = self._wait_s(key_of(workspace), before, after, now)
            if wait_s > 0:
                delays.append(wait_s)
            else:
                await self._write(workspace, after, now)
                if _became_ready(before, after):
                    self._celebrate(workspace, now)
                    delays.append(0.0)
                if _made(before) != _made(after):
                    delays.append(0.0)  # the next plan depends on it (adapter_status.py, after_tuning.py)
        judged = observed.lint.notices() if observed.lint is not None else ()
        for notice in (*observed.nodes.notices, *observed.applied.notices, *judged, *transitions(before, status)):
            await self._post(workspace, notice, now)
        return min((delay for delay in delays if delay is not None), default=None)

    async def report_release(self, workspace: KubeObject, reason: str, message: str, now: datetime) -> None:
        """Say why a Workspace that is deleted is still there; once per reason."""
        before: dict[str, Any] = workspace.get("status") or {}
        conditions = {one["type"]: one for one in before.get("conditions") or ()}
        known = conditions.get("ResourceReady", {})
        if (known.get("reason"), known.get("message")) == (reason, message):
            return
        conditions["ResourceReady"] = {
            "type": "ResourceReady",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": known["lastTransitionTime"] if known.get("status") == "False" else timestamp(now),
            "observedGeneration": workspace["metadata"].get("generation"),
        }
        await self._write(workspace, {**before, "conditions": list(conditions.values())}, now)

    def _wait_s(self, key: Key, before: dict[str, Any], after: dict[str, Any], now: datetime) -> float:
        written = self._written.get(key)
        if written is None or not differs_only_in_words(before, after):
            return 0.0
        return (written + timedelta(seconds=_WORDS_S) - now).total_seconds()

    async def _write(self, workspace: KubeObject, status: dict[str, Any], now: datetime) -> None:
        metadata = workspace["metadata"]
        key = key_of(workspace)
        before = workspace.get("status") or {}
        patch = merge_patch(before, status)
        try:
            written = await self._cluster.patch(WORKSPACE, *key, {"status": patch}, "status")
        except NotFound:
            logger.info("the Workspace is gone")
            self._written.pop(key, None)
            self._world.drop_workspace(key)
            return
        except Conflict as error:
            raise NotReadyYet(f"the status of {metadata['name']} cannot be written: {error}", delay_s=1) from None
        self._written[key] = now
        self._world.refresh_workspace(written)

    async def _post(self, workspace: KubeObject, notice: Notice, now: datetime) -> None:
        logger.info("%s: %s", notice.reason, notice.message)
        await self._cluster.post_event(event_of(workspace, notice, now))

    def _celebrate(self, workspace: KubeObject, now: datetime) -> None:
        """Count how long it took, the first time only."""
        timeline = (workspace.get("status") or {}).get("timeline") or ()
        created = workspace["metadata"].get("creationTimestamp")
        if created and not any(entry.get("stage") == READY for entry in timeline):
            TIME_TO_READY.observe((now - parse_timestamp(created)).total_seconds())


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What turns `before` into `after` as a JSON merge patch (RFC 7386): null removes, mappings are merged."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            if inner := merge_patch(known, value):
                patch[key] = inner
        elif key not in before or known != value:
            patch[key] = value
    return patch


def _delay_s(observed: Observed) -> float | None:
    """When to try again what could not be applied; a person's edit wakes the Workspace by itself."""
    if isinstance(observed.refusal, NotReadyYet):
        return observed.refusal.delay_s
    if isinstance(observed.refusal, ObjectRefused | NameTaken) or observed.applied.contested:
        return _REFUSED_S
    return None


def _became_ready(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return _is_ready(after) and not _is_ready(before)


def _made(status: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any] | None]:
    """The digests of adapters, and what was tuned."""
    return {one["name"]: one.get("digest", "") for one in status.get("adapters") or ()}, status.get("output")


def _is_ready(status: dict[str, Any]) -> bool:
    return any(one["type"] == "WorkspaceReady" and one["status"] == "True" for one in status.get("conditions") or ())
