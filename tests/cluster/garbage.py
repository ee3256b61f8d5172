# SPDX-License-Identifier: Apache-2.0
"""The garbage collector and the namespace controller: what a cluster deletes or makes by itself.

Both follow the store's changes and act a moment later, as the real controllers do.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from cluster.call import Call
from cluster.deletion import FOREGROUND, ORPHAN, Deletion
from cluster.failure import Failure
from cluster.resource import Object, Registry
from cluster.store import Change, Key, Store
from cluster.verbs import Verbs

_USER_AGENT = "simulator/kube-controller-manager"


class Garbage:
    """Deletes what has lost its owners, lets go of owners whose dependents are gone, fills and empties namespaces."""

    def __init__(self, store: Store, registry: Registry, verbs: Verbs, deletion: Deletion) -> None:
        self._store = store
        self._registry = registry
        self._verbs = verbs
        self._deletion = deletion
        self._tasks: set[asyncio.Task[None]] = set()
        store.listeners.append(self._on_change)

    def _on_change(self, table: str, change: Change) -> None:
        metadata = change.entry.object["metadata"]
        uid = metadata["uid"]
        if table == "namespaces" and change.type == "ADDED":
            self._start(self._furnish(metadata["name"]))
        if change.type == "DELETED":
            if self._store.dependents.get(uid):
                self._start(self._collect_dependents(uid))
            for reference in metadata.get("ownerReferences") or ():
                self._start(self._release_owner(reference, metadata.get("namespace", "")))
            namespace = self._store.get("namespaces", "", metadata.get("namespace", ""))
            if namespace is not None and "deletionTimestamp" in namespace.object["metadata"]:
                self._start(self._empty(metadata["namespace"]))
            return
        references = metadata.get("ownerReferences")
        if references and (
            not change.previous or change.previous.object["metadata"].get("ownerReferences") != references
        ):
            self._start(self._check_owners(table, change.entry.key))
        if "deletionTimestamp" in metadata:
            finalizers = metadata.get("finalizers") or ()
            if ORPHAN in finalizers:
                self._start(self._orphan(table, change.entry.key))
            elif FOREGROUND in finalizers:
                self._start(self._foreground(table, change.entry.key))
            if table == "namespaces":
                self._start(self._empty(metadata["name"]))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _collect_dependents(self, uid: str) -> None:
        for table, key in list(self._store.dependents.get(uid, ())):
            await self._check_owners(table, key)

    async def _check_owners(self, table: str, key: Key) -> None:
        """Delete an object none of whose owners exists; drop the references to absent ones otherwise."""
        entry = self._store.table(table).entries.get(key)
        if entry is None:
            return
        references = entry.object["metadata"].get("ownerReferences") or []
        solid = [one for one in references if self._exists(one, key[0])]
        if len(solid) == len(references):
            return
        if solid:
            self._store.put(table, _with_owners(entry.object, solid))
            return
        await self._delete(table, key, entry.object["metadata"]["uid"], "Background")

    def _exists(self, reference: Object, namespace: str) -> bool:
        owner = self._owner(reference, namespace)
        return owner is not None and owner["metadata"]["uid"] == reference["uid"]

    def _owner(self, reference: Object, namespace: str) -> Object | None:
        resource = self._registry.of_kind(reference["apiVersion"], reference["kind"])
        if resource is None:
            # The kind is not served now; the collector waits rather than deletes.
            return {"metadata": {"uid": reference["uid"]}}
        entry = self._store.get(resource.table, namespace if resource.namespaced else "", reference["name"])
        return entry.object if entry else None

    async def _release_owner(self, reference: Object, namespace: str) -> None:
        resource = self._registry.of_kind(reference["apiVersion"], reference["kind"])
        owner = self._owner(reference, namespace)
        if resource is None or owner is None or "deletionTimestamp" not in owner["metadata"]:
            return
        if FOREGROUND in (owner["metadata"].get("finalizers") or ()):
            await self._foreground(resource.table, (namespace if resource.namespaced else "", reference["name"]))

    async def _foreground(self, table: str, key: Key) -> None:
        """Delete the dependents first; the owner goes when those that block it are gone."""
        entry = self._store.table(table).entries.get(key)
        if entry is None:
            return
        uid = entry.object["metadata"]["uid"]
        blocked = False
        for place in list(self._store.dependents.get(uid, ())):
            dependent = self._store.table(place[0]).entries.get(place[1])
            if dependent is None:
                continue
            metadata = dependent.object["metadata"]
            mine = next(one for one in metadata["ownerReferences"] if one["uid"] == uid)
            blocked = blocked or bool(mine.get("blockOwnerDeletion"))
            if "deletionTimestamp" not in metadata:
                await self._delete(place[0], place[1], metadata["uid"], "Foreground")
        still = [place for place in self._store.dependents.get(uid, ()) if self._blocks(place, uid)]
        if not (blocked and still):
            self._finalized(table, key, FOREGROUND)

    def _blocks(self, place: tuple[str, Key], uid: str) -> bool:
        entry = self._store.table(place[0]).entries.get(place[1])
        references = entry.object["metadata"].get("ownerReferences", ()) if entry else ()
        return any(one["uid"] == uid and one.get("blockOwnerDeletion") for one in references)

    async def _orphan(self, table: str, key: Key) -> None:
        entry = self._store.table(table).entries.get(key)
        if entry is None:
            return
        uid = entry.object["metadata"]["uid"]
        for place in list(self._store.dependents.get(uid, ())):
            dependent = self._store.table(place[0]).entries[place[1]]
            rest = [one for one in dependent.object["metadata"]["ownerReferences"] if one["uid"] != uid]
            self._store.put(place[0], _with_owners(dependent.object, rest))
        self._finalized(table, key, ORPHAN)

    def _finalized(self, table: str, key: Key, finalizer: str) -> None:
        entry = self._store.table(table).entries.get(key)
        if entry is None or finalizer not in (entry.object["metadata"].get("finalizers") or ()):
            return
        rest = [one for one in entry.object["metadata"]["finalizers"] if one != finalizer]
        if not rest and not entry.object["metadata"].get("deletionGracePeriodSeconds"):
            self._store.remove(table, key)
            return
        metadata = {**entry.object["metadata"], "finalizers": rest}
        if not rest:
            del metadata["finalizers"]
        self._store.put(table, {**entry.object, "metadata": metadata})

    async def _delete(self, table: str, key: Key, uid: str, policy: str) -> None:
        resource = self._registry.named(table)
        call = Call("delete", resource, *key, user_agent=_USER_AGENT)
        try:
            await self._deletion.delete(call, {"propagationPolicy": policy, "preconditions": {"uid": uid}})
        except Failure as refusal:
            # Gone or replaced meanwhile; anything else a later change brings up again.
            if refusal.reason not in ("NotFound", "Conflict"):
                raise

    async def _furnish(self, namespace: str) -> None:
        """What every namespace gets from the controllers of a cluster."""
        bundle = {"ca.crt": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"}
        for table, name, rest in (
            ("serviceaccounts", "default", {}),
            ("configmaps", "kube-root-ca.crt", {"data": bundle}),
        ):
            call = Call("create", self._registry.named(table), namespace, user_agent=_USER_AGENT)
            try:
                await self._verbs.create(call, {"metadata": {"name": name}, **rest})
            except Failure:
                # Deleted again already, or made by somebody faster.
                continue

    async def _empty(self, namespace: str) -> None:
        """Delete what a terminating namespace holds, then the namespace."""
        left = False
        for name, table in list(self._store.tables.items()):
            for entry in list(table.selected(namespace)):
                left = True
                if "deletionTimestamp" not in entry.object["metadata"]:
                    await self._delete(name, entry.key, entry.object["metadata"]["uid"], "Background")
        if left and any(any(table.selected(namespace)) for table in self._store.tables.values()):
            return
        found = self._store.get("namespaces", "", namespace)
        metadata = found.object["metadata"] if found else {}
        if found is not None and "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._store.remove("namespaces", found.key)


def _with_owners(obj: Object, references: list[Object]) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "ownerReferences"}
    if references:
        metadata["ownerReferences"] = references
    return {**obj, "metadata": metadata}
