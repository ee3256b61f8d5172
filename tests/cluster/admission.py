# SPDX-License-Identifier: Apache-2.0
"""Admission: the webhooks that stored configurations name, called as a Kubernetes server calls them."""

import asyncio
import json
from collections.abc import Iterator

from cluster.call import Call
from cluster.conversion import from_storage
from cluster.failure import Failure
from cluster.resource import Object, Registry, Resource
from cluster.store import Store
from cluster.webhook import (
    Caller,
    Review,
    Unreachable,
    conditions_hold,
    denial,
    in_version,
    operation_of,
    patched,
    selects,
    wanted_resource,
)

_GROUP = "admissionregistration.k8s.io"


class Webhooks:
    """All webhooks of the cluster; `caller.routes` is where their Services listen."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self.caller = Caller()

    async def mutate(self, call: Call, obj: Object | None, old: Object | None) -> Object | None:
        """The object as the mutating webhooks leave it, asked one after the other by name."""
        for hook in self._hooks("mutatingwebhookconfigurations", call):
            review = self._review(hook, call, obj, old)
            if review is None:
                continue
            response = await self._answer(hook, review)
            if response is not None and obj is not None:
                try:
                    changed = patched(response, review.obj or {})
                except Unreachable as error:
                    _give_up(hook, call, error)
                    continue
                if changed is not review.obj:
                    obj = from_storage(changed, call.resource.api_version)
        return obj

    async def validate(self, call: Call, obj: Object | None, old: Object | None) -> None:
        """Ask the validating webhooks, all at once; the first refusal by name counts."""
        asked = [
            self._answer(hook, review)
            for hook in self._hooks("validatingwebhookconfigurations", call)
            if (review := self._review(hook, call, obj, old)) is not None
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True) if asked else []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _hooks(self, plural: str, call: Call) -> Iterator[Object]:
        if call.resource.group == _GROUP:
            # Configurations are never subject to webhooks, or a broken one could not be removed.
            return
        for entry in list(self._store.table(f"{plural}.{_GROUP}").selected("")):
            yield from entry.object.get("webhooks") or ()

    def _review(self, hook: Object, call: Call, obj: Object | None, old: Object | None) -> Review | None:
        operation = operation_of(call, old)
        resource: Resource | None = wanted_resource(hook, call, operation, self._registry)
        if resource is None:
            return None
        namespace = self._store.get("namespaces", "", call.namespace) if call.namespace else None
        labels = (namespace.object["metadata"].get("labels") or {}) if namespace else {}
        if not selects(hook, call, labels, [obj, old]):
            return None
        return Review(call, operation, resource, in_version(obj, resource), in_version(old, resource))

    async def _answer(self, hook: Object, review: Review) -> Object | None:
        """What a webhook says; None when it is out of reach and that is to be ignored. Raises Failure."""
        call = review.call
        if call.dry_run and hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            message = f"admission webhook {json.dumps(hook['name'])} does not support dry run"
            raise Failure("BadRequest", message)
        try:
            if not conditions_hold(hook, review):
                return None
            response = await self.caller.ask(hook, review)
        except Unreachable as error:
            _give_up(hook, call, error)
            return None
        call.warnings += response.get("warnings") or ()
        if not response.get("allowed"):
            raise denial(hook, response)
        return response


def _give_up(hook: Object, call: Call, error: Unreachable) -> None:
    """Refuse the request, unless the webhook's failures are to be ignored."""
    del call
    if hook.get("failurePolicy") == "Ignore":
        return
    message = f'Internal error occurred: failed calling webhook "{hook["name"]}": {error}'
    raise Failure(
        "InternalError", message, details={"causes": [{"message": f'failed calling webhook "{hook["name"]}": {error}'}]}
    )
