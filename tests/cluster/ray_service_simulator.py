# SPDX-License-Identifier: Apache-2.0
"""KubeRay's RayService controller, simulated: clusters, Serve applications, Services and the status of them all.

Transitions follow ray-operator/controllers/ray/rayservice_controller.go of v1.7.0; the dashboard it would poll is the
`Serving` below, where tests say how applications fare.
"""

import asyncio
from dataclasses import dataclass

from cluster.call import now
from cluster.inside import Inside, WorkQueue
from cluster.ray_cluster_simulator import CLUSTERS
from cluster.ray_pod import condition, head_service, is_ready, serve_service
from cluster.ray_service_spec import HASH, OWNER, cluster_hash, parsed_config, spec_problem, wanted_cluster
from cluster.resource import Object
from cluster.store import Change, Key

SERVICES = "rayservices.ray.io"
FINALIZER = "ray.io/rayservice-finalizer"
_DEPLOYMENT_STATUS = {"RUNNING": "HEALTHY", "DEPLOYING": "UPDATING", "NOT_STARTED": "UPDATING"}


@dataclass(slots=True)
class Serving:
    """How the Serve applications of RayServices fare: `status` RUNNING, DEPLOYING, DEPLOY_FAILED or UNHEALTHY."""

    status: str = "RUNNING"
    message: str = ""
    deploy_s: float = 0.02


@dataclass(slots=True)
class _Submitted:
    config: str
    at: float
    was_running: bool = False


