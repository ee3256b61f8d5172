# SPDX-License-Identifier: Apache-2.0
"""Server-side apply requests: what must be wrong with one before anything is merged."""

import json
from typing import Any

from cluster import failure
from cluster.call import Call
from cluster.decoding import decode
from cluster.failure import Failure
from cluster.resource import Object
from cluster.structural import prune


def checked_configuration(call: Call, config: Any) -> Object:
    """The configuration of an apply request. Raises Failure (400, 422, and 500 for unknown fields)."""
    _check_manager(call)
    resource = call.resource
    if not isinstance(config, dict):
        raise failure.bad_request("error decoding YAML: not an object")
    metadata = config.setdefault("metadata", {}) or {}
    if metadata.get("managedFields"):
        raise failure.bad_request("metadata.managedFields must be nil")
    if metadata.setdefault("name", call.name) != call.name:
        raise failure.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({call.name})"
        )
    if resource.namespaced:
        metadata.setdefault("namespace", call.namespace)
    for key, wanted in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        if config.get(key) != wanted:
            raise failure.bad_request(f"invalid object type: {config.get('apiVersion')}, Kind={config.get('kind')}")
    copy = json.loads(json.dumps(config))
    unknown = prune(resource.schema, copy) if resource.custom else decode(resource, copy)[1]
    if unknown:
        where = f"{call.namespace}/{call.name}" if call.namespace else f"/{call.name}"
        kind = f"{resource.api_version}, Kind={resource.kind}"
        fields = ", ".join(f".{one}: field not declared in schema" for one in unknown)
        raise Failure("", f"failed to create typed patch object ({where}; {kind}): {fields}", code=500)
    return config


def check_version(call: Call, old: Object, config: Object) -> None:
    """Raise Failure (409) when the configuration names an older version of the object."""
    if config["metadata"].get("resourceVersion") not in (None, "", old["metadata"]["resourceVersion"]):
        raise failure.conflict(call.resource, call.name)


def _check_manager(call: Call) -> None:
    if call.field_manager:
        return
    why = "Required value: is required for apply patch"
    cause = {"reason": "FieldValueRequired", "message": why, "field": "fieldManager"}
    raise Failure(
        "Invalid",
        f'PatchOptions.meta.k8s.io "" is invalid: fieldManager: {why}',
        details={"group": "meta.k8s.io", "kind": "PatchOptions", "causes": [cause]},
    )
