# SPDX-License-Identifier: Apache-2.0
"""KubeRay's RayJob controller, simulated: a cluster, the job on it, retries, suspension and the clean-up after.

Transitions follow ray-operator/controllers/ray/rayjob_controller.go of v1.7.0. How a job ends and what it writes is a
test's to say (`Running`); submitter pods are made in K8sJobMode only. The dashboard of a job's cluster answers for the
end of its log, as Ray 2.60 does.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.call import now
from cluster.inside import Inside, WorkQueue
from cluster.metadata import generated
from cluster.ray_cluster_simulator import CLUSTERS
from cluster.ray_pod import head_service, owner_reference
from cluster.resource import Object
from cluster.store import Change, Key

JOBS = "rayjobs.ray.io"
FINALIZER = "ray.io/rayjob-finalizer"
_LINES_OF_A_FAILURE = 10
# KubeRay looks again after 3 s; until then the message of the attempt that failed is there to be read.
_REQUEUE_S = 0.5
_LAST_LOGS = "last available logs (truncated to 20,000 chars):\n"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# What Ray 2.60 says of a job whose driver runs on a node that it no longer hears of, some seconds after that.
_DRIVER_LOST = """\
Job supervisor actor died: The actor died unexpectedly before finishing this task.
	class_name: JobSupervisor
The actor died because its node has died. Node Id: 263f11d4b6bfc4b094b1d29f57a3bdd7630074e02670ccf0e40efe0d
	the actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
_UNHEARD_S = 0.5


@dataclass(frozen=True, slots=True)
class Running:
    """How a Ray job goes: it runs for `run_s` (for ever when None) and ends with `status` and `message`.

    `failures` attempts fail before that, each on a cluster of its own as `backoffLimit` allows. `log` is what its
    driver wrote so far; a job that fails has the end of it in its message.
    """

    run_s: float | None = 0.05
    status: str = "SUCCEEDED"
    message: str = ""
    failures: int = 0
    log: str = ""


