# SPDX-License-Identifier: Apache-2.0
"""A client for what runs inside the server's process: simulators that act as controllers do, without a socket.

Same verbs, same rules as over HTTP; only transport, access checks and the request log are left out. Objects it hands
out are the stored ones: look, never change.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from cluster.api import Api
from cluster.call import Call, now
from cluster.failure import Failure
from cluster.patch import MERGE_PATCH
from cluster.resource import Object
from cluster.store import Change


class Inside:
    """Reads and writes in the name of one controller."""

    def __init__(self, api: Api, name: str) -> None:
        self._api = api
        self._name = name
        self._said: dict[tuple[str, str, str], str] = {}

    def get(self, table: str, namespace: str, name: str) -> Object | None:
        """An object, or None; `table` is `plural` or `plural.group`."""
        entry = self._api.store.get(table, namespace, name)
        return entry.object if entry else None

    def select(self, table: str, namespace: str = "", labels: dict[str, str] | None = None) -> list[Object]:
        """The objects of a namespace (or all) that carry the labels."""
        found = []
        for (place, _), entry in list(self._api.store.table(table).entries.items()):
            carried = entry.object["metadata"].get("labels") or {}
            if (not namespace or place == namespace) and all(carried.get(k) == v for k, v in (labels or {}).items()):
                found.append(entry.object)
        return found

    def owned(self, owner: Object, table: str) -> list[Object]:
        """The objects of a table that an object owns."""
        places = self._api.store.dependents.get(owner["metadata"]["uid"], ())
        entries = [self._api.store.table(one).entries.get(key) for one, key in places if one == table]
        return sorted((entry.object for entry in entries if entry), key=lambda obj: str(obj["metadata"]["name"]))

    async def create(self, table: str, obj: Object) -> Object:
        """Create an object. Raises Failure."""
        call = self._call("create", table, obj["metadata"].get("namespace", ""), "")
        return (await self._api.verbs.create(call, obj)).object

    async def patch(self, table: str, obj: Object, changes: Object, *, subresource: str = "") -> Object | None:
        """Merge changes into an object; None when it is gone meanwhile."""
        metadata = obj["metadata"]
        call = self._call("patch", table, metadata.get("namespace", ""), metadata["name"], subresource)
        try:
            return (await self._api.verbs.patch(call, MERGE_PATCH, changes)).object
        except Failure as refusal:
            if refusal.reason == "NotFound":
                return None
            raise

    async def set_status(self, table: str, obj: Object, status: Object) -> Object | None:
        """Replace the fields of the status that are given, where they differ."""
        before = obj.get("status") or {}
        changes = {key: value for key, value in status.items() if before.get(key) != value}
        if not changes:
            return obj
        gone = {
            key: {**dict.fromkeys(before[key], None), **value}
            for key, value in changes.items()
            if isinstance(value, dict) and isinstance(before.get(key), dict)
        }
        return await self.patch(table, obj, {"status": {**changes, **gone}}, subresource="status")

    async def replace_status(self, table: str, obj: Object, status: Object) -> Object | None:
        """Write a whole status in the place of the old one; None when the object is gone meanwhile."""
        metadata = obj["metadata"]
        call = self._call("patch", table, metadata.get("namespace", ""), metadata["name"], "status")
        try:
            return (await self._api.verbs.change(call, lambda served: {**served, "status": status})).object
        except Failure as refusal:
            if refusal.reason == "NotFound":
                return None
            raise

    async def bind(self, pod: Object, node: str) -> None:
        """Put a pod on a node. Raises Failure when it is gone or placed already."""
        metadata = pod["metadata"]
        self._api.subresources.bind(self._call("create", "pods", metadata["namespace"], metadata["name"]), node)

    def pod_ip(self) -> str:
        """A free address for a pod."""
        return self._api.addresses.pod_ip()

    def write_log(self, pod: Object, container: str, text: str, *, previous: bool = False) -> None:
        """What `kubectl logs` prints for a container from now on."""
        metadata = pod["metadata"]
        self._api.subresources.logs[metadata["namespace"], metadata["name"], container, previous] = text

    async def delete(self, table: str, obj: Object, **options: Any) -> None:
        """Delete an object; one that is gone already is fine."""
        metadata = obj["metadata"]
        call = self._call("delete", table, metadata.get("namespace", ""), metadata["name"])
        preconditions = {"uid": metadata["uid"]}
        try:
            await self._api.deletion.delete(call, {"preconditions": preconditions, **options})
        except Failure as refusal:
            if refusal.reason not in ("NotFound", "Conflict"):
                raise

    async def record(self, about: Object, reason: str, message: str, kind: str = "Normal", source: str = "") -> None:
        """Write an Event, or count up the one that says the same."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace") or "default"
        said = (metadata["uid"], reason, message)
        event = self.get("events", namespace, self._said.get(said, ""))
        if event is not None:
            await self.patch("events", event, {"count": event.get("count", 1) + 1, "lastTimestamp": now()})
            return
        made = await self.create(
            "events",
            {
                "metadata": {"generateName": f"{metadata['name']}.", "namespace": namespace},
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    "name": metadata["name"],
                    "namespace": metadata.get("namespace"),
                    "uid": metadata["uid"],
                },
                "reason": reason,
                "message": message,
                "type": kind,
                "source": {"component": source or self._name},
                "count": 1,
                "firstTimestamp": now(),
                "lastTimestamp": now(),
            },
        )
        self._said[said] = made["metadata"]["name"]

    def served(self, table: str) -> bool:
        """Whether the resource exists now."""
        try:
            self._api.registry.named(table)
        except KeyError:
            return False
        return True

    def listen(self, listener: Callable[[str, Change], None]) -> None:
        """Hear of everything that is there, as if it were new, and then of every change, in the server's loop."""
        self._api.store.listeners.append(listener)
        for name, table in list(self._api.store.tables.items()):
            for entry in list(table.entries.values()):
                listener(name, Change(entry.revision, "ADDED", entry, None))

    def _call(self, verb: str, table: str, namespace: str, name: str, subresource: str = "") -> Call:
        resource = self._api.registry.named(table)
        return Call(
            verb, resource, namespace, name, subresource, user_agent=f"simulator/{self._name}", field_manager=self._name
        )


