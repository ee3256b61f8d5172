# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as the operator speaks it: plain JSON objects, server-side apply, lists and watches.

A thin layer on `kubernetes.aio`, which brings connections, TLS and credentials; its generated models are not used,
because most of what is read here are custom resources, and a parsed dict is all that is needed of the rest.

Every write passes a fence: without the Lease it is refused before it is sent, and it gets no more time than the Lease
still lasts, so that two operators never write at once (lease.py).
"""

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from kaito_ray import names
from kaito_ray.errors import ClusterUnavailable, LeaseLost, NotReadyYet, ObjectRefused
from kaito_ray.kinds import EVENT, Kind
from kaito_ray.metrics import API_REQUESTS

KubeObject = dict[str, Any]

logger = logging.getLogger(__name__)

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1,application/json"
_READ_TIMEOUT_S = 30.0
_WRITE_TIMEOUT_S = 15.0
# Whole objects are parsed page by page: a RayService takes 70 KB then, with its record of who owns which field.
_PAGE, _PAGE_OF_METADATA = 100, 500
# A server closes a watch after this long; bookmarks come every minute, so a longer silence is a dead connection.
_WATCH_S = 290
_SILENCE_S = 75.0
# client-go's `Too Many Requests` default when the server names no time.
_RETRY_AFTER_S = 1.0


class NotFound(NotReadyYet):
    """There is no such object, or no such kind."""

    reason = "NotFound"


class Conflict(NotReadyYet):
    """The object exists already, or is not at the version the request was made for."""

    reason = "Conflict"


class Gone(NotReadyYet):
    """History before the version asked for is no longer kept: list again."""

    reason = "Gone"


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether this process runs in a pod of the cluster that it speaks to."""
    return not environ.get("KUBECONFIG") and bool(environ.get("KUBERNETES_SERVICE_HOST"))


async def connect(environ: Mapping[str, str], *, user: str = "") -> ApiClient:
    """Connect as `KUBECONFIG` says, else as the account of this pod, else as ~/.kube/config says.

    `user` tells replicas apart in the API server's audit log.
    """
    configuration = Configuration()
    if in_cluster(environ):
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        file = environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        await load_kube_config(file, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]
    api = ApiClient(configuration)
    api.user_agent = f"kaito-ray ({user})" if user else "kaito-ray"
    return api


