# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the shape of a document, in sentences: pydantic's findings become Problems.

Called by `parse_workspace` only. Values are shown shortened, and never from below a mapping, so that nothing secret
that stands in the wrong place is repeated in a condition or a log.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from kaito_ray.document import Path, nearest, shown
from kaito_ray.errors import Problem


def problems_of_shape(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """One Problem for each thing pydantic found while reading a document as `model`."""
    problems = []
    for item in error.errors(include_url=False, include_context=True):
        path: Path = tuple(part for part in item["loc"] if part != "[key]")
        problems.append(Problem(path, _sentence(item["type"], path, item["input"], item.get("ctx", {}), model)))
    return problems


def _sentence(kind: str, path: Path, value: Any, context: Mapping[str, Any], model: type[BaseModel]) -> str:
    match kind:
        case "missing":
            return f"is missing{_described(path, model)}"
        case "extra_forbidden":
            return _unknown(path, model)
        case "string_type":
            in_quotes = isinstance(value, bool | int | float)
            return f"must be a string, got {shown(value)}" + (
                f'; write "{_scalar(value)}" in quotes' if in_quotes else ""
            )
        case "int_type" | "int_from_float":
            return f"must be a whole number, got {shown(value)}"
        case "dict_type" | "model_type":
            return f"must be a mapping, got {shown(value)}"
        case "tuple_type":
            return f"must be a list, got {shown(value)}"
        case "literal_error":
            return f"must be one of {context['expected'].replace(' or ', ', ')}, got {shown(value)}".replace("'", "")
        case "greater_than_equal":
            return f"must be at least {context['ge']}, got {shown(value)}"
        case "less_than_equal":
            return f"must be at most {context['le']}, got {shown(value)}"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters, got {len(value)}"
        case "string_too_short":
            return "must not be empty"
        case "too_long":
            return f"may have at most {context['max_length']} entries, got {len(value)}"
        case _:
            raise AssertionError(f"no sentence for {kind}")  # a model gained a constraint that has no words here


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _described(path: Path, model: type[BaseModel]) -> str:
    parent = _model_at(path[:-1], model)
    for field in parent.model_fields.values():
        if field.alias == path[-1] and field.description:
            return f": {field.description.rstrip('.')[0].lower()}{field.description.rstrip('.')[1:]}"
    return ""


def _unknown(path: Path, model: type[BaseModel]) -> str:
    name = str(path[-1])
    if path == ("spec",):
        return "is not a field: a Workspace has no spec; write resource, inference and tuning at the top level"
    legal = [field.alias or key for key, field in _model_at(path[:-1], model).model_fields.items()]
    alike = nearest(name, legal)
    if alike:
        return f"is not a field; did you mean {alike}?"
    elsewhere = sorted(home for home in _paths(model) if home.rsplit(".", 1)[-1] == name)
    if elsewhere:
        return f"is not a field here; did you mean {elsewhere[0]}?"
    return f"is not a field; there are {', '.join(legal)}"


def _model_at(path: Path, model: type[BaseModel]) -> type[BaseModel]:
    """The model that describes the mapping at `path`."""
    for part in path:
        if isinstance(part, str):
            annotation = next(field.annotation for field in model.model_fields.values() if field.alias == part)
            model = next(_models_in(annotation))
    return model


def _paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every field below `model` as people write it, in the order of the model; lists are written with []."""
    for field in model.model_fields.values():
        path = f"{above}{field.alias}"
        yield path
        for inner in _models_in(field.annotation):
            many = "[]" if "tuple" in str(field.annotation) else ""
            yield from _paths(inner, f"{path}{many}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
