# SPDX-License-Identifier: Apache-2.0
"""What a Kubernetes server refuses in a CustomResourceDefinition."""

import json
from typing import Any

from cluster import cel, failure
from cluster.failure import Problem
from cluster.resource import Object

_TYPED_BY = ("type", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")


def definition_problems(obj: Object, old: Object | None) -> list[Problem]:
    """What is wrong with a CustomResourceDefinition, and with its change from `old`."""
    spec = obj["spec"]
    problems = []
    wanted = f"{spec.get('names', {}).get('plural', '')}.{spec.get('group', '')}"
    if obj["metadata"]["name"] != wanted:
        detail = 'must be spec.names.plural+"."+spec.group'
        problems.append(failure.bad_value("metadata.name", obj["metadata"]["name"], detail))
    if sum(bool(one.get("storage")) for one in spec.get("versions") or ()) != 1:
        problems.append(
            failure.bad_value("spec.versions", "", "must have exactly one version marked as storage version")
        )
    if old is not None:
        problems += [
            failure.bad_value(f"spec.{key}", spec.get(key), "field is immutable")
            for key in ("group", "scope")
            if spec.get(key) != old["spec"].get(key)
        ]
    for index, version in enumerate(spec.get("versions") or ()):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            problems.append(failure.required(path, "schemas are required"))
        else:
            _schema(schema, path, problems)
    return problems


def _schema(schema: Any, path: str, problems: list[Problem]) -> None:
    """Rules that do not compile, and parts without a type."""
    if not any(schema.get(key) for key in _TYPED_BY):
        problems.append(failure.required(f"{path}.type", "must not be empty for specified object fields"))
    for index, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
        why = cel.check_expression(rule.get("rule", ""))
        if why:
            place = f"{path}.x-kubernetes-validations[{index}].rule"
            problems.append(Problem(place, "FieldValueInvalid", f"Invalid value: {json.dumps(rule)}: {why}"))
    for name, below in (schema.get("properties") or {}).items():
        _schema(below, f"{path}.properties[{name}]", problems)
    if isinstance(schema.get("items"), dict):
        _schema(schema["items"], f"{path}.items", problems)
    if isinstance(schema.get("additionalProperties"), dict):
        _schema(schema["additionalProperties"], f"{path}.additionalProperties", problems)
