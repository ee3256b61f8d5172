# SPDX-License-Identifier: Apache-2.0
"""What a kubelet reports of a pod's containers, for every way in which a test wants a pod to behave. Pure."""

from dataclasses import dataclass
from typing import Any, Literal

from cluster.resource import Object

Behaviour = Literal["run", "unready", "hang", "image", "crash", "oom", "config", "exit", "unschedulable"]


@dataclass(frozen=True, slots=True)
class Script:
    """How pods behave that carry `labels` (all pods when empty).

    `run`, `unready` (runs, never ready), `hang` (the image takes for ever), `image` (cannot be pulled), `crash` and
    `oom` (again and again), `config` (a Secret or ConfigMap it names is missing), `exit` (ends with `exit_code`) and
    `unschedulable`. `after_s` lets the pod run well for so long first.
    """

    behaviour: Behaviour
    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    container: str = ""
    after_s: float = 0.0
    exit_code: int = 1
    message: str = ""
    log: str = ""

    def fits(self, pod: Object) -> bool:
        """Whether the script is for this pod."""
        metadata = pod["metadata"]
        carried = metadata.get("labels") or {}
        return self.namespace in ("", metadata["namespace"]) and all(carried.get(k) == v for k, v in self.labels)


def container_statuses(pod: Object, behaviour: Behaviour, script: Script, restarts: int, moment: str) -> list[Object]:
    """The containerStatuses of a pod whose scripted container behaves that way, the others well."""
    containers = pod["spec"]["containers"]
    if _stuck_before(pod, script):
        return [_row(one, _waiting("PodInitializing"), {}, False, 0) for one in containers]
    chosen = script.container or containers[0]["name"]
    return [
        _status(one, behaviour if one["name"] == chosen else _bystander(behaviour), script, restarts, moment)
        for one in containers
    ]


def init_container_statuses(
    pod: Object, behaviour: Behaviour, script: Script, restarts: int, moment: str
) -> list[Object]:
    """The initContainerStatuses: one after the other has ended well, up to the one that is scripted."""
    rows: list[Object] = []
    for one in pod["spec"].get("initContainers") or ():
        before = all("terminated" in row["state"] and row["ready"] for row in rows)
        if behaviour == "hang" or not before:
            rows.append(_row(one, _waiting("PodInitializing"), {}, False, 0))
        elif one["name"] == script.container:
            rows.append(_status(one, behaviour, script, restarts, moment) | {"ready": False})
        else:
            rows.append(_row(one, _ended(0, "Completed", "", moment), {}, True, 0))
    return rows


def _stuck_before(pod: Object, script: Script) -> bool:
    """Whether the scripted container is one that runs before the others."""
    return any(one["name"] == script.container for one in pod["spec"].get("initContainers") or ())


def _bystander(behaviour: Behaviour) -> Behaviour:
    return behaviour if behaviour in ("exit", "hang") else "run"


def _status(container: Object, behaviour: Behaviour, script: Script, restarts: int, moment: str) -> Object:
    image = container.get("image", "")
    running = {"running": {"startedAt": moment}}
    return _row(container, *(_state(behaviour, script, image, restarts, moment) or (running, {}, True, 0)))


def _row(container: Object, state: Object, last: Object, ready: bool, count: int) -> Object:
    image = container.get("image", "")
    return {
        "name": container["name"],
        "image": image,
        "imageID": f"{image}@sha256:{'0' * 64}" if "running" in state or last else "",
        "containerID": f"containerd://{'0' * 64}" if "running" in state or last else "",
        "ready": ready,
        "started": "running" in state,
        "restartCount": count,
        "state": state,
        "lastState": last,
    }


def _state(
    behaviour: Behaviour, script: Script, image: str, restarts: int, moment: str
) -> tuple[Object, Object, bool, int] | None:  # fmt: skip
    running: Object = {"running": {"startedAt": moment}}
    match behaviour:
        case "unready":
            return running, {}, False, 0
        case "hang":
            return _waiting("ContainerCreating"), {}, False, 0
        case "image":
            why = script.message or f'failed to pull and unpack image "{image}": not found'
            text = f'Back-off pulling image "{image}": ErrImagePull: {why}'
            return _waiting("ImagePullBackOff", text), {}, False, 0
        case "config":
            return _waiting("CreateContainerConfigError", script.message), {}, False, 0
        case "crash" | "oom":
            code, reason = (137, "OOMKilled") if behaviour == "oom" else (script.exit_code, "Error")
            ended = _ended(code, reason, script.message, moment)
            name = "container"
            text = f"back-off 10s restarting failed container={script.container or name}"
            return _waiting("CrashLoopBackOff", text), ended, False, restarts
        case "exit":
            reason = "Completed" if script.exit_code == 0 else "Error"
            return _ended(script.exit_code, reason, script.message, moment), {}, False, 0
        case _:
            return None


def _waiting(reason: str, message: str = "") -> Object:
    waiting: dict[str, Any] = {"reason": reason}
    if message:
        waiting["message"] = message
    return {"waiting": waiting}


def _ended(code: int, reason: str, message: str, moment: str) -> Object:
    ended: dict[str, Any] = {"exitCode": code, "reason": reason, "startedAt": moment, "finishedAt": moment}
    if message:
        ended["message"] = message
    return {"terminated": {**ended, "containerID": f"containerd://{'0' * 64}"}}


def phase_of(statuses: list[Object]) -> str:
    """A pod's phase from its containers' states."""
    ended = [one["state"].get("terminated") for one in statuses]
    if all(ended):
        return "Succeeded" if all(one["exitCode"] == 0 for one in ended if one) else "Failed"
    if any("running" in one["state"] or one["lastState"] for one in statuses):
        return "Running"
    return "Pending"


def pod_conditions(pod: Object, statuses: list[Object], moment: str) -> list[Object]:
    """PodScheduled, Initialized, ContainersReady and Ready; a condition that stays keeps its time."""
    unready = [one["name"] for one in statuses if not one["ready"]]
    ended = bool(statuses) and all("terminated" in one["state"] for one in statuses)
    initializing = any(one["state"].get("waiting", {}).get("reason") == "PodInitializing" for one in statuses)
    why: Object = {}
    if unready:
        reason = "PodCompleted" if ended else "ContainersNotReady"
        why = {"reason": reason, "message": f"containers with unready status: [{' '.join(unready)}]"}
    wanted = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Initialized", "status": "False" if initializing else "True"},
        {"type": "ContainersReady", "status": "False" if unready else "True", **why},
        {"type": "Ready", "status": "False" if unready else "True", **why},
    ]
    before = {one["type"]: one for one in pod.get("status", {}).get("conditions", ())}
    for condition in wanted:
        old = before.get(condition["type"], {})
        same = old.get("status") == condition["status"]
        condition["lastTransitionTime"] = old["lastTransitionTime"] if same and "lastTransitionTime" in old else moment
    return wanted
