# SPDX-License-Identifier: Apache-2.0
"""metadata: names given and checked, and what an update may not touch (k8s.io/apimachinery, api/validation)."""

import re
import secrets

from cluster import failure
from cluster.failure import Problem
from cluster.resource import Object, Resource

_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_ANNOTATIONS_MAX = 256 * 1024
_PATH_SEGMENT = {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}


def generated(prefix: str) -> str:
    """A name for `generateName`: at most 58 characters of it and five random ones."""
    return prefix[:58] + "".join(secrets.choice(_ALPHABET) for _ in range(5))


def name_problem(resource: Resource, name: str) -> str:
    """Why a name is not allowed for a resource, or an empty string."""
    if resource.group == "rbac.authorization.k8s.io" or resource.plural in _PATH_SEGMENT:
        bad = next((part for part in ("/", "%") if part in name), None)
        return f"may not contain '{bad}'" if bad else ""
    if resource.plural == "services" and not resource.group:
        return _label_problem(name, _LABEL_1035)
    if resource.plural == "namespaces" and not resource.group:
        return _label_problem(name, _LABEL)
    if len(name) > 253:
        return "must be no more than 253 characters"
    if not re.fullmatch(_SUBDOMAIN, name):
        return (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
            f"'{_SUBDOMAIN}')"
        )
    return ""


def _label_problem(name: str, pattern: str) -> str:
    if len(name) > 63:
        return "must be no more than 63 characters"
    if re.fullmatch(pattern, name):
        return ""
    if pattern == _LABEL_1035:
        return (
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
            "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
            f"validation is '{pattern}')"
        )
    return (
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
        f"with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{pattern}')"
    )


def metadata_problems(resource: Resource, obj: Object) -> list[Problem]:
    """What is wrong with the metadata of an object that is about to be stored."""
    metadata = obj["metadata"]
    problems = []
    why = name_problem(resource, metadata["name"])
    if why:
        problems.append(failure.bad_value("metadata.name", metadata["name"], why))
    problems += label_problems("metadata.labels", metadata.get("labels") or {})
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        why = _qualified_problem(key.lower())
        if why:
            problems.append(failure.bad_value("metadata.annotations", key, why))
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _ANNOTATIONS_MAX:
        problems.append(failure.too_long("metadata.annotations", _ANNOTATIONS_MAX))
    problems += _owner_problems(metadata.get("ownerReferences") or [])
    for finalizer in metadata.get("finalizers") or ():
        why = _qualified_problem(finalizer)
        if why:
            problems.append(failure.bad_value("metadata.finalizers", finalizer, why))
    return problems


def label_problems(field: str, labels: dict[str, str]) -> list[Problem]:
    """What is wrong with a map of labels."""
    problems = []
    for key, value in labels.items():
        why = _qualified_problem(key)
        if why:
            problems.append(failure.bad_value(field, key, why))
        if len(value) > 63:
            problems.append(failure.bad_value(field, value, "must be no more than 63 bytes"))
        elif not re.fullmatch(_VALUE, value):
            problems.append(
                failure.bad_value(
                    field,
                    value,
                    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and "
                    "must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', "
                    f"regex used for validation is '{_VALUE}')",
                )
            )
    return problems


def _qualified_problem(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and (not re.fullmatch(_SUBDOMAIN, prefix) or len(prefix) > 253):
        return (
            "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
            "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for "
            f"validation is '{_SUBDOMAIN}')"
        )
    if not name:
        return "name part must be non-empty"
    if len(name) > 63:
        return "name part must be no more than 63 bytes"
    if not re.fullmatch(_QUALIFIED, name):
        return (
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
            f"'{_QUALIFIED}')"
        )
    return ""


def _owner_problems(references: list[Object]) -> list[Problem]:
    problems = []
    for index, reference in enumerate(references):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(key):
                field = f"metadata.ownerReferences[{index}].{key}"
                detail = "must not be empty" if key == "uid" else ""
                problems.append(failure.bad_value(field, "", detail or "must not be empty"))
    if sum(bool(reference.get("controller")) for reference in references) > 1:
        problems.append(
            failure.bad_value(
                "metadata.ownerReferences", references, "Only one reference can have Controller set to true"
            )
        )
    return problems


def carried_over(new: Object, old: Object) -> list[Problem]:
    """Put back what clients may not change, in place; answers what they may not even try to."""
    metadata, before = new["metadata"], old["metadata"]
    problems = []
    for key in ("name", "namespace", "uid"):
        value = metadata.get(key) or before.get(key)
        if value != before.get(key):
            problems.append(failure.bad_value(f"metadata.{key}", value, "field is immutable"))
        if value is not None:
            metadata[key] = value
    for key in ("creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
        metadata.pop(key, None)
        if key in before:
            metadata[key] = before[key]
    metadata.pop("selfLink", None)
    if "deletionTimestamp" in before:
        added = [one for one in metadata.get("finalizers") or () if one not in (before.get("finalizers") or ())]
        if added:
            shown = ", ".join(f'"{one}"' for one in added)
            problems.append(
                failure.not_permitted(
                    "metadata.finalizers",
                    "no new finalizers can be added if the object is being deleted, found new finalizers "
                    f"[]string{{{shown}}}",
                )
            )
    return problems
