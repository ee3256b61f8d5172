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


def fetching(state: dict[str, Any], last: dict[str, Any] | None = None, *, restarts: int = 0) -> dict[str, Any]:
    """A pod whose model is being fetched; Ray waits for it."""
    container = {
        "name": "fetch-model",
        "image": "example.com/serve:1",
        "ready": False,
        "restartCount": restarts,
        "state": state,
        "lastState": last or {},
    }
    return a_ray_pod(
        phase="Pending", ready=False, state=waiting("PodInitializing"), status={"initContainerStatuses": [container]}
    )


def ended(code: int, message: str) -> dict[str, Any]:
    times = {"startedAt": "2026-11-20T10:11:00Z", "finishedAt": "2026-11-20T10:12:00Z"}
    return {"terminated": {"exitCode": code, "message": message, **times}}


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
            fetching(ended(1, "Unauthorized: registry.example refused the login of pull (401)")),
            "ModelUnauthorized",
            "refused the login of pull (401)",
        ),
        # Between two tries: what it died of, not that the kubelet waits.
        (
            fetching(waiting("CrashLoopBackOff"), ended(1, "NotFound: registry.example does not have it"), restarts=3),
            "ModelNotFound",
            "3 restarts",
        ),
        (fetching(ended(1, "WrongModel: is the model a, not b")), "WrongModel", "is the model a, not b"),
        (fetching(ended(1, "Traceback ...\nOSError: no")), "ModelFetchFailed", "OSError: no"),
        (fetching(ended(137, "")), "ModelFetchFailed", "exit code 137"),
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
        fetching({"running": {"startedAt": "2026-11-20T10:11:00Z"}}, ended(1, "Timeout: too slow"), restarts=1),
        fetching(ended(0, "7.1 GiB in 34 s, sha256:abc")),
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


def test_the_fetch_of_a_model_has_its_times_and_its_word() -> None:
    done = parse_pod(fetching(ended(0, "7.1 GiB in 34 s, sha256:abc\n")))
    assert done.fetch is not None
    assert (done.fetch.finished, done.fetch.message) == ("2026-11-20T10:12:00Z", "7.1 GiB in 34 s, sha256:abc")
    assert done.started == "2026-11-20T10:11:00Z"  # the image was there when the first container started
    running = parse_pod(fetching({"running": {"startedAt": "2026-11-20T10:11:00Z"}}))
    assert running.fetch is not None
    assert (running.fetch.started, running.fetch.finished) == ("2026-11-20T10:11:00Z", "")
    assert parse_pod(a_ray_pod()).fetch is None