class RayServices:
    """Runs every RayService. `deletion_delay_s` stands for rayClusterDeletionDelaySeconds, whatever a spec says."""

    def __init__(self, inside: Inside, *, deploy_s: float = 0.02, deletion_delay_s: float = 0.2) -> None:
        self._inside = inside
        self._deploy_s = deploy_s
        self._deletion_delay_s = deletion_delay_s
        self._queue = WorkQueue(self._handle)
        self._serving: dict[Key, Serving] = {}
        self._submitted: dict[Key, _Submitted] = {}
        inside.listen(self._on_change)

    def stop(self) -> None:
        """Let services be."""
        self._queue.stop()

    def set_serving(self, namespace: str, name: str, serving: Serving | None) -> None:
        """How the applications of a RayService fare from now on; None for well."""
        if serving is None:
            self._serving.pop((namespace, name), None)
        else:
            self._serving[namespace, name] = serving
        self._queue.add((namespace, name))

    def submitted(self, service: Object) -> tuple[str, float] | None:
        """The Serve config that a service's active cluster was given, and when."""
        active = ((service.get("status") or {}).get("activeServiceStatus") or {}).get("rayClusterName", "")
        known = self._submitted.get((service["metadata"]["namespace"], active))
        return (known.config, known.at) if known else None

    def _on_change(self, table: str, change: Change) -> None:
        metadata = change.entry.object["metadata"]
        namespace = metadata.get("namespace", "")
        labels = metadata.get("labels") or {}
        if table == SERVICES:
            if change.type != "DELETED":
                self._queue.add((namespace, metadata["name"]))
        elif (table == CLUSTERS and labels.get("ray.io/originated-from-crd") == "RayService") or (
            table == "endpointslices.discovery.k8s.io" and labels.get("ray.io/originated-from-crd") == "RayService"
        ):
            self._queue.add((namespace, labels[OWNER]))
        elif table == "services":
            for reference in metadata.get("ownerReferences") or ():
                if reference["kind"] == "RayService":
                    self._queue.add((namespace, reference["name"]))

    async def _handle(self, key: Key) -> float | None:
        if not self._inside.served(SERVICES):
            return None
        service = self._inside.get(SERVICES, *key)
        if service is None:
            return None
        if "deletionTimestamp" in service["metadata"]:
            await self._finalize(service)
            return None
        if FINALIZER not in (service["metadata"].get("finalizers") or ()):
            finalizers = [*(service["metadata"].get("finalizers") or ()), FINALIZER]
            service = await self._inside.patch(SERVICES, service, {"metadata": {"finalizers": finalizers}})
            if service is None:
                return None
        problem = spec_problem(service)
        if problem:
            await self._inside.record(service, "InvalidRayServiceSpec", problem, "Warning")
            await self._report(service, None, None, "ValidationFailed", problem)
            return None
        if service["spec"].get("suspend"):
            return await self._suspend(service)
        return await self._converge(service)

    async def _finalize(self, service: Object) -> None:
        for cluster in self._inside.owned(service, CLUSTERS):
            await self._inside.delete(CLUSTERS, cluster)
        rest = [one for one in service["metadata"].get("finalizers") or () if one != FINALIZER]
        await self._inside.patch(SERVICES, service, {"metadata": {"finalizers": rest or None}})

    async def _suspend(self, service: Object) -> float | None:
        clusters = self._inside.owned(service, CLUSTERS)
        for cluster in clusters:
            await self._inside.delete(CLUSTERS, cluster)
        for one in self._inside.owned(service, "services"):
            await self._inside.delete("services", one)
        done = not self._inside.owned(service, CLUSTERS)
        before = (service.get("status") or {}).get("conditions") or []
        moment, generation = now(), service["metadata"]["generation"]
        reasons = {
            "Ready": (False, "SuspendComplete" if done else "SuspendRequested"),
            "Suspending": (not done, "SuspendComplete" if done else "SuspendInProgress"),
            "Suspended": (done, "SuspendComplete" if done else "SuspendInProgress"),
            "UpgradeInProgress": (False, "NoActiveCluster"),
        }
        status = {
            "conditions": [condition(before, kind, *why, "", generation, moment) for kind, why in reasons.items()],
            "activeServiceStatus": {},
            "pendingServiceStatus": {},
            "numServeEndpoints": 0,
            "serviceStatus": "",
            "observedGeneration": generation,
        }
        await self._write(service, status)
        return None if done else 0.05

    async def _converge(self, service: Object) -> float | None:
        status = service.get("status") or {}
        clusters = {one["metadata"]["name"]: one for one in self._inside.owned(service, CLUSTERS)
                    if "deletionTimestamp" not in one["metadata"]}  # fmt: skip
        active = clusters.get((status.get("activeServiceStatus") or {}).get("rayClusterName", ""))
        pending = clusters.get((status.get("pendingServiceStatus") or {}).get("rayClusterName", ""))
        wanted = cluster_hash(service["spec"]["rayClusterConfig"])
        if pending is not None and pending["metadata"]["annotations"][HASH] != wanted:
            await self._inside.delete(CLUSTERS, pending)
            pending = None
        if active is not None and active["metadata"]["annotations"][HASH] == wanted and pending is not None:
            await self._inside.delete(CLUSTERS, pending)
            pending = None
        strategy = (service["spec"].get("upgradeStrategy") or {}).get("type", "NewCluster")
        drifted = active is not None and active["metadata"]["annotations"][HASH] != wanted
        if pending is None and (active is None or (drifted and strategy != "None")):
            pending = await self._inside.create(CLUSTERS, wanted_cluster(service, wanted))
        elif active is not None and not drifted and pending is None:
            active = await self._scale(service, active)
        waits = []
        # While a second cluster comes up, only its applications are looked after.
        target = pending or active
        assert target is not None
        running, wait_s = self._applications_run(service, target)
        waits.append(wait_s)
        if running:
            await self._switch(service, target)
            if pending is not None:
                if active is not None:
                    self._retire(active)
                active, pending = pending, None
        await self._report(service, active, pending, "", "")
        return min((one for one in waits if one is not None), default=None)

    async def _scale(self, service: Object, cluster: Object) -> Object:
        """Replica counts of worker groups change in place."""
        wanted = service["spec"]["rayClusterConfig"].get("workerGroupSpecs") or []
        if cluster["spec"].get("workerGroupSpecs") == wanted:
            return cluster
        return await self._inside.patch(CLUSTERS, cluster, {"spec": {"workerGroupSpecs": wanted}}) or cluster

    def _applications_run(self, service: Object, cluster: Object) -> tuple[bool, float | None]:
        """Submit the Serve config where it is new; whether all applications run, and when to look again."""
        key = (service["metadata"]["namespace"], cluster["metadata"]["name"])
        config = service["spec"].get("serveConfigV2", "")
        if (cluster.get("status") or {}).get("state") != "ready":
            return False, None
        loop = asyncio.get_running_loop()
        submitted = self._submitted.get(key)
        if submitted is None or submitted.config != config:
            was = submitted.was_running if submitted else False
            submitted = self._submitted[key] = _Submitted(config, loop.time(), was)
        serving = self._serving.get((service["metadata"]["namespace"], service["metadata"]["name"]))
        deploy_s = serving.deploy_s if serving else self._deploy_s
        left = submitted.at + deploy_s - loop.time()
        if left > 0.001:
            return False, left
        running = serving is None or serving.status == "RUNNING"
        submitted.was_running = submitted.was_running or running
        return running, None

    def _applications(self, service: Object, cluster: Object) -> Object:
        """applicationStatuses, as the dashboard of the cluster tells them."""
        key = (service["metadata"]["namespace"], cluster["metadata"]["name"])
        submitted = self._submitted.get(key)
        if submitted is None:
            return {}
        serving = self._serving.get((service["metadata"]["namespace"], service["metadata"]["name"])) or Serving(
            deploy_s=self._deploy_s
        )
        status, message = serving.status, serving.message
        if asyncio.get_running_loop().time() < submitted.at + serving.deploy_s - 0.001:
            status, message = "DEPLOYING", ""
        elif status == "RUNNING" and not self._served(service, cluster):
            status, message = "UNHEALTHY", "The deployment is unhealthy: its replicas were lost."
        found = {}
        for name, deployments in parsed_config(submitted.config)[1]:
            one = {"status": _DEPLOYMENT_STATUS.get(status, status), "message": message}
            statuses = dict.fromkeys(deployments, one)
            found[name] = {"status": status, "message": message, "serveDeploymentStatuses": statuses}
        return found

    def _served(self, service: Object, cluster: Object) -> bool:
        """Whether any pod that may hold replicas is ready."""
        labels = {"ray.io/cluster": cluster["metadata"]["name"], "ray.io/serve": "true"}
        return any(is_ready(pod) for pod in self._inside.owned(cluster, "pods") if _carries(pod, labels)) or not (
            service["spec"]["rayClusterConfig"].get("workerGroupSpecs")
        )

    async def _switch(self, service: Object, cluster: Object) -> None:
        """Have the Services of the RayService select a cluster."""
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        for wanted in (
            head_service(service, cluster, f"{name}-head-svc"),
            serve_service(service, cluster["metadata"]["name"]),
        ):
            found = self._inside.get("services", namespace, wanted["metadata"]["name"])
            if found is None:
                await self._inside.create("services", wanted)
            elif found["spec"].get("selector") != wanted["spec"]["selector"]:
                await self._inside.patch("services", found, {"spec": {"selector": wanted["spec"]["selector"]}})

    def _retire(self, cluster: Object) -> None:
        async def later() -> None:
            await asyncio.sleep(self._deletion_delay_s)
            await self._inside.delete(CLUSTERS, cluster)

        self._queue.run(later())

    async def _report(
        self, service: Object, active: Object | None, pending: Object | None, reason: str, problem: str
    ) -> None:
        namespace = service["metadata"]["namespace"]
        serve = serve_service(service, "")["metadata"]["name"]
        found = self._inside.get("services", namespace, serve)
        slices = self._inside.owned(found, "endpointslices.discovery.k8s.io") if found else []
        endpoints = sum(
            bool(one["conditions"].get("ready")) for part in slices for one in part.get("endpoints") or ()
        ) if active is not None else 0  # fmt: skip
        before = (service.get("status") or {}).get("conditions") or []
        was_ready = any(one["type"] == "Ready" and one["reason"] != "Initializing" for one in before)
        moment, generation = now(), service["metadata"]["generation"]
        if endpoints:
            ready = (True, "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")
        elif reason:
            ready = (False, reason, problem)
        elif was_ready:
            ready = (False, "ZeroServeEndpoints", "Number of serve endpoints dropped to 0")
        else:
            ready = (False, "Initializing", "RayService is initializing")
        upgrade = (
            (True, "BothActivePendingClustersExist", "Both active and pending Ray clusters exist")
            if active is not None and pending is not None
            else (False, "NoPendingCluster", "Active Ray cluster exists and no pending Ray cluster")
            if active is not None
            else (False, "NoActiveCluster", "No active Ray cluster exists")
        )
        await self._write(
            service,
            {
                "conditions": [
                    condition(before, "Ready", *ready, generation, moment),
                    condition(before, "UpgradeInProgress", *upgrade, generation, moment),
                ],
                "activeServiceStatus": self._cluster_status(service, active, refresh=pending is None),
                "pendingServiceStatus": self._cluster_status(service, pending, refresh=True),
                "numServeEndpoints": endpoints,
                "serviceStatus": "Running" if endpoints else "",
                "observedGeneration": generation,
            },
        )

    def _cluster_status(self, service: Object, cluster: Object | None, *, refresh: bool) -> Object:
        if cluster is None:
            return {}
        old = (service.get("status") or {}).get("activeServiceStatus") or {}
        applications = self._applications(service, cluster)
        if not refresh and old.get("rayClusterName") == cluster["metadata"]["name"]:
            applications = old.get("applicationStatuses") or {}
        return {
            "rayClusterName": cluster["metadata"]["name"],
            "rayClusterStatus": cluster.get("status") or {},
            "applicationStatuses": applications,
        }

    async def _write(self, service: Object, status: Object) -> None:
        before = service.get("status") or {}
        if any(before.get(key, {} if value == {} else None) != value for key, value in status.items()):
            await self._inside.replace_status(SERVICES, service, {**status, "lastUpdateTime": now()})


def _carries(pod: Object, labels: dict[str, str]) -> bool:
    carried = pod["metadata"].get("labels") or {}
    return all(carried.get(key) == value for key, value in labels.items())
