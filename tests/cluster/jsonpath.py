# SPDX-License-Identifier: Apache-2.0
"""The JSONPath of printer columns: `.status.conditions[?(@.type=="Ready")].status` and the like."""

import functools
import re
from collections.abc import Callable
from typing import Any

Step = Callable[[list[Any]], list[Any]]
_TOKEN = re.compile(
    r"\.(?P<name>(?:[\w-]|\\.)+)"
    r"|\[(?P<index>-?\d+)\]"
    r"|\[(?P<quote>['\"])(?P<key>.+?)(?P=quote)\]"
    r"|(?P<all>\[\*\]|\.\*)"
    r"|\[\?\(@(?P<path>(?:\.[\w-]+|\['.+?'\])+)\s*(?P<operator>==|!=)\s*(?P<value>\"[^\"]*\"|'[^']*'|[\w.-]+)\)\]"
)


class JsonPathError(ValueError):
    """A path outside what is understood here."""


@functools.cache
def compiled(path: str) -> Callable[[Any], list[Any]]:
    """A path as a function from an object to the values found. Raises JsonPathError."""
    text = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    steps: list[Step] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise JsonPathError(f"unrecognized path: {path}")
        position = match.end()
        steps.append(_step(match))

    def find(obj: Any) -> list[Any]:
        found = [obj]
        for step in steps:
            found = step(found)
        return found

    return find


def _step(match: re.Match[str]) -> Step:
    name = match["name"].replace("\\.", ".") if match["name"] else match["key"]
    if name is not None:
        return lambda found: [one[name] for one in found if isinstance(one, dict) and one.get(name) is not None]
    if match["index"] is not None:
        index = int(match["index"])
        return lambda found: [one[index] for one in found if isinstance(one, list) and -len(one) <= index < len(one)]
    if match["all"]:
        return lambda found: [part for one in found for part in (one.values() if isinstance(one, dict) else one)]
    inner = compiled(match["path"])
    wanted = match["value"].strip("'\"")
    equal = match["operator"] == "=="

    def keep(found: list[Any]) -> list[Any]:
        items = [item for one in found if isinstance(one, list) for item in one]
        return [item for item in items if ([text(value) for value in inner(item)][:1] == [wanted]) is equal]

    return keep


def text(value: Any) -> str:
    """A value as Go prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)
