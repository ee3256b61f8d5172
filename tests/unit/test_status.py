# SPDX-License-Identifier: Apache-2.0
"""Plan and observation in, the status of the Workspace out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import a_serve_plan, a_tune_plan
from kaito_ray.apply import Applied
from kaito_ray.errors import DoesNotFit, NameTaken
from kaito_ray.kuberay import parse_ray_cluster, parse_ray_job, parse_ray_service
from kaito_ray.nodes.provisioner import NodesObserved
from kaito_ray.observe import Observed
from kaito_ray.plan import Plan
from kaito_ray.pod import parse_pod
from kaito_ray.replica_report import ReplicaReport
from kaito_ray.replica_watch import Heard
from kaito_ray.status import derive_status, differs_only_in_words, document_of, transitions
from kaito_ray.tuning_event import Progress, Started, Step
from ray_builders import a_ray_job, a_ray_pod, a_ray_service

Object = dict[str, Any]
NOW = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
NODES = NodesObserved(True, ("gpu-1",), "NodesReady", "1 of 1 nodes are ready")
NO_NODES = NodesObserved(False, (), "SkuFamilyQuotaExceeded", "no quota for Standard_NC24ads_A100_v4 in eastus")


def a_workspace(status: Object | None = None, *, generation: int = 1, tuning: bool = False) -> Object:
    return {
        "metadata": {
            "name": "phi",
            "namespace": "default",
            "uid": "u",
            "generation": generation,
            "creationTimestamp": "2026-11-20T10:00:00Z",
        },
        ("tuning" if tuning else "inference"): {},
        "status": status or {},
    }


def observed(service: Object | None = None, *pods: Object, **overrides: Any) -> Observed:
    return Observed(
        nodes=overrides.pop("nodes", NODES),
        ray_service=parse_ray_service(service) if service else None,
        pods=tuple(parse_pod(pod) for pod in pods),
        **overrides,
    )


def status_of(seen: Observed, before: Object | None = None, plan: Plan | None = None, **workspace: Any) -> Object:
    return document_of(derive_status(a_workspace(before, **workspace), plan or a_serve_plan(name="phi"), seen, NOW))


def condition(status: Object, kind: str) -> Object:
    return next(one for one in status["conditions"] if one["type"] == kind)


def brief(status: Object) -> dict[str, str]:
    return {one["type"]: one["status"] for one in status["conditions"]}


WORKER = a_ray_pod()
CRASHING = a_ray_pod(
    ready=False,
    restarts=5,
    state={"waiting": {"reason": "CrashLoopBackOff"}},
    last={"terminated": {"exitCode": 1, "reason": "Error"}},
)
FAILED_CLUSTER = parse_ray_cluster(
    {
        "metadata": {"name": "phi-abcde"},
        "status": {
            "conditions": [
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreateHeadPod",
                    "message": "quota used up",
                }
            ]
        },
    }
)


def test_a_workspace_that_serves() -> None:
    status = status_of(observed(a_ray_service(), WORKER))
    assert brief(status) == dict.fromkeys(
        ["ResourceReady", "InferenceReady", "WorkspaceSucceeded", "WorkspaceReady"], "True"
    )
    assert status["state"] == "Ready"
    assert status["endpoint"] == "http://phi.default.svc"
    assert status["workerNodes"] == ["gpu-1"]
    assert status["targetNodeCount"] == 1
    assert condition(status, "ResourceReady")["reason"] == "workspaceResourceStatusSuccess"
    assert condition(status, "InferenceReady")["reason"] == "WorkspaceInferenceStatusSuccess"
    assert {one["observedGeneration"] for one in status["conditions"]} == {1}


@pytest.mark.parametrize(
    ("seen", "reason", "words"),
    [
        (observed(nodes=NO_NODES), "WorkspaceInferenceStatusPending", "the nodes are not ready"),
        (observed(), "WorkspaceInferenceStatusPending", "is being made"),
        (observed(refusal=NameTaken("Service phi exists")), "NameTaken", "Service phi exists"),
        (observed(applied=Applied(contested=("RayService phi",))), "RepairContested", "RayService phi"),
        (observed(a_ray_service(suspend=True)), "Recreating", "replaced"),
        (observed(a_ray_service(observed=2)), "WorkspaceInferenceStatusPending", "newest specification"),
        (observed(a_ray_service(upgrading=True)), "WorkspaceInferenceStatusPending", "takes over"),
        (
            observed(a_ray_service(ready=False, apps={}), ray_clusters=(FAILED_CLUSTER,)),
            "ReplicaFailure",
            "quota used up",
        ),
        (
            observed(a_ray_service(conditions={"Ready": (False, "ValidationFailed", "bad spec")}, apps={})),
            "ValidationFailed",
            "bad spec",
        ),
        (
            observed(
                a_ray_service(apps={"chat": "DEPLOY_FAILED"}, deployments={"Chat": ("DEPLOY_FAILED", "no such model")})
            ),
            "DeployFailed",
            "no such model",
        ),
        (observed(a_ray_service(apps={"chat": "UNHEALTHY"}, message="engine died")), "Unhealthy", "engine died"),
        (
            observed(a_ray_service(apps={"chat": "DEPLOYING"}, message="waiting for resources")),
            "WorkspaceInferenceStatusPending",
            "waiting for resources",
        ),
        # While KubeRay still says Ready.
        (observed(a_ray_service(), CRASHING), "ContainerCrashLoopBackOff", "5 restarts"),
        (observed(a_ray_service(), a_ray_pod(ready=False, restarts=1)), "WorkspaceInferenceStatusPending", "restarted"),
        (observed(a_ray_service(), a_ray_pod(ready=False)), "WorkspaceInferenceStatusPending", "no worker pod"),
        (
            observed(a_ray_service(), WORKER, a_ray_pod("head", head=True, ready=False, restarts=1)),
            "WorkspaceInferenceStatusPending",
            "pod head was restarted",
        ),
    ],
)
def test_why_a_workspace_does_not_serve(seen: Observed, reason: str, words: str) -> None:
    status = status_of(seen)
    inference = condition(status, "InferenceReady")
    assert (inference["status"], inference["reason"]) == ("False", reason)
    assert words in inference["message"]
    assert condition(status, "WorkspaceReady")["status"] == "False"


@pytest.mark.parametrize(
    "seen",
    [
        observed(a_ray_service()),  # pods are not seen yet
        observed(a_ray_service(), a_ray_pod(ready=None)),
        observed(a_ray_service(), WORKER, a_ray_pod("old", cluster="phi-old", ready=False, restarts=2)),
        observed(a_ray_service(), WORKER, a_ray_pod("new", ready=False)),  # scaled up
    ],
)
def test_pods_that_are_no_reason_to_worry(seen: Observed) -> None:
    assert condition(status_of(seen), "InferenceReady")["status"] == "True"


def test_pods_with_the_rest_of_an_engine_are_never_ready() -> None:
    plan = a_serve_plan(name="phi", nodes=2, nodes_per_replica=2)
    seen = observed(a_ray_service(), WORKER, a_ray_pod("follower", ready=False, restarts=1))
    assert condition(status_of(seen, plan=plan), "InferenceReady")["status"] == "True"


def test_what_cannot_be_planned_stands_in_the_condition() -> None:
    error = DoesNotFit("llama-70b needs 131 GiB")
    nodes = NodesObserved(False, (), error.reason, str(error))
    status = document_of(derive_status(a_workspace(), None, observed(nodes=nodes), NOW))
    resources = condition(status, "ResourceReady")
    assert (resources["status"], resources["reason"], resources["message"]) == (
        "False",
        "DoesNotFit",
        "llama-70b needs 131 GiB",
    )
    assert condition(status, "WorkspaceReady")["reason"] == "DoesNotFit"


def test_times_change_only_with_the_status() -> None:
    first = status_of(observed(a_ray_service(), WORKER))
    for one in first["conditions"]:
        one["lastTransitionTime"] = "2026-11-20T10:20:00Z"
    same = status_of(observed(a_ray_service(), WORKER), first)
    assert same == first
    broken = status_of(observed(a_ray_service(), CRASHING), first)
    times = {one["type"]: one["lastTransitionTime"] for one in broken["conditions"]}
    assert times["ResourceReady"] == "2026-11-20T10:20:00Z"
    assert times["InferenceReady"] == "2026-11-20T10:30:00Z"
    assert broken["state"] == "NotReady"
    assert broken["endpoint"] == first["endpoint"]


def test_a_new_generation_is_observed() -> None:
    first = status_of(observed(a_ray_service(), WORKER))
    second = status_of(observed(a_ray_service(), WORKER), first, generation=2)
    assert {one["observedGeneration"] for one in second["conditions"]} == {2}
    assert not differs_only_in_words(first, second)


def test_the_timeline_has_each_stage_once_at_its_first_time() -> None:
    waiting = status_of(observed())
    pulled = status_of(observed(a_ray_service(ready=False, apps={}), WORKER), waiting)
    first = status_of(observed(a_ray_service(), WORKER), pulled)
    again = derive_status(
        a_workspace(first), a_serve_plan(name="phi"), observed(a_ray_service(), WORKER), NOW + timedelta(hours=1)
    )
    assert [entry["stage"] for entry in first["timeline"]] == ["NodesReady", "ImagePulled", "ModelLoaded", "Ready"]
    assert document_of(again)["timeline"] == first["timeline"]
    assert first["timeline"][0] == {"stage": "NodesReady", "time": "2026-11-20T10:30:00Z", "seconds": 1800.0}


def told(engine: str, token: str) -> Heard:
    """What a replica says of itself."""
    times = {"engine_started_at": engine, "first_token_at": token}
    return Heard((ReplicaReport.model_validate({"replica": "r0", "adapters": [], **times}),))


def test_a_replica_tells_when_its_engine_started_and_spoke() -> None:
    at = "2026-11-20T10:{}+00:00".format
    before: Object = {
        "timeline": [
            {"stage": "NodesReady", "time": "2026-11-20T10:10:00Z", "seconds": 600.0},
            {"stage": "ModelLoaded", "time": "2026-11-20T10:15:00Z", "seconds": 300.0},
            {"stage": "Ready", "time": "2026-11-20T10:15:02Z", "seconds": 2.0},
        ]
    }
    seen = observed(a_ray_service(), heard=told(at("14:00"), at("14:30")))
    timeline = status_of(seen, before)["timeline"]
    assert [(entry["stage"], entry["seconds"]) for entry in timeline] == [
        ("NodesReady", 600.0),
        ("EngineStarted", 240.0),
        ("FirstToken", 30.0),
        ("ModelLoaded", 30.0),
        ("Ready", 2.0),
    ]
    assert status_of(seen, {"timeline": timeline})["timeline"] == timeline
    # A replica that took over, one whose model makes no tokens, and one of a clock of its own.
    for heard in (told(at("20:00"), at("20:01")), told(at("14:00"), ""), told(at("01:00"), at("01:01"))):
        assert status_of(observed(a_ray_service(), heard=heard), before)["timeline"] == before["timeline"]


def fetching(state: Object) -> Object:
    """A worker whose model is being fetched."""
    container = {"name": "fetch-model", "image": "serve:1", "ready": False, "restartCount": 0, "state": state}
    return a_ray_pod(phase="Pending", ready=False, state={}, status={"initContainerStatuses": [container]})


def test_the_timeline_tells_when_and_how_the_model_came() -> None:
    running = fetching({"running": {"startedAt": "2026-11-20T10:02:00Z"}})
    waiting = status_of(observed(a_ray_service(ready=False, apps={}), running))
    message = condition(waiting, "InferenceReady")["message"]
    assert "phi-abcde-worker-1 fetches the model since 2026-11-20T10:02:00Z" in message
    times = {"startedAt": "2026-11-20T10:02:00Z", "finishedAt": "2026-11-20T10:04:00Z"}

    def done(message: str) -> Object:
        return fetching({"terminated": {"exitCode": 0, "message": message, **times}})

    came = status_of(observed(a_ray_service(ready=False, apps={}), done("7.1 GiB in 120 s, sha256:ab")), waiting)
    entry = came["timeline"][-1]
    assert (entry["stage"], entry["message"]) == ("ModelFetched", "7.1 GiB in 120 s, sha256:ab")
    later = status_of(observed(a_ray_service(ready=False, apps={}), done("was on this node already")), came)
    assert later["timeline"] == came["timeline"]


def test_progress_is_only_words() -> None:
    before = status_of(observed(a_ray_service(apps={"chat": "DEPLOYING"}, message="10 %")))
    after = status_of(observed(a_ray_service(apps={"chat": "DEPLOYING"}, message="20 %")), before)
    assert before != after
    assert differs_only_in_words(before, after)
    assert not list(transitions(before, derive_status(a_workspace(after), a_serve_plan(), observed(), NOW)))


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        (observed(), observed(a_ray_service(), WORKER), [("Normal", "WorkspaceReady")]),
        (
            observed(a_ray_service(), WORKER),
            observed(a_ray_service(), CRASHING),
            [("Warning", "ContainerCrashLoopBackOff")],
        ),
        (observed(a_ray_service(ready=False)), observed(a_ray_service(observed=2)), []),
        (
            observed(nodes=replace(NO_NODES, reason="NodeNotReady")),
            observed(),
            [("Normal", "workspaceResourceStatusSuccess")],
        ),
    ],
)
def test_events_tell_what_turned(before: Observed, after: Observed, events: list[tuple[str, str]]) -> None:
    first = status_of(before)
    second = derive_status(a_workspace(first), a_serve_plan(name="phi"), after, NOW)
    assert [(notice.type, notice.reason) for notice in transitions(first, second)] == events


@pytest.mark.parametrize(
    ("job", "state", "conditions", "reason"),
    [
        (None, "Pending", ("False", "False"), "WorkspaceTuningJobStatusPending"),
        (
            a_ray_job(job="", deployment="Initializing"),
            "Pending",
            ("False", "False"),
            "WorkspaceTuningJobStatusPending",
        ),
        (a_ray_job(), "Running", ("True", "False"), "WorkspaceTuningJobStatusStarted"),
        (
            a_ray_job(job="SUCCEEDED", deployment="Complete"),
            "Succeeded",
            ("True", "True"),
            "WorkspaceTuningJobStatusStarted",
        ),
        (
            a_ray_job(job="FAILED", deployment="Failed", reason="AppFailed", message="loss is NaN"),
            "Failed",
            ("False", "False"),
            "WorkspaceTuningJobStatusFailed",
        ),
    ],
)
def test_tuning(job: Object | None, state: str, conditions: tuple[str, str], reason: str) -> None:
    seen = observed(job="tune-1", ray_job=parse_ray_job(job) if job else None)
    status = status_of(seen, plan=a_tune_plan(name="phi"), tuning=True)
    assert status["state"] == state
    assert (brief(status)["JobStarted"], brief(status)["WorkspaceSucceeded"]) == conditions
    assert (brief(status)["InferenceReady"], brief(status)["WorkspaceReady"]) == ("False", "False")
    assert condition(status, "JobStarted")["reason"] == reason


def test_a_job_that_succeeded_and_was_cleaned_up_has_succeeded() -> None:
    done = observed(job="tune-1", ray_job=parse_ray_job(a_ray_job(job="SUCCEEDED", deployment="Complete")))
    first = status_of(done, plan=a_tune_plan(name="phi"), tuning=True)
    gone = status_of(observed(job="tune-1"), first, plan=a_tune_plan(name="phi"), tuning=True)
    assert (brief(gone)["JobStarted"], brief(gone)["WorkspaceSucceeded"]) == ("True", "True")
    other = status_of(observed(job="tune-2"), first, plan=a_tune_plan(name="phi"), tuning=True)
    assert brief(other)["WorkspaceSucceeded"] == "False"


def test_a_result_that_is_still_to_be_read_is_no_failure() -> None:
    job = parse_ray_job(a_ray_job(job="SUCCEEDED", deployment="Complete"))
    status = status_of(observed(job="tune-1", ray_job=job, result_due=True), plan=a_tune_plan(name="phi"), tuning=True)
    assert (status["state"], brief(status)["WorkspaceSucceeded"]) == ("Running", "False")
    assert "output" not in status


def test_steps_of_a_tuning_are_only_words() -> None:
    def at(step: int, attempt: int = 1) -> dict[str, Any]:
        progress = Progress(started=Started(attempt, 1, 300), step=Step(step, 300, 0.1, "2026-11-21T05:00:00Z"))
        seen = observed(job="tune-1", ray_job=parse_ray_job(a_ray_job()), progress=progress)
        return status_of(seen, plan=a_tune_plan(name="phi"), tuning=True)

    assert at(20) != at(40)
    assert differs_only_in_words(at(20), at(40))
    assert not differs_only_in_words(at(20), at(20, attempt=2))
