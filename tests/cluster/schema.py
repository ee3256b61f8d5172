# SPDX-License-Identifier: Apache-2.0
"""OpenAPI schemas as typed trees: what is a map, a keyed list, a set or an atom.

Server-side apply, strategic merge, defaulting, pruning and validation walk the same `Node`s; `node_of` makes them
from a structural schema, lazily, because CustomResourceDefinitions nest without end.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

RawSchema = Mapping[str, Any]
Resolve = Callable[[str], "RawSchema"]


class Node:
    """One place in a schema.

    `shape` is `map`, `list`, `scalar` or `any` (deduced from the value). A map is `atomic` or owned key by key;
    a list is `atomic`, a `set`, or keyed by `keys`. `merge_key` is strategic merge's own notion of a key.
    """

    __slots__ = (
        "_additional",
        "_fields",
        "_item",
        "_junctors",
        "_resolve",
        "_rules_below",
        "atomic",
        "checks",
        "defaults",
        "embedded",
        "int_or_string",
        "keys",
        "merge_key",
        "merges",
        "nullable",
        "preserve",
        "raw",
        "required",
        "rules",
        "set",
        "shape",
        "type",
    )

    def __init__(self, raw: RawSchema, resolve: Resolve | None = None) -> None:
        self.raw = raw
        self._resolve = resolve
        self._fields: dict[str, Node] = {}
        self._item: Node | None = None
        self._additional: Node | None = None
        self._junctors: dict[str, list[Node]] = {}
        self._rules_below: bool | None = None
        self.type: str = raw.get("type", "")
        self.int_or_string: bool = bool(raw.get("x-kubernetes-int-or-string"))
        self.preserve: bool = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        self.embedded: bool = bool(raw.get("x-kubernetes-embedded-resource"))
        self.nullable: bool = bool(raw.get("nullable"))
        self.required: tuple[str, ...] = tuple(raw.get("required", ()))
        self.rules: list[dict[str, Any]] = list(raw.get("x-kubernetes-validations", ()))
        self.shape = self._shape()
        self.defaults: list[tuple[str, Any]] = [
            (key, one["default"]) for key, one in raw.get("properties", {}).items() if "default" in one
        ]
        list_type = raw.get("x-kubernetes-list-type", "atomic")
        self.keys: tuple[str, ...] = tuple(raw.get("x-kubernetes-list-map-keys", ())) if list_type == "map" else ()
        self.set = self.shape == "list" and list_type == "set"
        map_type = raw.get("x-kubernetes-map-type", "granular")
        self.atomic = (
            (self.shape == "list" and not self.keys and not self.set)
            or (self.shape == "map" and map_type == "atomic")
            or self.shape == "scalar"
        )
        self.merge_key: str = raw.get("x-kubernetes-patch-merge-key", "")
        self.merges: bool = "merge" in raw.get("x-kubernetes-patch-strategy", "")
        self.checks = any(
            key in raw
            for key in (
                "enum", "pattern", "format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
                "uniqueItems", "multipleOf", "minProperties", "maxProperties", "allOf", "anyOf", "oneOf", "not",
            )
        )  # fmt: skip

    def _shape(self) -> str:
        if self.int_or_string:
            return "scalar"
        if self.type == "object" or "properties" in self.raw or self.embedded:
            return "map"
        if self.type == "array":
            return "list"
        return "scalar" if self.type else "any"

    def _node(self, raw: RawSchema) -> "Node":
        return node_of(raw, self._resolve)

    def declared(self, key: str) -> "Node | None":
        """The node of a property the schema names, or None."""
        node = self._fields.get(key)
        if node is None:
            raw = self.raw.get("properties", {}).get(key)
            if raw is None:
                return None
            node = self._fields[key] = self._node(raw)
        return node

    def field(self, key: str) -> "Node | None":
        """The node of a key of a map: a property, an additional one, anything, or None when unknown."""
        node = self._fields.get(key) or self.declared(key)
        if node is not None:
            return node
        if self._additional is None:
            raw = self.raw.get("additionalProperties")
            if isinstance(raw, Mapping):
                self._additional = self._node(raw)
            elif self.shape == "any" or self.preserve or raw is True:
                self._additional = ANY
        return self._additional

    @property
    def properties(self) -> Mapping[str, Any]:
        """The raw schemas of the properties."""
        properties: Mapping[str, Any] = self.raw.get("properties", {})
        return properties

    @property
    def item(self) -> "Node":
        """The node of a list's items."""
        if self._item is None:
            self._item = self._node(self.raw["items"]) if "items" in self.raw else ANY
        return self._item

    def junctors(self, name: str) -> "list[Node]":
        """The nodes of `allOf`, `anyOf`, `oneOf` or `not`."""
        found = self._junctors.get(name)
        if found is None:
            raw = self.raw.get(name, ())
            found = self._junctors[name] = [self._node(one) for one in ([raw] if isinstance(raw, Mapping) else raw)]
        return found

    def has_rules_below(self) -> bool:
        """Whether any place below this one carries CEL rules."""
        if self._rules_below is None:
            self._rules_below = '"x-kubernetes-validations"' in json.dumps(
                {key: value for key, value in self.raw.items() if key != "x-kubernetes-validations"}
            )
        return self._rules_below

    def key_of(self, item: Any) -> str:
        """The path element of a list item: `k:{...}` in a keyed list, `v:...` in a set."""
        if not self.keys:
            return "v:" + _canonical(item)
        values = {}
        for key in self.keys:
            value = item.get(key) if isinstance(item, dict) else None
            if value is None:
                declared = self.item.declared(key)
                value = declared.raw.get("default") if declared else None
            if value is not None:
                values[key] = value
        return "k:" + _canonical(values)


def _canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def node_of(raw: RawSchema, resolve: Resolve | None = None) -> Node:
    """A schema as a Node; `resolve` finds `$ref`s, whose siblings (also inside a one-item allOf) win."""
    reference = raw.get("$ref")
    if reference is None and isinstance(raw.get("allOf"), list) and len(raw["allOf"]) == 1:
        reference = raw["allOf"][0].get("$ref")
    if reference is not None and resolve is not None:
        siblings = {key: value for key, value in raw.items() if key not in ("$ref", "allOf")}
        raw = {**resolve(reference), **siblings}
    return Node(raw, resolve)


ANY = Node({"x-kubernetes-preserve-unknown-fields": True})
