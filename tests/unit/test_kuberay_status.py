# SPDX-License-Identifier: Apache-2.0
"""When a RayService serves what its specification says now; KubeRay's own Ready does not tell."""

from typing import Any

import pytest

from kaito_ray.kuberay import parse_ray_cluster, parse_ray_job, parse_ray_service
from ray_builders import a_ray_job, a_ray_service


@pytest.mark.parametrize(
    ("document", "ready"),
    [
        (a_ray_service(), True),
        (a_ray_service(ready=False), False),
        (a_ray_service(observed=2), False),
        (a_ray_service(upgrading=True), False),
        (a_ray_service(apps={"chat": "DEPLOYING"}), False),
        (a_ray_service(apps={"chat": "UNHEALTHY"}), False),
        (a_ray_service(apps={"chat": "RUNNING", "other": "DEPLOY_FAILED"}), False),
        (a_ray_service(apps={}), False),
        (a_ray_service(pending=True), False),
        ({"metadata": {"name": "phi", "generation": 1}}, False),
        ({"metadata": {"name": "phi", "generation": 1}, "status": {"conditions": None}}, False),
    ],
)
def test_ready(document: dict[str, Any], ready: bool) -> None:
    assert parse_ray_service(document).ready is ready


def test_the_text_of_a_failed_deployment_beats_that_of_its_application() -> None:
    service = parse_ray_service(
        a_ray_service(
            apps={"chat": "DEPLOY_FAILED"},
            message="Deploying app 'chat' failed",
            deployments={"Chat": ("DEPLOY_FAILED", "torch.OutOfMemoryError: CUDA out of memory")},
        )
    )
    assert service.active is not None
    assert service.active.applications[0].text == "torch.OutOfMemoryError: CUDA out of memory"


@pytest.mark.parametrize(
    ("document", "over", "succeeded"),
    [
        (a_ray_job(job="", deployment=""), False, False),
        (a_ray_job(), False, False),
        (a_ray_job(job="FAILED", deployment="Retrying"), False, False),
        (a_ray_job(job="SUCCEEDED", deployment="Complete"), True, True),
        (a_ray_job(job="FAILED", deployment="Failed"), True, False),
        (a_ray_job(job="STOPPED", deployment="Complete"), True, False),
        (a_ray_job(job="", deployment="ValidationFailed"), True, False),
    ],
)
def test_the_end_of_a_job(document: dict[str, Any], over: bool, succeeded: bool) -> None:
    job = parse_ray_job(document)
    assert (job.over, job.succeeded) == (over, succeeded)


def test_why_a_cluster_cannot_make_pods() -> None:
    cluster = parse_ray_cluster(
        {
            "metadata": {"name": "phi-abcde", "ownerReferences": [{"name": "phi", "controller": True}]},
            "status": {
                "conditions": [
                    {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod", "message": "quota"}
                ]
            },
        }
    )
    assert (cluster.owner, cluster.failure) == ("phi", "FailedCreateWorkerPod: quota")
