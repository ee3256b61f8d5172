# SPDX-License-Identifier: Apache-2.0
"""RayServices, RayJobs and Ray pods for tests, as KubeRay and a kubelet write them."""

from typing import Any

Object = dict[str, Any]
SINCE = "2026-11-20T10:00:00Z"


def a_ray_service(
    *,
    ready: bool = True,
    apps: dict[str, str] | None = None,
    message: str = "",
    deployments: dict[str, tuple[str, str]] | None = None,
    upgrading: bool = False,
    generation: int = 3,
    observed: int = 3,
    suspend: bool = False,
    conditions: dict[str, tuple[bool, str, str]] | None = None,
    pending: bool = False,
) -> Object:
    """A RayService that serves, unless told otherwise; `apps` are application statuses by name."""
    applications = {
        name: {
            "status": status,
            "message": message,
            "serveDeploymentStatuses": {
                deployment: {"status": state, "message": text}
                for deployment, (state, text) in (deployments or {"Chat": ("HEALTHY", "")}).items()
            },
        }
        for name, status in (apps if apps is not None else {"chat": "RUNNING"}).items()
    }
    holds = {
        "Ready": (ready, "NonZeroServeEndpoints" if ready else "ZeroServeEndpoints", ""),
        "UpgradeInProgress": (upgrading, "BothActivePendingClustersExist", ""),
        **(conditions or {}),
    }
    side = {"rayClusterName": "phi-abcde", "applicationStatuses": applications}
    return {
        "metadata": {"name": "phi", "namespace": "default", "generation": generation},
        "spec": {"suspend": True} if suspend else {},
        "status": {
            "observedGeneration": observed,
            "numServeEndpoints": 1 if ready else 0,
            "pendingServiceStatus" if pending else "activeServiceStatus": side,
            "conditions": [
                {
                    "type": kind,
                    "status": "True" if holding else "False",
                    "reason": reason,
                    "message": text,
                    "lastTransitionTime": SINCE,
                }
                for kind, (holding, reason, text) in holds.items()
            ],
        },
    }


def a_ray_job(*, job: str = "RUNNING", deployment: str = "Running", reason: str = "", message: str = "") -> Object:
    """A RayJob that runs, unless told otherwise."""
    return {
        "metadata": {"name": "tune-1", "namespace": "default"},
        "status": {
            "jobStatus": job,
            "jobDeploymentStatus": deployment,
            "reason": reason,
            "message": message,
            "rayClusterName": "tune-1-abcde",
        },
    }


def a_ray_pod(
    name: str = "phi-abcde-worker-1",
    *,
    head: bool = False,
    cluster: str = "phi-abcde",
    phase: str = "Running",
    ready: bool | None = True,
    restarts: int = 0,
    state: Object | None = None,
    last: Object | None = None,
    conditions: list[Object] | None = None,
    status: Object | None = None,
    image: str = "example.com/serve:1",
) -> Object:
    """A Ray pod that is ready, unless told otherwise; `state` and `last` are those of its Ray container."""
    container = {
        "name": "ray-head" if head else "ray-worker",
        "image": image,
        "ready": bool(ready),
        "restartCount": restarts,
        "state": state if state is not None else {"running": {"startedAt": SINCE}},
        "lastState": last or {},
    }
    ready_condition = [] if ready is None else [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {
                "kaito.sh/workspace": "phi",
                "kaito.sh/workspacenamespace": "default",
                "ray.io/cluster": cluster,
                "ray.io/node-type": "head" if head else "worker",
            },
        },
        "spec": {"nodeName": "gpu-1"},
        "status": {
            "phase": phase,
            "conditions": [*ready_condition, *(conditions or [])],
            "containerStatuses": [container],
            **(status or {}),
        },
    }