class WorkQueue:
    """A controller's queue: keys are handled one at a time each, once however often they were added meanwhile."""

    def __init__(self, handle: Callable[[Any], Awaitable[float | None]]) -> None:
        self._handle = handle
        self._waiting: dict[Any, None] = {}
        self._busy: set[Any] = set()
        self._again: set[Any] = set()
        self._timers: dict[Any, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopped = False

    def add(self, key: Any, delay_s: float = 0.0) -> None:
        """Have a key handled soon, or after a delay; the earlier of two delays counts."""
        if self.stopped:
            return
        loop = asyncio.get_running_loop()
        if delay_s > 0:
            timer = self._timers.get(key)
            if timer is None or timer.when() > loop.time() + delay_s:
                if timer is not None:
                    timer.cancel()
                self._timers[key] = loop.call_later(delay_s, self._due, key)
            return
        if key in self._busy:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = None
            loop.call_soon(self._start, key)

    def add_all(self, keys: Iterable[Any]) -> None:
        """Have keys handled soon."""
        for key in keys:
            self.add(key)

    def stop(self) -> None:
        """Handle nothing more."""
        self.stopped = True
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the queue, until it is stopped."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _due(self, key: Any) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _start(self, key: Any) -> None:
        self._waiting.pop(key, None)
        if self.stopped:
            return
        self._busy.add(key)
        task = asyncio.get_running_loop().create_task(self._work(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, key: Any) -> None:
        delay_s: float | None = None
        try:
            delay_s = await self._handle(key)
        except Failure:
            # As a controller does with an error of the API: try again a little later.
            delay_s = 0.1
        finally:
            self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif delay_s is not None:
            self.add(key, delay_s)
