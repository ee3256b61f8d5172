# SPDX-License-Identifier: Apache-2.0
"""Validation of custom resources against their structural schema, with Kubernetes' messages.

An update is ratcheted: what was invalid before and is unchanged is left alone, so that objects stored under an older
schema stay editable (CRDValidationRatcheting, on since Kubernetes 1.30).
"""

import base64
import binascii
import json
import re
from datetime import datetime
from typing import Any

from cluster import failure
from cluster.cel import rule_problems
from cluster.failure import Problem
from cluster.schema import Node

MISSING: Any = object()
_BLOCKING = {
    "FieldValueNotSupported", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid",
    "FieldValueDuplicate",
}  # fmt: skip
_SKIPPED_RULES = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)


def validate(node: Node, value: Any, old: Any = MISSING) -> list[Problem]:
    """Everything wrong with a custom resource, ratcheted against its old version where there is one."""
    problems: list[Problem] = []
    _validate(node, value, old, "", problems)
    rules: list[Problem] = []
    if any(problem.reason in _BLOCKING for problem in problems):
        rules.append(Problem("<nil>", "FieldValueInvalid", f"Invalid value: null: {_SKIPPED_RULES}"))
    else:
        _rules(node, value, old, "", rules)
    return problems + rules


def json_type(value: Any) -> str:
    """The JSON type of a value as messages name it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


_TYPES: dict[str, type] = {"string": str, "array": list, "object": dict, "boolean": bool}


def _fits(wanted: str, value: Any) -> bool:
    known = _TYPES.get(wanted)
    if known is not None:
        return isinstance(value, known)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return wanted == "number" or isinstance(value, int) or value.is_integer()


def _validate(node: Node, value: Any, old: Any, path: str, out: list[Problem]) -> None:
    if value is None and node.nullable:
        return
    if old is not MISSING and old == value and type(old) is type(value):
        return
    wanted = "string" if node.int_or_string else node.type or ("object" if node.properties else "")
    if node.int_or_string:
        fits = isinstance(value, str) or _fits("integer", value)
        wanted = "integer,string"
    else:
        fits = not wanted or _fits(wanted, value)
    if not fits:
        seen = json_type(value)
        out.append(failure.bad_type(path, seen, f'{path} in body must be of type {wanted}: "{seen}"'))
        return
    if node.checks:
        _check(node, value, path, out)
    if isinstance(value, dict):
        out += [failure.required(_join(path, key)) for key in node.required if key not in value]
        before = old if isinstance(old, dict) else {}
        for key, part in value.items():
            below = node.field(key)
            if below is not None and below.shape != "any":
                _validate(below, part, before.get(key, MISSING), _join(path, key), out)
    elif isinstance(value, list):
        _validate_items(node, value, old, path, out)


def _validate_items(node: Node, value: list[Any], old: Any, path: str, out: list[Problem]) -> None:
    before = _correlated(node, old)
    seen: set[str] = set()
    for index, item in enumerate(value):
        key = node.key_of(item) if node.keys or node.set else ""
        place = f"{path}[{index}]"
        if key and key in seen:
            out.append(failure.duplicate(place, json.loads(key[2:])))
        seen.add(key)
        _validate(node.item, item, before.get(key, MISSING) if node.keys else MISSING, place, out)


def _correlated(node: Node, old: Any) -> dict[str, Any]:
    return {node.key_of(item): item for item in old} if node.keys and isinstance(old, list) else {}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _check(node: Node, value: Any, path: str, out: list[Problem]) -> None:
    raw = node.raw
    if "enum" in raw and value not in raw["enum"]:
        out.append(failure.not_supported(path, value, raw["enum"]))
    if isinstance(value, str):
        _check_string(raw, value, path, out)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(raw, value, path, out)
    elif isinstance(value, (list, dict)):
        _check_size(raw, value, path, out)
    _check_junctors(node, value, path, out)


def _check_string(raw: Any, value: str, path: str, out: list[Problem]) -> None:
    if "maxLength" in raw and len(value) > raw["maxLength"]:
        out.append(failure.too_long(path, raw["maxLength"]))
    if len(value) < raw.get("minLength", 0):
        detail = f"{path} in body should be at least {raw['minLength']} chars long"
        out.append(failure.bad_value(path, value, detail))
    if "pattern" in raw and not re.search(raw["pattern"], value):
        out.append(failure.bad_value(path, value, f"{path} in body should match '{raw['pattern']}'"))
    if "format" in raw and not _has_format(raw["format"], value):
        shown = json.dumps(value)
        out.append(failure.bad_value(path, value, f"{path} in body must be of type {raw['format']}: {shown}"))


def _has_format(name: str, value: str) -> bool:
    try:
        if name == "date-time":
            if not re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", value):
                return False
            datetime.fromisoformat(value.upper())
        elif name == "date":
            datetime.strptime(value, "%Y-%m-%d")
        elif name == "byte":
            base64.b64decode(value, validate=True)
        elif name == "uuid":
            return bool(re.fullmatch(r"[0-9A-Fa-f]{8}(-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}", value))
    except (ValueError, binascii.Error):
        return False
    return True


def _check_number(raw: Any, value: float, path: str, out: list[Problem]) -> None:
    low, high = raw.get("minimum"), raw.get("maximum")
    if low is not None and (value < low or (value == low and raw.get("exclusiveMinimum"))):
        than = "greater than" if raw.get("exclusiveMinimum") else "greater than or equal to"
        out.append(failure.bad_value(path, value, f"{path} in body should be {than} {low:g}"))
    if high is not None and (value > high or (value == high and raw.get("exclusiveMaximum"))):
        than = "less than" if raw.get("exclusiveMaximum") else "less than or equal to"
        out.append(failure.bad_value(path, value, f"{path} in body should be {than} {high:g}"))
    if raw.get("format") == "int32" and not -(2**31) <= value < 2**31:
        out.append(failure.bad_value(path, value, f'{path} in body must be of type int32: "{value}"'))
    if "multipleOf" in raw and value % raw["multipleOf"]:
        out.append(failure.bad_value(path, value, f"{path} in body should be a multiple of {raw['multipleOf']:g}"))


def _check_size(raw: Any, value: Any, path: str, out: list[Problem]) -> None:
    least, most = ("minItems", "maxItems") if isinstance(value, list) else ("minProperties", "maxProperties")
    noun = "items" if isinstance(value, list) else "properties"
    if most in raw and len(value) > raw[most]:
        out.append(failure.too_many(path, len(value), raw[most]))
    if len(value) < raw.get(least, 0):
        out.append(failure.bad_value(path, value, f"{path} in body should have at least {raw[least]} {noun}"))


def _check_junctors(node: Node, value: Any, path: str, out: list[Problem]) -> None:
    for one in node.junctors("allOf"):
        _validate(one, value, MISSING, path, out)
    for name in ("anyOf", "oneOf"):
        ones = node.junctors(name)
        if not ones:
            continue
        valid = sum(not _found(one, value, path) for one in ones)
        if name == "anyOf" and not valid:
            detail = f"{path} in body must validate at least one schema (anyOf)"
            out.append(Problem(path, "FieldValueInvalid", f'Invalid value: "": {detail}'))
        elif name == "oneOf" and valid != 1:
            seen = "Found none valid" if not valid else f"Found {valid} valid alternatives"
            detail = f"{path} in body must validate one and only one schema (oneOf). {seen}"
            out.append(Problem(path, "FieldValueInvalid", f'Invalid value: "": {detail}'))
    for one in node.junctors("not"):
        if not _found(one, value, path):
            detail = f"{path} in body must not validate the schema (not)"
            out.append(Problem(path, "FieldValueInvalid", f'Invalid value: "": {detail}'))


def _found(node: Node, value: Any, path: str) -> list[Problem]:
    found: list[Problem] = []
    _validate(node, value, MISSING, path, found)
    return found


def _rules(node: Node, value: Any, old: Any, path: str, out: list[Problem]) -> None:
    unchanged = old is not MISSING and old == value
    if node.rules and not (value is None and node.nullable):
        out += rule_problems(node, value, old, path, has_old=old is not MISSING, only_transitions=unchanged)
    if unchanged or not node.has_rules_below():
        return
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for key, part in value.items():
            below = node.field(key)
            if below is not None and below.shape != "any":
                _rules(below, part, before.get(key, MISSING), _join(path, key), out)
    elif isinstance(value, list):
        known = _correlated(node, old)
        for index, item in enumerate(value):
            before_item = known.get(node.key_of(item), MISSING) if node.keys else MISSING
            _rules(node.item, item, before_item, f"{path}[{index}]", out)
