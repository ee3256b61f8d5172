# SPDX-License-Identifier: Apache-2.0
"""Between the version an object is served in and the one it is stored in.

Custom resources convert with strategy None: only apiVersion differs. Events are the one built-in kind served in two
shapes; they are stored as core/v1.
"""

from cluster.resource import Object, Resource

_EVENT_FIELDS = (
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
)


def to_storage(resource: Resource, obj: Object) -> Object:
    """A decoded object in the version it is stored in."""
    if resource.api_version == "events.k8s.io/v1":
        renamed = dict(_EVENT_FIELDS)
        return {renamed.get(key, key): value for key, value in obj.items()} | {"apiVersion": "v1"}
    if resource.version == resource.storage_version:
        return obj
    return {**obj, "apiVersion": f"{resource.group}/{resource.storage_version}"}


def from_storage(obj: Object, api_version: str) -> Object:
    """A stored object in a version it is served in."""
    if obj["apiVersion"] == api_version:
        return obj
    if api_version == "events.k8s.io/v1":
        renamed = {ours: theirs for theirs, ours in _EVENT_FIELDS}
        return {renamed.get(key, key): value for key, value in obj.items()} | {"apiVersion": api_version}
    return {**obj, "apiVersion": api_version}
