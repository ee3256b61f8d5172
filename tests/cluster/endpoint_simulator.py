# SPDX-License-Identifier: Apache-2.0
"""The endpoint slice controller of a simulated cluster: Services with a selector know their ready pods."""

import hashlib

from cluster.inside import Inside, WorkQueue
from cluster.ray_pod import owner_reference
from cluster.resource import Object
from cluster.store import Change, Key

_SLICES = "endpointslices.discovery.k8s.io"
_Item = tuple[str, str, str]


class Endpoints:
    """Keeps one EndpointSlice per Service in step with its pods."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._queue = WorkQueue(self._handle)
        # Services by namespace and one item of their selector, so that a pod finds them without a search.
        self._by_item: dict[_Item, set[Key]] = {}
        self._pods: dict[_Item, set[Key]] = {}
        inside.listen(self._on_change)

    def stop(self) -> None:
        """Leave the slices as they are."""
        self._queue.stop()

    def _on_change(self, table: str, change: Change) -> None:
        obj = change.entry.object
        if table == "services":
            if change.previous is not None:
                self._by_item.get(_item(change.previous.object), set()).discard(_key(obj))
            if change.type != "DELETED" and obj["spec"].get("selector"):
                self._by_item.setdefault(_item(obj), set()).add(_key(obj))
                self._queue.add(_key(obj))
        elif table == "pods":
            before = _items(change.previous.object) if change.previous else set()
            after = _items(obj) if change.type != "DELETED" else set()
            for item in before - after:
                self._pods.get(item, set()).discard(_key(obj))
            for item in after - before:
                self._pods.setdefault(item, set()).add(_key(obj))
            for item in before | after:
                self._queue.add_all(self._by_item.get(item, ()))

    async def _handle(self, key: Key) -> float | None:
        service = self._inside.get("services", *key)
        if service is None or "deletionTimestamp" in service["metadata"]:
            return None
        wanted = service["spec"].get("selector") or {}
        pods = []
        for place in self._pods.get(_item(service), ()):
            pod = self._inside.get("pods", *place)
            status = (pod.get("status") or {}) if pod else {}
            labels = (pod["metadata"].get("labels") or {}) if pod else {}
            if pod and status.get("phase") == "Running" and wanted.items() <= labels.items():
                pods.append(pod)
        endpoints = [_endpoint(service, pod) for pod in sorted(pods, key=lambda one: str(one["metadata"]["name"]))]
        ports = [_port(port, pods) for port in service["spec"].get("ports", ())]
        name = f"{key[1]}-{hashlib.sha256(service['metadata']['uid'].encode()).hexdigest()[:5]}"
        found = self._inside.get(_SLICES, key[0], name)
        if found is None:
            await self._inside.create(_SLICES, _slice(service, name, endpoints, ports))
        elif (found.get("endpoints") or []) != endpoints or (found.get("ports") or []) != ports:
            await self._inside.patch(_SLICES, found, {"endpoints": endpoints, "ports": ports})
        return None


def _slice(service: Object, name: str, endpoints: list[Object], ports: list[Object]) -> Object:
    metadata = service["metadata"]
    owner = owner_reference(service)
    return {
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {
                **(metadata.get("labels") or {}),
                "kubernetes.io/service-name": metadata["name"],
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [owner],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    }


def _endpoint(service: Object, pod: Object) -> Object:
    conditions = pod["status"].get("conditions", ())
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    ending = "deletionTimestamp" in pod["metadata"]
    metadata = pod["metadata"]
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": (ready and not ending) or bool(service["spec"].get("publishNotReadyAddresses")),
            "serving": ready,
            "terminating": ending,
        },
        "nodeName": pod["spec"].get("nodeName", ""),
        "targetRef": {
            "kind": "Pod",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


def _port(port: Object, pods: list[Object]) -> Object:
    target = port.get("targetPort", port["port"])
    if isinstance(target, str):
        declared = [
            one["containerPort"]
            for pod in pods
            for container in pod["spec"]["containers"]
            for one in container.get("ports", ())
            if one.get("name") == target
        ]
        target = declared[0] if declared else port["port"]
    return {"name": port.get("name", ""), "port": target, "protocol": port.get("protocol", "TCP")}


def _item(service: Object) -> _Item:
    """The rarest-looking item of the selector: the one with the longest value."""
    selector = service["spec"].get("selector") or {"": ""}
    key, value = max(selector.items(), key=lambda item: (len(item[1]), item[0]))
    return service["metadata"]["namespace"], key, value


def _items(pod: Object) -> set[_Item]:
    namespace = pod["metadata"]["namespace"]
    return {(namespace, key, value) for key, value in (pod["metadata"].get("labels") or {}).items()}


def _key(obj: Object) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
