# SPDX-License-Identifier: Apache-2.0
"""Scheduler, kubelets and the claim binder of a simulated cluster: pods are placed, start, fail and stop."""

import asyncio
from collections.abc import Mapping

from cluster.call import now
from cluster.container_state import (
    Behaviour,
    Script,
    container_statuses,
    init_container_statuses,
    phase_of,
    pod_conditions,
)
from cluster.inside import Inside, WorkQueue
from cluster.resource import Object
from cluster.scheduling import place, requested
from cluster.store import Change, Key

_DEFAULT = Script("run")
_WARNINGS: Mapping[Behaviour, tuple[str, str]] = {
    "image": ("Failed", 'Failed to pull image "{image}": {message}'),
    "crash": ("BackOff", "Back-off restarting failed container {container} in pod {pod}"),
    "oom": ("BackOff", "Back-off restarting failed container {container} in pod {pod}"),
    "config": ("Failed", "Error: {message}"),
}


class Pods:
    """Runs every pod. `start_s` is what a container needs to start, `stop_s` to stop, `backoff_s` between crashes."""

    def __init__(
        self,
        inside: Inside,
        *,
        start_s: float = 0.02,
        stop_s: float = 0.02,
        backoff_s: float = 0.3,
        events: bool = True,
    ) -> None:
        self._inside = inside
        self._start_s = start_s
        self._stop_s = stop_s
        self._backoff_s = backoff_s
        self._events = events
        self._queue = WorkQueue(self._handle)
        self._scripts: list[Script] = []
        self._used: dict[str, dict[str, float]] = {}
        self._charged: dict[Key, tuple[str, dict[str, float]]] = {}
        self._placing = asyncio.Lock()
        self._unplaced: set[Key] = set()
        self._since: dict[Key, float] = {}
        self._restarts: dict[Key, int] = {}
        inside.listen(self._on_change)

    def stop(self) -> None:
        """Let pods be."""
        self._queue.stop()

    def add(self, script: Script) -> None:
        """Have pods behave so from now on; the script added last counts."""
        self._scripts.insert(0, script)
        self._again(script)

    def remove(self, script: Script) -> None:
        """Let pods behave again."""
        self._scripts.remove(script)
        self._again(script)

    def _again(self, script: Script) -> None:
        for pod in self._inside.select("pods"):
            if script.fits(pod):
                # What runs already does not start again first.
                self._since[_key(pod)] = asyncio.get_running_loop().time() - self._start_s
                self._queue.add(_key(pod))

    def _on_change(self, table: str, change: Change) -> None:
        obj = change.entry.object
        if table == "pods":
            self._charge(_key(obj), None if change.type == "DELETED" else obj)
            if change.type == "DELETED":
                self._forget(_key(obj))
                self._queue.add_all(self._unplaced)
            elif change.type == "ADDED" or "deletionTimestamp" in obj["metadata"] or _placed_now(change):
                self._queue.add(_key(obj))
        elif table == "nodes":
            self._queue.add_all(self._unplaced)
        elif table == "persistentvolumeclaims" and change.type == "ADDED":
            self._queue.add(("claim", *_key(obj)))

    def _forget(self, key: Key) -> None:
        self._unplaced.discard(key)
        self._since.pop(key, None)
        self._restarts.pop(key, None)

    def _charge(self, key: Key, pod: Object | None) -> None:
        """Book what a pod takes of its node; a pod that is gone or finished takes nothing."""
        charged = self._charged.pop(key, None)
        if charged is not None:
            for name, amount in charged[1].items():
                self._used[charged[0]][name] -= amount
        node = pod["spec"].get("nodeName") if pod else None
        if pod is None or not node or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return
        amounts = requested(pod)
        used = self._used.setdefault(node, {})
        for name, amount in amounts.items():
            used[name] = used.get(name, 0.0) + amount
        self._charged[key] = (node, amounts)

    async def _handle(self, key: Key | tuple[str, str, str]) -> float | None:
        if len(key) == 3:
            await self._bind_claim(key[1], key[2])
            return None
        pod = self._inside.get("pods", *key)
        if pod is None:
            return None
        if "deletionTimestamp" in pod["metadata"]:
            return await self._end(key, pod)
        script = next((one for one in self._scripts if one.fits(pod)), _DEFAULT)
        if not pod["spec"].get("nodeName"):
            await self._schedule(key, pod, script)
            return None
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return None
        return await self._run(key, pod, script)

    async def _schedule(self, key: Key, pod: Object, script: Script) -> None:
        # One after the other: what a pod takes of its node counts once it is bound.
        async with self._placing:
            node, why = place(pod, self._inside.select("nodes"), self._used)
            if script.behaviour == "unschedulable":
                node, why = "", script.message or why or "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            if node:
                self._unplaced.discard(key)
                await self._inside.bind(pod, node)
                return
        self._unplaced.add(key)
        before: Object = next((one for one in pod["status"].get("conditions", ()) if one["type"] == "PodScheduled"), {})
        if before.get("message") == why:
            return
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
                     "lastTransitionTime": before.get("lastTransitionTime") or now()}  # fmt: skip
        await self._inside.patch("pods", pod, {"status": {"conditions": [condition]}}, subresource="status")
        await self._inside.record(pod, "FailedScheduling", why, "Warning", "default-scheduler")

    async def _run(self, key: Key, pod: Object, script: Script) -> float | None:
        clock = asyncio.get_running_loop().time()
        since = self._since.setdefault(key, clock)
        behaviour, wait_s = self._phase(script, clock - since)
        missing = self._missing(pod)
        if missing and behaviour != "hang":
            behaviour, wait_s, script = "config", 0.2, Script("config", message=missing)
        restarts = self._restarts.get(key, 0)
        if behaviour in ("crash", "oom"):
            if pod["spec"].get("restartPolicy") == "Never":
                behaviour = "exit"
                script = Script(
                    "exit", exit_code=137 if script.behaviour == "oom" else script.exit_code, message=script.message
                )
            else:
                restarts = self._restarts[key] = restarts + 1
                wait_s = self._backoff_s
        await self._report(pod, behaviour, script, restarts)
        return wait_s

    def _phase(self, script: Script, age_s: float) -> tuple[Behaviour, float | None]:
        """How a pod behaves at its age, and when that changes."""
        if age_s < self._start_s - 0.001 and script.behaviour not in ("image", "config"):
            return "hang", self._start_s - age_s
        if script.after_s and age_s < script.after_s + self._start_s - 0.001:
            return "run", script.after_s + self._start_s - age_s
        return script.behaviour, None

    async def _report(self, pod: Object, behaviour: Behaviour, script: Script, restarts: int) -> None:
        moment = now()
        known = pod.get("status", {})
        before = {one["name"]: one for one in known.get("containerStatuses", ())}
        statuses = container_statuses(pod, behaviour, script, restarts, moment)
        for one in statuses:
            old = before.get(one["name"], {})
            if "running" in one["state"] and "running" in old.get("state", {}):
                one["state"] = old["state"]
                one["restartCount"], one["lastState"] = old["restartCount"], old.get("lastState", {})
        ended = {one["name"]: one for one in known.get("initContainerStatuses", ()) if one["ready"]}
        first = [
            ended.get(one["name"], one) if one["ready"] else one
            for one in init_container_statuses(pod, behaviour, script, restarts, moment)
        ]
        status: Object = {
            "phase": phase_of(statuses),
            "conditions": pod_conditions(pod, statuses, moment),
            "containerStatuses": statuses,
            **({"initContainerStatuses": first} if first else {}),
        }
        if behaviour != "hang":
            status["podIP"] = pod["status"].get("podIP") or self._inside.pod_ip()
            status["podIPs"] = [{"ip": status["podIP"]}]
            status["startTime"] = pod["status"].get("startTime") or moment
        await self._inside.set_status("pods", pod, status)
        chosen = script.container or pod["spec"]["containers"][0]["name"]
        if script.log:
            self._inside.write_log(pod, chosen, script.log)
            self._inside.write_log(pod, chosen, script.log, previous=True)
        if behaviour in _WARNINGS and self._events:
            reason, text = _WARNINGS[behaviour]
            image = pod["spec"]["containers"][0].get("image", "")
            message = text.format(
                image=image, message=script.message or "not found", container=chosen, pod=pod["metadata"]["name"]
            )
            await self._inside.record(pod, reason, message, "Warning", "kubelet")

    def _missing(self, pod: Object) -> str:
        """What a kubelet says of a Secret or ConfigMap that the containers' environment needs and is not there."""
        namespace = pod["metadata"]["namespace"]
        for container in pod["spec"]["containers"]:
            for variable in container.get("env") or ():
                source = variable.get("valueFrom") or {}
                for field, table, word in (
                    ("secretKeyRef", "secrets", "secret"),
                    ("configMapKeyRef", "configmaps", "configmap"),
                ):
                    reference = source.get(field)
                    if reference is None or reference.get("optional"):
                        continue
                    found = self._inside.get(table, namespace, reference["name"])
                    if found is None:
                        return f'{word} "{reference["name"]}" not found'
                    if reference["key"] not in {**found.get("data", {}), **found.get("binaryData", {})}:
                        where = f"{word.capitalize()} {namespace}/{reference['name']}"
                        return f"couldn't find key {reference['key']} in {where}"
        return ""

    async def _end(self, key: Key, pod: Object) -> float | None:
        clock = asyncio.get_running_loop().time()
        ending = self._since.setdefault(("ending", "/".join(key)), clock)
        left = self._stop_s - (clock - ending)
        if left > 0.001:
            return left
        self._since.pop(("ending", "/".join(key)), None)
        await self._inside.delete("pods", pod, gracePeriodSeconds=0)
        return None

    async def _bind_claim(self, namespace: str, name: str) -> None:
        claim = self._inside.get("persistentvolumeclaims", namespace, name)
        if claim is None or claim["spec"].get("volumeName"):
            return
        changed = await self._inside.patch(
            "persistentvolumeclaims", claim, {"spec": {"volumeName": f"pvc-{claim['metadata']['uid']}"}}
        )
        if changed is not None:
            status = {
                "phase": "Bound",
                "accessModes": claim["spec"]["accessModes"],
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            }
            await self._inside.set_status("persistentvolumeclaims", changed, status)


def _key(obj: Object) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _placed_now(change: Change) -> bool:
    before = change.previous.object["spec"].get("nodeName") if change.previous else None
    return not before and bool(change.entry.object["spec"].get("nodeName"))
