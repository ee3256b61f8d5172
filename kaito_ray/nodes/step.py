# SPDX-License-Identifier: Apache-2.0
"""A Workspace's agent pool and its nodes as they are now in; the one thing to do next, and what to say, out. Pure.

Level-triggered: the answer follows from what Azure and the cluster show and from `status.nodePool`, never from what
the last pass did. Called by aks.py, which does what is answered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from kaito_ray.nodes.candidate import Priority
from kaito_ray.nodes.failure import ADVICE, Reason, classify_provisioning_error
from kaito_ray.nodes.moment import render_moment
from kaito_ray.nodes.node import Node
from kaito_ray.nodes.pool import Pool
from kaito_ray.nodes.provisioner import Notice
from kaito_ray.nodes.record import Attempt, PoolRecord
from kaito_ray.plan import Plan

# A machine that restarts is back within minutes; one that is silent for longer is replaced.
SILENT = timedelta(minutes=5)
# A node that went without a word: AKS needs a moment to notice, and one repair time to work.
VANISHED = timedelta(minutes=2)
REPAIR_EVERY = timedelta(minutes=10)
USUAL = timedelta(minutes=10)
_NAMED = 5
SOON_S = 1.0
# With the spread of passes and the age of the list, a failure shows within half a minute.
WATCH_S = 10.0
STEADY_S = 60.0


class Phase(StrEnum):
    """How far the nodes are, as the reason of ResourceReady when nothing is wrong."""

    PLANNED = "AgentPoolPlanned"
    CREATING = "AgentPoolCreating"
    CHANGING = "AgentPoolChanging"
    DELETING = "AgentPoolDeleting"
    STOPPED = "AgentPoolStopped"
    JOINING = "NodesJoining"
    READY = "NodesReady"
    LOST = "NodesLost"
    IDLE = "Idle"
    WAKING = "Waking"


@dataclass(frozen=True, slots=True)
class Choose:
    """There is no pool: choose what to ask for, and ask."""


@dataclass(frozen=True, slots=True)
class Rescale:
    """Ask for this many nodes; the same number again makes AKS replace what is missing."""

    pool: Pool
    count: int


@dataclass(frozen=True, slots=True)
class RemoveMachines:
    """Give these machines back."""

    pool: Pool
    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the pool."""

    pool: Pool


Action = Choose | Rescale | RemoveMachines | Remove | None


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything the next step depends on. `pools` are those that carry the Workspace's UID."""

    plan: Plan
    wanted: int
    record: PoolRecord
    pools: Sequence[Pool]
    nodes: Callable[[str], Sequence[Node]]
    """The nodes of the pool with that name."""
    now: datetime
    timeout: timedelta


@dataclass(frozen=True, slots=True)
class Step:
    """What to do and what to say; `record` is what the status should remember."""

    action: Action
    record: PoolRecord
    ready: bool
    reason: str
    message: str
    requeue_after_s: float
    nodes: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


def next_step(situation: Situation) -> Step:
    """The next step for one Workspace."""
    record, pools = situation.record, situation.pools
    pool = _kept(pools, record)
    if pool is None:
        waiting = replace(record, name="", state="", ready=0, created_at=None, ready_at=None, lost_at=None)
        return Step(Choose(), waiting, False, Phase.PLANNED, "no agent pool yet", SOON_S)
    surplus = next((one for one in pools if one is not pool and not one.deleting), None)
    view = _View(situation, pool)
    if surplus is not None:
        return view.step(
            Remove(surplus), view.usable >= situation.wanted, Phase.CHANGING, f"{surplus.name} is one too many"
        )
    if pool.deleting:
        return view.step(None, False, Phase.DELETING, f"agent pool {pool.name} is being deleted")
    if (failed := record.failure_of(pool.attempt)) is not None:
        text = f"{failed.message}; agent pool {pool.name} is deleted before the next attempt"
        return view.step(Remove(pool), False, failed.reason, text, SOON_S)
    if pool.candidate.instance_type.lower() != situation.plan.instance_type.lower():
        text = f"agent pool {pool.name} has {pool.candidate.instance_type}, so the model is planned for that"
        return view.step(None, False, Phase.PLANNED, text, SOON_S)
    if pool.failed:
        return _after_failure(view)
    if view.was_ready:
        return _while_in_use(view)
    return _until_ready(view)


