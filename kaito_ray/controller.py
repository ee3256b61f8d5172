# SPDX-License-Identifier: Apache-2.0
"""The parts of the operator put together: caches, queue, election. Started and fed by operator/main.py.

Every replica watches, so that one that takes over knows the cluster already; only the leader reconciles.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime

from kaito_ray.cluster import Cluster, KubeObject, NotFound
from kaito_ray.errors import KaitoRayError
from kaito_ray.informer import Key, key_of
from kaito_ray.kinds import WORKSPACE
from kaito_ray.lease import Lease
from kaito_ray.metrics import REGISTRY, WorkspaceCollector
from kaito_ray.nodes.provisioner import NodeProvisioner
from kaito_ray.reconcile import Reconciler
from kaito_ray.wish import Planner
from kaito_ray.workqueue import WorkQueue
from kaito_ray.world import World

logger = logging.getLogger(__name__)

_WORKERS = 16
_COLLECT_S = 60.0

CURRENT: ContextVar[Key | None] = ContextVar("CURRENT", default=None)
"""The Workspace that is being reconciled, for log lines."""

MakeProvisioner = Callable[[Cluster, World], NodeProvisioner]


class Controller:
    """One replica of the operator."""

    def __init__(self, cluster: Cluster, lease: Lease, planner: Planner, make_provisioner: MakeProvisioner) -> None:
        self._lease = lease
        self._namespaces = planner.settings.namespaces
        self._resync_s = float(planner.settings.resync_s)
        self._queue: WorkQueue[Key] = WorkQueue(self._reconcile, workers=_WORKERS)
        self.world = World(cluster, self._wake, self._namespaces)
        self._cluster = cluster
        self.provisioner = make_provisioner(cluster, self.world)
        self._reconciler = Reconciler(cluster, self.world, self.provisioner, planner, lambda: datetime.now(UTC))
        self._collector = WorkspaceCollector(lambda: self.world.workspaces)

    async def run(self) -> None:
        """Watch, and reconcile while this replica leads; ends only by an error or by being cancelled."""
        REGISTRY.register(self._collector)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.world.run())
                group.create_task(self._lease.run(self._lead))
        finally:
            REGISTRY.unregister(self._collector)

    def saw(self, document: KubeObject) -> None:
        """A Workspace was made or changed."""
        if self._namespaces and document["metadata"]["namespace"] not in self._namespaces:
            return
        if self.world.put_workspace(document):
            self._queue.wake(key_of(document))

    def lost(self, document: KubeObject) -> None:
        """A Workspace is gone."""
        known = self.world.workspace(key_of(document))
        # Events of a Workspace and of a later one of the same name may come in any order.
        if known is not None and known["metadata"]["uid"] == document["metadata"]["uid"]:
            self.world.drop_workspace(key_of(document))

    @property
    def waits_for(self) -> list[str]:
        """What was not listed yet; the operator is of use once this is empty."""
        return self.world.unsynced

    async def _lead(self) -> None:
        await self.world.wait_until_synced()
        for key in self.world.keys:
            self._queue.wake(key)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._queue.run())
                group.create_task(self._collect())
        finally:
            self.world.replicas.stop()

    async def _collect(self) -> None:
        """Have nodes given back whose Workspace is gone, should a pass or an operator have died on the way."""
        while True:
            await asyncio.sleep(_COLLECT_S)
            try:
                # From the API and not from the cache: a Workspace that is missed here loses its nodes.
                lists = [
                    await self._cluster.list(WORKSPACE, scope, metadata_only=True)
                    for scope in self._namespaces or (None,)
                ]
                uids = {document["metadata"]["uid"] for documents, _ in lists for document in documents}
                gone = await self.provisioner.collect(uids, datetime.now(UTC))
            except (KaitoRayError, NotFound) as error:
                logger.warning("nodes of Workspaces that are gone could not be looked for: %s", error)
            else:
                for name in gone:
                    logger.warning("node pool %s is deleted: its Workspace is gone", name)

    async def _reconcile(self, key: Key) -> float | None:
        """A pass, and one more after a while in case an event was lost somewhere."""
        CURRENT.set(key)  # each turn of the queue is a task, and thus a context, of its own
        after_s = await self._reconciler.reconcile(key)
        if self.world.workspace(key) is None:
            return None
        return self._resync_s if after_s is None else min(after_s, self._resync_s)

    def _wake(self, key: Key) -> None:
        if self.world.workspace(key) is not None:
            self._queue.wake(key)
