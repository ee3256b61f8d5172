# SPDX-License-Identifier: Apache-2.0
"""One Workspace brought one step closer to what it asks for: the line of this project, top to bottom.

    Workspace -> Plan -> nodes -> [objects] -> apply -> observe -> Status -> patch

Called by controller.py whenever anything about the Workspace changed, in any order and as often as it likes: a pass
derives everything from what is there, and one that finds nothing to do makes no request.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from kaito_ray.adapter_status import pin
from kaito_ray.after_tuning import Next, clear_job, give_back, next_step
from kaito_ray.apply import Applied, Applier
from kaito_ray.children import Children
from kaito_ray.cluster import Cluster, KubeObject
from kaito_ray.errors import ClusterUnavailable, KaitoRayError, LeaseLost, NotReadyYet
from kaito_ray.finalizer import add_finalizer, release
from kaito_ray.informer import Key, key_of
from kaito_ray.model_facts import ModelFacts
from kaito_ray.nodes.byo_size import size_of_nodes
from kaito_ray.nodes.provisioner import NodeProvisioner, NodesObserved
from kaito_ray.observe import observe
from kaito_ray.report import Reporter
from kaito_ray.settings import Provisioner
from kaito_ray.sku import Sku
from kaito_ray.status import derive_status
from kaito_ray.tuned_adapters import with_tuned_adapters
from kaito_ray.tuning_watch import TuningWatch
from kaito_ray.wish import Planner, named_objects, observe_config, observe_missing, watched_objects
from kaito_ray.workspace import Workspace, parse_workspace
from kaito_ray.world import World


@dataclass(frozen=True, slots=True)
class Wish:
    """What a Workspace asks for, as far as it can be understood; `error` says why it cannot."""

    workspace: Workspace | None = None
    step: Next | None = None
    missing: tuple[str, ...] = ()
    error: KaitoRayError | None = None


class Reconciler:
    """Reconciles Workspaces of one cluster, each by its key."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        provisioner: NodeProvisioner,
        planner: Planner,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._provisioner = provisioner
        self._planner = planner
        self._now = now
        applier = Applier(cluster, world)
        self._tuning = TuningWatch(cluster, world)
        self._children = Children(applier, world, self._tuning, planner.settings)
        self._facts = ModelFacts(applier, world, planner.catalogue)
        self._reporter = Reporter(cluster, world)
        # Nodes that are brought along need nothing done when a Workspace goes; what it owns is collected by Kubernetes.
        self._gives_back = planner.settings.provisioner is not Provisioner.BYO

    async def reconcile(self, key: Key) -> float | None:
        """One pass; the seconds after which another is wanted even if nothing changes, None for never."""
        document = self._world.workspace(key)
        if document is None:
            return None
        now = self._now()
        if document["metadata"].get("deletionTimestamp"):
            return await release(self._cluster, self._world, self._provisioner, self._reporter, document, now)
        wish = await self._wish(document, now)
        nodes = await self._nodes(document, wish, now)
        applied, refusal = await self._apply(document, wish, nodes, now)
        observed = observe(self._world, key, nodes, step=wish.step, applied=applied, refusal=refusal, now=now)
        observed = await self._tuning.look(key, observed, now)
        status = derive_status(document, wish.step.plan if wish.step else None, observed, now)
        return await self._reporter.report(document, status, observed, now)

    async def _wish(self, document: KubeObject, now: datetime) -> Wish:
        """What the Workspace asks for, and from here on wake it when something it names changes."""
        key = key_of(document)
        try:
            workspace = parse_workspace(document, allow_private_urls=self._planner.settings.allow_private_urls)
        except KaitoRayError as error:
            return Wish(error=error)
        self._world.refer(key, watched_objects(workspace))
        self._world.select_nodes(key, workspace.resource.label_selector.match_labels)
        wish = Wish(workspace, missing=await observe_missing(self._world, key, named_objects(workspace)))
        try:
            facts = await self._facts.observe(document, workspace)
            config = await observe_config(self._world, key, workspace)
            size = self._size(workspace)
            plan = self._planner.plan(workspace, config, size, facts)
            step = next_step(self._planner, self._world, document, workspace, plan, size, facts, wish.missing, now)
            plan = pin(with_tuned_adapters(step.plan, self._world), document.get("status") or {})
            return replace(wish, step=replace(step, plan=plan))
        except (ClusterUnavailable, LeaseLost):
            raise
        except KaitoRayError as error:
            return replace(wish, error=error)

    def _size(self, workspace: Workspace) -> str | Sku:
        """The size of nodes that are brought along, where the Workspace names none; else the planner knows."""
        if self._gives_back or workspace.resource.instance_type:
            return ""
        return size_of_nodes(self._world.nodes(workspace.resource.label_selector.match_labels), self._planner.sizes)

    async def _nodes(self, document: KubeObject, wish: Wish, now: datetime) -> NodesObserved:
        """The nodes one step closer; why there are none when the wish cannot be planned."""
        try:
            if wish.error is not None:
                raise wish.error
            if wish.step is None or wish.workspace is None:
                raise AssertionError("a wish without an error has a plan")
            if self._gives_back:
                await add_finalizer(self._cluster, self._world, document)
                if wish.step.rests:
                    return await give_back(self._provisioner, document, wish.workspace, wish.step.rests)
                if wish.step.lint is not None:
                    return wish.step.lint.nodes()
            return await self._provisioner.ensure(wish.step.plan, wish.workspace, now)
        except (ClusterUnavailable, LeaseLost):
            raise
        except KaitoRayError as error:
            delay_s = error.delay_s if isinstance(error, NotReadyYet) else None
            return NodesObserved(False, (), error.reason, str(error), requeue_after_s=delay_s)

    async def _apply(
        self, document: KubeObject, wish: Wish, nodes: NodesObserved, now: datetime
    ) -> tuple[Applied, KaitoRayError | None]:
        """What the plan renders to, in the cluster; or why not."""
        step = wish.step
        if step is None:
            return Applied(), None
        try:
            if step.tuned and not await clear_job(self._cluster, self._world, document, step.job):
                return Applied(), None
            return await self._children.apply(document, step, nodes, wish.missing, now), None
        except (ClusterUnavailable, LeaseLost):
            raise
        except KaitoRayError as error:
            return Applied(), error
