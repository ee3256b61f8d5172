# SPDX-License-Identifier: Apache-2.0
"""The pod that judges a Workspace's data: what it is, and when nodes are asked for after it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from builders import a_tune_plan
from kaito_ray import names
from kaito_ray.cluster import Cluster
from kaito_ray.errors import ObjectRefused
from kaito_ray.kinds import CLAIM, POD
from kaito_ray.lint import Lint, Stage, derive_lint, give_up, is_due
from kaito_ray.plan import ModelSource, ModelVolume, TunePlan
from kaito_ray.render.lint import lint_objects
from kaito_ray.settings import Settings
from kaito_ray.timeline import timestamp
from kaito_ray.tuning_event import Data, Event, Failed, Waiting
from kaito_ray.workspace_status import TuningStatus
from kaito_ray.world import World
from pod_rules import pod_problems
from schemas import CORE_KINDS, model_problems
from tune_jobs.arguments import Arguments
from tune_rig import a_tiny_tune_plan

Object = dict[str, Any]
NOW = datetime(2026, 11, 27, 8, 0, tzinfo=UTC)
JOB = "tuning-phi-3-0a1b2c3d"
PLAN = replace(
    a_tiny_tune_plan(), name="tuning-phi-3", instance_type="Standard_NC24ads_A100_v4", seconds_per_token=0.0006,
    hourly_usd=3.6,
)  # fmt: skip
DATA = Data(rows=3200, format="messages", tokens=100_000, summary=("3,200 rows of messages",), warnings=("a:3 odd",))
BAD = Failed("InvalidData", "train.jsonl:17 column 15: is no JSON")
AWAY = Waiting("ConnectionFailed", "data.example does not answer")


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def a_pod(number: int = 1, *, age_s: float = 5, job: str = JOB, node: str = "cpu-1", **status: Any) -> Object:
    """A pod as the API has it; `status` is its own, by default that of a pod that runs."""
    _, pod = lint_objects(PLAN, job, number, Settings())
    pod["metadata"] |= {"creationTimestamp": ago(age_s), "resourceVersion": str(number), "uid": f"pod-{number}"}
    pod["spec"] |= {"nodeName": node} if node else {}
    return pod | {"status": {"phase": "Running", **status}}


def ended(number: int = 1, *said: Event, code: int = 0, ended_s: float = 1, text: str = "", **more: Any) -> Object:
    message = text or "\n".join(event.line() for event in said)
    end = {"exitCode": code, "finishedAt": ago(ended_s), "message": message, "reason": "Error" if code else "Completed"}
    rows = [{"name": "lint", "state": {"terminated": end}}]
    phase = "Failed" if code else "Succeeded"
    return a_pod(number, age_s=ended_s + 60, phase=phase, containerStatuses=rows, **more)


def waiting(reason: str, message: str) -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "lint", "image": "tune:1", "state": state}]}


def judged(*pods: Object, plan: TunePlan = PLAN, missing: tuple[str, ...] = (), claim: Object | None = None) -> Lint:
    world = World(cast("Cluster", None), lambda _: None)
    for pod in pods:
        world.put_child(POD, pod)
    if claim is not None:
        world.put_child(CLAIM, claim)
    return derive_lint(world, plan, JOB, missing, NOW)


def test_first_there_is_a_pod_and_no_node() -> None:
    lint = judged()
    assert (lint.stage, lint.make, lint.over) == (Stage.JUDGING, 1, False)
    nodes = lint.nodes()
    assert (nodes.ready, nodes.nodes, nodes.reason) == (False, (), "JudgingData")
    # A pod of what was asked before is none of this wish's.
    assert judged(a_pod(1, job="tuning-phi-3-ffffffff")).make == 1


def test_a_pod_that_runs_is_waited_for() -> None:
    lint = judged(a_pod())
    assert (lint.stage, lint.make, lint.keep) == (Stage.JUDGING, 0, (f"{JOB}-lint-1",))
    assert lint.again_s == pytest.approx(25)
    assert judged(a_pod(age_s=100)).again_s == pytest.approx(560)


def test_a_container_that_a_cluster_puts_beside_it_hides_nothing() -> None:
    pod = ended(1, DATA)
    pod["status"]["phase"] = "Running"
    pod["status"]["containerStatuses"].insert(0, {"name": "istio-proxy", "state": {"running": {}}})
    assert judged(pod).stage == Stage.JUDGED


def test_good_data_is_described_with_steps_time_and_price() -> None:
    lint = judged(ended(1, DATA))
    assert (lint.stage, lint.over, lint.rows) == (Stage.JUDGED, True, 3200)
    assert lint.message == (
        "3,200 rows of messages; 600 steps, 3 epochs, about 3 min and $0.18 of training on Standard_NC24ads_A100_v4;"
        " a:3 odd"
    )
    assert lint.status(JOB) == TuningStatus(job=JOB, state="Judged", rows=3200, message=lint.message)
    assert [(one.type, one.reason) for one in lint.notices()] == [("Normal", "DataJudged")]


@pytest.mark.parametrize(("said", "stage"), [(BAD, Stage.REFUSED), (AWAY, Stage.UNAVAILABLE)])
def test_what_was_refused_is_looked_at_again_after_a_pause_that_grows(said: Failed | Waiting, stage: Stage) -> None:
    lint = judged(ended(1, said, code=1))
    assert (lint.stage, lint.reason, lint.message) == (stage, said.reason, said.message)
    assert (lint.over, lint.make) == (False, 0)
    assert lint.again_s == pytest.approx(299)
    assert judged(ended(1, said, code=1, ended_s=301)).make == 2
    assert judged(ended(2, said, code=1, ended_s=301)).make == 0
    assert judged(ended(2, said, code=1, ended_s=601)).make == 3
    assert judged(ended(40, said, code=1, ended_s=3601)).make == 41


def test_a_refusal_stands_until_another_pod_has_found_the_data_mended() -> None:
    first = ended(1, BAD, code=1, ended_s=400)
    # However long the second takes, and whatever becomes of it.
    for second in (a_pod(2), a_pod(2, age_s=3000, node="", phase="Pending"), ended(2, code=137, text="killed")):
        lint = judged(first, second)
        assert (lint.stage, lint.message, lint.make) == (Stage.REFUSED, BAD.message, 0)
        assert lint.keep == (f"{JOB}-lint-1", f"{JOB}-lint-2")
    assert judged(first, ended(2, AWAY, code=1)).keep == (f"{JOB}-lint-2",)
    assert judged(first, ended(2, DATA)).stage == Stage.JUDGED


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (a_pod(age_s=31, node="", phase="Pending"), "was not scheduled within 30 s"),
        (
            a_pod(
                age_s=31,
                node="",
                phase="Pending",
                conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient memory"}],
            ),
            "0/3 nodes: Insufficient memory",
        ),
        (a_pod(age_s=31, phase="Pending", **waiting("ImagePullBackOff", "not found")), "image tune:1 of pod"),
        (a_pod(age_s=661), "does not end"),
        (ended(1, code=137, text=""), "ended with exit code 137 and without a verdict: Error"),
        (ended(1, code=1, text="Traceback ...\nOSError: no space"), "without a verdict: OSError: no space"),
        (a_pod(phase="Failed", reason="DeadlineExceeded"), "ended and without a verdict: DeadlineExceeded"),
    ],
)
def test_a_pod_that_cannot_judge_holds_up_nobody(pod: Object, words: str) -> None:
    lint = judged(pod)
    assert (lint.stage, lint.over) == (Stage.UNJUDGED, True)
    assert lint.message.startswith("the job judges the data, on its nodes: ")
    assert words in lint.message
    assert [(one.type, one.reason) for one in lint.notices()] == [("Warning", "DataNotJudged")]


@pytest.mark.parametrize(
    "pod",
    [
        a_pod(age_s=29, node="", phase="Pending"),
        a_pod(age_s=29, phase="Pending", **waiting("ErrImagePull", "timeout")),
        a_pod(age_s=500, phase="Pending", **waiting("ContainerCreating", "")),
    ],
)
def test_what_may_still_come_is_waited_for(pod: Object) -> None:
    assert judged(pod).stage == Stage.JUDGING


def test_a_pod_that_is_not_allowed_is_not_made_again() -> None:
    lint = give_up(ObjectRefused("pods is forbidden: exceeded quota"))
    assert (lint.stage, lint.over) == (Stage.UNJUDGED, True)
    assert "exceeded quota" in lint.message


def test_a_pod_that_is_being_deleted_keeps_its_name() -> None:
    gone = ended(3, BAD, code=1)
    gone["metadata"]["deletionTimestamp"] = ago(1)
    lint = judged(gone)
    assert (lint.stage, lint.make) == (Stage.JUDGING, 4)


def test_a_secret_that_is_missing_is_waited_for_before_anything_is_bought() -> None:
    lint = judged(missing=("Secret push is not in namespace default",))
    assert (lint.make, lint.over, lint.reason) == (0, False, "ReferenceMissing")
    assert lint.nodes().message == "Secret push is not in namespace default"


def a_claim(phase: str) -> Object:
    labels = {"team": "a"}
    metadata = {"name": "data", "namespace": "default", "uid": "c", "resourceVersion": "1", "labels": labels}
    return {"metadata": metadata, "spec": {"volumeName": "pv"}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("volume", "claim", "words"),
    [
        ({"hostPath": {"path": "/srv/data"}}, None, "hostPath is a folder of those"),
        ({"emptyDir": {}}, None, "emptyDir is a volume of its pods alone"),
        ({"persistentVolumeClaim": {"claimName": "data"}}, None, "PersistentVolumeClaim data is not bound yet"),
        ({"persistentVolumeClaim": {"claimName": "data"}}, a_claim("Pending"), "is not bound yet"),
        ({"persistentVolumeClaim": {"claimName": "data"}}, a_claim("Bound"), ""),
        ({"nfs": {"server": "nfs.example", "path": "/data"}}, None, ""),
    ],
)
def test_data_that_no_other_node_sees_is_left_to_the_job(volume: Object, claim: Object | None, words: str) -> None:
    lint = judged(plan=replace(PLAN, input={"volumeSource": volume}), claim=claim)
    assert (lint.stage, lint.make) == ((Stage.UNJUDGED, 0) if words else (Stage.JUDGING, 1))
    assert words in lint.message


@pytest.mark.parametrize(
    ("status", "released", "due"),
    [
        ({}, False, True),
        ({"tuning": {"job": JOB, "state": "Judging"}}, False, True),
        ({"tuning": {"job": "another", "state": "Refused"}}, False, True),
        ({"tuning": {"job": JOB, "state": "Unavailable"}, "nodePool": {"name": "k1"}}, False, True),
        ({"tuning": {"job": JOB, "state": "Judged"}}, False, False),
        ({"tuning": {"job": JOB, "state": "Unjudged"}}, True, False),
        # Nodes were asked for by what was wished before, and are there.
        ({"tuning": {"job": "another", "state": "Judged"}}, False, False),
        ({"tuning": {"job": "another", "state": "Training"}}, False, False),
        ({"tuning": {"job": "another", "state": "Succeeded"}}, True, True),
        # By an operator that did not judge yet.
        ({"nodePool": {"name": "k1"}}, False, False),
    ],
)
def test_data_is_judged_before_nodes_are_bought_and_not_after(status: Object, released: bool, due: bool) -> None:
    assert is_due({"status": status}, JOB, released=released) is due


FROM_IMAGE = a_tune_plan(
    input={"image": "registry.example.com/data:1", "imagePullSecrets": ["pull"]}, hf_token_secret="hub"
)
FROM_CLAIM = a_tune_plan(input={"volumeSource": {"persistentVolumeClaim": {"claimName": "data"}}})


@pytest.mark.parametrize("plan", [a_tune_plan(), FROM_IMAGE, FROM_CLAIM], ids=["urls", "image", "claim"])
def test_the_pod_is_one_that_an_api_server_takes(plan: TunePlan) -> None:
    config, pod = lint_objects(plan, JOB, 1, Settings())
    assert model_problems(config, CORE_KINDS["v1", "ConfigMap"]) == []
    assert model_problems(pod, "V1Pod") == []
    assert list(pod_problems(pod)) == []
    assert pod["metadata"]["name"] == config["metadata"]["name"] == f"{JOB}-lint-1"


@pytest.mark.parametrize("workspace", ["t", "p" * 63, "7b"])
def test_names_fit_a_label(workspace: str) -> None:
    assert len(names.lint_name(names.job_name(workspace, "0a1b2c3d"), 9999)) <= 63


def test_it_takes_no_gpu_and_no_rights_and_ends_by_itself() -> None:
    _, pod = lint_objects(a_tune_plan(), JOB, 1, Settings())
    spec = pod["spec"]
    [container] = spec["containers"]
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "4Gi"}
    assert "tolerations" not in spec
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert (spec["automountServiceAccountToken"], spec["restartPolicy"]) == (False, "Never")
    assert spec["activeDeadlineSeconds"] == 600
    # What the restricted level of the pod security standards asks for.
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]} == {"emptyDir", "configMap"}


def mounted(pod: Object) -> dict[str, Object]:
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    return {mount["mountPath"]: volumes[mount["name"]] | mount for mount in mounts}


def test_it_sees_the_data_and_its_secrets_and_writes_to_neither() -> None:
    seen = mounted(lint_objects(FROM_CLAIM, JOB, 1, Settings())[1])
    assert seen["/mnt/data"].items() >= {"persistentVolumeClaim": {"claimName": "data"}, "readOnly": True}.items()
    assert "/mnt/output" not in seen
    pod = lint_objects(FROM_IMAGE, JOB, 1, Settings(allow_private_urls=("10.0.0.0/8",)))[1]
    seen = mounted(pod)
    assert seen["/etc/kaito-ray/registry"]["projected"]["sources"][0]["secret"]["name"] == "pull"
    assert "/etc/kaito-ray/push" not in seen
    env = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "hub"
    assert env["KAITO_RAY_ALLOW_PRIVATE_URLS"]["value"] == "10.0.0.0/8"


@pytest.mark.parametrize(
    ("source", "model"),
    [
        (a_tune_plan().source, ("hub", "microsoft/Phi-3-mini-4k-instruct")),
        (ModelSource("builtin", "tiny-phi-3"), ("builtin", "tiny-phi-3")),
        (ModelSource("image", "r.example/phi:1", volume=ModelVolume("pod")), ("path", "/var/lib/kaito-ray/models/")),
        (ModelSource("path", "c", volume=ModelVolume("claim", "c")), ("path", "/var/lib/kaito-ray/models")),
    ],
)
def test_of_a_model_only_what_the_hub_has_is_at_hand(source: ModelSource, model: tuple[str, str]) -> None:
    config, pod = lint_objects(replace(PLAN, source=source), JOB, 1, Settings())
    arguments = Arguments.model_validate_json(config["data"]["arguments.json"])
    assert arguments.model.kind == model[0]
    assert arguments.model.reference.startswith(model[1])
    assert arguments.model.revision == (source.revision if source.kind == "hub" else None)
    [container] = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", "tune_jobs.lint", "/etc/kaito-ray/tune/arguments.json"]