class RayJobs:
    """Runs every RayJob."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._queue = WorkQueue(self._handle)
        self._running: dict[Key, Running] = {}
        self._started: dict[tuple[Key, str], float] = {}
        self._drivers: dict[Key, Object] = {}
        inside.listen(self._on_change)

    def stop(self) -> None:
        """Let jobs be."""
        self._queue.stop()

    def set_running(self, namespace: str, name: str, running: Running) -> None:
        """How a job goes from now on; an empty name stands for all jobs of the namespace."""
        self._running[namespace, name] = running
        for job in self._inside.select(JOBS, namespace):
            self._queue.add((namespace, job["metadata"]["name"]))

    def answer(self, namespace: str, service: str, path: str, query: Mapping[str, str]) -> bytes | None:
        """What the dashboard behind a head's Service says; None where there is no job or it knows nothing of it."""
        cluster = self._inside.get(CLUSTERS, namespace, service.removesuffix("-head-svc"))
        labels = cluster["metadata"].get("labels") or {} if cluster is not None else {}
        name = labels.get("ray.io/originated-from-cr-name", "")
        job = self._inside.get(JOBS, namespace, name) if labels.get("ray.io/originated-from-crd") == "RayJob" else None
        status = (job or {}).get("status") or {}
        submitted = status.get("jobStatus") in ("RUNNING", *_ENDED) and query.get("submission_id") == status.get(
            "jobId"
        )
        # Without a node Ray's validation fails, although it finds the node by the job.
        if path != "api/v0/logs/file" or not submitted or not (query.get("node_id") or query.get("node_ip")):
            return None
        if self._has_lost_its_driver((namespace, name)):
            return None
        return "\n".join(self._script((namespace, name)).log.splitlines()[-int(query["lines"]) :]).encode()

    def _script(self, key: Key) -> Running:
        return self._running.get(key) or self._running.get((key[0], "")) or Running()

    def _on_change(self, table: str, change: Change) -> None:
        metadata = change.entry.object["metadata"]
        labels = metadata.get("labels") or {}
        if table == JOBS and change.type != "DELETED":
            self._queue.add((metadata["namespace"], metadata["name"]))
        elif table == CLUSTERS and labels.get("ray.io/originated-from-crd") == "RayJob":
            self._queue.add((metadata["namespace"], labels["ray.io/originated-from-cr-name"]))
        elif table == "pods" and change.type == "DELETED":
            uid = metadata["uid"]
            self._queue.add_all(key for key, pod in self._drivers.items() if pod["metadata"]["uid"] == uid)

    async def _handle(self, key: Key) -> float | None:
        if not self._inside.served(JOBS):
            return None
        job = self._inside.get(JOBS, *key)
        if job is None:
            return None
        if "deletionTimestamp" in job["metadata"]:
            if not self._can_be_stopped(job):
                return _REQUEUE_S
            rest = [one for one in job["metadata"].get("finalizers") or () if one != FINALIZER]
            await self._inside.patch(JOBS, job, {"metadata": {"finalizers": rest or None}})
            return None
        if FINALIZER not in (job["metadata"].get("finalizers") or ()):
            finalizers = [*(job["metadata"].get("finalizers") or ()), FINALIZER]
            await self._inside.patch(JOBS, job, {"metadata": {"finalizers": finalizers}})
            return None
        state = (job.get("status") or {}).get("jobDeploymentStatus", "")
        problem = _invalid(job)
        if problem and state != "ValidationFailed":
            await self._write(
                job, {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": problem}
            )
            return None
        match state:
            case "":
                return await self._initialize(job)
            case "Retrying":
                return await self._retry(job)
            case "Initializing":
                return await self._submit(job)
            case "Running":
                return await self._follow(job, key)
            case "Complete" | "Failed":
                return await self._clean_up(job)
            case "Suspended":
                if not job["spec"].get("suspend"):
                    await self._write(job, {"jobDeploymentStatus": "", "jobStatus": ""})
        return None

    async def _initialize(self, job: Object) -> float | None:
        metadata = job["metadata"]
        if job["spec"].get("suspend"):
            return await self._suspend(job)
        cluster = await self._inside.create(CLUSTERS, _cluster(job))
        name = f"{metadata['name']}-head-svc"
        if self._inside.get("services", metadata["namespace"], name) is None:
            await self._inside.create("services", head_service(job, cluster, name))
        host = f"{cluster['metadata']['name']}-head-svc"
        await self._write(
            job,
            {
                "jobDeploymentStatus": "Initializing",
                "jobStatus": "",
                "jobId": job["spec"].get("jobId") or generated(f"{metadata['name']}-"),
                "rayClusterName": cluster["metadata"]["name"],
                "dashboardURL": f"{host}.{metadata['namespace']}.svc.cluster.local:8265",
                "startTime": (job.get("status") or {}).get("startTime") or now(),
                "endTime": None,
            },
        )
        return None

    async def _retry(self, job: Object) -> float | None:
        """Forget the attempt that failed, once its cluster is gone."""
        status = job["status"]
        name = status.get("rayClusterName")
        cluster = self._inside.get(CLUSTERS, job["metadata"]["namespace"], name) if name else None
        if cluster is not None:
            if "deletionTimestamp" not in cluster["metadata"]:
                await self._inside.delete(CLUSTERS, cluster)
            return _REQUEUE_S
        forgotten = dict.fromkeys(("jobStatus", "rayClusterName", "dashboardURL", "jobId", "message", "reason"), "")
        await self._write(job, {**forgotten, "jobDeploymentStatus": "", "rayJobInfo": {}, "rayClusterStatus": {}})
        return None

    async def _submit(self, job: Object) -> float | None:
        if job["spec"].get("suspend"):
            return await self._suspend(job)
        cluster = self._cluster(job)
        if cluster is None:
            await self._write(job, {"jobDeploymentStatus": ""})
            return None
        status = {"rayClusterStatus": cluster.get("status") or {}}
        if (cluster.get("status") or {}).get("state") != "ready":
            await self._write(job, status)
            return None
        if job["spec"].get("submissionMode", "K8sJobMode") == "K8sJobMode":
            await self._start_submitter(job)
        await self._write(job, {**status, "jobDeploymentStatus": "Running", "jobStatus": "PENDING"})
        return None

    async def _follow(self, job: Object, key: Key) -> float | None:
        if job["spec"].get("suspend"):
            return await self._suspend(job)
        status = job["status"]
        cluster = self._cluster(job)
        running = self._script(key)
        if status.get("jobStatus") != "RUNNING":
            self._started[key, status["rayClusterName"]] = asyncio.get_running_loop().time()
            self._place_driver(job, key)
            await self._write(job, {"jobStatus": "RUNNING", "message": "Job is currently running.",
                                    "rayJobInfo": {"startTime": now()}})  # fmt: skip
            return None
        if cluster is None:
            return await self._end(job, "FAILED", "The RayCluster was deleted while the job was running")
        if self._has_lost_its_driver(key):
            await asyncio.sleep(_UNHEARD_S)
            return await self._end(job, "FAILED", _DRIVER_LOST)
        since = self._started.get((key, status["rayClusterName"]), 0.0)
        if running.run_s is None:
            return None
        left = since + running.run_s - asyncio.get_running_loop().time()
        if left > 0.001:
            return left
        ended = "FAILED" if (status.get("failed") or 0) < running.failures else running.status
        message = running.message
        if ended == "FAILED" and not message:
            last = "\n".join(running.log.splitlines()[-_LINES_OF_A_FAILURE:])
            message = f"Job entrypoint command failed with exit code 1, {_LAST_LOGS}{last}"
        return await self._end(job, ended, message)

    async def _end(self, job: Object, ended: str, message: str) -> float | None:
        status, spec = job["status"], job["spec"]
        assert ended in _ENDED
        failed = (status.get("failed") or 0) + (ended == "FAILED")
        outcome: Object = {
            "jobStatus": ended,
            "message": message or ("Job finished successfully." if ended == "SUCCEEDED" else "Job failed."),
            "endTime": now(),
            "rayJobInfo": {**(status.get("rayJobInfo") or {}), "endTime": now()},
            "failed": failed,
            "succeeded": (status.get("succeeded") or 0) + (ended == "SUCCEEDED"),
        }
        outcome["jobDeploymentStatus"] = "Failed" if ended == "FAILED" else "Complete"
        if ended == "FAILED":
            outcome["reason"] = "AppFailed"
            if failed <= (spec.get("backoffLimit") or 0):
                outcome["jobDeploymentStatus"] = "Retrying"
        await self._write(job, outcome)
        return None

    async def _suspend(self, job: Object) -> float | None:
        cluster = self._cluster(job)
        if cluster is not None:
            await self._inside.delete(CLUSTERS, cluster)
        await self._write(job, {"jobDeploymentStatus": "Suspended", "jobStatus": "", "rayClusterName": "",
                                "rayClusterStatus": {}, "dashboardURL": ""})  # fmt: skip
        return None

    async def _clean_up(self, job: Object) -> float | None:
        """Delete the cluster as `shutdownAfterJobFinishes` or the deletion rules say; seconds pass as they are."""
        spec, status = job["spec"], job["status"]
        cluster = self._cluster(job)
        if cluster is None:
            return None
        waits = []
        if spec.get("shutdownAfterJobFinishes"):
            waits.append(float(spec.get("ttlSecondsAfterFinished") or 0))
        for rule in (spec.get("deletionStrategy") or {}).get("deletionRules") or ():
            wanted = rule["condition"]
            if rule["policy"] in ("DeleteCluster", "DeleteSelf") and _holds(wanted, status):
                waits.append(float(wanted.get("ttlSeconds") or 0))
        if not waits:
            return None
        ended = self._started.setdefault(
            ((job["metadata"]["namespace"], job["metadata"]["name"]), "ended"), asyncio.get_running_loop().time()
        )
        left = ended + min(waits) - asyncio.get_running_loop().time()
        if left > 0.001:
            return left
        await self._inside.delete(CLUSTERS, cluster)
        return None

    async def _start_submitter(self, job: Object) -> None:
        metadata, spec = job["metadata"], job["spec"]
        if self._inside.get("jobs.batch", metadata["namespace"], metadata["name"]) is not None:
            return
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        command = ["/bin/bash", "-ce", "--", spec.get("entrypoint", "")]
        container = {"name": "ray-job-submitter", "image": head["image"], "command": command}
        template = spec.get("submitterPodTemplate") or {"spec": {"containers": [container], "restartPolicy": "Never"}}
        await self._inside.create(
            "jobs.batch",
            {
                "metadata": {
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "labels": {
                        "ray.io/originated-from-cr-name": metadata["name"],
                        "ray.io/originated-from-crd": "RayJob",
                    },
                    "ownerReferences": [owner_reference(job)],
                },
                "spec": {
                    "backoffLimit": (spec.get("submitterConfig") or {}).get("backoffLimit", 2),
                    "template": json.loads(json.dumps(template)),
                },
            },
        )

    def _cluster(self, job: Object) -> Object | None:
        name = (job.get("status") or {}).get("rayClusterName")
        found = self._inside.get(CLUSTERS, job["metadata"]["namespace"], name) if name else None
        return None if found is None or "deletionTimestamp" in found["metadata"] else found

    def _place_driver(self, job: Object, key: Key) -> None:
        """A driver that asks for CPUs runs on a worker, since a head has none to give."""
        self._drivers.pop(key, None)
        cluster = self._cluster(job)
        if cluster is not None and job["spec"].get("entrypointNumCpus"):
            pods = self._inside.owned(cluster, "pods")
            workers = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]
            if workers:
                self._drivers[key] = workers[0]

    def _has_lost_its_driver(self, key: Key) -> bool:
        pod = self._drivers.get(key)
        found = self._inside.get("pods", key[0], pod["metadata"]["name"]) if pod is not None else None
        return pod is not None and (found is None or found["metadata"]["uid"] != pod["metadata"]["uid"])

    def _can_be_stopped(self, job: Object) -> bool:
        """KubeRay asks the dashboard to stop a job that is not over, and tries for ever without the token for that."""
        name = (job["spec"].get("rayClusterSpec", {}).get("authOptions") or {}).get("secretName")
        over = (job.get("status") or {}).get("jobStatus") in _ENDED
        return over or not name or self._inside.get("secrets", job["metadata"]["namespace"], name) is not None

    async def _write(self, job: Object, changes: Mapping[str, object]) -> None:
        status = {**(job.get("status") or {}), **changes, "observedGeneration": job["metadata"]["generation"]}
        status = {key: value for key, value in status.items() if value is not None}
        if status != job.get("status"):
            await self._inside.replace_status(JOBS, job, status)


def _holds(wanted: Object, status: Object) -> bool:
    return all(wanted[key] == status.get(key) for key in ("jobStatus", "jobDeploymentStatus") if key in wanted)


def _cluster(job: Object) -> Object:
    metadata = job["metadata"]
    annotations = {**(metadata.get("annotations") or {})}
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return {
        "metadata": {
            "name": generated(f"{metadata['name']}-"),
            "namespace": metadata["namespace"],
            "labels": {
                **(metadata.get("labels") or {}),
                "ray.io/originated-from-cr-name": metadata["name"],
                "ray.io/originated-from-crd": "RayJob",
            },
            "annotations": annotations,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": json.loads(json.dumps(job["spec"]["rayClusterSpec"])),
    }


def _invalid(job: Object) -> str:
    spec, name = job["spec"], job["metadata"]["name"]
    if len(name) > 47:
        return f"The RayJob metadata is invalid: RayJob name should be no more than 47 characters: {name}"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        why = "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
        return f"The RayJob spec is invalid: {why}"
    if spec.get("shutdownAfterJobFinishes") and spec.get("deletionStrategy"):
        return "The RayJob spec is invalid: shutdownAfterJobFinishes and deletionRules are mutually exclusive"
    return ""
