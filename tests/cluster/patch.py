# SPDX-License-Identifier: Apache-2.0
"""The three patch formats that are not server-side apply; each returns a new object and changes none."""

from collections.abc import Callable
from typing import Any

import jsonpatch
import jsonpointer

from cluster.failure import Failure, bad_request
from cluster.fields import child
from cluster.resource import Object
from cluster.schema import Node

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


def json_patched(obj: Object, operations: Any) -> Object:
    """RFC 6902. Raises Failure: 400 for a malformed patch, 422 when it does not fit the object."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    try:
        patched: Object = jsonpatch.JsonPatch(operations).apply(obj)
    except jsonpatch.InvalidJsonPatch as error:
        raise bad_request(f"error decoding patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        raise Failure(
            "Invalid",
            "the server rejected our request due to an error in our request",
            details={"causes": [{"message": str(error)}]},
        ) from error
    return patched


def merge_patched(obj: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(obj) if isinstance(obj, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge_patched(merged.get(key), value)
        else:
            merged[key] = value
    return merged


def strategic_merge_patched(node: Node, obj: Any, patch: Any) -> Any:
    """Kubernetes' strategic merge: keyed lists merge item by item, directives start with `$`."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f"Unknown patch type found: {directive}")
    merged = dict(obj) if isinstance(obj, dict) else {}
    retained = patch.get("$retainKeys")
    if retained is not None:
        merged = {key: value for key, value in merged.items() if key in retained}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            merged[name] = [item for item in merged.get(name) or [] if item not in value]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        below = child(node, key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = strategic_merge_patched(below, merged.get(key), value)
        elif isinstance(value, list) and below.merges:
            order = patch.get(f"$setElementOrder/{key}")
            merged[key] = _merged_list(below, merged.get(key) or [], value, order)
        else:
            merged[key] = value
    for key, order in patch.items():
        name = key.partition("/")[2]
        if key.startswith("$setElementOrder/") and name not in patch and name in merged:
            merged[name] = _ordered(merged[name], order, _identity(child(node, name)))
    return merged


def _merged_list(node: Node, live: list[Any], patch: list[Any], order: list[Any] | None) -> list[Any]:
    identity = _identity(node)
    if not node.merge_key:
        merged = [*live, *(item for item in patch if item not in live)]
    else:
        if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
            return [item for item in patch if "$patch" not in item]
        merged = list(live)
        for item in patch:
            if not isinstance(item, dict) or node.merge_key not in item:
                raise bad_request(f"map: {item} does not contain declared merge key: {node.merge_key}")
            at = next((i for i, one in enumerate(merged) if identity(one) == identity(item)), None)
            if item.get("$patch") == "delete":
                merged = [one for one in merged if identity(one) != identity(item)]
            elif at is None:
                merged.append(strategic_merge_patched(node.item, {}, item))
            else:
                merged[at] = strategic_merge_patched(node.item, merged[at], item)
    return _ordered(merged, order, identity) if order else merged


def _identity(node: Node) -> Callable[[Any], Any]:
    key = node.merge_key
    return lambda item: item.get(key) if key and isinstance(item, dict) else item


def _ordered(items: list[Any], order: list[Any], identity: Callable[[Any], Any]) -> list[Any]:
    """Listed items in the order given; the others stay behind the listed item they followed."""
    wanted = [identity(item) for item in order]
    listed = {repr(identity(item)): item for item in items if identity(item) in wanted}
    result = [listed[repr(key)] for key in wanted if repr(key) in listed]
    for index, item in enumerate(items):
        if identity(item) not in wanted:
            before = next((one for one in reversed(items[:index]) if one in result), None)
            result.insert(result.index(before) + 1 if before is not None else 0, item)
    return result
