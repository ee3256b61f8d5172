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
from kaito_ray.informer import Informer, Key, key_of, version_of
from kaito_ray.kinds import CONFIG_MAP, NODE, POD, RAY_CLUSTER, RENDERED, SECRET, WORKSPACE, Kind
from kaito_ray.nodes.node import Node, parse_node
from kaito_ray.pod import Pod, parse_pod

Labels = Mapping[str, str]
_OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


class World:
    """What is in the cluster; `wake(key)` is called for each Workspace that a change concerns.

    `namespaces` limits what is watched; empty means all.
    """

    def __init__(self, cluster: Cluster, wake: Callable[[Key], None], namespaces: Collection[str] = ()) -> None:
        self._cluster = cluster
        self._wake = wake
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._workspaces: dict[Key, KubeObject] = {}
        self._children = {kind: self._scoped(partial(self._child, kind)) for kind in _CHILDREN}
        self._pods = self._scoped(self._pod)
        self._versions = {kind: self._scoped(partial(self._named, kind)) for kind in (CONFIG_MAP, SECRET)}
        self._nodes = Informer(cluster, NODE, parse_node, self._node_changed)
        self._selectors: dict[frozenset[tuple[str, str]], set[Key]] = defaultdict(set)
        self._selector_of: dict[Key, frozenset[tuple[str, str]]] = {}
        self._referrers: dict[tuple[Kind, Key], set[Key]] = defaultdict(set)
        self._references_of: dict[Key, frozenset[tuple[Kind, Key]]] = {}
        self._data: dict[tuple[Kind, Key], tuple[str, Mapping[str, str]]] = {}

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
        return True

    def refresh_workspace(self, document: KubeObject) -> None:
        """Take a Workspace as a write returned it, unless it was deleted meanwhile."""
        if key_of(document) in self._workspaces:
            self.put_workspace(document)

    def drop_workspace(self, key: Key) -> None:
        """Forget a Workspace that is gone."""
        self._workspaces.pop(key, None)
        self.select_nodes(key, {})
        self.refer(key, ())

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
        informer = self._of(self._children[kind], key[0])
        return informer.get(key) if informer else None

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
        """Wake the Workspace when one of these ConfigMaps or Secrets of its namespace changes."""
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
        version = informer.get(key) if informer else None
        if version is None:
            return None
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
        def changed(_: Key, before: KubeObject | None, after: KubeObject | None) -> None:
            for document in (before, after):
                if document is not None:
                    self._wake(workspace_of(document))

        return Informer(
            self._cluster, kind, partial(_slim, kind), changed, group=workspace_of, namespace=scope, labels=_OURS
        )

    def _pod(self, scope: str | None) -> Informer[Pod]:
        def changed(_: Key, before: Pod | None, after: Pod | None) -> None:
            for pod in (before, after):
                if pod is not None:
                    self._wake(pod.workspace)

        return Informer(
            self._cluster, POD, parse_pod, changed, group=lambda pod: pod.workspace, namespace=scope, labels=_OURS
        )

    def _named(self, kind: Kind, scope: str | None) -> Informer[str]:
        """Only versions are kept: clusters hold large ConfigMaps and Secrets that are none of our business."""

        def changed(key: Key, _before: str | None, _after: str | None) -> None:
            for workspace in self._referrers.get((kind, key), ()):
                self._wake(workspace)

        return Informer(
            self._cluster,
            kind,
            lambda document: str(document["metadata"]["resourceVersion"]),
            changed,
            namespace=scope,
            metadata_only=True,
        )

    def _node_changed(self, _: Key, before: Node | None, after: Node | None) -> None:
        for selector, workspaces in list(self._selectors.items()):
            labels = dict(selector)
            if any(node is not None and node.has_labels(labels) for node in (before, after)):
                for workspace in list(workspaces):
                    self._wake(workspace)


_CHILDREN = (*RENDERED, RAY_CLUSTER)


def workspace_of(document: KubeObject) -> Key:
    """The Workspace that an object's labels name."""
    labels = document["metadata"].get("labels") or {}
    return labels.get(names.LABEL_WORKSPACE_NAMESPACE, ""), labels.get(names.LABEL_WORKSPACE, "")


def _slim(kind: Kind, document: KubeObject) -> KubeObject:
    """Without the record of who owns which field, which is larger than most objects."""
    left_out = {"spec"} if kind is RAY_CLUSTER else set()
    slim = {key: value for key, value in document.items() if key not in left_out}
    slim["metadata"] = {key: value for key, value in document["metadata"].items() if key != "managedFields"}
    return slim
