# SPDX-License-Identifier: Apache-2.0
"""A NodeProvisioner of AKS agent pools: one user pool per Workspace, made, watched, repaired and deleted.

Each pass reads the shared list of pools, asks step.py what follows, and does at most one write. A crash at any point
loses nothing: the pool is found again by its tags, its name is computed and not drawn, it is created only if there is
none, and what failed stands in the Workspace's status before the failed pool is deleted.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from kaito_ray import names
from kaito_ray.errors import LeaseLost, NotReadyYet
from kaito_ray.nodes.arm import Arm, AzureRefused, ForeignPool
from kaito_ray.nodes.attempt import Blocked
from kaito_ray.nodes.block import Offer
from kaito_ray.nodes.budget import hourly_usd, require_budget
from kaito_ray.nodes.chooser import Chooser, Planner
from kaito_ray.nodes.failure import ADVICE, Reason
from kaito_ray.nodes.idle import is_idle
from kaito_ray.nodes.moment import render_moment
from kaito_ray.nodes.node import Node, NodeLister
from kaito_ray.nodes.pool import Pool, network_of, pool_name, render_pool
from kaito_ray.nodes.provisioner import NodesObserved, Notice
from kaito_ray.nodes.record import Attempt, PoolRecord, parse_record
from kaito_ray.nodes.step import (
    SOON_S,
    STEADY_S,
    Choose,
    Phase,
    Remove,
    RemoveMachines,
    Rescale,
    Situation,
    Step,
    next_step,
)
from kaito_ray.plan import Plan
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes
from kaito_ray.workspace import Workspace

# What Azure says about a moment, not about what was asked for.
_NOT_AN_ATTEMPT = frozenset(
    {Reason.IN_PROGRESS, Reason.PREEMPTED, Reason.THROTTLED, Reason.TRANSIENT, Reason.AUTH, Reason.NOT_FOUND}
)
# A pool younger than this may belong to a Workspace that the list of Workspaces does not show yet.
ORPHAN_AGE = timedelta(minutes=2)
_JITTER_S = 10


class AksNodes:
    """Agent pools of one AKS cluster."""

    def __init__(
        self,
        arm: Arm,
        nodes: NodeLister,
        sizes: Sizes,
        planner: Planner,
        settings: Settings,
    ) -> None:
        self._arm = arm
        self._nodes = nodes
        self._sizes = sizes
        self._settings = settings
        self._chooser = Chooser(arm.usages, sizes, planner, settings)
        self._timeout = timedelta(minutes=settings.node_timeout_minutes)

    async def ensure(self, plan: Plan, workspace: Workspace, now: datetime) -> NodesObserved:
        """Bring the agent pool of the plan one step closer; see NodeProvisioner."""
        record = parse_record(workspace.status.get("nodePool"))
        wanted = 0 if is_idle(workspace, record.ready_at, now) else plan.nodes
        try:
            pools = await self._arm.pools()
        except AzureRefused as refused:
            return self._without_azure(plan, record, wanted, refused)
        step = next_step(
            Situation(
                plan=plan,
                wanted=wanted,
                record=record,
                pools=[pool for pool in pools if pool.uid == _uid(workspace)],
                nodes=self._nodes_of,
                now=now,
                timeout=self._timeout,
            )
        )
        self._chooser.learn(workspace, step.record, now)
        if step.reason == Phase.READY:
            self._chooser.forget(_uid(workspace))
        try:
            step = await self._take(step, plan, workspace, pools, now)
            return self._priced(await self._with_outlook(step, plan, workspace, now), plan, workspace)
        except LeaseLost:
            raise
        except NotReadyYet as refused:
            return self._priced(_held_up(step, refused), plan, workspace)

    async def release(self, workspace: Workspace) -> bool:
        """Delete every pool of the Workspace; True when Azure has none left. See NodeProvisioner."""
        uid = _uid(workspace)
        mine = [pool for pool in await self._arm.pools() if pool.uid == uid]
        for pool in mine:
            if not pool.deleting:
                await self._arm.delete(pool)
        if mine:
            return False
        # A creation that was under way when the operator died shows under its own name before it shows in a list.
        record = parse_record(workspace.status.get("nodePool"))
        last = await self._arm.get(record.name or pool_name(uid, record.attempt + 1))
        if last is not None and last.uid == uid:
            return False
        self._chooser.forget(uid)
        return True

    async def collect(self, uids: Collection[str], now: datetime) -> tuple[str, ...]:
        """Delete pools whose Workspace is gone; see NodeProvisioner.

        Pools of namespaces that this operator does not watch are another operator's.
        """
        gone = [
            pool
            for pool in await self._arm.pools()
            if pool.uid
            and pool.uid not in uids
            and not pool.deleting
            and (not self._settings.namespaces or pool.namespace in self._settings.namespaces)
            and now - (pool.created_at or now - ORPHAN_AGE) >= ORPHAN_AGE
        ]
        deleted = []
        for pool in gone:
            try:
                await self._arm.delete(pool)
            except NotReadyYet:
                continue  # the next round finds it again
            deleted.append(pool.name)
        return tuple(deleted)

    async def close(self) -> None:
        """Close the connections to Azure."""
        await self._arm.close()

    async def _take(self, step: Step, plan: Plan, workspace: Workspace, pools: Iterable[Pool], now: datetime) -> Step:
        match step.action:
            case None:
                return step
            case Choose():
                return await self._create(step, plan, workspace, pools, now)
            case Rescale(pool, count):
                require_budget(pools, pool.candidate.instance_type, count - pool.count, self._sizes, self._settings)
                await self._arm.rescale(pool, count)
                return replace(step, record=replace(step.record, state="Scaling"))
            case RemoveMachines(pool, machines):
                await self._arm.remove_machines(pool, machines)
                return step
            case Remove(pool):
                await self._arm.delete(pool)
                notice = Notice("Normal", "AgentPoolDeleted", f"agent pool {pool.name} is deleted: {step.reason}")
                return replace(step, notices=(*step.notices, notice))

    async def _create(self, step: Step, plan: Plan, workspace: Workspace, pools: Iterable[Pool], now: datetime) -> Step:
        choice, refused = await self._chooser.choose(plan, workspace, step.record, now)
        if isinstance(choice, Blocked):
            message = "; ".join([choice.message, *refused])
            requeue_s = max(SOON_S, (choice.until - now).total_seconds()) if choice.until else STEADY_S * 60
            record = replace(step.record, next_attempt_at=choice.until, message=message)
            return replace(
                step,
                record=record,
                reason=str(choice.reason),
                message=message,
                # A quota that is raised, or a size that is added, should not wait for an hour.
                requeue_after_s=min(requeue_s, STEADY_S),
            )
        candidate = choice.candidate
        number = self._chooser.next_number(workspace, step.record)
        record = replace(step.record, candidate=candidate, next_attempt_at=None)
        if candidate.instance_type.lower() != plan.instance_type.lower():
            # What runs must be planned for the size it runs on, so the size is decided first and asked for then.
            text = f"{candidate} is tried next, so the model is planned for that size"
            return replace(step, record=replace(record, message=text), reason=str(Phase.PLANNED), message=text)
        require_budget(pools, candidate.instance_type, plan.nodes, self._sizes, self._settings)
        name = pool_name(_uid(workspace), number)
        body = render_pool(
            plan,
            candidate,
            plan.nodes,
            number,
            now,
            image_family=workspace.metadata.annotations.get(names.ANNOTATION_NODE_IMAGE_FAMILY, ""),
            network=network_of(pools),
        )
        try:
            pool = await self._arm.create(name, body, _uid(workspace))
        except ForeignPool as error:
            return self._refused(
                step, workspace, record, Attempt(number, candidate, plan.nodes, Reason.NAME_TAKEN, str(error), now)
            )
        except AzureRefused as error:
            if error.failure.reason in _NOT_AN_ATTEMPT:
                raise
            failure = error.failure
            attempt = Attempt(number, candidate, plan.nodes, failure.reason, failure.sentence, now)
            return self._refused(step, workspace, record, attempt)
        what = f"agent pool {name} ({plan.nodes} x {candidate})"
        return replace(
            step,
            record=replace(
                record,
                name=name,
                attempt=pool.attempt or number,
                state=pool.state,
                wanted=plan.nodes,
                created_at=pool.created_at or now,
                message=f"{what} is asked for",
            ),
            reason=str(Phase.CREATING),
            message=f"{what} is asked for; 4 to 8 minutes are usual",
            notices=(Notice("Normal", "AgentPoolRequested", f"{what} is asked for"),),
        )

    async def _with_outlook(self, step: Step, plan: Plan, workspace: Workspace, now: datetime) -> Step:
        """The step; one that tells of a failed attempt also tells what is tried next, and when."""
        record = step.record
        if step.ready or isinstance(step.action, Choose) or record.failure_of(record.attempt) is None:
            return step
        choice, _ = await self._chooser.choose(plan, workspace, record, now)
        if isinstance(choice, Offer):
            return _saying(step, f"next: {choice.candidate}")
        if choice.until is None:
            return _saying(step, "nothing more is tried (KAITO_RAY_NODE_TIMEOUT_POLICY is stop)")
        outlook = f"tried again at {render_moment(choice.until)}"
        return _saying(replace(step, record=replace(record, next_attempt_at=choice.until)), outlook)

    def _refused(self, step: Step, workspace: Workspace, record: PoolRecord, attempt: Attempt) -> Step:
        """An attempt that Azure refused at once; the next pass tries what follows it."""
        record = record.with_attempt(attempt)
        self._chooser.learn(workspace, record, attempt.at)
        text = f"{attempt.candidate}: {attempt.message}; what to do: {ADVICE[attempt.reason]}"
        return replace(
            step,
            action=None,
            record=replace(record, message=text),
            reason=str(attempt.reason),
            message=text,
            notices=(Notice("Warning", str(attempt.reason), f"{attempt.candidate}: {attempt.message}"),),
        )

    def _nodes_of(self, pool: str) -> list[Node]:
        return list(self._nodes({names.LABEL_AGENT_POOL: pool}))

    def _priced(self, step: Step, plan: Plan, workspace: Workspace) -> NodesObserved:
        """The step as the caller sees it, with the price, and passes spread so that not all come at once."""
        record = step.record
        size = record.candidate.instance_type if record.candidate else plan.instance_type
        price = hourly_usd(self._sizes, size, record.wanted) if record.name else None
        spread_s = hashlib.sha256(_uid(workspace).encode()).digest()[0] % _JITTER_S
        return NodesObserved(
            ready=step.ready,
            nodes=step.nodes,
            reason=step.reason,
            message=step.message,
            requeue_after_s=step.requeue_after_s + (spread_s if step.requeue_after_s > SOON_S else 0),
            node_pool=replace(record, hourly_usd=price).render(),
            notices=step.notices,
        )

    def _without_azure(self, plan: Plan, record: PoolRecord, wanted: int, refused: AzureRefused) -> NodesObserved:
        """While Azure does not answer, nodes that are there stay good."""
        nodes = self._nodes_of(record.name) if record.name else []
        size = record.candidate.instance_type if record.candidate else plan.instance_type
        usable = [
            node for node in nodes if not node.what_is_missing(plan.gpus_per_node, plan.worker.gpu_resource, size)
        ]
        ready = record.ready_at is not None and len(usable) >= wanted > 0
        message = f"{len(usable)} of {wanted} nodes are ready; {refused}"
        return NodesObserved(
            ready=ready,
            nodes=tuple(node.name for node in nodes),
            reason=str(Phase.READY) if ready else refused.reason,
            message=message,
            requeue_after_s=refused.delay_s,
            node_pool=replace(record, ready=len(usable), message=message).render(),
        )


def _saying(step: Step, more: str) -> Step:
    message = f"{step.message}; {more}"
    return replace(step, message=message, record=replace(step.record, message=message))


def _held_up(step: Step, refused: NotReadyYet) -> Step:
    """The step whose write could not be done now; a Workspace that is ready stays ready."""
    message = f"{step.message}; {refused}" if step.ready else str(refused)
    return replace(
        step,
        record=replace(step.record, message=message),
        reason=step.reason if step.ready else refused.reason,
        message=message,
        requeue_after_s=refused.delay_s,
    )


def _uid(workspace: Workspace) -> str:
    if not workspace.metadata.uid:
        raise ValueError(f"Workspace {workspace.metadata.name} has no UID, so its agent pool could not be found again")
    return workspace.metadata.uid
