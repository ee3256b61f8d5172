# SPDX-License-Identifier: Apache-2.0
"""Label and field selectors of list, watch and deletecollection, and the selectors inside objects."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from cluster.failure import bad_request
from cluster.resource import Object, Resource

Matches = Callable[[Object], bool]
_REQUIREMENT = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<absent_key>[^\s,=!()]+)"
    r"|(?P<set_key>[^\s,=!()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^)]*)\)"
    r"|(?P<key>[^\s,=!()<>]+)\s*(?:(?P<compare>==|=|!=|>|<)\s*(?P<value>[^\s,()]*))?)\s*(?:,|$)"
)

# Fields that can be selected beside metadata.name and metadata.namespace.
FIELDS: dict[str, tuple[str, ...]] = {
    "pods": ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.phase",
             "status.podIP", "status.nominatedNodeName"),
    "nodes": ("spec.unschedulable",),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "services": ("spec.clusterIP", "spec.type"),
    "jobs": ("status.successful",),
    "events": ("involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
               "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
               "reportingComponent", "source", "type"),
}  # fmt: skip


def everything(_: Object) -> bool:
    """The selector that is not there."""
    return True


def selector(resource: Resource, label_selector: str, field_selector: str) -> Matches:
    """A predicate over objects of a resource. Raises Failure (400) for what Kubernetes would refuse."""
    if not label_selector and not field_selector:
        return everything
    labels = parse_labels(label_selector)
    fields = _parse_fields(resource, field_selector)

    def matches(obj: Object) -> bool:
        if label_selector and not labels(obj["metadata"].get("labels") or {}):
            return False
        return all((_field(obj, path) == value) is equal for path, equal, value in fields)

    return matches


def parse_labels(text: str) -> Callable[[Mapping[str, str]], bool]:
    """A label selector in its query form: `a=b,c!=d,e in (f,g),!h,i`."""
    tests: list[Callable[[Mapping[str, str]], bool]] = []
    position = 0
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if not match or match.end() == position:
            raise bad_request(f"unable to parse requirement: found {text[position:]!r}, expected: identifier")
        position = match.end()
        tests.append(_requirement(match))
    return lambda labels: all(test(labels) for test in tests)


def _requirement(match: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    if match["absent"]:
        missing = match["absent_key"]
        return lambda labels: missing not in labels
    if match["set_key"]:
        key, wanted = match["set_key"], {value.strip() for value in match["values"].split(",")}
        if match["operator"] == "in":
            return lambda labels: labels.get(key) in wanted
        return lambda labels: labels.get(key) not in wanted
    key, compare, value = match["key"], match["compare"], match["value"]
    if compare is None:
        return lambda labels: key in labels
    if compare in ("=", "=="):
        return lambda labels: labels.get(key) == value
    if compare == "!=":
        return lambda labels: labels.get(key) != value
    try:
        bound = int(value)
    except ValueError as error:
        raise bad_request(f"values[0][{key}]: Invalid value: {value!r}: for 'Gt', 'Lt' operators, the value must be "
                          "an integer") from error  # fmt: skip
    if compare == ">":
        return lambda labels: key in labels and labels[key].isdigit() and int(labels[key]) > bound
    return lambda labels: key in labels and labels[key].isdigit() and int(labels[key]) < bound


def object_selector(wanted: Mapping[str, Any] | None) -> Callable[[Mapping[str, str]], bool]:
    """A `metav1.LabelSelector` (matchLabels, matchExpressions); an empty one matches everything."""
    match_labels = (wanted or {}).get("matchLabels") or {}
    expressions = (wanted or {}).get("matchExpressions") or ()

    def matches(labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in match_labels.items()) and all(
            _expression(one, labels) for one in expressions
        )

    return matches


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels


def _parse_fields(resource: Resource, text: str) -> list[tuple[str, bool, str]]:
    found = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        match = re.fullmatch(r"([\w.\-/]+)\s*(==|=|!=)\s*(.*)", part)
        if not match:
            raise bad_request(f"invalid field selector: {text!r}; can't understand {part!r}".replace("'", '"'))
        path = match[1]
        if path not in ("metadata.name", "metadata.namespace", *FIELDS.get(resource.plural, ())) and not any(
            "." + path.lstrip(".") == column for column in resource.selectable_fields
        ):
            if resource.custom or resource.plural in FIELDS:
                raise bad_request(f"field label not supported: {path}")
            raise bad_request(f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"')
        found.append((path, match[2] != "!=", match[3]))
    return found


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = value.get("component", "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "false" if path == "spec.unschedulable" else ""
    return str(value)