class Cluster:
    """Requests to one API server.

    `fence` answers for how many seconds this process may still write; 0 means not at all. `inside` tells whether
    Services can be reached by their names (service_http.py).
    """

    def __init__(
        self, api: ApiClient, *, fence: Callable[[], float] = lambda: _WRITE_TIMEOUT_S, inside: bool = False
    ) -> None:
        self.api = api
        self.inside = inside
        self._fence = fence

    @property
    def may_write(self) -> bool:
        """Whether this process still leads."""
        return self._fence() > 0

    async def close(self) -> None:
        """Close all connections."""
        await self.api.close()  # type: ignore[no-untyped-call]

    # Reading

    async def get(self, kind: Kind, namespace: str | None, name: str) -> KubeObject:
        """One object; raises NotFound."""
        found: KubeObject = await self._request("GET", kind, kind.path(namespace, name))
        return found

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> tuple[list[KubeObject], str]:
        """All objects and the version at which they were read; raises NotFound when the kind is not served."""
        items: list[KubeObject] = []
        pages = [page async for page in self.pages(kind, namespace, labels=labels, metadata_only=metadata_only)]
        for page in pages:
            items += page["items"]
        return items, pages[-1]["metadata"]["resourceVersion"]

    async def pages(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> AsyncIterator[KubeObject]:
        """The same as `{"items", "metadata"}` objects, for lists that are too long to be held whole."""
        limit = _PAGE_OF_METADATA if metadata_only else _PAGE
        query = {"limit": str(limit), "labelSelector": labels}
        accept = _accept(metadata_only, "List")
        while True:
            page: KubeObject = await self._request("GET", kind, kind.path(namespace), query=query, accept=accept)
            # An empty list of metadata has null for its items.
            yield {**page, "items": page["items"] or []}
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return

    async def watch(
        self,
        kind: Kind,
        version: str,
        namespace: str | None = None,
        *,
        labels: str = "",
        metadata_only: bool = False,
    ) -> AsyncIterator[KubeObject]:
        """What changes after `version`, as `{"type", "object"}`; ends when the server ends it, raises Gone."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "labelSelector": labels,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENCE_S)
        response = await self._send(
            "GET", kind, kind.path(namespace), query=query, accept=_accept(metadata_only, ""), limits=limits
        )
        try:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    _raise(event["object"], event["object"].get("code", 500), kind, {})
                yield event
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise ClusterUnavailable(f"the watch of {kind.crd} broke off: {error!r}", delay_s=1) from None
        finally:
            response.close()

    # Writing

    async def apply(self, kind: Kind, document: KubeObject) -> KubeObject:
        """Server-side apply: create the object or bring our fields of it to what `document` says.

        Conflicts with other managers are forced, as Kubernetes advises controllers to: the caller has made sure
        that the object is ours. Fields we never name stay theirs.
        """
        metadata = document["metadata"]
        applied: KubeObject = await self._request(
            "PATCH",
            kind,
            kind.path(metadata.get("namespace"), metadata["name"]),
            query={"fieldManager": names.FIELD_MANAGER, "force": "true"},
            body=document,
            content_type=_APPLY,
        )
        return applied

    async def create(self, kind: Kind, document: KubeObject) -> KubeObject:
        """Create an object; raises Conflict when one of its name exists."""
        created: KubeObject = await self._request(
            "POST",
            kind,
            kind.path(document["metadata"].get("namespace")),
            query={"fieldManager": names.FIELD_MANAGER},
            body=document,
        )
        return created

    async def patch(
        self, kind: Kind, namespace: str | None, name: str, patch: KubeObject, subresource: str = ""
    ) -> KubeObject:
        """JSON merge patch; with `metadata.resourceVersion` in it, raises Conflict when the object has moved on."""
        patched: KubeObject = await self._request(
            "PATCH",
            kind,
            kind.path(namespace, name, subresource),
            query={"fieldManager": names.FIELD_MANAGER},
            body=patch,
            content_type=_MERGE,
        )
        return patched

    async def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str) -> None:
        """Delete the object of that `uid` and, in the background, what it owns; gone already is fine."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", kind, kind.path(namespace, name), body=body)
        except (NotFound, Conflict):
            logger.debug("%s %s/%s was gone before it was deleted", kind.kind, namespace, name)

    async def post_event(self, document: KubeObject) -> None:
        """Post an Event; one that cannot be posted is only logged, since nothing depends on it."""
        try:
            await self.create(EVENT, document)
        except (ObjectRefused, NotReadyYet) as error:
            logger.warning("an Event could not be posted: %s", error)

    # HTTP

    async def _request(
        self,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: KubeObject | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Any:
        if method == "GET":
            timeout_s = _READ_TIMEOUT_S
        else:
            timeout_s = min(_WRITE_TIMEOUT_S, self._fence())
            if timeout_s <= 0:
                raise LeaseLost(f"{method} {path} was not sent: another operator leads")
        response = await self._send(
            method,
            kind,
            path,
            query=query or {},
            body=body,
            content_type=content_type,
            accept=accept,
            limits=aiohttp.ClientTimeout(total=timeout_s),
        )
        try:
            return await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise ClusterUnavailable(f"{method} {path}: the answer broke off: {error!r}") from None

    async def _send(
        self,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        accept: str,
        body: KubeObject | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        _, url, headers, sanitised, _ = await self.api.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in query.items() if value],
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = await self.api.call_api(method, url, headers, sanitised, _request_timeout=limits)
            response: aiohttp.ClientResponse = answer.response
            API_REQUESTS.labels(method, kind.plural, str(response.status)).inc()
            if response.status >= 400:
                _raise(await _status(response), response.status, kind, response.headers)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            API_REQUESTS.labels(method, kind.plural, "none").inc()
            raise ClusterUnavailable(f"{method} {path}: {error!r}") from None
        return response


def _accept(metadata_only: bool, suffix: str) -> str:
    return _METADATA.format(list=suffix) if metadata_only else "application/json"


async def _status(response: aiohttp.ClientResponse) -> KubeObject:
    """The `Status` object of a refusal; something between us and the API server may answer otherwise."""
    text = await response.text()
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    return status if isinstance(status, dict) else {"message": text[:200]}


def _raise(status: KubeObject, code: int, kind: Kind, headers: Mapping[str, str]) -> None:
    message = str(status.get("message") or status.get("reason") or f"HTTP {code}")
    if code == 404:
        raise NotFound(message)
    if code == 409:
        raise Conflict(message)
    if code == 410:
        raise Gone(message)
    # Server-side apply answers 500 when it meets a field that the schema of the CRD does not have.
    if "field not declared in schema" in message:
        raise ObjectRefused(f"{kind.crd} in this cluster is too old: {message}", reason="CustomResourceTooOld")
    if code in {401, 429} or code >= 500:
        after = headers.get("Retry-After", "")
        delay_s = float(after) if after.isdecimal() else _RETRY_AFTER_S
        raise ClusterUnavailable(f"the API server answered {code}: {message}", delay_s=delay_s)
    raise ObjectRefused(message)
