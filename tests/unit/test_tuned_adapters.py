# SPDX-License-Identifier: Apache-2.0
"""Adapters that another Workspace tunes: what it has made so far is what replicas load."""

from typing import Any, cast

import pytest

from builders import a_document, a_serve_plan
from kaito_ray.cluster import Cluster
from kaito_ray.plan import AdapterPlan, ServePlan
from kaito_ray.tuned_adapters import with_tuned_adapters
from kaito_ray.world import World

TO_IMAGE = {"image": "registry.example.com/sql:1", "imagePushSecret": "push"}
TO_NODE = {"volumeSource": {"hostPath": {"path": "/srv/sql"}}}
DIGEST = "sha256:" + "a" * 64


def followed(teacher: dict[str, Any] | None) -> ServePlan:
    """A plan whose adapter is `source.workspace: teacher`, beside the Workspace of that name."""
    world = World(cast("Cluster", None), lambda _: None)
    if teacher is not None:
        world.put_workspace(teacher)
    plan = a_serve_plan(namespace="default", adapters=(AdapterPlan("sql", {"workspace": "teacher"}, 0.5),))
    result = with_tuned_adapters(plan, world)
    assert isinstance(result, ServePlan)
    return result


def a_teacher(destination: dict[str, Any], /, **status: Any) -> dict[str, Any]:
    tuning = {"preset": {"name": "phi-3-mini-4k-instruct"}, "method": "qlora", "output": destination}
    document = a_document(name="teacher", namespace="default", tuning=tuning)
    document["metadata"]["resourceVersion"] = "1"
    return document | {"status": status}


@pytest.mark.parametrize(
    ("teacher", "source"),
    [
        (
            a_teacher(TO_IMAGE, output={"job": "j", "image": TO_IMAGE["image"], "digest": DIGEST}),
            {"image": TO_IMAGE["image"], "digest": DIGEST},
        ),
        (a_teacher(TO_IMAGE, output={"job": "j", "image": TO_IMAGE["image"]}), {"image": TO_IMAGE["image"]}),
        (
            a_teacher(TO_NODE, output={"job": "j", "path": "/", "digest": DIGEST}),
            {"path": "/mnt/adapters/sql", "digest": DIGEST},
        ),
    ],
)
def test_what_was_tuned_is_loaded(teacher: dict[str, Any], source: dict[str, str]) -> None:
    [adapter] = followed(teacher).adapters
    assert adapter == AdapterPlan("sql", source, 0.5)


@pytest.mark.parametrize(
    ("teacher", "waits_for"),
    [
        (None, "there is no Workspace teacher in this namespace"),
        (
            a_document(name="teacher", namespace="default") | {"status": {"state": "Ready"}},
            "Workspace teacher serves a model and tunes none",
        ),
        (a_teacher(TO_IMAGE, state="Running"), "Workspace teacher has not tuned it yet"),
        (a_teacher(TO_IMAGE, state="Failed"), "Workspace teacher failed to tune it"),
    ],
)
def test_until_then_it_is_said_what_it_waits_for(teacher: dict[str, Any] | None, waits_for: str) -> None:
    if teacher is not None:
        teacher["metadata"]["resourceVersion"] = "1"
    [adapter] = followed(teacher).adapters
    assert (adapter.source, adapter.waits_for) == ({"workspace": "teacher"}, waits_for)


def test_pods_are_ready_for_it_before_it_is_there() -> None:
    """Else the adapter would cost a second set of GPUs when it comes."""
    for output in (TO_IMAGE, TO_NODE):
        before = followed(a_teacher(output, state="Running"))
        made = {"job": "j", "image": output.get("image", ""), "path": "" if "image" in output else "/"}
        after = followed(a_teacher(output, state="Succeeded", output=made))
        assert before.volumes == after.volumes
        assert before.pull_secrets == after.pull_secrets
    assert followed(a_teacher(TO_NODE)).volumes[0]["source"] == TO_NODE["volumeSource"]
    assert followed(a_teacher(TO_IMAGE)).pull_secrets == ("push",)
