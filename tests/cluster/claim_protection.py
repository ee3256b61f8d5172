# SPDX-License-Identifier: Apache-2.0
"""Claims that pods still use are not deleted: the finalizer every PersistentVolumeClaim gets, and who takes it away."""

from cluster.resource import Object
from cluster.store import Change, Key, Store

FINALIZER = "kubernetes.io/pvc-protection"
_CLAIMS = "persistentvolumeclaims"


class ClaimProtection:
    """Lets a claim that is being deleted go once no pod uses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.listeners.append(self._on_change)

    def _on_change(self, table: str, change: Change) -> None:
        metadata = change.entry.object["metadata"]
        if table == _CLAIMS and change.type == "MODIFIED":
            self._release((metadata["namespace"], metadata["name"]))
        elif table == "pods" and change.type == "DELETED":
            for name in _claims(change.entry.object):
                self._release((metadata["namespace"], name))

    def _release(self, key: Key) -> None:
        entry = self._store.get(_CLAIMS, *key)
        if entry is None or "deletionTimestamp" not in entry.object["metadata"]:
            return
        metadata = entry.object["metadata"]
        if FINALIZER not in (metadata.get("finalizers") or ()) or self._used(key):
            return
        rest = [one for one in metadata["finalizers"] if one != FINALIZER]
        if rest:
            self._store.put(_CLAIMS, {**entry.object, "metadata": {**metadata, "finalizers": rest}})
        else:
            self._store.remove(_CLAIMS, key)

    def _used(self, key: Key) -> bool:
        pods = (entry.object for entry in self._store.table("pods").selected(key[0]))
        return any(
            key[1] in _claims(pod) and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") for pod in pods
        )


def _claims(pod: Object) -> list[str]:
    return [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or ()
        if "persistentVolumeClaim" in volume
    ]
