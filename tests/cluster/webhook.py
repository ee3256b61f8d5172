# SPDX-License-Identifier: Apache-2.0
"""One admission webhook: whether it wants a request, and the HTTPS call that asks it.

Wording of refusals follows k8s.io/apiserver's admission/plugin/webhook.
"""

import asyncio
import base64
import binascii
import json
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import jsonpatch

from cluster import cel
from cluster.call import Call
from cluster.conversion import from_storage
from cluster.failure import Failure
from cluster.resource import Object, Registry, Resource
from cluster.selector import object_selector

# OpenSSL's X509_V_ERR_ codes.
_SIGNATURE, _SELF_SIGNED, _SELF_SIGNED_IN_CHAIN, _NO_ISSUER = 7, 18, 19, 20
_OPERATIONS = {
    "create": "CREATE",
    "update": "UPDATE",
    "patch": "UPDATE",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}


@dataclass(frozen=True, slots=True)
class Review:
    """A request as a webhook is asked about it; the objects are in the version its rules name."""

    call: Call
    operation: str
    resource: Resource
    obj: Object | None
    old: Object | None


class Unreachable(Exception):
    """The webhook did not give a usable answer; its failurePolicy decides."""


def operation_of(call: Call, old: Object | None) -> str:
    """CREATE, UPDATE or DELETE; an update or apply of what is not there yet creates it."""
    operation = _OPERATIONS[call.verb]
    return "CREATE" if operation == "UPDATE" and old is None else operation


def wanted_resource(hook: Object, call: Call, operation: str, registry: Registry) -> Resource | None:
    """The version of the resource in which the webhook wants the request, or None when it does not want it."""
    if any(_rule_fits(rule, call, operation, call.resource.version) for rule in hook.get("rules", ())):
        return call.resource
    if hook.get("matchPolicy") != "Exact":
        for other in registry.versions(call.resource.group, call.resource.plural):
            if any(_rule_fits(rule, call, operation, other.version) for rule in hook.get("rules", ())):
                return other
    return None


def _rule_fits(rule: Object, call: Call, operation: str, version: str) -> bool:
    resource = call.resource
    name = f"{resource.plural}/{call.subresource}" if call.subresource else resource.plural
    names = {name, "*/*"} | ({f"{resource.plural}/*", f"*/{call.subresource}"} if call.subresource else {"*"})
    scope = rule.get("scope", "*")
    return (
        bool({operation, "*"} & set(rule.get("operations", ())))
        and bool({resource.group, "*"} & set(rule.get("apiGroups", ())))
        and bool({version, "*"} & set(rule.get("apiVersions", ())))
        and bool(names & set(rule.get("resources", ())))
        and scope in ("*", "Namespaced" if resource.namespaced else "Cluster")
    )


def selects(hook: Object, call: Call, namespace_labels: Mapping[str, str], objects: list[Object | None]) -> bool:
    """Whether the namespace's and the object's labels fit the webhook's selectors."""
    if call.resource.namespaced and not object_selector(hook.get("namespaceSelector"))(namespace_labels):
        return False
    wanted = hook.get("objectSelector")
    if not wanted:
        return True
    fits = object_selector(wanted)
    return any(fits(one["metadata"].get("labels") or {}) for one in objects if one is not None)


def conditions_hold(hook: Object, review: Review) -> bool:
    """Whether the webhook's matchConditions, if any, all hold. Raises Unreachable when one cannot be told."""
    variables = {
        "object": cel.plain(review.obj),
        "oldObject": cel.plain(review.old),
        "request": cel.plain(_request(review, "")),
    }
    for condition in hook.get("matchConditions") or ():
        try:
            if not cel.evaluate(condition["expression"], variables):
                return False
        except cel.RuleError as error:
            raise Unreachable(f"matchCondition {condition['name']!r}: {error}") from error
    return True


def _request(review: Review, uid: str) -> Object:
    call, resource = review.call, review.resource
    name = call.name or ((review.obj or review.old or {}).get("metadata", {}).get("name", ""))

    def kind(one: Resource) -> Object:
        return {"group": one.group, "version": one.version, "kind": one.kind}

    def place(one: Resource) -> Object:
        return {"group": one.group, "version": one.version, "resource": one.plural}

    request: Object = {
        "uid": uid,
        "kind": kind(resource),
        "resource": place(resource),
        "requestKind": kind(call.resource),
        "requestResource": place(call.resource),
        "name": name,
        "operation": review.operation,
        "userInfo": {"username": call.user, "groups": list(call.groups)},
        "object": review.obj,
        "oldObject": review.old,
        "dryRun": call.dry_run,
        "options": {"kind": f"{review.operation.capitalize()}Options", "apiVersion": "meta.k8s.io/v1"},
    }
    if call.subresource:
        request["subResource"] = request["requestSubResource"] = call.subresource
    if call.namespace:
        request["namespace"] = call.namespace
    return request


