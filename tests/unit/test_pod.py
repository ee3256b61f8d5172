# SPDX-License-Identifier: Apache-2.0
"""What keeps a Ray pod from working, in KAITO's reasons."""

from typing import Any

import pytest

from kaito_ray.pod import parse_pod
from ray_builders import a_ray_pod

OOM = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
CRASHED = {"terminated": {"reason": "Error", "exitCode": 1, "message": "ValueError: no such model"}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("document", "reason", "words"),
    [
        (a_ray_pod(ready=False, state=OOM), "ContainerOOMKilled", "out of memory"),
        # Killed for memory and waiting for its next start: the cause, not the consequence.
        (a_ray_pod(ready=False, state=waiting("CrashLoopBackOff"), last=OOM), "ContainerOOMKilled", "larger"),
        (a_ray_pod(ready=False, state=waiting("ImagePullBackOff", "401")), "ImagePullError", "serve:1"),
        (a_ray_pod(ready=False, state=waiting("ErrImagePull", "not found")), "ImagePullError", "not found"),
        (
            a_ray_pod(ready=False, state=waiting("CreateContainerConfigError", 'secret "keys" not found')),
            "ContainerStartError",
            'secret "keys" not found',
        ),
        (
            a_ray_pod(ready=False, restarts=4, state=waiting("CrashLoopBackOff"), last=CRASHED),
            "ContainerCrashLoopBackOff",
            "ValueError: no such model",
        ),
        (
            a_ray_pod(phase="Failed", ready=False, status={"reason": "Evicted", "message": "low on disk"}),
            "PodEvicted",
            "low on disk",
        ),
        (
            a_ray_pod(
                phase="Pending",
                ready=None,
                state={},
                conditions=[
                    {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu"}
                ],
            ),
            "Unschedulable",
            "insufficient nvidia.com/gpu",
        ),
    ],
)
def test_trouble(document: dict[str, Any], reason: str, words: str) -> None:
    trouble = parse_pod(document).trouble
    assert trouble is not None
    assert trouble.reason == reason
    assert words in trouble.message
    assert "phi-abcde-worker-1" in trouble.message


@pytest.mark.parametrize(
    "document",
    [
        a_ray_pod(),
        a_ray_pod(restarts=1, last=OOM),  # it has recovered
        a_ray_pod(ready=False, phase="Pending", state=waiting("ContainerCreating")),
        a_ray_pod(ready=False, restarts=1, last=CRASHED),  # it starts again, which may go well
    ],
)
def test_no_trouble(document: dict[str, Any]) -> None:
    assert parse_pod(document).trouble is None


def test_an_empty_pod_is_read_as_not_there_yet() -> None:
    pod = parse_pod({"metadata": {"name": "new"}})
    assert (pod.ready, pod.node, pod.trouble, pod.started) == (None, "", None, "")


def test_the_image_that_is_waited_for_is_named() -> None:
    pod = parse_pod(a_ray_pod(ready=False, state=waiting("ContainerCreating"), image="example.com/large:1"))
    assert pod.pulling == "example.com/large:1"
