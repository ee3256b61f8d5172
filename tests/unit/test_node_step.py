# SPDX-License-Identifier: Apache-2.0
"""What follows for a Workspace from its pool, its nodes and its record."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import a_serve_plan
from kaito_ray.nodes.candidate import Candidate
from kaito_ray.nodes.failure import Reason
from kaito_ray.nodes.node import Node
from kaito_ray.nodes.pool import Pool
from kaito_ray.nodes.record import Attempt, PoolRecord
from kaito_ray.nodes.step import Choose, Remove, RemoveMachines, Rescale, Situation, Step, next_step

NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
A100 = Candidate("Standard_NC24ads_A100_v4")


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def a_pool(state: str = "Succeeded", count: int = 2, **overrides: Any) -> Pool:
    values: dict[str, Any] = {"name": "k1", "uid": "u", "attempt": 1, "created_at": ago(10)} | overrides
    return Pool(state=state, count=count, candidate=A100, **values)


def a_node(name: str = "n1", **overrides: Any) -> Node:
    node = Node(
        name=name,
        labels={},
        annotations={},
        ready=True,
        not_ready_reason="",
        cordoned=False,
        gpus={"nvidia.com/gpu": 1},
        instance_type=A100.instance_type,
        provider_id="",
        deleting=False,
    )
    return replace(node, **overrides)


IN_USE = PoolRecord(name="k1", attempt=1, candidate=A100, ready_at=ago(60), wanted=2, created_at=ago(70))
FAILED = Attempt(1, A100, 2, Reason.CAPACITY, "no capacity", ago(1))
SILENT = a_node("n2", ready=False, not_ready_reason="silent", not_ready_since=ago(6))
BLINKING = a_node("n2", ready=False, not_ready_reason="silent", not_ready_since=ago(1))
TWO = [a_node("n1"), a_node("n2")]


def step_of(pools: list[Pool], nodes: list[Node] | None = None, record: PoolRecord | None = None, **more: Any) -> Step:
    values: dict[str, Any] = {"wanted": 2, "timeout": timedelta(minutes=45)} | more
    return next_step(
        Situation(
            plan=a_serve_plan(nodes=2),
            record=record or PoolRecord(),
            pools=pools,
            nodes=lambda _: nodes or [],
            now=NOW,
            **values,
        )
    )


@pytest.mark.parametrize(
    ("pools", "nodes", "record", "action", "reason"),
    [
        ([], [], None, "choose", "AgentPoolPlanned"),
        ([a_pool("Creating")], [], None, None, "AgentPoolCreating"),
        ([a_pool("Deleting")], [], None, None, "AgentPoolDeleting"),
        ([a_pool()], [], None, None, "NodesJoining"),
        ([a_pool()], [a_node()], None, None, "NodesJoining"),
        ([a_pool()], TWO, None, None, "NodesReady"),
        ([a_pool("Creating")], TWO, None, None, "AgentPoolCreating"),
        ([a_pool("Creating", created_at=ago(46))], [], None, None, "NodesTimedOut"),
        ([a_pool(created_at=ago(46))], [a_node()], None, None, "NodesTimedOut"),
        ([a_pool(created_at=ago(46))], TWO, None, None, "NodesReady"),
        ([a_pool(count=1)], [a_node()], None, "rescale 2", "AgentPoolChanging"),
        # A failure is written down first, and the pool deleted once it is.
        ([a_pool("Failed")], [], None, None, "ProvisioningFailed"),
        ([a_pool("Failed")], [], PoolRecord(attempts=(FAILED,)), "remove k1", "AllocationFailed"),
        ([a_pool("Succeeded")], TWO, PoolRecord(attempts=(FAILED,)), "remove k1", "AllocationFailed"),
        ([a_pool("Deleting")], [], PoolRecord(attempts=(FAILED,)), None, "AgentPoolDeleting"),
        # In use.
        ([a_pool()], TWO, IN_USE, None, "NodesReady"),
        ([a_pool("Upgrading")], TWO, IN_USE, None, "NodesReady"),
        ([a_pool("Upgrading")], [a_node()], IN_USE, None, "AgentPoolChanging"),
        ([a_pool(created_at=ago(999))], [a_node()], IN_USE, None, "NodesLost"),
        ([a_pool()], [a_node(), BLINKING], IN_USE, None, "NodesLost"),
        ([a_pool()], [a_node(), SILENT], IN_USE, "remove machines n2", "NodesLost"),
        ([a_pool(count=1)], [a_node()], IN_USE, "rescale 2", "AgentPoolChanging"),
        ([a_pool()], [a_node()], replace(IN_USE, lost_at=ago(3)), "rescale 2", "NodesLost"),
        ([a_pool()], [a_node()], replace(IN_USE, lost_at=ago(9), repaired_at=ago(5)), None, "NodesLost"),
        ([a_pool(count=3)], [*TWO, a_node("n3")], IN_USE, "remove machines n3", "NodesReady"),
        ([a_pool(count=3)], [*TWO, a_node("n0", ready=False)], IN_USE, "remove machines n0", "NodesReady"),
        ([a_pool(stopped=True)], [], IN_USE, None, "AgentPoolStopped"),
        # In use, and the last change failed: kept while anything serves.
        ([a_pool("Failed")], TWO, IN_USE, None, "NodesReady"),
        ([a_pool("Failed")], [a_node()], IN_USE, None, "ProvisioningFailed"),
        ([a_pool("Failed")], [a_node()], replace(IN_USE, lost_at=ago(11)), "rescale 2", "ProvisioningFailed"),
        ([a_pool("Failed")], [], IN_USE, None, "ProvisioningFailed"),
        # More than one.
        ([a_pool(), a_pool(name="k2", attempt=2)], TWO, None, "remove k2", "AgentPoolChanging"),
        ([a_pool(), a_pool(name="k2", attempt=2)], TWO, replace(IN_USE, name="k2"), "remove k1", "AgentPoolChanging"),
        ([a_pool("Failed"), a_pool(name="k2", attempt=2)], TWO, None, "remove k1", "AgentPoolChanging"),
        ([a_pool("Deleting"), a_pool(name="k2", attempt=2)], TWO, None, None, "NodesReady"),
    ],
)
def test_the_next_step(
    pools: list[Pool], nodes: list[Node], record: PoolRecord | None, action: str | None, reason: str
) -> None:
    step = step_of(pools, nodes, record)
    match step.action:
        case None:
            seen = None
        case Choose():
            seen = "choose"
        case Rescale(_, count):
            seen = f"rescale {count}"
        case RemoveMachines(_, machines):
            seen = f"remove machines {','.join(machines)}"
        case Remove(pool):
            seen = f"remove {pool.name}"
    assert (seen, step.reason) == (action, reason)
    assert step.ready is (reason == "NodesReady" or (reason == "AgentPoolChanging" and len(pools) > 1))


def test_an_idle_workspace_is_scaled_to_zero_once() -> None:
    idle = step_of([a_pool()], TWO, IN_USE, wanted=0)
    assert isinstance(idle.action, Rescale)
    assert (idle.action.count, idle.reason, idle.record.wanted) == (0, "Idle", 0)
    resting = step_of([a_pool(count=0)], [], idle.record, wanted=0)
    assert (resting.action, resting.reason, resting.ready) == (None, "Idle", False)
    woken = step_of([a_pool(count=0)], [], resting.record)
    assert isinstance(woken.action, Rescale)
    assert (woken.action.count, woken.reason) == (2, "Waking")
    assert [notice.type for notice in woken.notices] == ["Normal"]


def test_what_happened_is_told_once() -> None:
    first = step_of([a_pool()], TWO)
    assert [notice.reason for notice in first.notices] == ["NodesReady"]
    again = step_of([a_pool()], TWO, first.record)
    assert (again.ready, again.notices) == (True, ())
    lost = step_of([a_pool()], [a_node()], again.record)
    assert [notice.reason for notice in lost.notices] == ["NodesLost"]
    assert step_of([a_pool()], [a_node()], lost.record).notices == ()


def test_the_first_readiness_ends_the_list_of_failures() -> None:
    record = PoolRecord(attempt=2, attempts=(FAILED,))
    step = step_of([a_pool(name="k2", attempt=2)], TWO, record)
    assert (step.ready, step.record.attempts, step.record.attempt, step.record.ready_at) == (True, (), 2, NOW)


def test_nothing_changes_in_the_status_while_nothing_happens() -> None:
    for pool, nodes, record in (
        (a_pool("Creating", created_at=ago(3)), [], PoolRecord()),
        (a_pool(created_at=ago(3)), [a_node()], PoolRecord()),
        (a_pool(), TWO, IN_USE),
        (a_pool(), [a_node(), BLINKING], IN_USE),
    ):
        first = step_of([pool], nodes, record)
        later = next_step(
            Situation(
                plan=a_serve_plan(nodes=2),
                wanted=2,
                record=first.record,
                pools=[pool],
                nodes=lambda _, nodes=nodes: nodes,  # type: ignore[misc]
                now=NOW + timedelta(seconds=45),
                timeout=timedelta(minutes=45),
            )
        )
        assert later.record.render() == first.record.render()


def test_a_plan_for_another_size_waits_until_it_is_planned_anew() -> None:
    other = replace(a_pool(), candidate=Candidate("Standard_NC40ads_H100_v5"))
    step = step_of([other], TWO)
    assert (step.action, step.ready, step.reason) == (None, False, "AgentPoolPlanned")
    assert step.record.render()["instanceType"] == "Standard_NC40ads_H100_v5"
