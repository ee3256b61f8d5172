# SPDX-License-Identifier: Apache-2.0
"""KubeRay's RayService, RayJob and RayCluster: typed async access, and their status as frozen values.

The class names are those of KubeRay's own Python client, which cannot be installed as a package; RayServiceApi is new.
The parsers are pure and take anything: a status that an older or newer KubeRay writes otherwise reads as not there yet.
Facts are from ray-operator/apis/ray/v1 and controllers/ray of KubeRay 1.7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray.cluster import Cluster, KubeObject
from kaito_ray.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE

_FINAL = ("Complete", "Failed", "ValidationFailed")


@dataclass(frozen=True, slots=True)
class RayCondition:
    """One condition of a Ray resource."""

    status: bool
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True)
class RayApplication:
    """One Serve application as the dashboard tells KubeRay."""

    name: str
    status: str
    """NOT_STARTED, DEPLOYING, RUNNING, DEPLOY_FAILED, DELETING or UNHEALTHY."""
    message: str
    deployments: Mapping[str, tuple[str, str]]
    """Status and message by deployment."""

    @property
    def text(self) -> str:
        """The most telling sentence: a deployment's own message says more than the application's."""
        for status, message in self.deployments.values():
            if message and status not in {"HEALTHY", "UPSCALING", "DOWNSCALING"}:
                return message
        return self.message


@dataclass(frozen=True, slots=True)
class RayServiceSide:
    """The active or the pending cluster of a RayService."""

    cluster: str
    applications: tuple[RayApplication, ...]


@dataclass(frozen=True, slots=True)
class RayServiceStatus:
    """A RayService as far as it says how serving goes."""

    name: str
    generation: int
    observed_generation: int
    conditions: Mapping[str, RayCondition]
    active: RayServiceSide | None
    pending: RayServiceSide | None
    endpoints: int
    suspend: bool
    """What its spec asks for; the condition Suspended says when it is so."""

    def holds(self, condition: str) -> bool:
        """Whether a condition is True."""
        found = self.conditions.get(condition)
        return found is not None and found.status

    @property
    def current(self) -> bool:
        """Whether KubeRay has seen the spec as it is now."""
        return self.observed_generation == self.generation

    @property
    def ready(self) -> bool:
        """Whether every application serves what the spec says now.

        KubeRay's own Ready stays True while an application is redeployed, is unhealthy or failed to deploy, and while
        a second cluster comes up.
        """
        return (
            self.holds("Ready")
            and self.current
            and not self.holds("UpgradeInProgress")
            and self.active is not None
            and bool(self.active.applications)
            and all(application.status == "RUNNING" for application in self.active.applications)
        )

    @property
    def serves_on(self) -> bool:
        """Whether applications serve what they did before, while something new is on its way to them."""
        return (
            self.holds("Ready")
            and not self.holds("UpgradeInProgress")
            and self.active is not None
            and bool(self.active.applications)
            and all(application.status in {"RUNNING", "DEPLOYING"} for application in self.active.applications)
        )


@dataclass(frozen=True, slots=True)
class RayJobStatus:
    """A RayJob as far as it says how tuning goes."""

    name: str
    job_status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED, or empty before it was submitted."""
    deployment_status: str
    """Initializing, Running, Complete, Failed, ValidationFailed, Suspended, Retrying, Waiting or empty."""
    reason: str
    message: str
    cluster: str
    started: str
    ended: str
    failed: int
    """Attempts that failed; another one may be under way."""
    uid: str = ""
    backoff_limit: int = 0
    """Attempts that may fail before KubeRay gives up."""

    @property
    def succeeded(self) -> bool:
        """Whether the job did what it was for."""
        return self.deployment_status == "Complete" and self.job_status == "SUCCEEDED"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.deployment_status in _FINAL


@dataclass(frozen=True, slots=True)
class RayClusterStatus:
    """A RayCluster as far as it says how its pods are doing."""

    name: str
    owner: str
    """Name of the RayService or RayJob that made it."""
    state: str
    reason: str
    conditions: Mapping[str, RayCondition]
    desired_workers: int
    ready_workers: int

    @property
    def failure(self) -> str:
        """Why pods cannot be made, such as a quota or an admission webhook; empty when they can."""
        found = self.conditions.get("ReplicaFailure")
        return f"{found.reason}: {found.message}" if found is not None and found.status else ""


