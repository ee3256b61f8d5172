# SPDX-License-Identifier: Apache-2.0
"""A Ray pod in, what keeps it from working out. Pure; world.py keeps pods in this form, status.py words it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray import names

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_START = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "ContainerCannotRun",
    "StartError",
    "PreStartHookError",
    "PostStartHookError",
}
_LAST_WORD = re.compile(r"([A-Z][A-Za-z]+): (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a pod: KAITO's reason for it and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """What the container that fetches the model does, or did."""

    started: str
    """Empty as long as it has not; the times are the kubelet's."""
    finished: str
    """Empty as long as the model is not there."""
    message: str
    """Its last word, such as `7.1 GiB in 34 s, sha256:...`."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One Ray pod; `ready` is None as long as the kubelet has not said."""

    name: str
    workspace: tuple[str, str]
    cluster: str
    head: bool
    node: str
    phase: str
    ready: bool | None
    restarts: int
    started: str
    """When its first container started that is known: its image is there then."""
    deleting: bool
    trouble: Trouble | None
    pulling: str
    """The image that is being pulled, or that a container waits for; empty when none is."""
    fetch: Fetch | None = None
    """None for a pod that fetches no model."""


def parse_pod(document: Mapping[str, Any]) -> Pod:
    """A Pod object of the API."""
    metadata, status = document.get("metadata") or {}, document.get("status") or {}
    labels = metadata.get("labels") or {}
    containers = list(_containers(status))
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    ready = conditions.get("Ready", {}).get("status")
    return Pod(
        name=metadata.get("name", ""),
        workspace=(labels.get(names.LABEL_WORKSPACE_NAMESPACE, ""), labels.get(names.LABEL_WORKSPACE, "")),
        cluster=labels.get("ray.io/cluster", ""),
        head=labels.get("ray.io/node-type") == "head",
        node=(document.get("spec") or {}).get("nodeName", ""),
        phase=status.get("phase", ""),
        ready=None if ready is None else ready == "True",
        restarts=max((one.get("restartCount", 0) for one in containers), default=0),
        started=_started(status),
        deleting=bool(metadata.get("deletionTimestamp")),
        trouble=_trouble(metadata.get("name", ""), status, containers, conditions),
        pulling=_pulling(containers),
        fetch=_fetch(containers),
    )


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _started(status: Mapping[str, Any]) -> str:
    """The Ray container, which KubeRay keeps first, uses the image of those that run before it."""
    for one in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        state = one.get("state") or {}
        running = state.get("running") or state.get("terminated") or {}
        return str(running.get("startedAt") or "")
    return ""


def _fetch(containers: list[Mapping[str, Any]]) -> Fetch | None:
    for one in containers:
        if one.get("name") == names.CONTAINER_FETCH:
            state = one.get("state") or {}
            ended, running = state.get("terminated") or {}, state.get("running") or {}
            good = ended if ended.get("exitCode") == 0 else {}
            started = running.get("startedAt") or good.get("startedAt") or ""
            return Fetch(started, good.get("finishedAt") or "", str(good.get("message") or "").strip())
    return None


def _pulling(containers: list[Mapping[str, Any]]) -> str:
    for one in containers:
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") == "ContainerCreating":
            return str(one.get("image", ""))
    return ""


def _trouble(
    pod: str,
    status: Mapping[str, Any],
    containers: list[Mapping[str, Any]],
    conditions: Mapping[Any, Mapping[str, Any]],
) -> Trouble | None:
    """What is wrong, the cause before its consequences: a container that is killed for memory also crash-loops."""
    if status.get("reason") == "Evicted":
        return Trouble("PodEvicted", f"pod {pod} was evicted: {status.get('message', '')}")
    for find in (_killed, _not_pulled, _not_fetched, _not_started, _crashing):
        for container in containers:
            trouble = find(pod, container)
            if trouble is not None:
                return trouble
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return Trouble("Unschedulable", f"pod {pod} cannot be scheduled: {scheduled.get('message', '')}")
    return None


def _killed(pod: str, container: Mapping[str, Any]) -> Trouble | None:
    """Killed for memory, now or before the start that is under way."""
    if container.get("ready"):
        return None
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        if (state.get("terminated") or {}).get("reason") == "OOMKilled":
            return Trouble(
                "ContainerOOMKilled",
                f"container {container.get('name')} of pod {pod} ran out of memory and was killed"
                f" ({container.get('restartCount', 0)} restarts); take a larger instanceType",
            )
    return None


def _not_pulled(pod: str, container: Mapping[str, Any]) -> Trouble | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") not in _PULL:
        return None
    return Trouble(
        "ImagePullError",
        f"image {container.get('image')} of pod {pod} cannot be pulled: {waiting.get('message') or waiting['reason']}",
    )


def _not_fetched(pod: str, container: Mapping[str, Any]) -> Trouble | None:
    """The last word of the container that fetches the model is `<Reason>: <sentence>` (model_fetch.py)."""
    state = container.get("state") or {}
    if container.get("name") != names.CONTAINER_FETCH or "running" in state:
        return None
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended.get("exitCode"):
        return None
    said = str(ended.get("message") or "").strip()
    match = _LAST_WORD.fullmatch(said)
    reason, sentence = (
        (match[1], match[2]) if match else ("FetchFailed", said[-500:] or f"exit code {ended['exitCode']}")
    )
    return Trouble(
        reason if "Model" in reason else f"Model{reason}",
        f"pod {pod} cannot fetch the model ({container.get('restartCount', 0)} restarts): {sentence}",
    )


def _not_started(pod: str, container: Mapping[str, Any]) -> Trouble | None:
    state = container.get("state") or {}
    stopped = state.get("waiting") or state.get("terminated") or {}
    if stopped.get("reason") not in _START:
        return None
    return Trouble(
        "ContainerStartError",
        f"container {container.get('name')} of pod {pod} cannot start: {stopped.get('message') or stopped['reason']}",
    )


def _crashing(pod: str, container: Mapping[str, Any]) -> Trouble | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") != "CrashLoopBackOff":
        return None
    last = (container.get("lastState") or {}).get("terminated") or {}
    how = f"exit code {last.get('exitCode', 'unknown')}"
    if last.get("message"):
        how += f": {str(last['message']).strip()[-500:]}"
    return Trouble(
        "ContainerCrashLoopBackOff",
        f"container {container.get('name')} of pod {pod} crashes again and again"
        f" ({container.get('restartCount', 0)} restarts, {how}); see `kubectl logs {pod} --previous`",
    )
