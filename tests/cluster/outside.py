# SPDX-License-Identifier: Apache-2.0
"""The simulators' client for a real API server: reads from a mirror, writes over HTTP."""

from collections.abc import Callable
from typing import Any

from cluster.answers import own_address
from cluster.failure import Failure
from cluster.inside import Inside
from cluster.mirror import TABLES, Mirror
from cluster.patch import MERGE_PATCH
from cluster.resource import Object
from cluster.store import Change


class Outside(Inside):
    """Reads and writes in the name of one controller."""

    def __init__(self, mirror: Mirror, name: str) -> None:
        self._mirror = mirror
        self._name = name
        self._said = {}

    def get(self, table: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        entry = self._mirror.tables[table].get((namespace, name))
        return entry.object if entry else None

    def select(self, table: str, namespace: str = "", labels: dict[str, str] | None = None) -> list[Object]:
        """The objects of a namespace (or all) that carry the labels."""
        return [
            entry.object
            for (place, _), entry in list(self._mirror.tables[table].items())
            if namespace in ("", place)
            and (labels or {}).items() <= (entry.object["metadata"].get("labels") or {}).items()
        ]

    def owned(self, owner: Object, table: str) -> list[Object]:
        """The objects of a table that an object owns."""
        uid = owner["metadata"]["uid"]
        found = [
            one
            for one in self.select(table, owner["metadata"].get("namespace", ""))
            if any(reference["uid"] == uid for reference in one["metadata"].get("ownerReferences") or ())
        ]
        return sorted(found, key=lambda obj: str(obj["metadata"]["name"]))

    async def create(self, table: str, obj: Object) -> Object:
        """Create an object. Raises Failure."""
        place = TABLES[table]
        path = place.path(table, obj["metadata"].get("namespace", ""))
        document = {**obj, "apiVersion": place.api_version, "kind": place.kind}
        return self._mirror.put(table, await self._mirror.request("POST", path, document, fieldManager=self._name))

    async def patch(self, table: str, obj: Object, changes: Object, *, subresource: str = "") -> Object | None:
        """Merge changes into an object; None when it is gone meanwhile."""
        return await self._write("PATCH", table, obj, changes, subresource, MERGE_PATCH)

    async def replace_status(self, table: str, obj: Object, status: Object) -> Object | None:
        """Write a whole status in the place of the old one; None when the object is gone meanwhile."""
        metadata = obj["metadata"]
        while True:
            current = self.get(table, metadata.get("namespace", ""), metadata["name"])
            if current is None:
                return None
            if current.get("status") == status:
                return current
            try:
                return await self._write("PUT", table, current, {**current, "status": status}, "status")
            except Failure as refusal:
                if refusal.reason != "Conflict":
                    raise
                await self._read(table, current)

    async def bind(self, pod: Object, node: str) -> None:
        """Put a pod on a node. Raises Failure when it is gone or placed already."""
        metadata = pod["metadata"]
        path = TABLES["pods"].path("pods", metadata["namespace"], metadata["name"])
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"]}, "target": target}
        await self._mirror.request("POST", f"{path}/binding", binding)
        await self._read("pods", pod)

    def pod_ip(self) -> str:
        """The address of every pod: this machine's, where Answers listens."""
        return own_address()

    def write_log(self, pod: Object, container: str, text: str, *, previous: bool = False) -> None:
        """Nobody can ask for logs: there is no kubelet."""

    async def delete(self, table: str, obj: Object, **options: Any) -> None:
        """Delete an object; one that is gone already is fine."""
        metadata = obj["metadata"]
        path = TABLES[table].path(table, metadata.get("namespace", ""), metadata["name"])
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": metadata["uid"]}, **options}
        try:
            answer = await self._mirror.request("DELETE", path, body)
        except Failure as refusal:
            if refusal.reason not in ("NotFound", "Conflict"):
                raise
            return
        left = answer.get("metadata") or {}
        if "deletionTimestamp" in left and (left.get("finalizers") or left.get("deletionGracePeriodSeconds")):
            self._mirror.put(table, answer)
        else:
            self._mirror.remove(table, obj)

    def served(self, table: str) -> bool:
        """Whether the resource exists now."""
        return table in self._mirror.served

    def listen(self, listener: Callable[[str, Change], None]) -> None:
        """Hear of everything that is there, as if it were new, and then of every change, in the mirror's loop."""
        self._mirror.listeners.append(listener)
        for name, table in self._mirror.tables.items():
            for entry in list(table.values()):
                listener(name, Change(entry.revision, "ADDED", entry, None))

    async def _write(
        self, method: str, table: str, obj: Object, body: Object, subresource: str, kind: str = "application/json"
    ) -> Object | None:
        metadata = obj["metadata"]
        path = TABLES[table].path(table, metadata.get("namespace", ""), metadata["name"], subresource)
        try:
            answer = await self._mirror.request(method, path, body, kind, fieldManager=self._name)
        except Failure as refusal:
            if refusal.reason == "NotFound":
                return None
            raise
        return self._mirror.put(table, answer)

    async def _read(self, table: str, obj: Object) -> None:
        metadata = obj["metadata"]
        path = TABLES[table].path(table, metadata.get("namespace", ""), metadata["name"])
        try:
            self._mirror.put(table, await self._mirror.request("GET", path))
        except Failure as refusal:
            if refusal.reason != "NotFound":
                raise
            self._mirror.remove(table, obj)
