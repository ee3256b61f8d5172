# SPDX-License-Identifier: Apache-2.0
"""Rendered objects in, the same objects in the cluster out: the one place where children are written.

Called once per pass by reconcile.py. An object that already is as wanted costs nothing; one that is not is brought
there by server-side apply with a single field manager; what is no longer rendered is deleted. A name that belongs to
somebody else is left alone and reported.
"""

import logging
from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kaito_ray import names
from kaito_ray.cluster import Cluster, Conflict, KubeObject
from kaito_ray.drift import is_current, stamped, was_applied
from kaito_ray.errors import NameTaken, NotReadyYet
from kaito_ray.informer import Key, key_of
from kaito_ray.kinds import RENDERED, Kind, kind_of
from kaito_ray.nodes.provisioner import Notice
from kaito_ray.world import World, workspace_of

logger = logging.getLogger(__name__)

# An object that others keep changing is repaired this often in this time, then reported instead.
_REPAIRS = 3
_REPAIR_WINDOW = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a pass wrote; `contested` names the objects of which somebody keeps changing our fields."""

    written: tuple[str, ...] = ()
    contested: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


class Applier:
    """Writes the children of Workspaces."""

    def __init__(self, cluster: Cluster, world: World) -> None:
        self._cluster = cluster
        self._world = world
        self._repairs: dict[tuple[Kind, Key], deque[datetime]] = defaultdict(deque)

    async def apply(
        self,
        owner: KubeObject,
        rendered: Sequence[KubeObject],
        now: datetime,
        *,
        keep: Collection[tuple[Kind, Key]] = (),
    ) -> Applied:
        """Bring the children of `owner` to what was rendered, in its order; delete those no longer rendered.

        What `keep` names is left as it is.

        Raises NameTaken before anything is written when a name is
        somebody else's, and NotReadyYet while an object of a former Workspace of that name is still being deleted.
        """
        wanted = [stamped(document, owner) for document in rendered]
        changes = []
        for document in wanted:
            live = self._live(owner, document)
            if live is None or not is_current(document, live):
                changes.append((document, live))
        written: list[str] = []
        contested: list[str] = []
        notices: list[Notice] = []
        for document, live in changes:
            kind, name = kind_of(document), _name(document)
            if live is not None and was_applied(document, live) and not self._may_repair(kind, document, now):
                contested.append(name)
                continue
            self._world.put_child(kind, await self._cluster.apply(kind, document))
            written.append(name)
            if live is not None and was_applied(document, live):
                notices.append(Notice("Warning", "Repaired", f"{name} was changed by somebody else and was put back"))
        await self._prune(owner, {*keep, *((kind_of(document), key_of(document)) for document in wanted)})
        return Applied(tuple(written), tuple(contested), tuple(notices))

    async def create_once(self, owner: KubeObject, document: KubeObject, *, anew: bool = False) -> bool:
        """Create an object whose content stays as it is, such as a Secret with a random value; True when written.

        `anew` writes it also where there is one, because what it says has become wrong.
        """
        if self._live(owner, document) is not None and not anew:
            return False
        kind = kind_of(document)
        self._world.put_child(kind, await self._cluster.apply(kind, stamped(document, owner)))
        return True

    async def start(self, owner: KubeObject, pod: KubeObject) -> None:
        """Create a pod that runs once; one that is there stays as it is."""
        if self._live(owner, pod) is not None:
            return
        kind = kind_of(pod)
        try:
            self._world.put_child(kind, await self._cluster.create(kind, stamped(pod, owner)))
        except Conflict as error:
            raise NotReadyYet(f"{_name(pod)} cannot be made: {error}", delay_s=1) from None

    async def discard(self, owner: KubeObject, kind: Kind) -> None:
        """Delete all children of a kind."""
        await self._prune(owner, (), (kind,))

    async def keep_with(self, kind: Kind, document: KubeObject, other: KubeObject) -> None:
        """Have an object stay until `other` is gone, too; who controls it stays as it is."""
        metadata, uid = document["metadata"], other["metadata"]["uid"]
        owners = metadata.get("ownerReferences") or []
        if any(owner["uid"] == uid for owner in owners):
            return
        also = {"apiVersion": other["apiVersion"], "kind": other["kind"], "name": other["metadata"]["name"], "uid": uid}
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "ownerReferences": [*owners, also]}}
        self._world.put_child(kind, await self._cluster.patch(kind, metadata["namespace"], metadata["name"], patch))

    def _live(self, owner: KubeObject, document: KubeObject) -> KubeObject | None:
        """The object as it is; raises when it is not ours to write."""
        live = self._world.anyones(kind_of(document), key_of(document))
        if live is not None:
            _require_ours(owner, live, _name(document))
        return live

    async def _prune(
        self, owner: KubeObject, keep: Collection[tuple[Kind, Key]], kinds: Collection[Kind] = RENDERED
    ) -> None:
        for kind in kinds:
            for live in self._world.children(kind, key_of(owner)):
                metadata = live["metadata"]
                if (kind, key_of(live)) in keep or metadata.get("deletionTimestamp") or _is_kept(owner, live):
                    continue
                logger.info("deleting %s %s, which is no longer wanted", kind.kind, metadata["name"])
                await self._cluster.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])

    def _may_repair(self, kind: Kind, document: KubeObject, now: datetime) -> bool:
        """Whether to put our fields back once more, rather than quarrel with another writer for ever."""
        times = self._repairs[kind, key_of(document)]
        while times and now - times[0] > _REPAIR_WINDOW:
            times.popleft()
        if len(times) >= _REPAIRS:
            return False
        times.append(now)
        return True


def _name(document: KubeObject) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def _controller(live: KubeObject) -> KubeObject | None:
    owners = live["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def _require_ours(owner: KubeObject, live: KubeObject, name: str) -> None:
    controller = _controller(live)
    if controller is not None and controller["uid"] == owner["metadata"]["uid"]:
        if live["metadata"].get("deletionTimestamp"):
            raise NotReadyYet(f"{name} is being deleted; it is made anew when it is gone", delay_s=5)
        return
    if controller is None and workspace_of(live) == key_of(owner):
        return  # restored from a backup, for example
    if controller is not None and (controller["kind"], controller["name"]) == (names.KIND, owner["metadata"]["name"]):
        raise NotReadyYet(f"{name} of a former Workspace of this name is still being deleted", delay_s=5)
    whose = f"belongs to {controller['kind']} {controller['name']}" if controller else "was not made by kaito-ray"
    raise NameTaken(f"{name} exists and {whose}; delete it, or give the Workspace another name")


def _is_kept(owner: KubeObject, live: KubeObject) -> bool:
    """What is made once stays, and so does what another owner brought under our labels."""
    controller = _controller(live)
    ours = controller is not None and controller["uid"] == owner["metadata"]["uid"]
    name = owner["metadata"]["name"]
    return not ours or live["metadata"]["name"] in {names.token_secret_name(name), names.model_facts_name(name)}
