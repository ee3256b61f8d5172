# SPDX-License-Identifier: Apache-2.0
"""metadata.managedFields: who owns which field, kept through updates and server-side applies.

The rules are those of k8s.io/apimachinery's managedfields package and structured-merge-diff's merge/update.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.failure import Failure, apply_conflict
from cluster.fields import (
    Path,
    Paths,
    compare,
    decode_fields,
    encode_fields,
    field_set,
    merge,
    named_ancestors,
    shown_path,
    without,
)
from cluster.resource import Object
from cluster.schema import Node


class Manager(NamedTuple):
    """Who writes: an Apply is known by its name, an Update also by the version it used."""

    name: str
    operation: str
    api_version: str
    subresource: str


@dataclass(slots=True)
class Ownership:
    """What a manager owns; never changed once made, but for the encoded form that is kept beside it."""

    fields: Paths
    api_version: str
    time: str
    encoded: dict[str, Any] | None = field(default=None, compare=False)

    def fields_v1(self) -> dict[str, Any]:
        """The fields as FieldsV1."""
        if self.encoded is None:
            self.encoded = encode_fields(self.fields)
        return self.encoded


Owners = dict[Manager, Ownership]

# Never owned by anybody (managedfields/internal/stripmeta.go).
_META = ("name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields",
         "resourceVersion")  # fmt: skip
_STRIPPED: Paths = frozenset(
    [("f:apiVersion",), ("f:kind",), ("f:metadata",), *[("f:metadata", f"f:{name}") for name in _META]]
)


def parse_owners(entries: list[Any]) -> Owners:
    """metadata.managedFields as a mapping. Raises ValueError for what is no such list."""
    owners: Owners = {}
    for entry in entries:
        operation = entry.get("operation")
        if operation not in ("Apply", "Update") or entry.get("fieldsType") != "FieldsV1":
            raise ValueError("not managedFields")
        version = entry.get("apiVersion", "")
        key = Manager(
            entry.get("manager", ""), operation, version if operation == "Update" else "", entry.get("subresource", "")
        )
        owners[key] = Ownership(decode_fields(entry.get("fieldsV1", {})), version, entry.get("time", ""))
    return owners


def encode_owners(owners: Owners) -> list[Object]:
    """The mapping as metadata.managedFields, in Kubernetes' order."""
    entries: list[Object] = []
    for who, owned in sorted(owners.items(), key=lambda item: (item[0].operation, item[1].time, item[0])):
        entry = {
            "manager": who.name,
            "operation": who.operation,
            "apiVersion": owned.api_version,
            **({"time": owned.time} if owned.time else {}),
            "fieldsType": "FieldsV1",
            "fieldsV1": owned.fields_v1(),
        }
        if who.subresource:
            entry["subresource"] = who.subresource
        entries.append(entry)
    return entries


def updated(
    node: Node, old: Object, new: Object, owners: Owners, who: Manager, version: str, ignored: Paths, now: str
) -> Owners:
    """The owners after a create, update or patch by `who`, who takes every field it changed.

    An object nobody owns anything of, since its managedFields were cleared, is not asked about until its first apply.
    """
    difference = compare(node, old, new)
    changed = _owned(difference.added | difference.modified, ignored)
    touched = difference.added | difference.modified | difference.removed
    result: Owners = {}
    for manager, owned in owners.items():
        rest = owned.fields - touched
        if manager != who and rest:
            result[manager] = (
                owned if len(rest) == len(owned.fields) else Ownership(rest, owned.api_version, owned.time)
            )
    before = owners.get(who)
    kept = before.fields - difference.removed if before else frozenset()
    if changed:
        result[who] = Ownership(kept | changed, version, now)
    elif kept and before:
        result[who] = Ownership(kept, before.api_version, before.time)
    return result


def applied(
    node: Node, live: Object, config: Object, owners: Owners, who: Manager, version: str, ignored: Paths,
    now: str, force: bool,
) -> tuple[Object, Owners]:  # fmt: skip
    """The object and its owners after a server-side apply. Raises Failure (409) naming the fields of others."""
    claimed = _owned(field_set(node, config), ignored)
    merged: Object = merge(node, live, config)
    before = owners.get(who)
    after = {**owners, who: Ownership(claimed, version, now)}
    if before:
        merged = _pruned(node, merged, before.fields, after)
    difference = compare(node, live, merged)
    changed = difference.added | difference.modified
    conflicts = {
        manager: owned.fields & changed
        for manager, owned in owners.items()
        if manager != who and not owned.fields.isdisjoint(changed)
    }
    if conflicts and not force:
        raise _conflict(conflicts, owners)
    result: Owners = {}
    for manager, owned in after.items():
        rest = owned.fields if manager == who else owned.fields - conflicts.get(manager, frozenset())
        rest -= difference.removed
        if rest:
            result[manager] = (
                owned if len(rest) == len(owned.fields) else Ownership(rest, owned.api_version, owned.time)
            )
    if not changed and not difference.removed:
        same = before is not None and before.fields == claimed
        result[who] = before if before and same else Ownership(claimed, version, before.time if before else "")
    return merged, result


def _owned(paths: Paths | set[Path], ignored: Paths) -> Paths:
    prefixes = {path[0] for path in ignored}
    return frozenset(path for path in paths if path not in _STRIPPED and path and path[0] not in prefixes)


def _pruned(node: Node, merged: Object, last: Paths, owners: Owners) -> Object:
    """Without what the manager applied last time, does not apply now, and nobody else owns."""
    claimed: set[Path] = set()
    for owned in owners.values():
        claimed |= owned.fields
    dropped = named_ancestors(node, last) - named_ancestors(node, claimed)
    dropped = {path for path in dropped if path not in _STRIPPED}
    result: Object = without(node, merged, dropped) if dropped else merged
    return result


def _conflict(conflicts: Mapping[Manager, Paths], owners: Owners) -> Failure:
    causes = []
    lines: dict[str, list[str]] = {}
    for manager, paths in sorted(conflicts.items()):
        shown = _shown(manager, owners[manager].time)
        for path in sorted(shown_path(path) for path in paths):
            causes.append({"reason": "FieldManagerConflict", "message": f"conflict with {shown}", "field": path})
            lines.setdefault(shown, []).append(path)
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        parts = [
            part for shown, paths in lines.items() for part in (f"conflicts with {shown}:", *(f"- {p}" for p in paths))
        ]
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(parts)
    return apply_conflict(message, causes)


def _shown(manager: Manager, time: str) -> str:
    text = f'"{manager.name}"'
    if manager.subresource:
        text += f' with subresource "{manager.subresource}"'
    if manager.operation == "Update":
        text += f" using {manager.api_version}" + (f" at {time}" if time else "")
    return text