class _View:
    """The pool that counts, with what its nodes are worth."""

    def __init__(self, situation: Situation, pool: Pool) -> None:
        self.situation, self.pool, self.plan, self.now = situation, pool, situation.plan, situation.now
        record = situation.record
        # Ready before means this pool: one that replaces a failed pool has yet to show what it can do.
        self.was_ready = record.ready_at is not None and record.name == pool.name
        self.nodes = situation.nodes(pool.name)
        self.missing = {node.name: text for node in self.nodes if (text := self._missing(node))}
        self.usable = len(self.nodes) - len(self.missing)
        self.record = replace(
            record,
            name=pool.name,
            attempt=max(record.attempt, pool.attempt),
            candidate=pool.candidate,
            state=pool.state,
            ready=self.usable,
            wanted=situation.wanted,
            created_at=pool.created_at,
            ready_at=record.ready_at if self.was_ready else None,
            lost_at=record.lost_at if self.was_ready else None,
            repaired_at=record.repaired_at if self.was_ready else None,
            next_attempt_at=None,
        )

    def _missing(self, node: Node) -> str:
        return node.what_is_missing(
            self.plan.gpus_per_node, self.plan.worker.gpu_resource, self.pool.candidate.instance_type
        )

    def step(
        self,
        action: Action,
        ready: bool,
        reason: str,
        message: str,
        requeue_after_s: float = WATCH_S,
        *,
        record: PoolRecord | None = None,
        notices: tuple[Notice, ...] = (),
    ) -> Step:
        return Step(
            action=action,
            record=replace(record or self.record, message=message),
            ready=ready,
            reason=str(reason),
            message=message,
            requeue_after_s=requeue_after_s,
            nodes=tuple(node.name for node in self.nodes),
            notices=notices,
        )

    def failed_with(self, reason: Reason, message: str) -> Step:
        """Write the failure down; the pool goes once it is written."""
        attempt = Attempt(self.pool.attempt, self.pool.candidate, self.pool.count, reason, message, self.now)
        notice = Notice("Warning", str(reason), f"agent pool {self.pool.name} ({self.what}): {message}")
        text = f"{message}; what to do: {ADVICE[reason]}"
        return self.step(None, False, reason, text, SOON_S, record=self.record.with_attempt(attempt), notices=(notice,))

    @property
    def what(self) -> str:
        return f"{self.situation.wanted} x {self.pool.candidate}"

    @property
    def age(self) -> timedelta:
        return self.now - (self.pool.created_at or self.now)

    def progress(self) -> str:
        """How many nodes are ready and what the others lack."""
        text = f"{self.usable} of {self.situation.wanted} nodes are ready"
        if self.missing:
            text += ": " + "; ".join(f"node {name} {what}" for name, what in sorted(self.missing.items())[:_NAMED])
        if self.absent > 0:
            text += f"; {self.absent} not in the cluster" + ("" if self.was_ready else " yet")
        return text

    @property
    def absent(self) -> int:
        """How many nodes are not in the cluster at all."""
        return self.situation.wanted - len(self.nodes)


