# SPDX-License-Identifier: Apache-2.0
"""Where objects live: tables of immutable entries, one revision counter, and a log per table that watches follow.

An object is never changed once stored; a write puts a new one in its place. So reads hand out the stored object and
its cached bytes without copying, and parts may be shared between versions.
"""

import asyncio
import bisect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cluster.resource import Object

# How many of a table's latest changes keep their bytes, for watches that are about to send them.
_WARM = 256
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""


class Entry:
    """One version of one object, in its storage version, with its bytes in every version asked for."""

    __slots__ = ("_bytes", "managed", "object", "revision")

    def __init__(self, obj: Object, revision: int) -> None:
        self.object = obj
        self.revision = revision
        self._bytes: dict[str, bytes] = {}
        # The parsed managedFields (managed_fields.py keeps them here so that a write need not parse them again).
        self.managed: Any = None

    @property
    def key(self) -> Key:
        """Namespace and name."""
        metadata = self.object["metadata"]
        return metadata.get("namespace", ""), metadata["name"]

    def forget_bytes(self) -> None:
        """Give the memory of the cached bytes back; they are made again when asked for."""
        self._bytes.clear()

    def bytes(self, version: str, convert: Callable[[Object, str], Object]) -> bytes:
        """The object as JSON in an apiVersion."""
        cached = self._bytes.get(version)
        if cached is None:
            cached = self._bytes[version] = dump(convert(self.object, version))
        return cached


def dump(value: Any) -> bytes:
    """JSON as the API sends it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Change:
    """One write: what happened, the new state (for a delete the last one) and the state before."""

    revision: int
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    entry: Entry
    previous: Entry | None


class Table:
    """All objects of one resource and the log of their changes."""

    def __init__(self, history: int) -> None:
        self.entries: dict[Key, Entry] = {}
        self.log: list[Change] = []
        # Older revisions than `compacted` cannot be watched from; of this table's own changes, those up to `dropped`
        # are forgotten.
        self.compacted = 0
        self.dropped = 0
        self._history = history
        self._wakers: set[asyncio.Event] = set()

    def record(self, change: Change) -> None:
        """Append to the log, forget its oldest part when it is long, and wake the watches."""
        self.log.append(change)
        if len(self.log) > _WARM:
            cool = self.log[-_WARM].entry
            if self.entries.get(cool.key) is not cool:
                cool.forget_bytes()
        if len(self.log) > 2 * self._history:
            cut = len(self.log) - self._history
            self.compacted = self.dropped = self.log[cut - 1].revision
            del self.log[:cut]
        for waker in self._wakers:
            waker.set()

    def forget(self, revision: int) -> None:
        """Drop the log; `revision` is the store's."""
        self.compacted = revision
        if self.log:
            self.dropped = self.log[-1].revision
        self.log.clear()

    def since(self, revision: int) -> list[Change]:
        """The changes after a revision, oldest first."""
        if not self.log or self.log[-1].revision <= revision:
            return []
        return self.log[bisect.bisect_right(self.log, revision, key=lambda change: change.revision) :]

    def follow(self) -> asyncio.Event:
        """An event that is set at every change from now on; hand it back with `unfollow`."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        return waker

    def unfollow(self, waker: asyncio.Event) -> None:
        """Stop setting the event."""
        self._wakers.discard(waker)

    def selected(self, namespace: str) -> Iterator[Entry]:
        """The entries of a namespace, or all, in the order in which etcd would return them."""
        keys = sorted(self.entries) if not namespace else sorted(key for key in self.entries if key[0] == namespace)
        return (self.entries[key] for key in keys)


class Store:
    """All tables. Every write takes the next revision; `listeners` hear of each change at once."""

    def __init__(self, history: int = 2_000) -> None:
        # A fresh real server is never at revision 1 either; clients must not count on small numbers.
        self.revision = 100
        self.tables: dict[str, Table] = {}
        self.dependents: dict[str, set[tuple[str, Key]]] = {}
        self.listeners: list[Callable[[str, Change], None]] = []
        self._history = history

    def table(self, name: str) -> Table:
        """The table of a resource (`plural.group`), made when first asked for."""
        found = self.tables.get(name)
        if found is None:
            found = self.tables[name] = Table(self._history)
        return found

    def get(self, table: str, namespace: str, name: str) -> Entry | None:
        """An object, or None."""
        return self.table(table).entries.get((namespace, name))

    def put(self, table: str, obj: Object) -> Entry:
        """Store a new version of an object, whose metadata gets the new resourceVersion."""
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        entry = Entry(obj, self.revision)
        entries = self.table(table).entries
        previous = entries.get(entry.key)
        entries[entry.key] = entry
        self._index(table, previous, entry)
        self._record(table, Change(self.revision, "MODIFIED" if previous else "ADDED", entry, previous))
        return entry

    def remove(self, table: str, key: Key) -> Entry:
        """Delete an object; the entry returned carries the revision of the deletion."""
        self.revision += 1
        previous = self.table(table).entries.pop(key)
        last = {**previous.object, "metadata": {**previous.object["metadata"], "resourceVersion": str(self.revision)}}
        entry = Entry(last, self.revision)
        self._index(table, previous, None)
        self._record(table, Change(self.revision, "DELETED", entry, previous))
        return entry

    def compact(self) -> None:
        """Forget all history, so that watches and lists from older revisions get 410 Gone."""
        for table in self.tables.values():
            table.forget(self.revision)

    def _record(self, table: str, change: Change) -> None:
        self.table(table).record(change)
        for listener in self.listeners:
            listener(table, change)

    def _index(self, table: str, previous: Entry | None, entry: Entry | None) -> None:
        before = _owners(previous)
        after = _owners(entry)
        if before == after:
            return
        place = (table, (entry or previous).key)  # type: ignore[union-attr]
        for uid in before - after:
            self.dependents.get(uid, set()).discard(place)
        for uid in after - before:
            self.dependents.setdefault(uid, set()).add(place)


def _owners(entry: Entry | None) -> set[str]:
    if entry is None:
        return set()
    return {reference["uid"] for reference in entry.object["metadata"].get("ownerReferences", ())}
