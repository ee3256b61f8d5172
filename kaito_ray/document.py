# SPDX-License-Identifier: Apache-2.0
"""A document as plain JSON: made from whatever a parser or API client hands over, and read without trusting it.

Used by what judges documents before they are typed: workspace_problems.py, workspace_rules.py, source_rules.py.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kaito_ray.errors import InvalidManifest, Problem

Document = Mapping[str, Any]
Path = tuple[str | int, ...]

# Deeper than any Kubernetes object; keeps a hostile document from exhausting the stack.
MAX_DEPTH = 64


def plain_document(document: Any) -> tuple[dict[str, Any], list[Problem]]:
    """A copy of `document` in plain dicts and lists, without nulls, and what in it JSON cannot express.

    Raises InvalidManifest when it is no mapping, since then there is nothing else to say about it.
    """
    problems: list[Problem] = []
    plain = _plain(document, (), problems)
    if not isinstance(plain, dict):
        seen = shown(document)
        raise InvalidManifest([Problem((), f"must be a mapping with apiVersion, kind and metadata, got {seen}")])
    return plain, problems


def _plain(value: Any, path: Path, problems: list[Problem]) -> Any:
    if len(path) > MAX_DEPTH:
        problems.append(Problem(path[:8], f"is nested deeper than {MAX_DEPTH} levels"))
        return None
    if isinstance(value, Mapping):
        plain = {}
        for key, item in value.items():
            if not isinstance(key, str):
                problems.append(Problem((*path, str(key)), f"is not a field: names must be strings, got {shown(key)}"))
            elif item is not None:
                plain[key] = _plain(item, (*path, key), problems)
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, index), problems) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(path, f"must be a finite number, got {value}"))
        return 0.0
    return value


def shown(value: Any) -> str:
    """A value as a message may show it: short, and only the kind of what has parts."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 64 else f'"{value[:60]}..."'
    if value is None:
        return "nothing"
    text = str(value)
    return text if len(text) <= 64 else f"{text[:60]}..."


def nearest(word: str, legal: Iterable[str]) -> str | None:
    """The legal word most like `word`, whatever its case; None when nothing is alike."""
    by_lower = {name.lower(): name for name in legal}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def mapping(parent: Document, key: str) -> Document:
    """The mapping at `key`; empty when it is absent or of another type."""
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def text(parent: Document, key: str) -> str:
    """The string at `key`; empty when it is absent or of another type."""
    value = parent.get(key)
    return value if isinstance(value, str) else ""


def number(parent: Document, key: str, otherwise: int) -> int:
    """The whole number at `key`; `otherwise` when it is absent or of another type."""
    value = parent.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def items(parent: Document, key: str) -> Iterator[tuple[int, Any]]:
    """The entries of the list at `key` with their places; none when it is absent or of another type."""
    value = parent.get(key)
    return enumerate(value) if isinstance(value, list) else iter(())
