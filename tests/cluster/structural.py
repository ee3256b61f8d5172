# SPDX-License-Identifier: Apache-2.0
"""What happens to a custom resource before it is validated: unknown fields pruned, nulls dropped, defaults filled.

All of it changes the value in place; callers pass a value of their own (apiextensions-apiserver, schema/pruning and
schema/defaulting).
"""

import copy
from typing import Any

from cluster.schema import Node

_ENVELOPE = ("apiVersion", "kind", "metadata")


def prune(node: Node, value: Any, *, envelope: bool = True) -> list[str]:
    """Drop what the schema does not know; answers the paths dropped, as `spec.containers[0].nme`."""
    dropped: list[str] = []
    _prune(node, value, "", dropped, envelope)
    return dropped


def _prune(node: Node, value: Any, path: str, dropped: list[str], envelope: bool) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _prune(node.item, item, f"{path}[{index}]", dropped, node.item.embedded)
        return
    if not isinstance(value, dict) or node.shape == "any":
        return
    for key in list(value):
        if envelope and key in _ENVELOPE:
            continue
        below = node.field(key)
        place = f"{path}.{key}" if path else key
        if below is None:
            del value[key]
            dropped.append(place)
        else:
            _prune(below, value[key], place, dropped, below.embedded)


def fill(node: Node, value: Any) -> None:
    """Fill in defaults, also in the place of nulls; drop other nulls where the schema allows none."""
    if node.shape == "any":
        return
    if isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                fill(node.item, item)
        return
    if not isinstance(value, dict):
        return
    for key, default in node.defaults:
        if value.get(key) is None and (key not in value or not node.properties[key].get("nullable")):
            value[key] = copy.deepcopy(default)
    for key, part in list(value.items()):
        if part is None:
            below = node.field(key)
            if below is not None and below.shape != "any" and not below.nullable:
                del value[key]
        elif isinstance(part, (dict, list)):
            below = node.field(key)
            if below is not None:
                fill(below, part)
