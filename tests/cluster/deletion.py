# SPDX-License-Identifier: Apache-2.0
"""DELETE: preconditions, finalizers, propagation and a pod's grace (k8s.io/apiserver, registry/rest/delete.go)."""

import calendar
import time
from typing import Any

from cluster import failure
from cluster.call import Call, now
from cluster.conversion import from_storage
from cluster.resource import Object
from cluster.store import Entry, Store
from cluster.verbs import Admission

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_PROTECTED_NAMESPACES = {"default", "kube-system", "kube-public", "kube-node-lease"}


class Deletion:
    """The deleting verb over one store."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    async def delete(self, call: Call, options: dict[str, Any]) -> tuple[Entry, bool]:
        """Delete the object a request names; False when it stays for now, marked with a deletionTimestamp."""
        resource = call.resource
        if resource.table == "namespaces" and call.name in _PROTECTED_NAMESPACES:
            raise failure.forbidden(resource, call.name, "this namespace may not be deleted")
        for _ in range(10):
            entry = self._store.get(resource.table, call.namespace, call.name)
            if entry is None:
                raise failure.not_found(resource, call.name)
            _check_preconditions(call, entry.object, options.get("preconditions") or {})
            old = from_storage(entry.object, resource.api_version)
            await self._admission.mutate(call, None, old)
            await self._admission.validate(call, None, old)
            if self._store.get(resource.table, call.namespace, call.name) is entry:
                return self._delete(call, entry, options)
        raise failure.conflict(resource, call.name)

    def _delete(self, call: Call, entry: Entry, options: dict[str, Any]) -> tuple[Entry, bool]:
        table, obj = call.resource.table, entry.object
        grace = _grace(call, obj, options)
        finalizers = _finalizers(obj, options)
        held = bool(finalizers) or grace > 0 or (table == "namespaces" and bool(obj["spec"].get("finalizers")))
        if call.dry_run:
            return entry, not held
        if not held:
            return self._store.remove(table, entry.key), True
        marked = _marked(obj, finalizers, grace)
        if marked is obj:
            return entry, False
        stored = self._store.put(table, marked)
        stored.managed = entry.managed
        return stored, False


def _check_preconditions(call: Call, obj: Object, wanted: dict[str, Any]) -> None:
    metadata = obj["metadata"]
    for key, word, done in (
        ("uid", "UID", "deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "modified"),
    ):
        value = wanted.get(key)
        if value is not None and value != metadata[key]:
            why = (
                f"the {word} in the precondition ({value}) does not match the {word} in record ({metadata[key]}). "
                f"The object might have been {done}"
            )
            raise failure.precondition_failed(call.resource, call.name, why)


def _grace(call: Call, obj: Object, options: dict[str, Any]) -> int:
    """Seconds until the object goes; only pods wait, for their kubelet."""
    if call.resource.table != "pods":
        return 0
    asked = options.get("gracePeriodSeconds")
    grace = obj["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else int(asked)
    if not obj["spec"].get("nodeName") or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    pending = obj["metadata"].get("deletionGracePeriodSeconds")
    return int(min(grace, pending)) if pending is not None else int(grace)


def _finalizers(obj: Object, options: dict[str, Any]) -> list[str]:
    finalizers = list(obj["metadata"].get("finalizers") or ())
    policy = options.get("propagationPolicy")
    if options.get("orphanDependents") is True:
        policy = "Orphan"
    if policy is None:
        return finalizers
    kept = [one for one in finalizers if one not in (FOREGROUND, ORPHAN)]
    return kept + {"Foreground": [FOREGROUND], "Orphan": [ORPHAN]}.get(policy, [])


def _marked(obj: Object, finalizers: list[str], grace: int) -> Object:
    metadata = dict(obj["metadata"])
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    if "deletionTimestamp" not in metadata:
        metadata["deletionTimestamp"] = _later(now(), grace)
        metadata["deletionGracePeriodSeconds"] = grace
        if metadata.get("generation"):
            metadata["generation"] += 1
    elif grace < metadata.get("deletionGracePeriodSeconds", 0):
        earlier = grace - metadata["deletionGracePeriodSeconds"]
        metadata["deletionTimestamp"] = _later(metadata["deletionTimestamp"], earlier)
        metadata["deletionGracePeriodSeconds"] = grace
    if metadata == obj["metadata"]:
        return obj
    marked = {**obj, "metadata": metadata}
    if obj["kind"] == "Namespace":
        marked["status"] = {**obj.get("status", {}), "phase": "Terminating"}
    return marked


def _later(moment: str, seconds: int) -> str:
    since = calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since + seconds))
