# SPDX-License-Identifier: Apache-2.0
"""Agent pools as they are asked for and as they come back."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from azure.mgmt.containerservice.models import AgentPool

from builders import a_serve_plan, a_workspace
from kaito_ray.nodes.candidate import Candidate, Priority
from kaito_ray.nodes.idle import is_idle
from kaito_ray.nodes.moment import parse_duration, parse_moment, render_moment
from kaito_ray.nodes.pool import Pool, disk_gb, network_of, parse_pool, pool_name, render_pool

NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
A100 = "Standard_NC24ads_A100_v4"


def test_names_are_legal_and_say_whose_and_which() -> None:
    names = {pool_name(uid, attempt) for uid in ("a", "b", "6a7b1f6e-0001") for attempt in range(200)}
    assert len(names) == 600
    assert all(re.fullmatch(r"[a-z][a-z0-9]{0,11}", name) for name in names)
    assert pool_name("a", 1) == pool_name("a", 1)


@pytest.mark.parametrize(
    ("candidate", "more"),
    [
        (Candidate(A100), {}),
        (Candidate(A100, zone="2"), {"availabilityZones": ["2"]}),
        (
            Candidate(A100, Priority.SPOT),
            {"scaleSetPriority": "Spot", "scaleSetEvictionPolicy": "Delete", "spotMaxPrice": -1},
        ),
    ],
)
def test_the_body_of_a_pool(candidate: Candidate, more: dict[str, Any]) -> None:
    plan = a_serve_plan(uid="u-1", name="phi", node_labels={"apps": "phi-3"}, nodes=2)
    properties = render_pool(plan, candidate, 2, 3, NOW)["properties"]
    assert properties == {
        "mode": "User",
        "type": "VirtualMachineScaleSets",
        "vmSize": A100,
        "count": 2,
        "osType": "Linux",
        "osSKU": "Ubuntu",
        "osDiskSizeGB": 300,
        "nodeLabels": {
            "apps": "phi-3",
            "kaito.sh/workspace": "phi",
            "kaito.sh/workspacenamespace": "default",
            "kaito-ray.io/managed-by": "kaito-ray",
            "kaito.sh/machine-type": "gpu",
        },
        "nodeTaints": ["sku=gpu:NoSchedule"],
        "tags": {
            "kaito-ray-workspace-uid": "u-1",
            "kaito-ray-workspace": "phi",
            "kaito-ray-namespace": "default",
            "kaito-ray-attempt": "3",
            "kaito-ray-created": "2026-09-01T12:00:00Z",
        },
        **more,
    }


def test_a_pool_comes_back_as_it_was_asked_for() -> None:
    plan = a_serve_plan(uid="u-1", name="phi", nodes=2)
    body = render_pool(plan, Candidate(A100, Priority.SPOT, "1"), 2, 3, NOW)
    body["name"] = "kabc"
    body["properties"] |= {"provisioningState": "Creating", "eTag": "e", "powerState": {"code": "Running"}}
    expected = Pool(
        "kabc", "Creating", 2, Candidate(A100, Priority.SPOT, "1"), "u-1", "phi", "default", 3, NOW, etag="e"
    )
    assert parse_pool(body) == expected
    assert parse_pool(AgentPool(body)) == expected


def test_a_pool_of_somebody_else_is_nobodys() -> None:
    pool = parse_pool({"name": "nodepool1", "properties": {"count": 3, "vmSize": "Standard_D4s_v5", "tags": None}})
    assert (pool.uid, pool.attempt, pool.count) == ("", 0, 3)


@pytest.mark.parametrize(
    ("state", "busy", "failed"),
    [
        ("Succeeded", False, False),
        ("Failed", False, True),
        ("Canceled", False, True),
        ("Creating", True, False),
        ("UpgradingNodeImageVersion", True, False),
    ],
)
def test_states(state: str, busy: bool, failed: bool) -> None:
    pool = parse_pool({"name": "p", "properties": {"provisioningState": state}})
    assert (pool.busy, pool.failed) == (busy, failed)


def test_labels_that_azure_refuses_are_left_to_the_kubelet() -> None:
    labels = {"kubernetes.io/os": "linux", "kubernetes.azure.com/mode": "user", "agentpool": "x", "team/a": "b"}
    properties = render_pool(a_serve_plan(node_labels=labels), Candidate(A100), 1, 1, NOW)["properties"]
    assert sorted(properties["nodeLabels"]) == [
        "kaito-ray.io/managed-by",
        "kaito.sh/machine-type",
        "kaito.sh/workspace",
        "kaito.sh/workspacenamespace",
        "team/a",
    ]


@pytest.mark.parametrize(("family", "sku"), [("", "Ubuntu"), ("ubuntu", "Ubuntu"), ("Azure Linux", "AzureLinux")])
def test_the_image_family_of_the_annotation(family: str, sku: str) -> None:
    properties = render_pool(a_serve_plan(), Candidate(A100), 1, 1, NOW, image_family=family)["properties"]
    assert properties["osSKU"] == sku


@pytest.mark.parametrize(("weights_gib", "gb"), [(7.12, 300), (131.42, 411), (703.75, 1640), (5000.0, 2048)])
def test_the_disk_holds_the_model_twice(weights_gib: float, gb: int) -> None:
    assert disk_gb(a_serve_plan(weights_gib=weights_gib)) == gb


def test_the_network_of_the_clusters_own_pools() -> None:
    def pool(mode: str, **properties: Any) -> Pool:
        return parse_pool({"name": mode.lower(), "properties": {"mode": mode, **properties}})

    own = {"vnetSubnetID": "/subnets/a", "podSubnetID": "/subnets/b", "maxPods": 30}
    assert network_of([pool("User", vnetSubnetID="/subnets/x"), pool("System", **own)]) == own
    assert network_of([pool("System", maxPods=110)]) == {}


def test_points_in_time_and_durations() -> None:
    assert render_moment(datetime.fromisoformat("2026-09-01T14:00:00.5+02:00")) == "2026-09-01T12:00:00Z"
    assert parse_moment("2026-09-01T12:00:00Z") == NOW
    assert parse_moment("soon") is None
    durations = [parse_duration(text) for text in ("1h30m", "45m", "90s", "", "5", "-5m")]
    assert [value.total_seconds() if value else None for value in durations] == [5400, 2700, 90, None, None, None]


@pytest.mark.parametrize(
    ("annotations", "ready_at", "idle"),
    [
        ({"kaito-ray.io/idle-after": "30m", "kaito-ray.io/last-request": "2026-09-01T11:29:00Z"}, "09:00", True),
        ({"kaito-ray.io/idle-after": "30m", "kaito-ray.io/last-request": "2026-09-01T11:31:00Z"}, "09:00", False),
        ({"kaito-ray.io/idle-after": "30m", "kaito-ray.io/last-request": "2026-09-01T10:00:00Z"}, "11:45", False),
        ({"kaito-ray.io/idle-after": "30m", "kaito-ray.io/last-request": "2026-09-01T10:00:00Z"}, "", False),
        ({"kaito-ray.io/idle-after": "1m", "kaito-ray.io/last-request": "2026-09-01T11:50:00Z"}, "09:00", False),
        ({"kaito-ray.io/idle-after": "30m"}, "09:00", False),
        ({"kaito-ray.io/last-request": "2026-09-01T01:00:00Z"}, "09:00", False),
    ],
)
def test_when_a_workspace_is_idle(annotations: dict[str, str], ready_at: str, idle: bool) -> None:
    moment = parse_moment(f"2026-09-01T{ready_at}:00Z") if ready_at else None
    assert is_idle(a_workspace(annotations=annotations), moment, NOW) is idle
