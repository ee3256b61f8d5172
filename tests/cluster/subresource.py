# SPDX-License-Identifier: Apache-2.0
"""Subresources that are not status: pod logs, binding and eviction, scale, service account tokens, service proxies."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from cluster import failure
from cluster.access import service_account_token
from cluster.call import Call, now
from cluster.deletion import Deletion
from cluster.exchange import Request, Response
from cluster.failure import Failure
from cluster.resource import Object
from cluster.selector import object_selector
from cluster.store import Store
from cluster.verbs import Verbs

HANDLED = {"log", "binding", "eviction", "scale", "token", "proxy"}


class Subresources:
    """`logs` holds the text by (namespace, pod, container, previous), `backends` the URLs of Services.

    `simulated` answers for Services that have none, from namespace, name, path and query.
    """

    def __init__(self, store: Store, verbs: Verbs, deletion: Deletion) -> None:
        self._store = store
        self._verbs = verbs
        self._deletion = deletion
        self.logs: dict[tuple[str, str, str, bool], str] = {}
        self.backends: dict[tuple[str, str], str] = {}
        self.simulated: Callable[[str, str, str, Mapping[str, str]], bytes | None] = lambda *_: None

    async def answer(self, request: Request, call: Call, rest: str, body: Any) -> Response:
        """Answer a request for one of the HANDLED subresources."""
        match call.subresource:
            case "log":
                return self._log(call, request.query)
            case "binding":
                self.bind(call, body["target"]["name"])
                return _success(201)
            case "eviction":
                return await self._evict(call, body or {})
            case "scale":
                return await self._scale(call, body)
            case "token":
                return self._token(call, body or {})
            case _:
                return await self._proxy(request, call, rest)

    def _log(self, call: Call, query: dict[str, str]) -> Response:
        pod = self._verbs.current(call).object
        names = [one["name"] for one in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]]
        container = query.get("container") or (names[0] if len(names) == 1 else "")
        if not container:
            choices = " ".join(names)
            raise failure.bad_request(
                f"a container name must be specified for pod {call.name}, choose one of: [{choices}]"
            )
        if container not in names:
            raise failure.bad_request(f"container {container} is not valid for pod {call.name}")
        previous = query.get("previous", "") in ("true", "1")
        text = self.logs.get((call.namespace, call.name, container, previous))
        statuses = [
            *pod.get("status", {}).get("initContainerStatuses", ()),
            *pod.get("status", {}).get("containerStatuses", ()),
        ]
        state: Object = next((one.get("state", {}) for one in statuses if one["name"] == container), {})
        if previous and text is None:
            raise failure.bad_request(f'previous terminated container "{container}" in pod "{call.name}" not found')
        if text is None and (not statuses or "waiting" in state):
            reason = state.get("waiting", {}).get("reason", "ContainerCreating")
            why = "trying and failing to pull image" if reason in ("ErrImagePull", "ImagePullBackOff") else reason
            raise failure.bad_request(f'container "{container}" in pod "{call.name}" is waiting to start: {why}')
        lines = (text or "").splitlines(keepends=True)
        if query.get("tailLines"):
            lines = lines[-int(query["tailLines"]) :] if int(query["tailLines"]) else []
        shown = "".join(lines).encode()
        if query.get("limitBytes"):
            shown = shown[: int(query["limitBytes"])]
        return Response(200, shown, "text/plain")

    def bind(self, call: Call, node: str) -> None:
        """Put a pod on a node, as the scheduler does. Raises Failure (404, 409)."""
        pod = self._verbs.current(call)
        if pod.object["spec"].get("nodeName"):
            raise failure.conflict(call.resource, call.name, f"pod {call.name} is already assigned to node")
        spec = {**pod.object["spec"], "nodeName": node}
        conditions = [{"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()}]
        status = {**pod.object.get("status", {}), "conditions": conditions}
        self._store.put(
            "pods", {**pod.object, "metadata": dict(pod.object["metadata"]), "spec": spec, "status": status}
        )

    async def _evict(self, call: Call, body: Object) -> Response:
        pod = self._verbs.current(call).object
        labels = pod["metadata"].get("labels") or {}
        budgets = [
            entry
            for entry in self._store.table("poddisruptionbudgets.policy").selected(call.namespace)
            if object_selector(entry.object["spec"].get("selector"))(labels)
        ]
        for entry in budgets:
            if entry.object.get("status", {}).get("disruptionsAllowed", 0) < 1 and pod["status"]["phase"] != "Pending":
                name = entry.object["metadata"]["name"]
                healthy = entry.object.get("status", {}).get("currentHealthy", 0)
                desired = entry.object.get("status", {}).get("desiredHealthy", 0)
                text = f"The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
                cause = {"reason": "DisruptionBudget", "message": text}
                raise Failure(
                    "TooManyRequests",
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    details={"causes": [cause]},
                )
        await self._deletion.delete(
            Call("delete", call.resource, call.namespace, call.name, user_agent=call.user_agent, dry_run=call.dry_run),
            body.get("deleteOptions") or {},
        )
        return _success(201)

    async def _scale(self, call: Call, body: Any) -> Response:
        resource, verb = call.resource, call.verb
        if verb in ("update", "patch"):
            replicas = (body.get("spec") or {}).get("replicas")
            whole = Call("patch", resource, call.namespace, call.name, user_agent=call.user_agent,
                         field_manager=call.field_manager, dry_run=call.dry_run)  # fmt: skip
            await self._verbs.patch(whole, "application/merge-patch+json", {"spec": {"replicas": replicas}})
        obj = self._verbs.current(call).object
        labels = obj["spec"].get("selector", {}).get("matchLabels", {})
        metadata = {
            key: obj["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        }
        scale = {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": metadata,
            "spec": {"replicas": obj["spec"].get("replicas", 0)},
            "status": {
                "replicas": obj.get("status", {}).get("replicas", 0),
                "selector": ",".join(f"{key}={value}" for key, value in labels.items()),
            },
        }
        return Response.json(scale)

    def _token(self, call: Call, body: Object) -> Response:
        self._verbs.current(call)
        seconds = (body.get("spec") or {}).get("expirationSeconds", 3600)
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        document = {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": call.name, "namespace": call.namespace},
            "spec": {"audiences": [], "expirationSeconds": seconds},
            "status": {"token": service_account_token(call.namespace, call.name), "expirationTimestamp": expires},
        }
        return Response.json(document, 201)

    async def _proxy(self, request: Request, call: Call, rest: str) -> Response:
        name = call.name.split(":")
        service = name[1] if len(name) == 3 else name[0]
        if self._store.get("services", call.namespace, service) is None:
            raise failure.not_found(call.resource, service)
        base = self.backends.get((call.namespace, service))
        if base is None and (simulated := self.simulated(call.namespace, service, rest, request.query)) is not None:
            return Response(200, simulated, "application/json")
        if base is None:
            raise Failure("ServiceUnavailable", f'no endpoints available for service "{call.name}"')
        # The real one keeps these to itself as well.
        kept = {"authorization", "connection", "content-length", "host", "transfer-encoding", "upgrade"}
        passed = {key: value for key, value in request.headers.items() if key.lower() not in kept}
        session = aiohttp.ClientSession()
        try:
            answer = await session.request(
                request.method, f"{base}/{rest}", params=request.query, data=request.body, headers=passed
            )
        except aiohttp.ClientError as error:
            await session.close()
            raise Failure("ServiceUnavailable", f"error trying to reach service: {error}") from error

        async def chunks() -> Any:
            try:
                async for chunk in answer.content.iter_any():
                    yield chunk
            finally:
                answer.release()
                await session.close()

        return Response(answer.status, content_type=answer.content_type, stream=chunks())


def _success(code: int) -> Response:
    return Response.json(
        {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code}, code
    )
