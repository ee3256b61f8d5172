# SPDX-License-Identifier: Apache-2.0
"""WATCH: the changes of a table as a stream of events, from a revision on.

An event concerns a watch by its selectors: an object that starts to match is ADDED, one that stops is DELETED.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from cluster import failure
from cluster.call import Call
from cluster.conversion import from_storage
from cluster.listing import parse_version
from cluster.resource import Object
from cluster.selector import everything, selector
from cluster.store import Change, Entry, Store, dump

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
Render = Callable[[Entry], bytes]


@dataclass(slots=True, eq=False)
class Watch:
    """One open watch; `stop` ends it from outside."""

    call: Call
    waker: asyncio.Event
    cut: bool = False
    aborted: bool = False
    failing: Object | None = None

    def stop(self, failing: Object | None = None, *, abort: bool = False) -> None:
        """End the stream: with an ERROR event when one is given, by breaking the connection when `abort` is set."""
        self.cut, self.aborted, self.failing = True, abort, failing
        self.waker.set()


class Watching:
    """The watch verb over one store, and the watches open now."""

    def __init__(self, store: Store, bookmark_s: float) -> None:
        self._store = store
        self._bookmark_s = bookmark_s
        self.open: set[Watch] = set()

    async def stream(self, call: Call, query: dict[str, str], render: Render) -> AsyncIterator[bytes]:
        """Chunks of newline-separated events until the timeout. Raises Failure (400) before the first one."""
        table = self._store.table(call.resource.table)
        version = call.resource.api_version
        matches = selector(call.resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        bookmarks = query.get("allowWatchBookmarks", "").lower() in ("true", "1")
        initial = query.get("sendInitialEvents", "").lower() in ("true", "1")
        given = query.get("resourceVersion", "")
        watch = Watch(call, table.follow())
        self.open.add(watch)
        try:
            if given in ("", "0") or initial:
                position = self._store.revision
                entries = [one for one in table.selected(call.namespace) if matches(from_storage(one.object, version))]
                if entries:
                    yield b"".join(event("ADDED", render(one)) for one in entries)
                if initial and bookmarks:
                    yield _bookmark(call, position, {INITIAL_EVENTS_END: "true"})
            else:
                position = parse_version(given)
                if position < table.compacted:
                    message = f"too old resource version: {position} ({table.compacted})"
                    yield event("ERROR", dump(failure.expired(message).status))
                    return
            next_bookmark = time.monotonic() + self._bookmark_s
            while True:
                # Cleared before the log is read: what happens after that wakes the wait below.
                watch.waker.clear()
                if position < table.dropped:
                    message = f"too old resource version: {position} ({table.dropped})"
                    yield event("ERROR", dump(failure.expired(message).status))
                    return
                changes = table.since(position)
                if changes:
                    position = changes[-1].revision
                    chunk = b"".join(filter(None, (_shown(call, change, matches, render) for change in changes)))
                    if chunk:
                        yield chunk
                if watch.cut:
                    if watch.aborted:
                        raise ConnectionAbortedError
                    if watch.failing is not None:
                        yield event("ERROR", dump(watch.failing))
                    return
                moment = time.monotonic()
                if moment >= deadline:
                    if bookmarks:
                        yield _bookmark(call, self._store.revision)
                    return
                if bookmarks and moment >= next_bookmark:
                    next_bookmark = moment + self._bookmark_s
                    if not table.since(position):
                        yield _bookmark(call, max(position, self._store.revision))
                await _wait(watch.waker, min(deadline, next_bookmark) - moment if bookmarks else deadline - moment)
        finally:
            table.unfollow(watch.waker)
            self.open.discard(watch)

    def select(self, wanted: Callable[[Call], bool]) -> list[Watch]:
        """The open watches of certain calls."""
        return [watch for watch in self.open if wanted(watch.call)]


def event(kind: str, obj: bytes) -> bytes:
    """One line of a watch."""
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), obj)


def _shown(call: Call, change: Change, matches: Callable[[Object], bool], render: Render) -> bytes:
    if call.namespace and change.entry.key[0] != call.namespace:
        return b""
    if matches is everything:
        return event(change.type, render(change.entry))
    version = call.resource.api_version
    now_in = change.type != "DELETED" and matches(from_storage(change.entry.object, version))
    was_in = change.previous is not None and matches(from_storage(change.previous.object, version))
    if now_in:
        return event("MODIFIED" if was_in else "ADDED", render(change.entry))
    if not was_in or change.previous is None:
        return b""
    if change.type == "DELETED":
        return event("DELETED", render(change.entry))
    # It left the selector: the watch gets the last state it knew, at the revision of the change.
    last = change.previous.object
    metadata = {**last["metadata"], "resourceVersion": str(change.revision)}
    return event("DELETED", render(Entry({**last, "metadata": metadata}, change.revision)))


def _bookmark(call: Call, revision: int, annotations: dict[str, str] | None = None) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    obj = {"kind": call.resource.kind, "apiVersion": call.resource.api_version, "metadata": metadata}
    return event("BOOKMARK", dump(obj))


async def _wait(waker: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await waker.wait()
    except TimeoutError:
        pass
