# SPDX-License-Identifier: Apache-2.0
"""CEL rules of CustomResourceDefinitions (`x-kubernetes-validations`) and of webhooks' matchConditions.

cel-python evaluates the language itself; the functions Kubernetes adds to it and that rules of custom resources
commonly use stand below. Answers are remembered by rule and value: a fleet of like objects asks the same things.
"""

import functools
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from cluster.failure import Problem, shown
from cluster.schema import Node

_RESERVED = {
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
    "let", "loop", "package", "namespace", "return", "var", "void", "while",
}  # fmt: skip
_ENVIRONMENT = celpy.Environment()
_TRAILING_COMMA = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|,\s*(?=[\]}])""")
# The library logs every failed evaluation as an error; here a failure is an answer.
logging.getLogger("celpy").setLevel(logging.CRITICAL)
logging.getLogger("Environment").setLevel(logging.CRITICAL)
logging.getLogger("Evaluator").setLevel(logging.CRITICAL)
_REASONS = {
    "FieldValueInvalid": "Invalid value{seen}: {message}",
    "FieldValueForbidden": "Forbidden: {message}",
    "FieldValueRequired": "Required value: {message}",
    "FieldValueDuplicate": "Duplicate value{seen}",
}


class RuleError(Exception):
    """A rule that does not compile, or fails while it runs."""


def _find(text: Any, pattern: Any) -> Any:
    found = re.search(str(pattern), str(text))
    return celtypes.StringType(found[0] if found else "")


def _is_quantity(text: Any) -> Any:
    return celtypes.BoolType(
        bool(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", str(text)))
    )


def _is_url(text: Any) -> Any:
    return celtypes.BoolType(bool(re.fullmatch(r"(?:[a-zA-Z][\w+.-]*://[^\s]*|/[^\s]*)", str(text))))


_FUNCTIONS: dict[str, Any] = {
    "find": _find,
    "lowerAscii": lambda text: celtypes.StringType(str(text).lower()),
    "upperAscii": lambda text: celtypes.StringType(str(text).upper()),
    "trim": lambda text: celtypes.StringType(str(text).strip()),
    "replace": lambda text, old, new: celtypes.StringType(str(text).replace(str(old), str(new))),
    "split": lambda text, by: celtypes.ListType([celtypes.StringType(one) for one in str(text).split(str(by))]),
    "join": lambda items, by="": celtypes.StringType(str(by).join(map(str, items))),
    "substring": lambda text, start, end=None: celtypes.StringType(
        str(text)[int(start) : None if end is None else int(end)]
    ),
    "sum": lambda items: celtypes.IntType(sum(int(one) for one in items)),
    "isQuantity": _is_quantity,
    "isURL": _is_url,
}


@functools.lru_cache(maxsize=4096)
def _program(expression: str) -> Any:
    try:
        # CEL allows a comma after the last item of a list, which the library's grammar does not.
        tidy = _TRAILING_COMMA.sub(lambda found: found[1] or "", expression)
        return _ENVIRONMENT.program(_ENVIRONMENT.compile(tidy), functions=_FUNCTIONS)
    except CELParseError as error:
        raise RuleError(f"compilation failed: {error}") from error


def check_expression(expression: str) -> str:
    """Why an expression does not compile, or an empty string."""
    try:
        _program(expression)
    except RuleError as error:
        return str(error)
    return ""


def evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    """The value of an expression. Raises RuleError when it fails."""
    try:
        return _program(expression).evaluate(dict(variables))
    except CELEvalError as error:
        raise RuleError(str(error.args[0])) from error


def plain(value: Any) -> Any:
    """A JSON value as CEL sees one without a schema."""
    return json_to_cel(value)


def rule_problems(
    node: Node, value: Any, old: Any, path: str, *, has_old: bool, only_transitions: bool
) -> list[Problem]:
    """What the rules of one place say about its value, and about its change from the old one."""
    problems = []
    for rule in node.rules:
        transition = re.search(r"\boldSelf\b", rule["rule"]) is not None
        if (transition and not has_old and not rule.get("optionalOldSelf")) or (only_transitions and not transition):
            continue
        fields = _fields_used(rule["rule"] + rule.get("messageExpression", ""))
        before = _narrowed(old, fields) if transition and has_old else None
        variables = json.dumps([_narrowed(value, fields), before], sort_keys=True)
        message = _verdict(_Typed(node), json.dumps(rule, sort_keys=True), variables, transition)
        if message is not None:
            field = path + rule.get("fieldPath", "") if path else rule.get("fieldPath", "").lstrip(".")
            reason = rule.get("reason", "FieldValueInvalid")
            seen = "" if isinstance(value, (dict, list)) else f": {shown(value)}"
            problems.append(Problem(field or "<nil>", reason, _REASONS[reason].format(seen=seen, message=message)))
    return problems


@functools.lru_cache(maxsize=4096)
def _fields_used(expression: str) -> frozenset[str] | None:
    """The fields of self and oldSelf that an expression looks at, or None when it may look at all of them."""
    mentions = re.findall(r"\b(?:self|oldSelf)\b(?:\.(\w+)(?!\w|\())?", expression)
    return None if any(not name or name.startswith("__") for name in mentions) else frozenset(mentions)


def _narrowed(value: Any, fields: frozenset[str] | None) -> Any:
    """The part of an object that counts, so that objects which differ elsewhere share their answers."""
    if fields is None or not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if key in fields}


class _Typed:
    """A node as a key of the cache: two are equal when they are the same object."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    def __hash__(self) -> int:
        return id(self.node)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Typed) and other.node is self.node


@functools.lru_cache(maxsize=20_000)
def _verdict(typed: _Typed, rule_text: str, variables_text: str, transition: bool) -> str | None:
    """None when the rule holds, else its message."""
    rule = json.loads(rule_text)
    value, old = json.loads(variables_text)
    variables = {"self": _typed_value(typed.node, value)}
    if transition:
        variables["oldSelf"] = _typed_value(typed.node, old)
    try:
        if bool(evaluate(rule["rule"], variables)):
            return None
        if "messageExpression" in rule:
            return str(evaluate(rule["messageExpression"], variables))
    except RuleError as error:
        return f"rule evaluation error: {error}"
    return str(rule.get("message") or f"failed rule: {rule['rule'].strip()}")


def _typed_value(node: Node, value: Any) -> Any:
    """A JSON value as CEL sees it through its schema: properties are fields, with their names escaped."""
    if isinstance(value, dict):
        if node.shape == "any":
            return plain(value)
        declared = node.properties
        return celtypes.MapType(
            {
                celtypes.StringType(_escaped(key) if key in declared else key): _typed_value(below, part)
                for key, part in value.items()
                if (below := node.field(key)) is not None
            }
        )
    if isinstance(value, list):
        return celtypes.ListType([_typed_value(node.item, item) for item in value])
    if node.type == "number" and isinstance(value, int) and not isinstance(value, bool):
        return celtypes.DoubleType(value)
    return plain(value)


def _escaped(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    for plain_text, escape in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")):
        name = name.replace(plain_text, escape)
    return name
