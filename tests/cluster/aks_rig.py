# SPDX-License-Identifier: Apache-2.0
"""Workspaces on the real provisioner of agent pools and the real SDK, against a fake ARM, in time that tests turn.

Stands in for the operator's loop: each Workspace gets a pass when its last one asked for it, `status.nodePool` is
carried from pass to pass as an API server would, and nothing else survives `restart`.

    async with aks_rig() as rig:
        rig.apply("one")
        await rig.run(lambda: rig.ready("one"))
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from azure.mgmt.containerservice.aio import ContainerServiceClient

from builders import a_document, a_serve_plan
from cluster.fake_arm import FakeArm
from cluster.fake_nodes import SIZES, FakeNodes
from cluster.fake_pool import Clock, FakePool
from kaito_ray.errors import DoesNotFit, NotReadyYet
from kaito_ray.nodes.aks import AksNodes
from kaito_ray.nodes.arm import Arm
from kaito_ray.nodes.azure_client import azure_client
from kaito_ray.nodes.candidate import size_in_use
from kaito_ray.nodes.provisioner import NodesObserved, Notice
from kaito_ray.plan import Plan
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes
from kaito_ray.workspace import Workspace, parse_workspace
from kaito_ray.workspace_status import NodePoolStatus

Json = Any


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass showed, and when."""

    at: datetime
    observed: NodesObserved