def _until_ready(view: _View) -> Step:
    """A pool that never had all its GPUs: wait, and give up at the deadline."""
    pool, wanted = view.pool, view.situation.wanted
    if pool.state == "Succeeded" and pool.count < wanted:
        return view.step(Rescale(pool, wanted), False, Phase.CHANGING, f"{pool.count} nodes become {wanted}")
    if pool.state == "Succeeded" and view.usable >= wanted:
        return _ready(view)
    if view.age > view.situation.timeout:
        minutes = int(view.situation.timeout.total_seconds() // 60)
        return view.failed_with(Reason.TIMED_OUT, f"after {minutes} min {view.progress()}")
    # A point in time and not a duration, so that the status is not written anew every minute.
    moment = render_moment(pool.created_at or view.now)
    slow = ", which is longer than usual" if view.age > USUAL else ""
    if pool.state == "Succeeded":
        text = f"agent pool {pool.name} is there, asked for {moment}{slow}; {view.progress()}"
        return view.step(None, False, Phase.JOINING, text)
    text = f"agent pool {pool.name} ({view.what}) is {pool.state} since {moment}{slow}; 4 to 8 minutes are usual"
    return view.step(None, False, Phase.CREATING, text)


def _while_in_use(view: _View) -> Step:
    """A pool that was ready before: keep its size, and replace the nodes it lost."""
    pool, wanted, record, now = view.pool, view.situation.wanted, view.record, view.now
    if wanted == 0:
        action = Rescale(pool, 0) if pool.count and not pool.busy else None
        text = "no requests for a while, so there are no nodes; the next request brings them back in about 10 minutes"
        return view.step(action, False, Phase.IDLE, text, STEADY_S)
    enough = view.usable >= wanted
    woken = view.situation.record.wanted == 0
    if pool.busy:
        return _ready(view) if enough else _lost(view, None, Phase.CHANGING)
    if pool.stopped:
        return view.step(
            None, False, Phase.STOPPED, f"agent pool {pool.name} is stopped; `az aks nodepool start` starts it"
        )
    if pool.count < wanted:
        return _lost(view, Rescale(pool, wanted), Phase.WAKING if woken else Phase.CHANGING, repaired_at=now)
    if pool.count > wanted and enough:
        return replace(_ready(view), action=RemoveMachines(pool, _spare(view)))
    if enough:
        return _ready(view)
    silent = tuple(node.name for node in view.nodes if not node.ready and now - (node.not_ready_since or now) >= SILENT)
    if silent:
        return _lost(view, RemoveMachines(pool, silent))
    gone = len(view.nodes) < pool.count and now - (record.lost_at or now) >= VANISHED
    if gone and now - (record.repaired_at or now - REPAIR_EVERY) >= REPAIR_EVERY:
        return _lost(view, Rescale(pool, pool.count), Phase.LOST, repaired_at=now)
    return _lost(view)


def _after_failure(view: _View) -> Step:
    """A pool whose last operation failed: keep it while it serves, else write the failure down."""
    pool, record, now = view.pool, view.record, view.now
    failure = classify_provisioning_error(pool.error)
    if not view.was_ready or view.usable == 0:
        return view.failed_with(failure.reason, failure.sentence)
    if view.usable >= view.situation.wanted:
        return replace(_ready(view), message=f"{_ready(view).message}; the last change failed: {failure.sentence}")
    # Some nodes still serve, so the pool stays and what is missing is asked for again.
    due = now - (record.repaired_at or record.lost_at or now) >= REPAIR_EVERY
    step = _lost(view, Rescale(pool, view.situation.wanted), Phase.LOST, repaired_at=now) if due else _lost(view)
    return replace(step, reason=str(failure.reason), message=f"{failure.sentence}; {step.message}")


def _ready(view: _View) -> Step:
    first = not view.was_ready or view.record.lost_at is not None
    record = view.record
    if first:
        record = replace(record, ready_at=view.now, lost_at=None, repaired_at=None, attempts=())
    notice = Notice("Normal", Phase.READY, f"agent pool {view.pool.name}: {view.what} ready")
    text = f"{view.usable} of {view.situation.wanted} nodes are ready"
    return view.step(None, True, Phase.READY, text, STEADY_S, record=record, notices=(notice,) if first else ())


def _lost(view: _View, action: Action = None, reason: str = Phase.LOST, repaired_at: datetime | None = None) -> Step:
    first = view.record.lost_at is None
    record = replace(
        view.record,
        lost_at=view.record.lost_at or view.now,
        repaired_at=repaired_at or view.record.repaired_at,
    )
    text = view.progress()
    if view.absent > 0 and view.pool.candidate.priority is Priority.SPOT:
        text += "; Azure takes spot nodes back when it needs them, and others are asked for"
    notice = (
        Notice("Normal", Phase.WAKING, "requests are back, and so are the nodes in about 10 minutes")
        if reason == Phase.WAKING
        else Notice("Warning", Phase.LOST, text)
    )
    return view.step(action, False, reason, text, WATCH_S, record=record, notices=(notice,) if first else ())


def _spare(view: _View) -> tuple[str, ...]:
    """The machines to give back: first those that cannot be used, then the last ones by name."""
    order = sorted(view.nodes, key=lambda node: (node.name not in view.missing, _reversed(node.name)))
    return tuple(node.name for node in order[: view.pool.count - view.situation.wanted])


def _reversed(name: str) -> tuple[int, ...]:
    return tuple(-ord(letter) for letter in name)


def _kept(pools: Sequence[Pool], record: PoolRecord) -> Pool | None:
    """The pool that counts when there is more than one: the one in use, else the soundest, else the oldest."""
    return min(
        pools,
        key=lambda pool: (
            pool.deleting,
            record.failure_of(pool.attempt) is not None,
            pool.failed,
            pool.name != record.name,
            pool.attempt,
        ),
        default=None,
    )
