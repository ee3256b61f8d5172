# SPDX-License-Identifier: Apache-2.0
"""KubeRay's RayCluster controller, simulated: pods as specified, Failed ones replaced, a status that tells."""

from collections.abc import Iterable

from cluster.call import now
from cluster.failure import Failure
from cluster.inside import Inside, WorkQueue
from cluster.metadata import generated
from cluster.pod_validation import amount_of
from cluster.ray_pod import condition, head_pod, head_service, is_ready, worker_pod
from cluster.resource import Object
from cluster.store import Change, Key

CLUSTERS = "rayclusters.ray.io"
_SERVE_HEAD = "ray.io/enable-serve-service"


class RayClusters:
    """Runs every RayCluster."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._queue = WorkQueue(self._handle)
        inside.listen(self._on_change)

    def stop(self) -> None:
        """Let clusters be."""
        self._queue.stop()

    def _on_change(self, table: str, change: Change) -> None:
        metadata = change.entry.object["metadata"]
        if table == CLUSTERS:
            if change.type != "DELETED":
                self._queue.add((metadata["namespace"], metadata["name"]))
        elif table == "pods":
            cluster = (metadata.get("labels") or {}).get("ray.io/cluster")
            if cluster:
                self._queue.add((metadata["namespace"], cluster))

    async def _handle(self, key: Key) -> float | None:
        if not self._inside.served(CLUSTERS):
            return None
        cluster = self._inside.get(CLUSTERS, *key)
        if cluster is None or "deletionTimestamp" in cluster["metadata"]:
            return None
        pods = [pod for pod in self._inside.owned(cluster, "pods") if "deletionTimestamp" not in pod["metadata"]]
        if cluster["spec"].get("suspend"):
            for pod in pods:
                await self._inside.delete("pods", pod)
            await self._report(cluster, [], "")
            return None
        problem = ""
        try:
            await self._converge(cluster, pods)
        except Failure as refusal:
            problem = str(refusal)
        pods = [pod for pod in self._inside.owned(cluster, "pods") if "deletionTimestamp" not in pod["metadata"]]
        await self._report(cluster, pods, problem)
        return 0.5 if problem else None

    async def _converge(self, cluster: Object, pods: list[Object]) -> None:
        """Replace what failed, create what is missing, delete what is too many."""
        metadata = cluster["metadata"]
        name = f"{metadata['name']}-head-svc"
        if self._inside.get("services", metadata["namespace"], name) is None:
            await self._inside.create("services", head_service(cluster, cluster, name))
        for pod in pods:
            if pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
                await self._inside.delete("pods", pod)
        alive = [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")]
        heads = [pod for pod in alive if _label(pod, "ray.io/node-type") == "head"]
        if not heads and self._inside.get("pods", metadata["namespace"], f"{metadata['name']}-head") is None:
            serves = (metadata.get("annotations") or {}).get(_SERVE_HEAD) != "false"
            await self._create(cluster, head_pod(cluster, serves=serves), "FailedCreateHeadPod")
        for group in cluster["spec"].get("workerGroupSpecs") or ():
            mine = [pod for pod in alive if _label(pod, "ray.io/group") == group["groupName"]]
            await self._converge_group(cluster, group, mine)

    async def _converge_group(self, cluster: Object, group: Object, pods: list[Object]) -> None:
        wanted, hosts = _replicas(group), group.get("numOfHosts") or 1
        if hosts == 1:
            for pod in pods[wanted:]:
                await self._inside.delete("pods", pod)
            for _ in range(wanted - len(pods)):
                await self._create(cluster, worker_pod(cluster, group), "FailedCreateWorkerPod")
            return
        sets: dict[str, list[Object]] = {}
        for pod in pods:
            sets.setdefault(_label(pod, "ray.io/worker-group-replica-name"), []).append(pod)
        # A replica of several hosts lives and dies as a whole.
        for name, members in list(sets.items()):
            if len(members) < hosts:
                for pod in sets.pop(name):
                    await self._inside.delete("pods", pod)
        for _ in range(wanted - len(sets)):
            replica = generated(f"{group['groupName']}-")
            for host in range(hosts):
                await self._create(
                    cluster, worker_pod(cluster, group, replica=replica, host=host), "FailedCreateWorkerPod"
                )

    async def _create(self, cluster: Object, pod: Object, reason: str) -> None:
        try:
            made = await self._inside.create("pods", pod)
        except Failure as refusal:
            if refusal.reason == "AlreadyExists":
                return
            await self._inside.record(cluster, reason, f"Failed to create pod: {refusal}", "Warning")
            raise
        del made

    async def _report(self, cluster: Object, pods: list[Object], problem: str) -> None:
        spec, metadata, before = cluster["spec"], cluster["metadata"], cluster.get("status") or {}
        groups = spec.get("workerGroupSpecs") or []
        workers = [pod for pod in pods if _label(pod, "ray.io/node-type") == "worker"]
        heads = [pod for pod in pods if _label(pod, "ray.io/node-type") == "head"]
        desired = sum(_replicas(group) * (group.get("numOfHosts") or 1) for group in groups)
        ready = [pod for pod in workers if is_ready(pod)]
        head_ready = bool(heads) and is_ready(heads[0])
        suspended = bool(spec.get("suspend"))
        provisioned = head_ready and len(ready) >= desired and not suspended
        moment, generation = now(), metadata["generation"]
        status: Object = {
            "observedGeneration": generation,
            "desiredWorkerReplicas": desired,
            "minWorkerReplicas": _bound(groups, "minReplicas"),
            "maxWorkerReplicas": min(_bound(groups, "maxReplicas"), 2**31 - 1),
            "readyWorkerReplicas": len(ready),
            "availableWorkerReplicas": sum(pod.get("status", {}).get("phase") == "Running" for pod in workers),
            "desiredCPU": _total(spec, "cpu"),
            "desiredMemory": _total(spec, "memory"),
            "desiredGPU": _total(spec, "nvidia.com/gpu"),
            "desiredTPU": "0",
            "conditions": _conditions(cluster, heads, head_ready, provisioned, problem, moment),
            "endpoints": {"client": "10001", "dashboard": "8265", "gcs-server": "6379", "metrics": "8080"},
        }
        if heads:
            status["head"] = {
                "podName": heads[0]["metadata"]["name"],
                "podIP": heads[0].get("status", {}).get("podIP", ""),
                "serviceName": f"{metadata['name']}-head-svc",
                "serviceIP": heads[0].get("status", {}).get("podIP", ""),
            }
        state = "suspended" if suspended and not pods else "ready" if provisioned else before.get("state", "")
        if state and state != before.get("state"):
            status["state"] = state
            status["stateTransitionTimes"] = {**(before.get("stateTransitionTimes") or {}), state: moment}
        status["reason"] = problem
        if any(before.get(key) != value for key, value in status.items()):
            status["lastUpdateTime"] = moment
            await self._inside.set_status(CLUSTERS, cluster, status)


def _conditions(
    cluster: Object, heads: list[Object], head_ready: bool, provisioned: bool, problem: str, moment: str
) -> list[Object]:
    before = (cluster.get("status") or {}).get("conditions") or []
    generation = cluster["metadata"]["generation"]

    def one(kind: str, status: bool, reason: str, message: str) -> Object:
        return condition(before, kind, status, reason, message, generation, moment)

    was = any(item["type"] == "RayClusterProvisioned" and item["status"] == "True" for item in before)
    suspended = bool(cluster["spec"].get("suspend"))
    found = [
        one("HeadPodReady", head_ready, "HeadPodRunningAndReady" if head_ready else "HeadPodNotFound" if not heads
            else "ContainersNotReady", "Head Pod ready" if head_ready else _why_unready(heads)),
        one("RayClusterProvisioned", (provisioned or was) and not suspended,
            "AllPodRunningAndReadyFirstTime" if provisioned or was else "RayClusterPodsProvisioning",
            "All Ray Pods are ready for the first time" if provisioned or was
            else "RayCluster Pods are being provisioned"),
        one("RayClusterSuspended", suspended, "RayClusterSuspended", "All Pods are deleted" if suspended else ""),
        one("RayClusterSuspending", False, "RayClusterSuspending", ""),
    ]  # fmt: skip
    if problem:
        found.append(one("ReplicaFailure", True, "FailedCreateWorkerPod", problem))
    return found


def _why_unready(heads: list[Object]) -> str:
    if not heads:
        return "Head Pod not found"
    for status in heads[0].get("status", {}).get("containerStatuses") or ():
        waiting = status.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return "containers with unready status"


def _replicas(group: Object) -> int:
    if group.get("suspend"):
        return 0
    wanted = group.get("replicas")
    low, high = group.get("minReplicas") or 0, group.get("maxReplicas")
    wanted = low if wanted is None else max(wanted, low)
    return int(min(wanted, high) if high is not None else wanted)


def _bound(groups: list[Object], name: str) -> int:
    return sum((group.get(name) or 0) * (group.get("numOfHosts") or 1) for group in groups)


def _total(spec: Object, name: str) -> str:
    def of(containers: Iterable[Object]) -> float:
        return sum(
            amount_of(((one.get("resources") or {}).get("requests") or {}).get(name)
                      or ((one.get("resources") or {}).get("limits") or {}).get(name) or 0)
            for one in containers
        )  # fmt: skip

    amount = of(spec["headGroupSpec"]["template"]["spec"]["containers"])
    for group in spec.get("workerGroupSpecs") or ():
        amount += of(group["template"]["spec"]["containers"]) * _replicas(group) * (group.get("numOfHosts") or 1)
    return str(int(amount))


def _label(pod: Object, key: str) -> str:
    return str((pod["metadata"].get("labels") or {}).get(key, ""))
