# SPDX-License-Identifier: Apache-2.0
"""Create, update, patch and apply: from a request body to a stored object.

Called by the listener for HTTP requests and by the simulators directly; both get the same rules.
"""

import json
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from cluster import failure
from cluster.addresses import Addresses
from cluster.apply_request import check_version, checked_configuration
from cluster.builtin_default import fill_builtin
from cluster.builtin_validation import builtin_problems
from cluster.call import Call, now
from cluster.conversion import from_storage, to_storage
from cluster.decoding import decode
from cluster.failure import Problem
from cluster.managed_fields import Manager, Owners, applied, encode_owners, parse_owners, updated
from cluster.metadata import carried_over, generated, metadata_problems
from cluster.patch import JSON_PATCH, MERGE_PATCH, json_patched, merge_patched, strategic_merge_patched
from cluster.pod_security import level_of, violations
from cluster.resource import Object, Registry, Resource
from cluster.store import Entry, Store
from cluster.strategy import prepare_create, prepare_update, reset_fields
from cluster.validation import MISSING, validate

_ATTEMPTS = 10
_ENVELOPE = ("apiVersion", "kind", "metadata")
# Registries that refuse an update without a resourceVersion.
_CONDITIONAL = {"leases", "customresourcedefinitions", "roles", "rolebindings", "clusterroles", "clusterrolebindings",
                "poddisruptionbudgets", "validatingwebhookconfigurations", "mutatingwebhookconfigurations"}  # fmt: skip
_WITH_PODS = {"Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job"}
_CREATED_BY_UPDATE = {"leases", "services", "endpoints"}


class Admission(Protocol):
    """Webhooks, as writes need them."""

    async def mutate(self, call: Call, obj: Object | None, old: Object | None) -> Object | None:
        """The object as the mutating webhooks leave it; the same object when none wants a change."""

    async def validate(self, call: Call, obj: Object | None, old: Object | None) -> None:
        """Raise Failure when a validating webhook refuses."""


class Made(NamedTuple):
    """What a request makes of the current object, not yet checked."""

    obj: Object
    config: Object | None = None
    """The applied configuration, for a server-side apply."""


