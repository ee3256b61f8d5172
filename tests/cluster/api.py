# SPDX-License-Identifier: Apache-2.0
"""The API without a transport: a request in, a response or a stream of watch events out.

The listener calls `handle` for HTTP; the parts it composes (store, verbs, watches, controllers) are also what the
simulators work on.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

from cluster import discovery, failure, openapi
from cluster.accept import Form, accepted_form
from cluster.access import Access, User, impersonated, user_of
from cluster.addresses import Addresses
from cluster.admission import Webhooks
from cluster.call import Call
from cluster.claim_protection import ClaimProtection
from cluster.conversion import from_storage
from cluster.decoding import parse_body
from cluster.definition import Definitions
from cluster.deletion import Deletion
from cluster.exchange import Request, Response
from cluster.failure import Failure
from cluster.faults import Faults
from cluster.garbage import Garbage
from cluster.listing import Listing, Page
from cluster.patch import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH
from cluster.protobuf import is_protobuf, parse_protobuf
from cluster.request_log import Record, RequestLog
from cluster.resource import Object, Registry
from cluster.review import REVIEWS, answered
from cluster.store import Entry, Store, dump
from cluster.subresource import HANDLED, Subresources
from cluster.table import partial, table
from cluster.target import NoSuchPath, Target, parse_target
from cluster.verbs import Verbs
from cluster.watching import Watching

_PATCHES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_TRUE = ("true", "1")
_RETURNED_WHEN_DELETED = {"pods", "services", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts"}


class Api:
    """A whole API server, short of the socket."""

    def __init__(self, registry: Registry, token: str, *, bookmark_s: float = 10.0, crd_delay_s: float = 0.02) -> None:
        self.registry = registry
        self._token = token
        self.store = Store()
        self.addresses = Addresses()
        self.admission = Webhooks(self.store, registry)
        self.verbs = Verbs(self.store, registry, self.addresses, self.admission)
        self.deletion = Deletion(self.store, self.admission)
        self.listing = Listing(self.store)
        self.watching = Watching(self.store, bookmark_s)
        self.garbage = Garbage(self.store, registry, self.verbs, self.deletion)
        self.claims = ClaimProtection(self.store)
        self.definitions = Definitions(self.store, registry, crd_delay_s)
        self.access = Access(self.store)
        self.subresources = Subresources(self.store, self.verbs, self.deletion)
        self.faults = Faults()
        self.requests = RequestLog()

    async def handle(self, request: Request) -> Response:
        """Answer a request; refusals become Status objects. Raises faults.Dropped to break the connection."""
        started = time.monotonic()
        record = Record("", "", "", "", "", request.headers.get("user-agent", ""), "", path=request.path)
        try:
            response = await self._route(request, record)
        except Failure as refusal:
            response = Response.json(refusal.status, refusal.code)
            wait = refusal.status.get("details", {}).get("retryAfterSeconds")
            if wait is not None:
                response.headers.append(("Retry-After", str(wait)))
        except NoSuchPath:
            response = Response.text("404 page not found\n", 404)
        record.code = response.code
        record.duration_s = time.monotonic() - started
        return response

    def user_of(self, authorization: str) -> User:
        """Who sent a request. Raises Failure (401)."""
        return user_of(authorization, self._token)

    async def _route(self, request: Request, record: Record) -> Response:
        path = request.path.rstrip("/") or "/"
        if path in ("/healthz", "/readyz", "/livez"):
            return Response.text("ok")
        if path == "/version":
            return Response.json(discovery.VERSION)
        if path == "/openapi/v2" and "spec.v2" in request.headers.get("accept", ""):
            return Response(200, openapi.V2_DOCUMENT, openapi.V2_MEDIA_TYPE)
        if path == "/_cluster/requests":
            return self._counted(request)
        user = impersonated(self.user_of(request.headers.get("authorization", "")), request.headers)
        target = None
        if path.startswith(("/api/", "/apis/")) and path.count("/") > (2 if path.startswith("/api/") else 3):
            target = parse_target(self.registry, path)
        if target is not None and target.subresource in ("proxy", "log"):
            form = Form()
        else:
            form = accepted_form(request.headers.get("accept", ""))
        if target is None:
            return self._discover(path, form)
        call = self._call(request, target)
        call.user, call.groups = user
        record.verb = "apply" if _content_type(request) == APPLY_PATCH and call.verb == "patch" else call.verb
        record.resource, record.subresource = call.resource.qualified, call.subresource
        record.namespace, record.name = call.namespace, call.name
        record.manager, record.dry_run = call.manager, call.dry_run
        self.requests.add(record)
        await self.faults.meet(record)
        if call.verb not in call.resource.verbs and not call.subresource:
            raise failure.method_not_allowed(call.resource, call.verb)
        self.access.check(call)
        if call.resource.kind in REVIEWS:
            return Response.json(answered(self.access, call, _body(request), self._token), 201)
        if call.subresource in HANDLED:
            body = _body(request) if request.body and call.subresource != "proxy" else None
            return await self.subresources.answer(request, call, target.rest, body)
        if record.verb == "apply" and self.store.get(call.resource.table, call.namespace, call.name) is None:
            self.access.check(call, "create")
        response = await self._dispatch(request, call, form)
        response.headers += [("Warning", f'299 - "{_quoted(text)}"') for text in call.warnings]
        return response

    def _counted(self, request: Request) -> Response:
        """For benchmarks in other processes: counts of requests, cleared by DELETE."""
        if request.method == "DELETE":
            self.requests.clear()
        agents = sorted({one.user_agent.partition("/")[0] for one in self.requests})
        found = {
            agent: {f"{verb} {resource}": count for (verb, resource), count in self.requests.counts(agent).items()}
            for agent in agents
        }
        return Response.json(found)

    def _call(self, request: Request, target: Target) -> Call:
        query = request.query
        verb = _VERBS.get(request.method, "")
        if request.method in ("GET", "HEAD"):
            watches = query.get("watch", "").lower() in _TRUE and not target.name
            verb = "watch" if watches else "get" if target.name else "list"
        elif request.method == "DELETE":
            verb = "delete" if target.name else "deletecollection"
        if not verb:
            raise failure.method_not_allowed(target.resource, request.method.lower())
        if verb == "create" and target.resource.namespaced and not target.namespace:
            raise failure.method_not_allowed(target.resource, verb)
        return Call(
            verb=verb,
            resource=target.resource,
            namespace=target.namespace,
            name=target.name,
            subresource=target.subresource,
            user_agent=request.headers.get("user-agent", ""),
            field_manager=query.get("fieldManager", ""),
            field_validation=query.get("fieldValidation") or "Warn",
            dry_run=query.get("dryRun") == "All",
            force=query.get("force", "").lower() in _TRUE,
            options={"includeObject": query.get("includeObject", "Metadata")},
        )

    def _discover(self, path: str, form: Form) -> Response:
        if path in ("/api", "/apis") and form.kind == "APIGroupDiscoveryList":
            document: Any = discovery.aggregated(self.registry, core=path == "/api", version=form.version)
            response = Response.json(document)
            response.content_type = discovery.AGGREGATED.format(version=form.version)
            return response
        parts = path.strip("/").split("/")
        if path == "/api":
            document = discovery.core_versions()
        elif path == "/apis":
            document = discovery.group_list(self.registry)
        elif parts[0] == "api" and len(parts) == 2:
            document = discovery.resource_list(self.registry, "", parts[1])
        elif parts[0] == "apis" and len(parts) == 2:
            document = discovery.group(self.registry, parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            document = discovery.resource_list(self.registry, parts[1], parts[2])
        elif parts[:2] == ["openapi", "v3"] and len(parts) == 2:
            document = openapi.index(self.registry)
        elif parts[:2] == ["openapi", "v3"] and len(parts) > 3:
            document = openapi.document(self.registry, parts[3] if parts[2] == "apis" else "", parts[-1])
        else:
            document = None
        if document is None:
            raise NoSuchPath
        return Response.json(document)

    async def _dispatch(self, request: Request, call: Call, form: Form) -> Response:
        match call.verb:
            case "get":
                return self._object(call, self.verbs.current(call), form)
            case "list":
                return self._list(call, await self.listing.page(call, request.query), form)
            case "watch":
                return Response(200, stream=self._watch(call, request.query, form))
            case "create":
                return self._object(call, await self.verbs.create(call, _body(request)), form, 201)
            case "update":
                return self._object(call, await self.verbs.update(call, _body(request)), form)
            case "patch":
                return await self._patch(request, call, form)
            case "delete":
                return await self._delete(request, call, form)
            case _:
                return await self._delete_collection(request, call, form)

    async def _patch(self, request: Request, call: Call, form: Form) -> Response:
        kind = _content_type(request)
        if kind not in _PATCHES or (call.resource.custom and kind == STRATEGIC_MERGE_PATCH):
            raise failure.unsupported_media_type([one for one in _PATCHES if one != kind])
        if kind == APPLY_PATCH:
            entry, created = await self.verbs.apply(call, _body(request))
            return self._object(call, entry, form, 201 if created else 200)
        return self._object(call, await self.verbs.patch(call, kind, _body(request)), form)

    async def _delete(self, request: Request, call: Call, form: Form) -> Response:
        entry, gone = await self.deletion.delete(call, _delete_options(request))
        if not gone or (call.resource.plural in _RETURNED_WHEN_DELETED and not call.resource.custom):
            return self._object(call, entry, form)
        details = {"name": call.name, "kind": call.resource.plural, "uid": entry.object["metadata"]["uid"]}
        if call.resource.group:
            details["group"] = call.resource.group
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return Response.json(status)

    async def _delete_collection(self, request: Request, call: Call, form: Form) -> Response:
        page = await self.listing.page(call, {**request.query, "limit": ""})
        options = _delete_options(request)
        for entry in page.entries:
            call.namespace, call.name = entry.key
            try:
                await self.deletion.delete(call, options)
            except Failure as refusal:
                if refusal.reason != "NotFound":
                    raise
        return self._list(call, page, form)

    def _object(self, call: Call, entry: Entry, form: Form, code: int = 200) -> Response:
        version = call.resource.api_version
        if not form.kind:
            return Response(code, entry.bytes(version, from_storage))
        obj = from_storage(entry.object, version)
        if form.kind == "Table":
            metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return _formed(table(call.resource, [obj], metadata, call.options.get("includeObject", "")), form, code)
        return _formed(partial(obj), form, code)

    def _list(self, call: Call, page: Page, form: Form) -> Response:
        metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
        if page.token:
            metadata["continue"] = page.token
            if page.remaining is not None:
                metadata["remainingItemCount"] = page.remaining
        version = call.resource.api_version
        if not form.kind:
            items = b",".join(entry.bytes(version, from_storage) for entry in page.entries)
            head = dump({"kind": f"{call.resource.kind}List", "apiVersion": version, "metadata": metadata})
            return Response(200, head[:-1] + b',"items":[' + items + b"]}")
        objects = [from_storage(entry.object, version) for entry in page.entries]
        if form.kind == "Table":
            return _formed(table(call.resource, objects, metadata, call.options.get("includeObject", "")), form)
        partials = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    "items": [partial(obj) for obj in objects] or None}  # fmt: skip
        return _formed(partials, form)

    def _watch(self, call: Call, query: dict[str, str], form: Form) -> AsyncIterator[bytes]:
        version = call.resource.api_version
        if not form.kind:
            return self.watching.stream(call, query, lambda entry: entry.bytes(version, from_storage))
        heads = True

        def render(entry: Entry) -> bytes:
            nonlocal heads
            obj = from_storage(entry.object, version)
            if form.kind != "Table":
                return dump(partial(obj))
            metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}
            shown = table(call.resource, [obj], metadata, call.options.get("includeObject", ""), heads=heads)
            heads = False
            return dump(shown)

        return self.watching.stream(call, query, render)


def _formed(document: Object, form: Form, code: int = 200) -> Response:
    if form.version != "v1":
        document = {**document, "apiVersion": f"meta.k8s.io/{form.version}"}
    return Response.json(document, code)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip()


def _body(request: Request) -> Any:
    return parse_protobuf(request.body) if is_protobuf(request.body) else parse_body(request.body)


def _delete_options(request: Request) -> dict[str, Any]:
    options = _body(request) if request.body else {}
    for key in ("propagationPolicy", "gracePeriodSeconds", "orphanDependents"):
        if key in request.query and isinstance(options, dict):
            value = request.query[key]
            options.setdefault(key, value == "true" if key == "orphanDependents" else value)
    return options if isinstance(options, dict) else {}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
