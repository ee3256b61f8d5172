# SPDX-License-Identifier: Apache-2.0
"""The agent pools of one AKS cluster over Azure's API: one shared list, and writes that wait their turn.

No poller is held: a write returns once Azure accepted it, and how it went is read from the list. All Workspaces read
the same list, at most once per interval, because AKS allows one read per second for a whole subscription and region.
Whatever Azure refuses is raised as `AzureRefused`, which says when to try again. Called by aks.py.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.core.rest import HttpRequest
from azure.mgmt.containerservice.aio import ContainerServiceClient
from azure.mgmt.containerservice.models import AgentPool, AgentPoolDeleteMachinesParameter

from kaito_ray.errors import LeaseLost, NotReadyYet
from kaito_ray.nodes.failure import ADVICE, Failure, Reason, classify_error
from kaito_ray.nodes.pool import Pool, parse_pool
from kaito_ray.nodes.quota import FRESH, Usages, parse_usages
from kaito_ray.settings import Settings

Json = Any
T = TypeVar("T")

LIST_EVERY = timedelta(seconds=10)
# Pools are made in parallel, but share locks of the virtual network; more than a few at once only fail.
MAX_OPERATIONS = 4
CALL_S = 60
USAGES_API = "2024-07-01"
_WAITS_S: Mapping[Reason, float] = {
    Reason.IN_PROGRESS: 30,
    Reason.PREEMPTED: 30,
    Reason.THROTTLED: 60,
    Reason.AUTH: 300,
    Reason.NOT_FOUND: 300,
}
_FIRST_WAIT_S = 15.0
_LONGEST_WAIT_S = 300.0
# These codes throttle the identity or the subscription as a whole, not one kind of request.
_THROTTLE_ALL = ("TooManyRequests", "SubscriptionRequestsThrottled")


class AzureRefused(NotReadyYet):
    """Azure said no, or did not answer; `failure` says how and `delay_s` when to ask again."""

    def __init__(self, failure: Failure, delay_s: float) -> None:
        super().__init__(
            f"{failure.sentence}; what to do: {ADVICE[failure.reason]}", reason=str(failure.reason), delay_s=delay_s
        )
        self.failure = failure


class ForeignPool(NotReadyYet):
    """A pool of that name exists and is not the Workspace's."""

    reason = str(Reason.NAME_TAKEN)


@dataclass(frozen=True, slots=True)
class _Pause:
    until: datetime
    failure: Failure