class Verbs:
    """The writing verbs over one store."""

    def __init__(self, store: Store, registry: Registry, addresses: Addresses, admission: Admission) -> None:
        self.store = store
        self.registry = registry
        self._addresses = addresses
        self._admission = admission

    def current(self, call: Call) -> Entry:
        """The object a request names. Raises Failure (404)."""
        entry = self.store.get(call.resource.table, call.namespace, call.name)
        if entry is None:
            raise failure.not_found(call.resource, call.name)
        return entry

    async def create(self, call: Call, body: Any) -> Entry:
        """POST."""
        obj = self._decoded(call, body)
        return await self._create(call, obj, None)

    async def update(self, call: Call, body: Any) -> Entry:
        """PUT, of the object or its status."""
        resource = call.resource
        obj = self._decoded(call, body)
        name = obj["metadata"].setdefault("name", call.name)
        if name != call.name:
            raise failure.bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({call.name})"
            )
        _check_namespace(call, obj)
        self._fill(resource, obj)
        creates = resource.plural in _CREATED_BY_UPDATE and not resource.custom and not call.subresource
        if creates and self.store.get(resource.table, call.namespace, call.name) is None:
            return await self._create(call, obj, None)
        if not obj["metadata"].get("resourceVersion") and (resource.custom or resource.plural in _CONDITIONAL):
            problem = Problem(
                "metadata.resourceVersion", "FieldValueInvalid", "Invalid value: 0: must be specified for an update"
            )
            raise failure.not_updatable(resource, call.name, [problem])
        return await self._write(call, lambda _: Made(json.loads(json.dumps(obj))))

    async def patch(self, call: Call, content_type: str, patch: Any) -> Entry:
        """PATCH in one of the three formats that change the current object."""
        if content_type == JSON_PATCH:
            return await self.change(call, lambda served: json_patched(served, patch))
        if content_type == MERGE_PATCH:
            return await self.change(call, lambda served: merge_patched(served, _mapping(patch)))
        schema = call.resource.schema
        return await self.change(call, lambda served: strategic_merge_patched(schema, served, _mapping(patch)))

    async def change(self, call: Call, change: Callable[[Object], Object]) -> Entry:
        """Store what a function makes of the current object; it gets the stored one and must leave it as it is."""

        def make(old: Object) -> Made:
            served = from_storage(old, call.resource.api_version)
            changed = change(served)
            if not call.resource.custom:
                obj = self._decoded(call, json.loads(json.dumps(changed)))
                self._fill(call.resource, obj)
                return Made(obj)
            # Parts that the change left alone were decoded when they were stored.
            untouched = {
                key: value for key, value in changed.items() if key not in _ENVELOPE and value is served.get(key)
            }
            touched = {key: value for key, value in changed.items() if key not in untouched}
            return Made({**self._decoded(call, json.loads(json.dumps(touched))), **untouched})

        return await self._write(call, make)

    async def apply(self, call: Call, config: Any) -> tuple[Entry, bool]:
        """Server-side apply; True when it created the object."""
        config = checked_configuration(call, config)
        if self.store.get(call.resource.table, call.namespace, call.name) is None:
            if call.subresource:
                raise failure.not_found(call.resource, call.name)
            if config["metadata"].get("uid"):
                uid = config["metadata"]["uid"]
                why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                raise failure.conflict(call.resource, call.name, why)
            obj = self._decoded(call, json.loads(json.dumps(config)))
            return await self._create(call, obj, config), True

        def make(old: Object) -> Made:
            check_version(call, old, config)
            return Made(from_storage(old, call.resource.api_version), config)

        return await self._write(call, make), False

    async def _create(self, call: Call, obj: Object, config: Object | None) -> Entry:
        resource, metadata = call.resource, obj["metadata"]
        _check_namespace(call, obj)
        if metadata.get("resourceVersion"):
            raise failure.bad_request("resourceVersion should not be set on objects to be created")
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                problem = failure.required("metadata.name", "name or generateName is required")
                raise failure.invalid(resource, "", [problem])
            metadata["name"] = generated(metadata["generateName"])
        self._check_namespace_lives(call)
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "managedFields"):
            metadata.pop(key, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        self._fill(resource, obj)
        prepare_create(resource, obj, self._addresses)
        ignored = reset_fields(resource, call.subresource)
        who = self._manager(call, "Update" if config is None else "Apply")
        if config is None:
            owners = updated(resource.schema, {}, obj, {}, who, resource.api_version, ignored, now())
        else:
            _, owners = applied(resource.schema, {}, config, {}, who, resource.api_version, ignored, now(), force=True)
        metadata["managedFields"] = encode_owners(owners)
        obj = await self._mutated(call, obj, None)
        self._check(call, obj, None)
        await self._admission.validate(call, obj, None)
        if self.store.get(resource.table, call.namespace, metadata["name"]) is not None:
            raise failure.already_exists(resource, metadata["name"])
        stored = to_storage(resource, obj)
        entry = Entry(stored, 0) if call.dry_run else self.store.put(resource.table, stored)
        entry.managed = owners
        return entry

    async def _write(self, call: Call, make: Callable[[Object], Made]) -> Entry:
        """The read-modify-write loop of every update; tried again when somebody else was faster."""
        resource = call.resource
        for _ in range(_ATTEMPTS):
            current = self.current(call)
            old = from_storage(current.object, resource.api_version)
            made = make(current.object)
            if made.config is None:
                self._check_version(call, made.obj, current)
            owners = self._owners(call, current, made)
            prepared, owners, problems = self._prepared(call, made, old, owners)
            if problems:
                raise failure.invalid(resource, call.name, problems)
            if _same(prepared, old) and _same_owners(owners, current.managed):
                prepared = old
            else:
                if owners:
                    prepared["metadata"]["managedFields"] = encode_owners(owners)
            mutated = await self._mutated(call, prepared, old)
            if mutated is not old:
                self._check(call, mutated, old)
            await self._admission.validate(call, mutated, old)
            if self.store.get(resource.table, call.namespace, call.name) is not current:
                continue
            if mutated is old:
                return current
            return self._commit(call, mutated, current, owners)
        raise failure.conflict(resource, call.name)

    def _commit(self, call: Call, obj: Object, current: Entry, owners: Owners) -> Entry:
        stored = to_storage(call.resource, obj)
        if call.dry_run:
            return Entry({**stored, "metadata": {**stored["metadata"]}}, current.revision)
        metadata = stored["metadata"]
        free = not metadata.get("finalizers") and not metadata.get("deletionGracePeriodSeconds")
        if "deletionTimestamp" in metadata and free and not _holds_namespace(stored):
            # The write that takes the last finalizer away deletes; watches see the object as it was before.
            self.store.remove(call.resource.table, current.key)
            return Entry(stored, self.store.revision)
        entry = self.store.put(call.resource.table, stored)
        entry.managed = owners
        return entry

    def _prepared(
        self, call: Call, made: Made, old: Object, owners: Owners
    ) -> tuple[Object, Owners, list[Problem]]:  # fmt: skip
        resource = call.resource
        ignored = reset_fields(resource, call.subresource)
        who = self._manager(call, "Update" if made.config is None else "Apply")
        obj = made.obj
        if made.config is not None:
            bare = _bare(old)
            if not owners:
                before = Manager("before-first-apply", "Update", resource.api_version, call.subresource)
                owners = updated(resource.schema, {}, bare, {}, before, resource.api_version, ignored, now())
            merged, owners = applied(
                resource.schema, bare, made.config, owners, who, resource.api_version, ignored, now(), call.force
            )
            obj, _ = decode(resource, json.loads(json.dumps(merged)))
            self._fill(resource, obj)
        obj["metadata"].pop("managedFields", None)
        obj["metadata"].pop("resourceVersion", None)
        if call.subresource == "status" and resource.custom:
            obj["metadata"] = dict(old["metadata"])
        problems = carried_over(obj, old)
        prepared = prepare_update(resource, call.subresource, obj, old)
        prepared["metadata"] = {key: value for key, value in prepared["metadata"].items() if key != "managedFields"}
        if made.config is None and owners:
            bare = _bare(old)
            prepared["metadata"].pop("resourceVersion", None)
            owners = updated(resource.schema, bare, prepared, owners, who, resource.api_version, ignored, now())
        prepared["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        return prepared, owners, problems

    def _owners(self, call: Call, current: Entry, made: Made) -> Owners:
        if current.managed is None:
            current.managed = parse_owners(current.object["metadata"].get("managedFields", []))
        owners: Owners = current.managed
        given = made.obj["metadata"].get("managedFields")
        if made.config is not None or call.subresource or given is current.object["metadata"].get("managedFields"):
            return owners
        if given is not None:
            if given in ([], [{}]):
                return {}
            try:
                return parse_owners(given)
            except (ValueError, AttributeError):
                return owners
        return owners

    def _check_version(self, call: Call, obj: Object, current: Entry) -> None:
        metadata, before = obj["metadata"], current.object["metadata"]
        if metadata.get("resourceVersion") not in (None, "", before["resourceVersion"]):
            raise failure.conflict(call.resource, call.name)
        if call.verb == "update" and metadata.get("uid") not in (None, "", before["uid"]):
            group = f"{call.resource.group}/" if call.resource.custom else ""
            place = "/".join(filter(None, (f"{group}{call.resource.plural}", call.namespace, call.name)))
            why = (
                f"StorageError: invalid object, Code: 4, Key: /registry/{place}, ResourceVersion: 0, "
                f"AdditionalErrorMsg: Precondition failed: UID in precondition: {metadata['uid']}, "
                f"UID in object meta: {before['uid']}"
            )
            raise failure.conflict(call.resource, call.name, why)

    def _decoded(self, call: Call, body: Any) -> Object:
        obj, unknown = decode(call.resource, body)
        if unknown and call.field_validation == "Strict":
            fields = ", ".join(f'unknown field "{one}"' for one in unknown)
            raise failure.bad_request(
                f'{call.resource.kind} in version "{call.resource.version}" cannot be handled as a '
                f"{call.resource.kind}: strict decoding error: {fields}"
            )
        if call.field_validation == "Warn":
            call.warnings += [f'unknown field "{one}"' for one in unknown]
        if call.resource.deprecation:
            call.warnings.append(call.resource.deprecation)
        return obj

    def _fill(self, resource: Resource, obj: Object) -> None:
        if not resource.custom:
            fill_builtin(obj)

    def _manager(self, call: Call, operation: str) -> Manager:
        version = call.resource.api_version if operation == "Update" else ""
        return Manager(call.manager, operation, version, call.subresource)

    async def _mutated(self, call: Call, obj: Object, old: Object | None) -> Object:
        mutated = await self._admission.mutate(call, obj, old)
        if mutated is obj or mutated is None:
            return obj
        decoded, _ = decode(call.resource, json.loads(json.dumps(mutated)))
        self._fill(call.resource, decoded)
        for key in ("managedFields", "uid", "creationTimestamp", "generation", "resourceVersion"):
            decoded["metadata"].pop(key, None)
            if key in obj["metadata"]:
                decoded["metadata"][key] = obj["metadata"][key]
        return decoded

    def _check(self, call: Call, obj: Object, old: Object | None) -> None:
        resource = call.resource
        problems = metadata_problems(resource, obj)
        if resource.custom:
            problems += validate(resource.schema, obj, MISSING if old is None else old)
        else:
            problems += builtin_problems(resource, obj, old, call.subresource)
            if not problems and resource.kind in _WITH_PODS:
                self._check_pod_security(call, obj)
        if problems:
            raise failure.invalid(resource, obj["metadata"]["name"], problems)

    def _check_pod_security(self, call: Call, obj: Object) -> None:
        """Refuse pods, and warn of workloads, that the namespace's Pod Security level does not allow."""
        if call.subresource or "spec" not in obj:
            return
        entry = self.store.get("namespaces", "", call.namespace)
        namespace = entry.object if entry else None
        if obj["kind"] == "Pod":
            why = violations(level_of(namespace, "enforce"), obj)
            if why:
                raise failure.forbidden(call.resource, obj["metadata"]["name"], why.replace("violate", "violates", 1))
        warning = violations(level_of(namespace, "warn"), obj)
        if warning:
            call.warnings.append(f"would {warning}")

    def _check_namespace_lives(self, call: Call) -> None:
        if not call.resource.namespaced:
            return
        namespace = self.store.get("namespaces", "", call.namespace)
        if namespace is None:
            raise failure.not_found(self.registry.named("namespaces"), call.namespace)
        if "deletionTimestamp" in namespace.object["metadata"] and call.resource.table != "events":
            why = f"unable to create new content in namespace {call.namespace} because it is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {call.namespace} is being terminated",
                     "field": "metadata.namespace"}  # fmt: skip
            raise failure.forbidden(call.resource, call.name, why, [cause])


def _check_namespace(call: Call, obj: Object) -> None:
    metadata = obj["metadata"]
    if not call.resource.namespaced:
        metadata.pop("namespace", None)
    elif metadata.setdefault("namespace", call.namespace) != call.namespace:
        raise failure.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def _bare(obj: Object) -> Object:
    """An object without what nobody owns and every write changes."""
    kept = {key: value for key, value in obj["metadata"].items() if key not in ("managedFields", "resourceVersion")}
    return {**obj, "metadata": kept}


def _same(new: Object, old: Object) -> bool:
    return bool(_bare(new) == _bare(old))


def _same_owners(new: Owners, old: Owners | None) -> bool:
    if old is None or new.keys() != old.keys():
        return False
    return all(new[key].fields == old[key].fields for key in new)


def _mapping(patch: Any) -> Object:
    if not isinstance(patch, dict):
        raise failure.bad_request("error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}")  # noqa: E501  # fmt: skip
    return patch


def _holds_namespace(obj: Object) -> bool:
    return bool(obj["kind"] == "Namespace" and obj.get("spec", {}).get("finalizers"))
