# SPDX-License-Identifier: Apache-2.0
"""Everything the operator knows about the cluster, kept current by watches; who is woken by what stands here too.

A reconcile reads only from here. Objects that are made for a Workspace find it by their labels, nodes by its selector,
ConfigMaps and Secrets by being named in it; whatever changes wakes the Workspaces it concerns.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from kaito_ray import names
from kaito_ray.cluster import Cluster, KubeObject, NotFound
from kaito_ray.in_place import InPlace
from kaito_ray.informer import Informer, Key, key_of, version_of
from kaito_ray.kinds import (
    CLAIM,
    CONFIG_MAP,
    NODE,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    RENDERED,
    SECRET,
    SERVICE,
    WORKSPACE,
    Kind,
)
from kaito_ray.kuberay import parse_ray_job
from kaito_ray.nodes.node import Node, parse_node
from kaito_ray.pod import Pod, parse_pod
from kaito_ray.replica_watch import ReplicaWatch
from kaito_ray.tuning_event import PREFIX

Labels = Mapping[str, str]
_OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
# Of pods, those that judge data are children like others; the rest are Ray's.
_JUDGES = f"{_OURS},{names.LABEL_PART}={names.PART_LINT}"
_RAYS = f"{_OURS},{names.LABEL_PART}!={names.PART_LINT}"


class World:
    """What is in the cluster; `wake(key)` is called for each Workspace that a change concerns.

    `namespaces` limits what is watched; empty means all.
    """

    _VERSIONED = (CONFIG_MAP, SECRET)

    def __init__(self, cluster: Cluster, wake: Callable[[Key], None], namespaces: Collection[str] = ()) -> None:
        self._cluster = cluster
        self._wake = wake
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._workspaces: dict[Key, KubeObject] = {}
        self._children = {kind: self._scoped(partial(self._child, kind)) for kind in _CHILDREN}
        self._pods = self._scoped(self._pod)
        self._versions = {kind: self._scoped(partial(self._named, kind)) for kind in self._VERSIONED}
        self._nodes = Informer(cluster, NODE, parse_node, self._node_changed)
        self._selectors: dict[frozenset[tuple[str, str]], set[Key]] = defaultdict(set)
        self._selector_of: dict[Key, frozenset[tuple[str, str]]] = {}
        self._referrers: dict[tuple[Kind, Key], set[Key]] = defaultdict(set)
        self._references_of: dict[Key, frozenset[tuple[Kind, Key]]] = {}
        self._data: dict[tuple[Kind, Key], tuple[str, Mapping[str, str]]] = {}
        self.replicas = ReplicaWatch(cluster, wake)
        """What the copies of models say of themselves."""
        self.in_place = InPlace()
        self.last_words: dict[Key, str] = {}
        """What RayJobs said when an attempt failed: KubeRay forgets it when it begins the next one."""

    async def run(self) -> None:
        """Watch everything, for ever."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers():
                group.create_task(informer.run(), name=f"watch of {informer.kind.crd}")

    async def wait_until_synced(self) -> None:
        """Wait until everything was listed once."""
        for informer in self._informers():
            await informer.synced.wait()

    @property
    def unsynced(self) -> list[str]:
        """The kinds that were not listed yet."""
        return sorted({informer.kind.crd for informer in self._informers() if not informer.synced.is_set()})

    def is_absent(self, kind: Kind) -> bool:
        """Whether the CRD of a kind is not installed."""
        return any(informer.absent for informer in self._children[kind].values())

    # Workspaces

    def put_workspace(self, document: KubeObject) -> bool:
        """Take a Workspace as a watch or a write brought it; False when it is no news."""
        key = key_of(document)
        known = self._workspaces.get(key)
        if known is not None and version_of(known) >= version_of(document):
            return False
        self._workspaces[key] = _slim(WORKSPACE, document)
        self._wake_referrers(WORKSPACE, key)
        return True

    def refresh_workspace(self, document: KubeObject) -> None:
        """Take a Workspace as a write returned it, unless it was deleted meanwhile."""
        if key_of(document) in self._workspaces:
            self.put_workspace(document)

    def drop_workspace(self, key: Key) -> None:
        """Forget a Workspace that is gone."""
        if self._workspaces.pop(key, None):
            self._wake_referrers(WORKSPACE, key)
        self.select_nodes(key, {})
        self.refer(key, ())
        self.replicas.forget(key)
        self.in_place.forget(key)

    def workspace(self, key: Key) -> KubeObject | None:
        """A Workspace as the API has it."""
        return self._workspaces.get(key)

    @property
    def workspaces(self) -> Iterable[KubeObject]:
        """All Workspaces."""
        return list(self._workspaces.values())

    @property
    def keys(self) -> list[Key]:
        """The keys of all Workspaces."""
        return list(self._workspaces)

    # What was made for a Workspace

    def children(self, kind: Kind, workspace: Key) -> list[KubeObject]:
        """The objects of a kind that carry a Workspace's labels."""
        informer = self._of(self._children[kind], workspace[0])
        return list(informer.of_group(workspace)) if informer else []

    def child(self, kind: Kind, key: Key) -> KubeObject | None:
        """One object that carries our label."""
        found = self.anyones(kind, key)
        return found if found is not None and is_ours(found) else None

    def anyones(self, kind: Kind, key: Key) -> KubeObject | None:
        """The object of that name, whoever made it; of what is not ours only the metadata that tells whose it is."""
        for informers in (self._children[kind], self._versions.get(kind, {})):
            informer = self._of(informers, key[0])
            found: KubeObject | None = informer.get(key) if informer else None
            if found is not None:
                return found
        return None

    def put_child(self, kind: Kind, document: KubeObject) -> None:
        """Take an object as a write returned it, so that the next pass need not wait for the watch."""
        informer = self._of(self._children[kind], key_of(document)[0])
        if informer:
            informer.put(document)

    def pods(self, workspace: Key) -> list[Pod]:
        """The Ray pods of a Workspace."""
        informer = self._of(self._pods, workspace[0])
        return list(informer.of_group(workspace)) if informer else []

    def all_pods(self) -> list[Pod]:
        """The Ray pods of all Workspaces."""
        return [pod for informer in self._pods.values() for pod in informer]

    # What a Workspace names

    def nodes(self, labels: Labels) -> list[Node]:
        """The nodes that carry all of `labels`, by name."""
        return sorted((node for node in self._nodes if node.has_labels(labels)), key=lambda node: node.name)

    def select_nodes(self, workspace: Key, labels: Labels) -> None:
        """Wake the Workspace when a node with these labels changes; no labels for never."""
        selector = frozenset(labels.items())
        before = self._selector_of.get(workspace)
        if before == selector:
            return
        if before is not None:
            self._selectors[before].discard(workspace)
            if not self._selectors[before]:
                del self._selectors[before]
            del self._selector_of[workspace]
        if selector:
            self._selector_of[workspace] = selector
            self._selectors[selector].add(workspace)

    def refer(self, workspace: Key, references: Iterable[tuple[Kind, str]]) -> None:
        """Wake the Workspace when one of these objects of its namespace changes."""
        wanted = frozenset((kind, (workspace[0], name)) for kind, name in references)
        before = self._references_of.pop(workspace, frozenset())
        if wanted:
            self._references_of[workspace] = wanted
        for reference in before - wanted:
            self._referrers[reference].discard(workspace)
            if not self._referrers[reference]:
                del self._referrers[reference]
                self._data.pop(reference, None)
        for reference in wanted - before:
            self._referrers[reference].add(workspace)

    async def data(self, kind: Kind, key: Key) -> Mapping[str, str] | None:
        """The data of a ConfigMap or Secret (still in base64); None when there is none. Read only when it changed."""
        informer = self._of(self._versions[kind], key[0])
        known = informer.get(key) if informer else None
        if known is None:
            return None
        version = known["metadata"]["resourceVersion"]
        cached = self._data.get((kind, key))
        if cached is not None and cached[0] == version:
            return cached[1]
        try:
            document = await self._cluster.get(kind, *key)
        except NotFound:
            return None
        data: Mapping[str, str] = document.get("data") or {}
        self._data[kind, key] = (document["metadata"]["resourceVersion"], data)
        return data

    # Watches

    def _scoped(self, make: Callable[[str | None], Informer[Any]]) -> dict[str | None, Informer[Any]]:
        return {scope: make(scope) for scope in self._scopes}

    def _of(self, informers: Mapping[str | None, Informer[Any]], namespace: str) -> Informer[Any] | None:
        """The informer that covers a namespace."""
        return informers.get(None if self._scopes == (None,) else namespace)

    def _informers(self) -> Iterable[Informer[Any]]:
        yield self._nodes
        for scoped in (*self._children.values(), *self._versions.values(), self._pods):
            yield from scoped.values()

    def _child(self, kind: Kind, scope: str | None) -> Informer[KubeObject]:
        """Everybody's objects, so that a name that is taken is known; ConfigMaps and Secrets are too many for that."""

        def changed(key: Key, before: KubeObject | None, after: KubeObject | None) -> None:
            for document in (before, after):
                if document is not None and is_ours(document):
                    self._wake(workspace_of(document))
            self._wake_referrers(kind, key)
            if kind is RAY_JOB:
                self._listen(key, after)

        labels = _JUDGES if kind is POD else _OURS if kind in self._VERSIONED else ""
        parse = partial(_slim, kind)
        return Informer(self._cluster, kind, parse, changed, group=_group, namespace=scope, labels=labels)

    def _listen(self, key: Key, job: KubeObject | None) -> None:
        message = parse_ray_job(job).message if job is not None else ""
        if job is None:
            self.last_words.pop(key, None)
        elif PREFIX in message:
            self.last_words[key] = message

    def _pod(self, scope: str | None) -> Informer[Pod]:
        def changed(_: Key, before: Pod | None, after: Pod | None) -> None:
            for pod in (before, after):
                if pod is not None:
                    self._wake(pod.workspace)

        return Informer(
            self._cluster, POD, parse_pod, changed, group=lambda pod: pod.workspace, namespace=scope, labels=_RAYS
        )

    def _named(self, kind: Kind, scope: str | None) -> Informer[KubeObject]:
        """Only metadata: clusters hold large ConfigMaps and Secrets that are none of our business."""

        def changed(key: Key, _before: KubeObject | None, _after: KubeObject | None) -> None:
            self._wake_referrers(kind, key)

        return Informer(self._cluster, kind, _stub, changed, namespace=scope, metadata_only=True)

    def _wake_referrers(self, kind: Kind, key: Key) -> None:
        for workspace in list(self._referrers.get((kind, key), ())):
            self._wake(workspace)

    def _node_changed(self, _: Key, before: Node | None, after: Node | None) -> None:
        for selector, workspaces in list(self._selectors.items()):
            labels = dict(selector)
            if any(node is not None and node.has_labels(labels) for node in (before, after)):
                for workspace in list(workspaces):
                    self._wake(workspace)