@dataclass(slots=True)
class Rig:
    """The harness; see the module."""

    arm: FakeArm
    clock: Clock
    settings: Settings
    nodes: FakeNodes
    sizes: Sizes
    node_counts: dict[str, int] = field(default_factory=dict)
    too_small: set[str] = field(default_factory=set)
    documents: dict[str, dict[str, Json]] = field(default_factory=dict)
    seen: dict[str, list[Seen]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    leads: bool = True
    clients: list[ContainerServiceClient] = field(default_factory=list)
    provisioner: AksNodes = field(init=False)
    due: dict[str, datetime] = field(default_factory=dict)

    def restart(self) -> None:
        """A new operator, which knows nothing but what stands in Azure and in the Workspaces."""
        self.clients.append(azure_client(self.settings, {}))
        arm = Arm(self.clients[-1], self.settings, self.clock, lambda: self.leads)
        self.provisioner = AksNodes(arm, self.nodes.lister, self.sizes, self.plan, self.settings)
        self.due = dict.fromkeys(self.documents, self.clock.now)

    def apply(self, name: str, **overrides: Json) -> None:
        """Make or change a Workspace; `overrides` as those of `a_document`."""
        status = self.documents.get(name, {}).get("status", {})
        document = a_document(**({"name": name, "uid": f"uid-of-{name}"} | overrides))
        self.documents[name] = document | {"status": status}
        self.due[name] = self.clock.now

    def annotate(self, name: str, **annotations: str) -> None:
        """Set annotations of ours, as in `idle_after="30m"`."""
        ours = {f"kaito-ray.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.documents[name]["metadata"].setdefault("annotations", {}).update(ours)
        self.due[name] = self.clock.now

    def workspace(self, name: str) -> Workspace:
        """The Workspace as the operator reads it."""
        return parse_workspace(self.documents[name])

    async def plan(self, workspace: Workspace, size: str) -> Plan:
        """As many nodes of a size as `node_counts` says; the model fits on every size but those in `too_small`."""
        sku = self.sizes.get(size)
        if sku.name in self.too_small:
            raise DoesNotFit(f"the model does not fit on {sku.name}")
        metadata = workspace.metadata
        return a_serve_plan(
            name=metadata.name,
            namespace=metadata.namespace,
            uid=metadata.uid,
            instance_type=sku.name,
            node_labels=workspace.resource.label_selector.match_labels,
            nodes=self.node_counts.get(sku.name, 1),
            gpus_per_node=sku.gpus,
        )

    async def step(self, name: str) -> NodesObserved:
        """One pass: plan, ensure, and write the status."""
        workspace = self.workspace(name)
        planned = await self.plan(workspace, size_in_use(workspace))
        observed = await self.provisioner.ensure(planned, workspace, self.clock.now)
        NodePoolStatus.model_validate(observed.node_pool)
        self.documents[name]["status"] = {"nodePool": dict(observed.node_pool)}
        self.seen.setdefault(name, []).append(Seen(self.clock.now, observed))
        self.notices += observed.notices
        self.due[name] = self.clock.now + timedelta(seconds=observed.requeue_after_s or 60.0)
        return observed

    async def run(self, until: Callable[[], bool], limit_s: float = 7200.0) -> None:
        """Pass after pass, each when it is due, until the condition holds; fails after `limit_s` of the clock."""
        end = self.clock.now + timedelta(seconds=limit_s)
        while not until():
            now = min(self.due.values())
            assert now <= end, f"not within {limit_s} s: {[str(self.last(name)) for name in self.documents][:3]}"
            self.clock.now = max(self.clock.now, now)
            due = [name for name, at in self.due.items() if at <= self.clock.now]
            await asyncio.gather(*(self.step(name) for name in due))

    async def run_for(self, seconds: float) -> None:
        """Pass after pass for that long."""
        end = self.clock.now + timedelta(seconds=seconds)
        await self.run(lambda: min(self.due.values()) > end, seconds)
        self.clock.now = end

    async def delete(self, name: str, limit_s: float = 7200.0) -> int:
        """Release until nothing is left, and forget the Workspace; the number of passes it took."""
        end = self.clock.now + timedelta(seconds=limit_s)
        for count in range(1, 10_000):
            wait_s = 10.0
            try:
                if await self.provisioner.release(self.workspace(name)):
                    del self.documents[name], self.due[name]
                    return count
            except NotReadyYet as error:
                wait_s = error.delay_s
            self.clock.turn(wait_s)
            assert self.clock.now < end, "not released"
        raise AssertionError

    def last(self, name: str) -> NodesObserved:
        """What the newest pass showed."""
        return self.seen[name][-1].observed

    def ready(self, *names: str) -> bool:
        """Whether all of these are ready."""
        return all(name in self.seen and self.last(name).ready for name in names)

    def reasons(self, name: str) -> list[str]:
        """The reasons a Workspace showed one after the other, without repeats in a row."""
        reasons = [seen.observed.reason for seen in self.seen.get(name, [])]
        return [reason for index, reason in enumerate(reasons) if index == 0 or reasons[index - 1] != reason]

    def ours(self) -> list[FakePool]:
        """The pools that carry our tags."""
        self.arm.advance()
        return [
            pool for pool in self.arm.pools.values() if "kaito-ray-workspace-uid" in pool.properties.get("tags", {})
        ]

    def sizes_asked_for(self) -> list[str]:
        """The sizes of all pools that were asked for, in order, with spot and zone."""
        asked = []
        for request in self.arm.calls("PUT"):
            properties = request.body["properties"]
            if request.headers.get("If-None-Match") == "*":
                spot = " spot" if properties.get("scaleSetPriority") == "Spot" else ""
                zone = "".join(f" zone {zone}" for zone in properties.get("availabilityZones", []))
                asked.append(f"{properties['vmSize']}{spot}{zone}")
        return asked


@asynccontextmanager
async def aks_rig(**settings: Json) -> AsyncIterator[Rig]:
    """A rig with its ARM, on which only a system pool exists."""
    clock = Clock()
    async with FakeArm(clock) as arm:
        arm.add_pool("system")
        rig = Rig(
            arm=arm,
            clock=clock,
            settings=Settings(
                subscription_id=arm.subscription,
                resource_group=arm.group,
                cluster_name=arm.cluster,
                location=arm.location,
                arm_endpoint=arm.url,
                azure_credential="fake",
                **settings,
            ),
            nodes=FakeNodes(arm),
            sizes=SIZES,
        )
        rig.restart()
        try:
            yield rig
        finally:
            for client in rig.clients:
                await client.close()
