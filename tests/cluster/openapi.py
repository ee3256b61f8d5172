# SPDX-License-Identifier: Apache-2.0
"""OpenAPI v3 documents, one per group and version: what `kubectl apply` validates with and `kubectl explain` prints."""

import hashlib
import json
from typing import Any

from cluster.builtin_schema import raw_schema, short_name
from cluster.patch import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH
from cluster.resource import Object, Registry, Resource

_QUERY = ("dryRun", "fieldManager", "fieldValidation", "force", "pretty")


V2_MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
# A Document of the OpenAPI v2 protobuf without paths or definitions: swagger "2.0", title and version. kubectl asks
# for it where v3 does not know a kind, to find that v2 does not either.
V2_DOCUMENT = b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.33.4\x42\x00"


def index(registry: Registry) -> Object:
    """GET /openapi/v3: the documents there are."""
    paths = {}
    for resource in registry:
        base = f"apis/{resource.group}/{resource.version}" if resource.group else f"api/{resource.version}"
        seen = [one.schema.raw for one in registry if one.api_version == resource.api_version]
        digest = hashlib.sha256(json.dumps(seen, default=str).encode()).hexdigest()[:32].upper()
        paths[base] = {"serverRelativeURL": f"/openapi/v3/{base}?hash={digest}"}
    return {"paths": paths}


def document(registry: Registry, group: str, version: str) -> Object | None:
    """GET /openapi/v3/apis/GROUP/VERSION."""
    resources = [one for one in registry if one.group == group and one.version == version]
    if not resources:
        return None
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for resource in resources:
        name = _component(resource)
        schema = _schema(resource.schema.raw, schemas)
        schema["x-kubernetes-group-version-kind"] = [_kind(resource)]
        schemas[name] = schema
        paths |= _paths(resource, name)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.4"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _component(resource: Resource) -> str:
    if not resource.custom:
        return f"io.k8s.api.{resource.group.partition('.')[0] or 'core'}.{resource.version}.{resource.kind}"
    return f"{'.'.join(reversed(resource.group.split('.')))}.{resource.version}.{resource.kind}"


def _kind(resource: Resource) -> Object:
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}


def _schema(raw: Any, schemas: dict[str, Any]) -> Any:
    """A schema with its references turned into references to components, which are added on the way."""
    if isinstance(raw, list):
        return [_schema(one, schemas) for one in raw]
    if not isinstance(raw, dict):
        return raw
    if raw.get("x-kubernetes-int-or-string") and "type" not in raw and "anyOf" not in raw:
        return {**raw, "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}
    reference = raw.get("$ref")
    if isinstance(reference, str):
        name = f"io.k8s.api.{short_name(reference)}"
        if name not in schemas:
            schemas[name] = {}
            schemas[name] = _schema(raw_schema(reference), schemas)
        rest = {key: value for key, value in raw.items() if key != "$ref"}
        return {**rest, "allOf": [{"$ref": f"#/components/schemas/{name}"}], "default": {}}
    return {
        key: {name: _schema(one, schemas) for name, one in value.items()}
        if key == "properties"
        else _schema(value, schemas)
        if key in ("items", "additionalProperties", "allOf", "anyOf", "oneOf", "not")
        else value
        for key, value in raw.items()
    }


def _paths(resource: Resource, component: str) -> dict[str, Any]:
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    if resource.namespaced:
        base += "/namespaces/{namespace}"
    body = {"schema": {"$ref": f"#/components/schemas/{component}"}}
    kind = {"x-kubernetes-group-version-kind": _kind(resource)}
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _QUERY]
    patches = [JSON_PATCH, MERGE_PATCH, APPLY_PATCH] + ([] if resource.custom else [STRATEGIC_MERGE_PATCH])

    def operation(action: str, sent: list[str]) -> Object:
        done: Object = {
            "x-kubernetes-action": action,
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": {"application/json": body}}},
            **kind,
        }
        if sent:
            done["requestBody"] = {"content": dict.fromkeys(sent, body)}
        return done

    return {
        f"{base}/{resource.plural}": {"get": operation("list", []), "post": operation("post", ["application/json"])},
        f"{base}/{resource.plural}/{{name}}": {
            "get": operation("get", []),
            "put": operation("put", ["application/json"]),
            "patch": operation("patch", patches),
            "delete": operation("delete", []),
        },
    }
