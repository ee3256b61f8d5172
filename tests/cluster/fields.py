# SPDX-License-Identifier: Apache-2.0
"""Sets of field paths, as managedFields records them, and what server-side apply does with them.

A path is a tuple of elements in FieldsV1 spelling: `f:name` a key of a map, `k:{...}` an item of a keyed list,
`v:...` an item of a set. The rules follow sigs.k8s.io/structured-merge-diff (typed/tofieldset.go, typed/compare.go,
typed/merge.go, typed/remove.go).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cluster.schema import ANY, Node

Path: TypeAlias = tuple[str, ...]
Paths: TypeAlias = frozenset[Path]
_MISSING: Any = object()


def encode_fields(paths: Iterable[Path]) -> dict[str, Any]:
    """A set of paths as FieldsV1: nested objects where `.` marks a path that is itself a member."""
    root: dict[str, Any] = {}
    # From the longest to the shortest of each branch: a member with something below it gets its dot last.
    for path in sorted(paths, reverse=True):
        place = root
        for element in path:
            place = place.setdefault(element, {})
        if place:
            place["."] = {}
    return root


def decode_fields(trie: dict[str, Any]) -> Paths:
    """FieldsV1 as a set of paths."""
    found: set[Path] = set()
    _decode(trie, (), found)
    return frozenset(found)


def _decode(trie: dict[str, Any], path: Path, found: set[Path]) -> None:
    if path and (not trie or "." in trie):
        found.add(path)
    for key, value in trie.items():
        if key != ".":
            _decode(value, (*path, key), found)


def is_leaf(node: Node, value: Any) -> bool:
    """Whether a value is owned as a whole rather than part by part."""
    if isinstance(value, dict):
        return node.atomic if node.shape in ("map", "any") else True
    if isinstance(value, list):
        return node.shape != "list" or node.atomic
    return True


def child(node: Node, key: str) -> Node:
    """The node of a map's key; unknown ones are deduced from their value."""
    return node.field(key) or ANY


def field_set(node: Node, value: Any) -> Paths:
    """The paths that an applied configuration claims."""
    found: set[Path] = set()
    _collect(node, value, (), found)
    return frozenset(found)


def _collect(node: Node, value: Any, path: Path, found: set[Path]) -> None:
    if is_leaf(node, value):
        found.add(path)
    elif isinstance(value, dict):
        for key, part in value.items():
            below = (*path, f"f:{key}")
            _collect(child(node, key), part, below, found)
            if part is None or part == {} or node.declared(key) is None:
                found.add(below)
    else:
        for item in value:
            below = (*path, node.key_of(item))
            _collect(node.item, item, below, found)
            found.add(below)


@dataclass(slots=True)
class Comparison:
    """How two versions of an object differ, by path."""

    added: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)


def compare(node: Node, old: Any, new: Any) -> Comparison:
    """What changed from `old` to `new`."""
    result = Comparison()
    _compare(node, old, new, (), result)
    return result


def _compare(node: Node, old: Any, new: Any, path: Path, out: Comparison) -> None:
    if old is new or (old is not _MISSING and old == new):
        return
    if old is _MISSING or new is _MISSING:
        (out.added if old is _MISSING else out.removed).add(path)
    present = new if new is not _MISSING else old
    if is_leaf(node, present) or (old is not _MISSING and new is not _MISSING and type(old) is not type(new)):
        if old is not _MISSING and new is not _MISSING:
            out.modified.add(path)
        return
    if isinstance(present, dict):
        before = old if isinstance(old, dict) else {}
        after = new if isinstance(new, dict) else {}
        for key in before.keys() | after.keys():
            _compare(child(node, key), before.get(key, _MISSING), after.get(key, _MISSING), (*path, f"f:{key}"), out)
        return
    before_items = {node.key_of(item): item for item in old} if isinstance(old, list) else {}
    after_items = {node.key_of(item): item for item in new} if isinstance(new, list) else {}
    for key in before_items.keys() | after_items.keys():
        _compare(node.item, before_items.get(key, _MISSING), after_items.get(key, _MISSING), (*path, key), out)


def merge(node: Node, live: Any, config: Any) -> Any:
    """The live value with an applied configuration laid over it; neither is changed."""
    if is_leaf(node, config) or type(live) is not type(config) or is_leaf(node, live):
        return config
    if isinstance(config, dict):
        merged = dict(live)
        for key, value in config.items():
            merged[key] = merge(child(node, key), live[key], value) if key in live else value
        return merged
    return _merge_items(node, live, config)


def _merge_items(node: Node, live: list[Any], config: list[Any]) -> list[Any]:
    """Live items that the configuration does not name stay where they are; the others take its order."""
    wanted = {node.key_of(item): item for item in config}
    present = {node.key_of(item): item for item in live}
    shared = [key for key in wanted if key in present]
    left, right = list(present), list(wanted)
    merged: list[Any] = []
    while left or right:
        if left and left[0] not in wanted:
            merged.append(present[left.pop(0)])
        elif left and (not right or left[0] not in shared or left[0] != shared[0]):
            # Named by the configuration, and placed where that has it.
            left.pop(0)
        else:
            key = right.pop(0)
            merged.append(merge(node.item, present[key], wanted[key]) if key in present else wanted[key])
            if shared and shared[0] == key:
                shared.pop(0)
                if left and left[0] == key:
                    left.pop(0)
    return merged


def named_ancestors(node: Node, paths: Iterable[Path]) -> set[Path]:
    """The paths with every declared field on the way to them."""
    found = set(paths)
    known: set[Path] = set()
    for path in paths:
        for end in range(len(path) - 1, 0, -1):
            above = path[:end]
            if above in known:
                break
            known.add(above)
            if above[-1].startswith("f:") and _declared(node, above):
                found.add(above)
    return found


def _declared(node: Node, path: Path) -> bool:
    for element in path[:-1]:
        node = child(node, element[2:]) if element.startswith("f:") else node.item
    return node.declared(path[-1][2:]) is not None


def without(node: Node, value: Any, paths: Iterable[Path]) -> Any:
    """The value with the parts at the given paths taken out."""
    trie: dict[str, Any] = {}
    for path in paths:
        place = trie
        for element in path:
            place = place.setdefault(element, {})
        place["."] = {}
    return _without(node, value, trie)


def _without(node: Node, value: Any, trie: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        kept = {}
        for key, part in value.items():
            below = trie.get(f"f:{key}")
            if below is None:
                kept[key] = part
            elif "." not in below:
                kept[key] = _without(child(node, key), part, below)
        return kept
    if isinstance(value, list) and (node.keys or node.set):
        items = []
        for item in value:
            below = trie.get(node.key_of(item))
            if below is None:
                items.append(item)
            elif "." not in below:
                items.append(_without(node.item, item, below))
        return items
    return value


def shown_path(path: Path) -> str:
    """A path as conflict messages print it: `.spec.containers[name="a"].image`."""
    import json

    text = ""
    for element in path:
        kind, rest = element[0], element[2:]
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            keys = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(json.loads(rest).items()))
            text += f"[{keys}]"
        else:
            text += f"[={rest}]"
    return text
