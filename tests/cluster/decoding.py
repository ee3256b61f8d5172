# SPDX-License-Identifier: Apache-2.0
"""Request bodies to objects, as Go's typed decoding would leave them.

Built-in kinds and everybody's metadata lose unknown and empty fields, and a value of the wrong JSON type is refused;
custom resources are pruned and defaulted by their own schema (`structural.py`).
"""

import json
import re
from typing import Any

import yaml

from cluster.builtin_schema import schema_of
from cluster.failure import Failure, bad_request
from cluster.quantity import canonical_quantity
from cluster.resource import Object, Resource
from cluster.schema import Node
from cluster.structural import fill, prune
from cluster.validation import json_type

_META = schema_of("V1ObjectMeta")
# Pointers and fields without omitempty: their empty values are kept.
_KEPT_EMPTY = {"storageClassName", "apiGroup", "holderIdentity", "message", "reason", "note", "apiVersion", "rules",
               "endpoints", "ports", "name", "type", "status", "loadBalancer", "image", "imageID", "ipFamilyPolicy",
               "matchExpressions", "values", "preserveUnknownFields"}  # fmt: skip
# Plain bools with omitempty: false is the same as absent.
_DROPPED_FALSE = {"hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty", "readOnly", "paused",
                  "unschedulable", "publishNotReadyAddresses"}  # fmt: skip
_GO_TYPES = {"string": "string", "integer": "int32", "boolean": "bool", "number": "float64"}


def parse_body(body: bytes) -> Any:
    """JSON, or YAML where it is not JSON."""
    try:
        return json.loads(body)
    except ValueError:
        pass
    try:
        return yaml.load(body, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise bad_request(f"error decoding: {error}") from error


def decode(resource: Resource, body: Any) -> tuple[Object, list[str]]:
    """An object of the resource from a parsed body (which it takes over), and the names of unknown fields in it.

    Raises Failure (400) for another kind or version, and for values that do not fit a typed field.
    """
    if not isinstance(body, dict):
        raise bad_request(f'the object provided is unrecognized (must be of type {resource.kind}): couldn\'t get version/kind; json parse error: json: cannot unmarshal {json_type(body)} into Go value of type struct')  # noqa: E501  # fmt: skip
    kind, version = body.setdefault("kind", resource.kind), body.setdefault("apiVersion", resource.api_version)
    if kind != resource.kind:
        raise bad_request(f"{kind} in version \"{version.rpartition('/')[2]}\" cannot be handled as a {resource.kind}: converting ({kind}) to ({resource.kind}): unknown conversion")  # noqa: E501  # fmt: skip
    if version != resource.api_version:
        raise bad_request(f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})")  # noqa: E501  # fmt: skip
    unknown: list[str] = []
    where = _Where(resource)
    if resource.custom:
        metadata = body.get("metadata")
        body["metadata"] = where.decoded(_META, metadata if metadata is not None else {}, "metadata", unknown)
        unknown += prune(resource.schema, body)
        fill(resource.schema, body)
        return body, unknown
    obj: Object = where.decoded(resource.schema, body, "", unknown)
    obj.setdefault("metadata", {})
    return obj, unknown


class _Where:
    """The typed decoding of one object; knows what to call it in messages."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource

    def decoded(self, node: Node, value: Any, path: str, unknown: list[str]) -> Any:
        """A value without unknown, null and empty parts."""
        if node.shape == "any":
            return value
        if node.shape == "map":
            return self._map(node, value, path, unknown)
        if node.shape == "list":
            if not isinstance(value, list):
                raise self._misfit(node, value, path, "[]" + _GO_TYPES.get(node.item.type, "struct"))
            return [self.decoded(node.item, item, f"{path}[{i}]", unknown) for i, item in enumerate(value)]
        return self._scalar(node, value, path)

    def _map(self, node: Node, value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, dict):
            raise self._misfit(node, value, path, "struct" if node.properties else "map[string]string")
        kept = {}
        for key, part in value.items():
            below = node.field(key)
            place = f"{path}.{key}" if path else key
            if below is None:
                unknown.append(place)
            elif part is not None:
                decoded = self.decoded(below, part, place, unknown)
                if not (node.properties and _is_empty(key, below, decoded)):
                    kept[key] = decoded
        return kept

    def _scalar(self, node: Node, value: Any, path: str) -> Any:
        if node.raw.get("x-quantity"):
            try:
                return canonical_quantity(value)
            except (ValueError, ArithmeticError):
                raise self._cannot(
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                ) from None
        seen = json_type(value)
        fits = seen in ("string", "integer") if node.int_or_string else seen == node.type
        if not fits and not (node.type == "number" and seen == "integer"):
            raise self._misfit(node, value, path, _GO_TYPES.get(node.type, "intstr.IntOrString"))
        return value

    def _misfit(self, node: Node, value: Any, path: str, go_type: str) -> Failure:
        seen = {"integer": "number", "boolean": "bool"}.get(json_type(value), json_type(value))
        plain = re.sub(r"\[\d+\]", "", path)
        del node
        return self._cannot(f"json: cannot unmarshal {seen} into Go struct field {self._resource.kind}.{plain} of type {go_type}")  # noqa: E501  # fmt: skip

    def _cannot(self, why: str) -> Failure:
        resource = self._resource
        return bad_request(f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}')  # noqa: E501  # fmt: skip


def _is_empty(key: str, node: Node, value: Any) -> bool:
    """Whether Go would leave the field out when it writes the object."""
    if key in _KEPT_EMPTY or node.shape == "any":
        return False
    if value is False:
        return key in _DROPPED_FALSE
    if value in ("", []):
        return True
    return value == {} and not node.properties and node.shape == "map"