class RayServiceApi:
    """RayServices of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def get(self, name: str, namespace: str) -> KubeObject:
        """The object; raises NotFound."""
        return await self._cluster.get(RAY_SERVICE, namespace, name)

    async def list(self, namespace: str | None = None, *, labels: str = "") -> list[KubeObject]:
        """The RayServices of a namespace, or of the cluster."""
        return (await self._cluster.list(RAY_SERVICE, namespace, labels=labels))[0]

    async def status(self, name: str, namespace: str) -> RayServiceStatus:
        """How serving goes; raises NotFound."""
        return parse_ray_service(await self.get(name, namespace))


class RayjobApi:
    """RayJobs of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def get(self, name: str, namespace: str) -> KubeObject:
        """The object; raises NotFound."""
        return await self._cluster.get(RAY_JOB, namespace, name)

    async def list(self, namespace: str | None = None, *, labels: str = "") -> list[KubeObject]:
        """The RayJobs of a namespace, or of the cluster."""
        return (await self._cluster.list(RAY_JOB, namespace, labels=labels))[0]

    async def status(self, name: str, namespace: str) -> RayJobStatus:
        """How tuning goes; raises NotFound."""
        return parse_ray_job(await self.get(name, namespace))


class RayClusterApi:
    """RayClusters of a cluster; KubeRay makes them, for RayServices and RayJobs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def get(self, name: str, namespace: str) -> KubeObject:
        """The object; raises NotFound."""
        return await self._cluster.get(RAY_CLUSTER, namespace, name)

    async def list(self, namespace: str | None = None, *, labels: str = "") -> list[KubeObject]:
        """The RayClusters of a namespace, or of the cluster."""
        return (await self._cluster.list(RAY_CLUSTER, namespace, labels=labels))[0]

    async def status(self, name: str, namespace: str) -> RayClusterStatus:
        """How its pods are doing; raises NotFound."""
        return parse_ray_cluster(await self.get(name, namespace))


def parse_ray_service(document: Mapping[str, Any]) -> RayServiceStatus:
    """A RayService object; what KubeRay has not written yet counts as not there."""
    metadata, status = _part(document, "metadata"), _part(document, "status")
    return RayServiceStatus(
        name=metadata.get("name", ""),
        generation=metadata.get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        conditions=_conditions(status),
        active=_side(_part(status, "activeServiceStatus")),
        pending=_side(_part(status, "pendingServiceStatus")),
        endpoints=status.get("numServeEndpoints", 0),
        suspend=bool(_part(document, "spec").get("suspend")),
    )


def parse_ray_job(document: Mapping[str, Any]) -> RayJobStatus:
    """A RayJob object."""
    status = _part(document, "status")
    return RayJobStatus(
        name=_part(document, "metadata").get("name", ""),
        job_status=status.get("jobStatus", ""),
        deployment_status=status.get("jobDeploymentStatus", ""),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        cluster=status.get("rayClusterName", ""),
        started=status.get("startTime", ""),
        ended=status.get("endTime", ""),
        failed=status.get("failed", 0),
        uid=_part(document, "metadata").get("uid", ""),
        backoff_limit=_part(document, "spec").get("backoffLimit", 0),
    )


def parse_ray_cluster(document: Mapping[str, Any]) -> RayClusterStatus:
    """A RayCluster object."""
    metadata, status = _part(document, "metadata"), _part(document, "status")
    owners = [owner.get("name", "") for owner in metadata.get("ownerReferences") or () if owner.get("controller")]
    return RayClusterStatus(
        name=metadata.get("name", ""),
        owner=owners[0] if owners else "",
        state=status.get("state", ""),
        reason=status.get("reason", ""),
        conditions=_conditions(status),
        desired_workers=status.get("desiredWorkerReplicas", 0),
        ready_workers=status.get("readyWorkerReplicas", 0),
    )


def _part(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def _conditions(status: Mapping[str, Any]) -> dict[str, RayCondition]:
    return {
        one.get("type", ""): RayCondition(
            status=one.get("status") == "True",
            reason=one.get("reason", ""),
            message=one.get("message", ""),
            since=one.get("lastTransitionTime", ""),
        )
        for one in status.get("conditions") or ()
    }


def _side(side: Mapping[str, Any]) -> RayServiceSide | None:
    if not side.get("rayClusterName"):
        return None
    applications = tuple(
        RayApplication(
            name=name,
            status=one.get("status", ""),
            message=one.get("message", ""),
            deployments={
                deployment: (two.get("status", ""), two.get("message", ""))
                for deployment, two in _part(one, "serveDeploymentStatuses").items()
            },
        )
        for name, one in sorted(_part(side, "applicationStatuses").items())
    )
    return RayServiceSide(side["rayClusterName"], applications)
