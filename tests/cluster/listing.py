# SPDX-License-Identifier: Apache-2.0
"""LIST: selectors, pages with `limit` and `continue`, and what a resourceVersion asks for."""

import asyncio
import base64
import json
from collections import OrderedDict
from dataclasses import dataclass

from cluster import failure
from cluster.call import Call
from cluster.conversion import from_storage
from cluster.failure import Failure
from cluster.selector import everything, selector
from cluster.store import Entry, Store

_SNAPSHOTS = 256
_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some objects of a list, the revision they are of, and how to get the rest."""

    entries: list[Entry]
    revision: int
    token: str = ""
    remaining: int | None = None


class Listing:
    """The list verb over one store; keeps the lists that are being paged through."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshots: OrderedDict[str, list[Entry]] = OrderedDict()
        self._next = 0

    async def page(self, call: Call, query: dict[str, str]) -> Page:
        """The objects a request asks for. Raises Failure (400, 410, 504)."""
        limit = int(query.get("limit") or 0)
        if query.get("continue"):
            return self._continued(call, query["continue"], limit)
        await self._reach(query.get("resourceVersion", ""))
        self._check_exact(call, query)
        entries = self._selected(call, query)
        if not limit or len(entries) <= limit:
            return Page(entries, self._store.revision)
        self._next += 1
        snapshot = str(self._next)
        self._snapshots[snapshot] = entries
        while len(self._snapshots) > _SNAPSHOTS:
            self._snapshots.popitem(last=False)
        selected = query.get("labelSelector") or query.get("fieldSelector")
        return self._cut(entries, 0, limit, self._store.revision, snapshot, counted=not selected)

    def forget(self) -> None:
        """Drop the lists being paged through, as a compaction does."""
        self._snapshots.clear()

    def _selected(self, call: Call, query: dict[str, str]) -> list[Entry]:
        matches = selector(call.resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        entries = self._store.table(call.resource.table).selected(call.namespace)
        if matches is everything:
            return list(entries)
        version = call.resource.api_version
        same = version.endswith(call.resource.storage_version)
        return [one for one in entries if matches(one.object if same else from_storage(one.object, version))]

    def _continued(self, call: Call, token: str, limit: int) -> Page:
        try:
            state = json.loads(base64.urlsafe_b64decode(token.encode()))
            snapshot, start, revision = state["snapshot"], state["start"], state["rv"]
        except (ValueError, KeyError) as error:
            raise failure.bad_request(f"continue key is not valid: {error}") from error
        entries = self._snapshots.get(snapshot)
        if entries is None:
            fresh = list(self._store.table(call.resource.table).selected(call.namespace))
            self._snapshots[snapshot] = fresh
            rest = self._token(snapshot, start, self._store.revision)
            raise failure.expired(_EXPIRED, {"continue": rest})
        return self._cut(entries, start, limit or len(entries), revision, snapshot, counted=True)

    def _cut(
        self, entries: list[Entry], start: int, limit: int, revision: int, snapshot: str, *, counted: bool
    ) -> Page:
        end = start + limit
        if end >= len(entries):
            return Page(entries[start:], revision)
        rest = len(entries) - end
        return Page(entries[start:end], revision, self._token(snapshot, end, revision), rest if counted else None)

    def _token(self, snapshot: str, start: int, revision: int) -> str:
        state = {"v": "meta.k8s.io/v1", "rv": revision, "start": start, "snapshot": snapshot}
        return base64.urlsafe_b64encode(json.dumps(state).encode()).decode()

    async def _reach(self, version: str) -> None:
        """Wait for a revision that is not there yet, as a lagging server would; then give up."""
        if version in ("", "0"):
            return
        wanted = parse_version(version)
        for _ in range(30):
            if wanted <= self._store.revision:
                return
            await asyncio.sleep(0.1)
        details = {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }
        message = f"Timeout: Too large resource version: {wanted}, current: {self._store.revision}"
        raise Failure("Timeout", message, details=details)

    def _check_exact(self, call: Call, query: dict[str, str]) -> None:
        if query.get("resourceVersionMatch") != "Exact":
            return
        wanted = parse_version(query.get("resourceVersion", ""))
        if wanted < self._store.table(call.resource.table).compacted:
            raise failure.expired(f"The resourceVersion for the provided list is too old: {wanted}")


def parse_version(text: str) -> int:
    """A resourceVersion as a number. Raises Failure (400)."""
    try:
        return int(text)
    except ValueError as error:
        detail = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise failure.bad_request(f'resourceVersion: Invalid value: "{text}": {detail}') from error