class Arm:
    """One AKS cluster. `clock` tells the time for caches and pauses alone, `may_write` whether this process leads."""

    def __init__(
        self,
        client: ContainerServiceClient,
        settings: Settings,
        clock: Callable[[], datetime],
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._scope = (settings.resource_group, settings.cluster_name)
        self._settings = settings
        self._clock = clock
        self._may_write = may_write
        self._pools: dict[str, Pool] = {}
        self._listed_at: datetime | None = None
        # Whoever comes while a question is under way gets its answer.
        self._listing, self._checking, self._reading = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._written: dict[str, int] = {}
        self._writes = 0
        self._writing: set[str] = set()
        self._pauses: dict[str, _Pause] = {}
        self._failures = 0
        self._cluster: tuple[datetime, str] | None = None
        self._usages: tuple[datetime, Usages | None] | None = None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def pools(self) -> tuple[Pool, ...]:
        """All agent pools of the cluster, not older than the interval; what was just written is in it."""
        async with self._listing:
            if self._listed_at is None or self._clock() - self._listed_at >= LIST_EVERY:
                await self._list()
        return tuple(self._pools.values())

    async def get(self, name: str) -> Pool | None:
        """One pool as it is now; None when there is none of that name."""
        try:
            wire = await self._call("get", lambda: self._client.agent_pools.get(*self._scope, name))
        except AzureRefused as refused:
            if refused.failure.reason is Reason.NOT_FOUND:
                self._remember(name, None)
                return None
            raise
        return self._remember(name, parse_pool(wire))

    async def create(self, name: str, body: Mapping[str, Json], uid: str) -> Pool:
        """Make a pool, or find the one that an earlier try of the same Workspace made."""
        try:
            return await self._put(name, body, match_condition=MatchConditions.IfMissing)
        except AzureRefused as refused:
            if refused.failure.status != 412:
                raise
        pool = await self.get(name)
        if pool is None:
            raise NotReadyYet(f"agent pool {name} came and went", reason=str(Reason.PREEMPTED))
        if pool.uid != uid:
            raise ForeignPool(f"an agent pool {name} exists and is not ours; it is left alone")
        return pool

    async def rescale(self, pool: Pool, count: int) -> Pool:
        """Ask for `count` nodes, unless somebody changed the pool since it was read."""
        _require_ours(pool)
        # What the SDK does not know of the pool goes back as it came; what only Azure may write is left out.
        body = AgentPool(pool.wire).as_dict(exclude_readonly=True)
        body["properties"]["count"] = count
        return await self._put(
            pool.name,
            body,
            etag=pool.etag,
            match_condition=MatchConditions.IfNotModified,
        )

    async def remove_machines(self, pool: Pool, machines: tuple[str, ...]) -> None:
        """Drain these nodes and give their machines back; the pool's count goes down with them."""
        _require_ours(pool)
        parameter = AgentPoolDeleteMachinesParameter(machine_names=list(machines))
        async with self._turn(pool.name):
            await self._call(
                f"remove {pool.name}",
                lambda: self._client.agent_pools.begin_delete_machines(
                    *self._scope, pool.name, parameter, polling=False
                ),
            )
        self._remember(pool.name, replace(pool, state="Updating"))

    async def delete(self, pool: Pool) -> None:
        """Delete the pool with its nodes; one whose creation cannot be interrupted otherwise is aborted first."""
        _require_ours(pool)
        async with self._turn(pool.name):
            try:
                await self._call(
                    f"delete {pool.name}",
                    lambda: self._client.agent_pools.begin_delete(
                        *self._scope, pool.name, ignore_pod_disruption_budget=True, polling=False
                    ),
                )
            except AzureRefused as refused:
                if refused.failure.reason is not Reason.IN_PROGRESS or not pool.busy:
                    raise
                await self._call(
                    f"abort {pool.name}",
                    lambda: self._client.agent_pools.begin_abort_latest_operation(
                        *self._scope, pool.name, polling=False
                    ),
                )
                self._remember(pool.name, replace(pool, state="Canceling"))
                return
        self._remember(pool.name, replace(pool, state="Deleting"))

    async def usages(self) -> Usages | None:
        """The region's vCPU quotas, read every ten minutes; None where they cannot be read."""
        async with self._reading:
            now = self._clock()
            if self._usages is None or now - self._usages[0] >= FRESH:
                self._usages = (now, await self._read_usages(now))
            return self._usages[1]

    async def _read_usages(self, now: datetime) -> Usages | None:
        region = self._settings.location
        path = (
            f"/subscriptions/{self._settings.subscription_id}/providers/Microsoft.Compute/locations/{region}/usages"
            f"?api-version={USAGES_API}"
        )

        async def read() -> Usages:
            response = await self._client.send_request(HttpRequest("GET", path))
            response.raise_for_status()
            return parse_usages(response.json(), region, now)

        try:
            return await self._call("usages", read)
        except (AzureRefused, KeyError, TypeError, ValueError):
            return None

    async def _list(self) -> None:
        started = self._writes

        async def read() -> dict[str, Pool]:
            pools = [parse_pool(wire) async for wire in self._client.agent_pools.list(*self._scope)]
            return {pool.name: pool for pool in pools}

        found = await self._call("list", read)
        # What was written while the list was under way is newer than the list.
        for name, number in self._written.items():
            if number > started:
                found.pop(name, None)
                if name in self._pools:
                    found[name] = self._pools[name]
        self._written = {name: number for name, number in self._written.items() if number > started}
        self._pools, self._listed_at = found, self._clock()

    async def _put(self, name: str, body: Mapping[str, Json], **conditions: Any) -> Pool:
        async def send() -> AgentPool:
            poller = await self._client.agent_pools.begin_create_or_update(
                *self._scope, name, AgentPool(body), polling=False, **conditions
            )
            return await poller.result()

        async with self._turn(name):
            pool = parse_pool(await self._call(f"put {name}", send))
        self._remember(name, pool)
        return pool

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Wait for nobody: either this write may go now, or NotReadyYet says why not."""
        self._require_turn(name)
        await self._require_running()
        self._require_turn(name)  # others may have begun meanwhile
        self._writing.add(name)
        try:
            yield
        finally:
            self._writing.discard(name)

    def _require_turn(self, name: str) -> None:
        if not self._may_write():
            raise LeaseLost(f"agent pool {name} was not written to: another operator leads")
        busy = {pool.name for pool in self._pools.values() if pool.busy} | self._writing
        if len(busy - {name}) >= MAX_OPERATIONS:
            text = f"{len(busy)} operations on agent pools are running, {MAX_OPERATIONS} at once are allowed"
            raise NotReadyYet(text, reason="WaitingForTurn", delay_s=LIST_EVERY.total_seconds() * 1.5)

    async def _require_running(self) -> None:
        """A write to a cluster that starts, stops or is being changed can leave it Failed."""
        async with self._checking:
            now = self._clock()
            if self._cluster is None or now - self._cluster[0] >= LIST_EVERY:
                cluster = await self._call("cluster", lambda: self._client.managed_clusters.get(*self._scope))
                properties = cluster.get("properties") or {}
                power = (properties.get("powerState") or {}).get("code") or "Running"
                state = (properties.get("provisioningState") or "") if power == "Running" else power
                self._cluster = (now, str(state))
            state = self._cluster[1]
        if state != "Succeeded":
            name = self._settings.cluster_name
            cure = {
                "Stopped": f"`az aks start -g {self._settings.resource_group} -n {name}` starts it",
                "Failed": f"`az aks update -g {self._settings.resource_group} -n {name}` reconciles it",
            }.get(state, "it is waited for")
            raise NotReadyYet(f"the cluster {name} is {state}; {cure}", reason="ClusterNotReady", delay_s=30)

    async def _call(self, kind: str, send: Callable[[], Awaitable[T]]) -> T:
        now = self._clock()
        for key in ("*", kind):
            pause = self._pauses.get(key)
            if pause and now < pause.until:
                raise AzureRefused(pause.failure, (pause.until - now).total_seconds())
        try:
            async with asyncio.timeout(CALL_S):
                result = await send()
        except (AzureError, TimeoutError, OSError) as error:
            failure = classify_error(error)
            raise AzureRefused(failure, self._pause(kind, failure)) from error
        self._failures = 0
        return result

    def _pause(self, kind: str, failure: Failure) -> float:
        """How long to wait after a failure, in seconds; requests of that kind are held back meanwhile."""
        wait_s = failure.retry_after_s or _WAITS_S.get(failure.reason, 0.0)
        if failure.reason is Reason.TRANSIENT:
            self._failures += 1
            wait_s = max(wait_s, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(self._failures - 1, 10)))
        everything = failure.code in _THROTTLE_ALL
        shared = kind in ("list", "cluster", "usages")
        if shared:
            wait_s = max(wait_s, _FIRST_WAIT_S)
        if wait_s and (shared or failure.reason is Reason.THROTTLED):
            until = self._clock() + timedelta(seconds=wait_s)
            self._pauses["*" if everything else kind] = _Pause(until, failure)
        return wait_s

    def _remember(self, name: str, pool: Pool | None) -> Pool | None:
        self._writes += 1
        self._written[name] = self._writes
        if pool is None:
            self._pools.pop(name, None)
        else:
            self._pools[name] = pool
        return pool


def _require_ours(pool: Pool) -> None:
    if not pool.uid:
        raise ValueError(f"agent pool {pool.name} is not ours and is never written to")
