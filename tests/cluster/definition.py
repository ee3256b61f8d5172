# SPDX-License-Identifier: Apache-2.0
"""CustomResourceDefinitions: what the API serves because of them, and the controllers that accept and clean them up."""

import asyncio
from typing import Any

from cluster.builtin_schema import raw_schema
from cluster.call import now
from cluster.resource import Column, Object, Registry, Resource
from cluster.schema import RawSchema, node_of
from cluster.store import Change, Store

TABLE = "customresourcedefinitions.apiextensions.k8s.io"
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
_META = {"$ref": "V1ObjectMeta"}


def resources_of(definition: Object) -> list[Resource]:
    """The served versions of a definition as resources."""
    spec = definition["spec"]
    names = spec["names"]
    storage = next(one["name"] for one in spec["versions"] if one["storage"])
    found = []
    for version in spec["versions"]:
        if not version["served"]:
            continue
        api_version = f"{spec['group']}/{version['name']}"
        warning = version.get("deprecationWarning") or f"{api_version} {names['kind']} is deprecated"
        found.append(
            Resource(
                group=spec["group"],
                version=version["name"],
                plural=names["plural"],
                singular=names.get("singular", names["kind"].lower()),
                kind=names["kind"],
                namespaced=spec["scope"] == "Namespaced",
                schema=node_of(object_schema(version["schema"]["openAPIV3Schema"]), raw_schema),
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                subresources=frozenset(version.get("subresources") or {}),
                columns=tuple(_column(one) for one in version.get("additionalPrinterColumns") or ()),
                custom=True,
                spec_generation=True,
                storage_version=storage,
                deprecation=warning if version.get("deprecated") else "",
                selectable_fields=tuple(one["jsonPath"] for one in version.get("selectableFields") or ()),
            )
        )
    return found


def object_schema(raw: RawSchema) -> RawSchema:
    """The schema of a whole object: what the definition says, with the envelope every object has."""
    envelope: dict[str, Any] = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": _META}
    return {**raw, "type": "object", "properties": {**raw.get("properties", {}), **envelope}}


def _column(raw: Object) -> Column:
    return Column(
        raw["name"], raw["type"], raw["jsonPath"], raw.get("format", ""), raw.get("description", ""),
        raw.get("priority", 0),
    )  # fmt: skip


class Definitions:
    """Keeps the registry in step with the definitions that are stored, and their status with the registry."""

    def __init__(self, store: Store, registry: Registry, delay_s: float) -> None:
        self._store = store
        self._registry = registry
        self._delay_s = delay_s
        self._tasks: set[asyncio.Task[None]] = set()
        store.listeners.append(self._on_change)

    def _on_change(self, table: str, change: Change) -> None:
        obj = change.entry.object
        if table == TABLE:
            if change.type == "DELETED":
                self._registry.remove(obj["spec"]["group"], obj["spec"]["names"]["plural"])
            elif "deletionTimestamp" in obj["metadata"]:
                self._start(self._clean_up(obj["metadata"]["name"]))
            elif change.type == "ADDED":
                self._start(self._establish(obj["metadata"]["name"]))
            elif _established(obj) and (not change.previous or change.previous.object["spec"] != obj["spec"]):
                self._serve(obj)
        elif change.type == "DELETED" and ("", table) in self._store.table(TABLE).entries:
            self._start(self._clean_up(table))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _serve(self, definition: Object) -> None:
        spec = definition["spec"]
        self._registry.remove(spec["group"], spec["names"]["plural"])
        for resource in resources_of(definition):
            self._registry.add(resource)

    async def _establish(self, name: str) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        entry = self._store.get(TABLE, "", name)
        if entry is None:
            return
        obj = entry.object
        spec = obj["spec"]
        taken = self._taken(spec)
        conditions = [
            _condition("NamesAccepted", not taken, taken or "NoConflicts", "" if taken else "no conflicts found"),
            _condition("Established", not taken, "NotAccepted" if taken else "InitialNamesAccepted",
                       "not all names are accepted" if taken else "the initial names have been accepted"),
        ]  # fmt: skip
        names = dict(spec["names"])
        status = {
            "conditions": conditions,
            "acceptedNames": names,
            "storedVersions": [one["name"] for one in spec["versions"] if one["storage"]],
        }
        metadata = dict(obj["metadata"])
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), CLEANUP]
        if not taken:
            self._serve(obj)
        self._store.put(TABLE, {**obj, "metadata": metadata, "status": status})

    def _taken(self, spec: Object) -> str:
        """The reason why names clash with a resource of the group, or an empty string."""
        for resource in self._registry:
            other = resource.group == spec["group"] and resource.plural != spec["names"]["plural"]
            if other and resource.kind == spec["names"]["kind"]:
                return "KindConflict"
        return ""

    async def _clean_up(self, name: str) -> None:
        """Delete what is left of a definition that goes, then let it go."""
        entry = self._store.get(TABLE, "", name)
        if entry is None or "deletionTimestamp" not in entry.object["metadata"]:
            return
        table = self._store.table(name)
        for key, instance in list(table.entries.items()):
            metadata = instance.object["metadata"]
            if not metadata.get("finalizers"):
                self._store.remove(name, key)
            elif "deletionTimestamp" not in metadata:
                marked = {**metadata, "deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
                self._store.put(name, {**instance.object, "metadata": marked})
        entry = self._store.get(TABLE, "", name)
        if entry is None or table.entries:
            return
        finalizers = [one for one in entry.object["metadata"].get("finalizers") or () if one != CLEANUP]
        if finalizers:
            self._store.put(TABLE, {**entry.object, "metadata": {**entry.object["metadata"], "finalizers": finalizers}})
        else:
            self._store.remove(TABLE, entry.key)


def _established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _condition(kind: str, holds: bool, reason: str, message: str) -> Object:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "lastTransitionTime": now(),
        "reason": reason,
        "message": message,
    }