_CHILDREN = (*RENDERED, RAY_CLUSTER, SERVICE)


def workspace_of(document: KubeObject) -> Key:
    """The Workspace that an object's labels name."""
    labels = document["metadata"].get("labels") or {}
    return labels.get(names.LABEL_WORKSPACE_NAMESPACE, ""), labels.get(names.LABEL_WORKSPACE, "")


def is_ours(document: KubeObject) -> bool:
    """Whether an object says that we made it."""
    labels = document["metadata"].get("labels") or {}
    return bool(labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY)


def _group(document: KubeObject) -> Key | None:
    return workspace_of(document) if is_ours(document) else None


def _slim(kind: Kind, document: KubeObject) -> KubeObject:
    """Without the record of who owns which field, which is larger than most objects."""
    if kind is SERVICE or (kind is not WORKSPACE and not is_ours(document)):
        # Of a claim that somebody else made it counts whether it is bound.
        phase = {"status": {"phase": (document.get("status") or {}).get("phase")}} if kind is CLAIM else {}
        return _stub(document) | phase
    left_out = {"spec"} if kind is RAY_CLUSTER else set()
    slim = {key: value for key, value in document.items() if key not in left_out}
    slim["metadata"] = {key: value for key, value in document["metadata"].items() if key != "managedFields"}
    return slim


def _stub(document: KubeObject) -> KubeObject:
    """What tells whose an object is, and which version of it."""
    kept = ("name", "namespace", "uid", "resourceVersion", "deletionTimestamp", "labels", "ownerReferences")
    metadata = document["metadata"]
    return {"metadata": {key: metadata[key] for key in kept if key in metadata}}
