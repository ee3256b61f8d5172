# SPDX-License-Identifier: Apache-2.0
"""How a changed RayService is rolled out: in place, beside the old cluster, or instead of it."""

import copy
from typing import Any

import pytest

from builders import a_serve_plan
from kaito_ray.kuberay import parse_ray_service
from kaito_ray.nodes.node import Node
from kaito_ray.plan import AdapterPlan, ServePlan
from kaito_ray.pod import parse_pod
from kaito_ray.render.rayservice import ray_service
from kaito_ray.rollout import has_room, roll_out
from kaito_ray.settings import Settings
from ray_builders import a_ray_pod

Object = dict[str, Any]


def rendered(plan: ServePlan | None = None, image: str = "serve:1") -> Object:
    return ray_service(plan or a_serve_plan(), Settings.from_env({"KAITO_RAY_SERVE_IMAGE": image}))


def applied(document: Object, **status: Any) -> Object:
    """The live object after `document` was rolled out."""
    live = copy.deepcopy(roll_out(document, None, has_room=never)[0])
    live["metadata"]["generation"] = 2
    live["status"] = {"observedGeneration": 2, **status}
    return live


def never() -> bool:
    return False


def always() -> bool:
    return True


def not_asked() -> bool:
    raise AssertionError("room is asked for only when a second cluster is needed")


ADAPTER = AdapterPlan("sql", {"image": "example.com/sql:1"})
SUSPENDED = {"conditions": [{"type": "Suspended", "status": "True"}]}


@pytest.mark.parametrize(
    "after",
    [
        rendered(),
        rendered(a_serve_plan(adapters=(ADAPTER,))),
        rendered(a_serve_plan(max_ongoing_requests=9)),
    ],
)
def test_what_serves_can_change_in_place(after: Object) -> None:
    document, notice = roll_out(after, applied(rendered()), has_room=not_asked)
    assert notice is None
    assert "suspend" not in document["spec"]


def test_worker_counts_change_in_place() -> None:
    more = copy.deepcopy(rendered())
    more["spec"]["rayClusterConfig"]["workerGroupSpecs"][0] |= {"replicas": 2, "minReplicas": 2, "maxReplicas": 2}
    document, _ = roll_out(more, applied(rendered()), has_room=not_asked)
    assert "suspend" not in document["spec"]


def test_with_free_gpus_a_second_cluster_takes_over() -> None:
    document, notice = roll_out(rendered(image="serve:2"), applied(rendered()), has_room=always)
    assert "suspend" not in document["spec"]
    assert notice is not None
    assert notice.reason == "RollingOut"


def test_without_free_gpus_the_cluster_is_suspended_changed_and_resumed() -> None:
    wanted = rendered(image="serve:2")
    document, notice = roll_out(wanted, applied(rendered()), has_room=never)
    assert document["spec"]["suspend"] is True
    assert document["spec"]["rayClusterConfig"] == wanted["spec"]["rayClusterConfig"]
    assert notice is not None
    assert notice.reason == "Recreating"

    # KubeRay is at it: stay suspended, say nothing twice.
    live = {**document, "metadata": {**document["metadata"], "generation": 3}, "status": {"observedGeneration": 2}}
    again, notice = roll_out(wanted, live, has_room=not_asked)
    assert (again["spec"]["suspend"], notice) == (True, None)

    # The old cluster is gone.
    live["status"] = {"observedGeneration": 3, **SUSPENDED}
    assert parse_ray_service(live).holds("Suspended")
    again, notice = roll_out(wanted, live, has_room=not_asked)
    assert ("suspend" in again["spec"], notice) == (False, None)


def test_a_cluster_that_somebody_else_changed_is_put_back_without_suspending_it() -> None:
    live = applied(rendered())
    live["spec"]["rayClusterConfig"]["rayVersion"] = "2.0.0"
    document, notice = roll_out(rendered(), live, has_room=not_asked)
    assert ("suspend" in document["spec"], notice) == (False, None)


def a_node(name: str, gpus: int = 1, *, cordoned: bool = False) -> Node:
    return Node(name, {}, {}, True, "", cordoned, {"nvidia.com/gpu": gpus}, "", "", False)


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([a_node("gpu-1")], False),  # the pod of the first cluster is there
        ([a_node("gpu-1"), a_node("gpu-2")], True),
        ([a_node("gpu-1"), a_node("gpu-2", cordoned=True)], False),
        ([a_node("gpu-1"), a_node("gpu-2", gpus=0)], False),
    ],
)
def test_room_for_a_second_cluster(nodes: list[Node], room: bool) -> None:
    assert has_room(a_serve_plan(), nodes, [parse_pod(a_ray_pod())]) is room
