# SPDX-License-Identifier: Apache-2.0
"""Tables for people: what `kubectl get` prints, for custom resources by their printer columns."""

import calendar
import time
from collections.abc import Sequence
from typing import Any

from cluster.jsonpath import JsonPathError, compiled, text
from cluster.printer import PRINTERS, Cells
from cluster.resource import Column, Object, Resource

_NAME = Column("Name", "string", ".metadata.name", "name", "Name must be unique within a namespace.")
_AGE = Column("Age", "date", ".metadata.creationTimestamp", "", "CreationTimestamp is the time the object was created.")


def columns_of(resource: Resource) -> list[Column]:
    """The columns of a resource, the name first."""
    if resource.custom:
        return [_NAME, *(resource.columns or (_AGE,))]
    printer = PRINTERS.get(resource.kind)
    if printer is None:
        return [_NAME, Column("Age", "string", "")]
    columns = [Column(name, "string", "", priority=priority) for name, priority in printer.columns]
    return [_NAME, *columns] if printer.named else columns


def table(
    resource: Resource, objects: Sequence[Object], metadata: Object, include: str, *, heads: bool = True
) -> Object:
    """Objects as a meta.k8s.io/v1 Table; each row carries the object, its metadata or nothing (`include`)."""
    columns = columns_of(resource)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [_definition(column) for column in columns] if heads else None,
        "rows": [_row(resource, columns, obj, include) for obj in objects],
    }


def partial(obj: Object) -> Object:
    """An object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _definition(column: Column) -> Object:
    return {
        "name": column.name,
        "type": column.type,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    }


def _row(resource: Resource, columns: Sequence[Column], obj: Object, include: str) -> Object:
    row: Object = {"cells": _cells(resource, columns, obj)}
    if include == "Object":
        row["object"] = obj
    elif include != "None":
        row["object"] = partial(obj)
    return row


def _cells(resource: Resource, columns: Sequence[Column], obj: Object) -> Cells:
    if resource.custom:
        return [_cell(column, obj) for column in columns]
    name = obj["metadata"]["name"]
    printer = PRINTERS.get(resource.kind)
    if printer is None:
        return [name, age(obj["metadata"].get("creationTimestamp"))]
    return [name, *printer.cells(obj)] if printer.named else printer.cells(obj)


def _cell(column: Column, obj: Object) -> Any:
    try:
        found = compiled(column.path)(obj)
    except JsonPathError:
        return None
    if not found:
        return None
    value = found[0]
    if column.type == "date":
        return age(value) if isinstance(value, str) else None
    if column.type == "integer":
        return int(value) if isinstance(value, (int, float)) else None
    if column.type == "boolean":
        return value if isinstance(value, bool) else None
    if column.type == "number":
        return float(value) if isinstance(value, (int, float)) else None
    return " ".join(text(one) for one in found)


def age(moment: str | None) -> str:
    """The time since a moment, as kubectl writes it."""
    if not moment:
        return "<unknown>"
    try:
        since = calendar.timegm(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return "<invalid>"
    return human_duration(int(time.time() - since))


def human_duration(seconds: int) -> str:
    """Two figures at most: `45s`, `3m20s`, `25m`, `5h3m`, `2d4h`, `1y20d`."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if seconds < -1:
        return "<invalid>"
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    if minutes < 10:
        return f"{minutes}m" + (f"{seconds % 60}s" if seconds % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    if days < 730:
        return f"{days}d"
    if days < 365 * 8:
        return f"{days // 365}y" + (f"{days % 365}d" if days % 365 else "")
    return f"{days // 365}y"
