# SPDX-License-Identifier: Apache-2.0
"""One kind of object, listed once and watched from there, as values in memory.

What the operator reads of its children, of nodes and of what Workspaces name comes from informers, so that a pass
that finds nothing changed makes no request. kopf watches Workspaces (operator/main.py); for everything else this is
needed, because after a watch was cut off and its history lost, kopf lists anew without telling which objects are gone,
and it reads whole objects where labels or metadata would do.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from kaito_ray.cluster import Cluster, Gone, KubeObject, NotFound
from kaito_ray.errors import KaitoRayError
from kaito_ray.kinds import Kind

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""

logger = logging.getLogger(__name__)

# A kind that is not installed is looked for again this often.
_ABSENT_S = 5.0
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.2, 15.0


def key_of(document: KubeObject) -> Key:
    """The key of an object."""
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class Informer(Generic[T]):
    """The objects of one kind as `parse` makes them, and a call of `changed` for each that became another.

    `changed(key, before, after)` gets None for an object that was or is not there; it is not called when an object was
    written but `parse` sees no difference. `group` names what an object belongs to, for `of_group`.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        parse: Callable[[KubeObject], T],
        changed: Callable[[Key, T | None, T | None], None],
        *,
        group: Callable[[T], Hashable] = lambda _: None,
        namespace: str | None = None,
        labels: str = "",
        metadata_only: bool = False,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        """Set once everything was listed, or the kind was found not to be installed."""
        self.absent = False
        """Whether the kind is not installed."""
        self._cluster = cluster
        self._parse = parse
        self._changed = changed
        self._group = group
        self._namespace = namespace
        self._labels = labels
        self._metadata_only = metadata_only
        self._values: dict[Key, tuple[int, T]] = {}
        # The version up to which list and watch have told of everything.
        self._told = 0
        self._groups: dict[Hashable, set[Key]] = defaultdict(set)

    def get(self, key: Key) -> T | None:
        """One object."""
        found = self._values.get(key)
        return None if found is None else found[1]

    def of_group(self, group: Hashable) -> Iterator[T]:
        """The objects of a group, by name."""
        return (self._values[key][1] for key in sorted(self._groups.get(group, ())))

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in list(self._values.values()))

    def put(self, document: KubeObject) -> None:
        """Take an object as a write returned it, so that it is seen at once, unless it has changed or gone since.

        The watch may be quicker than the answer to the write. It does not tell twice that an object is gone, so one
        that was brought back by its own answer would stay for ever.
        """
        if key_of(document) in self._values or version_of(document) > self._told:
            self._take(document)

    def _take(self, document: KubeObject) -> None:
        """Take an object, unless a newer version of it is known."""
        key, version = key_of(document), version_of(document)
        known = self._values.get(key)
        if known is not None and known[0] >= version:
            return
        value = self._parse(document)
        self._set(key, (version, value))
        before = None if known is None else known[1]
        if before != value:
            self._changed(key, before, value)

    def drop(self, key: Key, version: int | None = None) -> None:
        """Forget an object that is gone, unless one of its name has been made since (`version` of the deletion)."""
        known = self._values.get(key)
        if known is not None and (version is None or known[0] <= version):
            self._set(key, None)
            self._changed(key, known[1], None)

    async def run(self) -> None:
        """List and watch for ever; whatever goes wrong is tried again, sooner at first and then more slowly."""
        backoff_s = _BACKOFF_MIN_S
        while True:
            try:
                version = await self._list()
                backoff_s = _BACKOFF_MIN_S
                await self._follow(version)
            except NotFound:
                self._not_installed()
                await asyncio.sleep(_ABSENT_S)
            except Gone:
                logger.info("the history of %s is gone, listing again", self.kind.crd)
            except KaitoRayError as error:
                logger.warning("%s cannot be listed, trying again in %.1f s: %s", self.kind.crd, backoff_s, error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _list(self) -> str:
        found: set[Key] = set()
        version = ""
        async for page in self._cluster.pages(
            self.kind, self._namespace, labels=self._labels, metadata_only=self._metadata_only
        ):
            version = page["metadata"]["resourceVersion"]
            for document in page["items"]:
                found.add(key_of(document))
                self._take(document)
        for key in self._values.keys() - found:
            self.drop(key)
        self._told = version_of(page)
        if self.absent:
            logger.info("%s is installed now", self.kind.crd)
        self.absent = False
        self.synced.set()
        return version

    async def _follow(self, version: str) -> None:
        """Watch from `version` on, over disconnects, until its history is gone."""
        backoff_s = _BACKOFF_MIN_S
        while True:
            try:
                async for event in self._cluster.watch(
                    self.kind, version, self._namespace, labels=self._labels, metadata_only=self._metadata_only
                ):
                    document = event["object"]
                    version = document["metadata"]["resourceVersion"]
                    backoff_s = _BACKOFF_MIN_S
                    if event["type"] == "DELETED":
                        self.drop(key_of(document), version_of(document))
                    elif event["type"] != "BOOKMARK":
                        self._take(document)
                    self._told = version_of(document)
                # The server ends watches regularly; one that ends at once must not become a storm.
                await asyncio.sleep(_BACKOFF_MIN_S)
            except (NotFound, Gone):
                raise
            except KaitoRayError as error:
                logger.info("watching %s again in %.1f s: %s", self.kind.crd, backoff_s, error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    def _not_installed(self) -> None:
        if not self.absent:
            logger.warning("%s is not installed", self.kind.crd)
        self.absent = True
        for key in list(self._values):
            self.drop(key)
        self.synced.set()

    def _set(self, key: Key, value: tuple[int, T] | None) -> None:
        known = self._values.get(key)
        if known is not None:
            members = self._groups[self._group(known[1])]
            members.discard(key)
            if not members:
                del self._groups[self._group(known[1])]
        if value is None:
            del self._values[key]
        else:
            self._values[key] = value
            self._groups[self._group(value[1])].add(key)


def version_of(document: KubeObject) -> int:
    """Resource versions of one kind may be compared as numbers (KEP-5504)."""
    version = document["metadata"].get("resourceVersion", "")
    return int(version) if version.isdecimal() else 0