class Caller:
    """Calls webhooks; `routes` says where Services listen, since a test cluster has no network of its own."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, hook: Object, review: Review) -> Object:
        """The `response` of the webhook. Raises Unreachable."""
        uid = str(uuid.uuid4())
        timeout_s = hook.get("timeoutSeconds", 10)
        url, shown, server_name = self._address(hook["clientConfig"])
        shown = f"{shown}?timeout={timeout_s}s"
        document = {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": _request(review, uid)}
        if self._session is None:
            # One connection per review: a webhook that restarts with a new certificate is asked with the new one.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        try:
            async with self._session.post(
                url,
                params={"timeout": f"{timeout_s}s"},
                data=json.dumps(document),
                headers={"Content-Type": "application/json"},
                ssl=_trust(hook["clientConfig"].get("caBundle", "")),
                server_hostname=server_name,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as answer:
                if answer.status != 200:
                    raise Unreachable(f'failed to call webhook: the server responded with "{answer.reason}"')
                review_back = await answer.json(content_type=None)
        except TimeoutError as error:
            raise Unreachable(f'failed to call webhook: Post "{shown}": context deadline exceeded') from error
        except aiohttp.ClientConnectorCertificateError as error:
            why = f"tls: failed to verify certificate: x509: {_untrusted(error.certificate_error)}"
            raise Unreachable(f'failed to call webhook: Post "{shown}": {why}') from error
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise Unreachable(f'failed to call webhook: Post "{shown}": {error}') from error
        except asyncio.CancelledError:
            raise
        response = review_back.get("response") if isinstance(review_back, dict) else None
        if not isinstance(response, dict):
            raise Unreachable("received invalid webhook response: webhook response was absent")
        if response.get("uid") != uid:
            raise Unreachable(
                f'received invalid webhook response: expected response.uid="{uid}", got "{response.get("uid")}"'
            )
        result: Object = response
        return result

    def _address(self, config: Object) -> tuple[str, str, str | None]:
        if "url" in config:
            return config["url"], config["url"], None
        service = config["service"]
        place = (service["namespace"], service["name"])
        host = f"{service['name']}.{service['namespace']}.svc"
        path = service.get("path", "/")
        shown = f"https://{host}:{service.get('port', 443)}{path}"
        base = self.routes.get(place)
        if base is None:
            raise Unreachable(f'failed to call webhook: Post "{shown}": service "{service["name"]}" not found')
        return base.rstrip("/") + path, shown, host


def _untrusted(error: Exception) -> str:
    """Why a certificate was not accepted, in Go's words where it is for the usual reason."""
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    unknown = code in (_SIGNATURE, _SELF_SIGNED, _SELF_SIGNED_IN_CHAIN, _NO_ISSUER)
    return "certificate signed by unknown authority" if unknown else str(error)


def _trust(bundle: str) -> ssl.SSLContext:
    if not bundle:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
    except (ssl.SSLError, ValueError, binascii.Error) as error:
        raise Unreachable(f"failed to call webhook: unable to load root certificates: {error}") from error


def patched(response: Object, obj: Object) -> Object:
    """The object with a mutating webhook's patch applied. Raises Unreachable for a patch that does not fit."""
    if not response.get("patch"):
        return obj
    if response.get("patchType") != "JSONPatch":
        raise Unreachable(f'invalid patch type: "{response.get("patchType")}"')
    try:
        changed: Object = jsonpatch.JsonPatch(json.loads(base64.b64decode(response["patch"]))).apply(obj)
    except (ValueError, jsonpatch.JsonPatchException) as error:
        raise Unreachable(f"unable to apply patch: {error}") from error
    return changed


def denial(hook: Object, response: Object) -> Failure:
    """The refusal a webhook asked for."""
    result: dict[str, Any] = response.get("status") or {}
    prefix = f'admission webhook "{hook["name"]}" denied the request'
    text = result.get("message") or result.get("reason")
    message = f"{prefix}: {text}" if text else f"{prefix} without explanation"
    code = result.get("code") or 0
    return Failure(result.get("reason", ""), message, code=max(code, 400), details=result.get("details"))


def in_version(obj: Object | None, resource: Resource) -> Object | None:
    """An object in the version a webhook wants."""
    return None if obj is None else from_storage(obj, resource.api_version)
