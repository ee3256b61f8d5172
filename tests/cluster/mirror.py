# SPDX-License-Identifier: Apache-2.0
"""What a real API server has, kept up to date by watches, for simulators that act there.

Own writes show at once, as their answers say.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp

from cluster.client import Client
from cluster.failure import Failure
from cluster.resource import Object
from cluster.store import Change, Entry, Key

_RETRY_S = 0.1
_WATCH_S = 300


class Place(NamedTuple):
    """Where a table is served, and what its objects are."""

    api_version: str
    kind: str

    def path(self, table: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of an object or a collection."""
        root = "/apis" if "/" in self.api_version else "/api"
        inner = f"/namespaces/{namespace}" if namespace else ""
        plural = table.partition(".")[0]
        return "/".join(filter(None, (f"{root}/{self.api_version}{inner}/{plural}", name, subresource)))


TABLES = {
    "pods": Place("v1", "Pod"),
    "nodes": Place("v1", "Node"),
    "services": Place("v1", "Service"),
    "secrets": Place("v1", "Secret"),
    "configmaps": Place("v1", "ConfigMap"),
    "events": Place("v1", "Event"),
    "persistentvolumeclaims": Place("v1", "PersistentVolumeClaim"),
    "jobs.batch": Place("batch/v1", "Job"),
    "endpointslices.discovery.k8s.io": Place("discovery.k8s.io/v1", "EndpointSlice"),
    "rayclusters.ray.io": Place("ray.io/v1", "RayCluster"),
    "rayservices.ray.io": Place("ray.io/v1", "RayService"),
    "rayjobs.ray.io": Place("ray.io/v1", "RayJob"),
}


class Mirror:
    """The objects of TABLES by table and key; `listeners` hear of each change."""

    def __init__(self, client: Client) -> None:
        self._access = client.access()
        self.tables: dict[str, dict[Key, Entry]] = {table: {} for table in TABLES}
        self.served: set[str] = set()
        self.listeners: list[Callable[[str, Change], None]] = []
        self._gone: set[str] = set()
        self._session: aiohttp.ClientSession

    async def start(self) -> None:
        """Read everything once, and follow it from then on, in tasks of the running loop."""
        access = self._access
        context = ssl.create_default_context(cafile=access.authority) if access.authority else False
        if access.certificate and isinstance(context, ssl.SSLContext):
            context.load_cert_chain(access.certificate, access.key)
        self._session = aiohttp.ClientSession(
            access.host,
            headers={"User-Agent": "simulator"} | ({"Authorization": access.token} if access.token else {}),
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        for table in TABLES:
            first = await self._list(table)
            asyncio.get_running_loop().create_task(self._follow(table, first))

    async def close(self) -> None:
        """Give the connections back."""
        await self._session.close()

    async def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: str
    ) -> Object:
        """One request. Raises Failure."""
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        try:
            async with self._session.request(method, path, data=data, params=query, headers=headers) as answer:
                if answer.status >= 400:
                    raise _failure(answer.status, await answer.text())
                found: Object = await answer.json(content_type=None)
                return found
        except aiohttp.ClientError as error:
            raise Failure("ServiceUnavailable", repr(error)) from None

    def put(self, table: str, obj: Object) -> Object:
        """An object as an answer or an event has it; an older version than the one known is ignored."""
        place = TABLES[table]
        obj = {"apiVersion": place.api_version, "kind": place.kind, **obj}
        entry = Entry(obj, int(obj["metadata"]["resourceVersion"]))
        known = self.tables[table].get(entry.key)
        if obj["metadata"]["uid"] in self._gone or (known is not None and known.revision >= entry.revision):
            return obj
        self.tables[table][entry.key] = entry
        self._tell(table, Change(entry.revision, "MODIFIED" if known else "ADDED", entry, known))
        return obj

    def remove(self, table: str, obj: Object) -> None:
        """An object is gone; another one of its name may be there."""
        metadata = obj["metadata"]
        self._gone.add(metadata["uid"])
        key = (metadata.get("namespace", ""), metadata["name"])
        known = self.tables[table].get(key)
        if known is not None and known.object["metadata"]["uid"] == metadata["uid"]:
            del self.tables[table][key]
            self._tell(table, Change(known.revision, "DELETED", Entry(known.object, known.revision), known))

    def _tell(self, table: str, change: Change) -> None:
        for listener in self.listeners:
            listener(table, change)

    async def _follow(self, table: str, version: str) -> None:
        while True:
            try:
                if not version:
                    version = await self._list(table)
                if version:
                    async for event in self._watch(table, version):
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] == "DELETED":
                            self.remove(table, event["object"])
                        elif event["type"] != "BOOKMARK":
                            self.put(table, event["object"])
            except (Failure, aiohttp.ClientError, TimeoutError):
                version = ""
            if not version:
                await asyncio.sleep(_RETRY_S)

    async def _list(self, table: str) -> str:
        """Take over what is there; the version to watch from, empty when the resource is not served."""
        try:
            found = await self.request("GET", TABLES[table].path(table))
        except Failure as refusal:
            if refusal.code != 404:
                raise
            found = {"items": [], "metadata": {"resourceVersion": ""}}
        version: str = found["metadata"]["resourceVersion"]
        (self.served.add if version else self.served.discard)(table)
        there = {obj["metadata"]["uid"] for obj in found["items"]}
        for entry in list(self.tables[table].values()):
            if entry.object["metadata"]["uid"] not in there:
                self.remove(table, entry.object)
        for obj in found["items"]:
            self.put(table, obj)
        return version

    async def _watch(self, table: str, version: str) -> AsyncIterator[Object]:
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": f"{_WATCH_S}",
        }
        async with self._session.get(TABLES[table].path(table), params=query) as answer:
            if answer.status >= 400:
                raise _failure(answer.status, await answer.text())
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _failure(event["object"].get("code", 500), json.dumps(event["object"]))
                    yield event


def _failure(code: int, text: str) -> Failure:
    try:
        status = json.loads(text)
    except ValueError:
        status = {"message": text}
    return Failure(status.get("reason", ""), status.get("message", ""), code=code, details=status.get("details"))
