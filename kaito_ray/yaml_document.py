# SPDX-License-Identifier: Apache-2.0
"""YAML text in, JSON-like documents out, with the line of every field.

Called by manifest.py. Works on the parser's events rather than on composed nodes: a text nested a hundred thousand
levels deep, aliases that multiply, or a key given twice must become a sentence with a line, and each document of a
long file is read on its own, so that one broken document does not hide the problems of the others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kaito_ray.document import MAX_DEPTH, Path

# Far above any manifest, far below what aliases of aliases grow to.
_MAX_VALUES = 50_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"


class BrokenYaml(Exception):
    """One document cannot be read; `line` counts from 1 within the file."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """One document: its value in dicts, lists and scalars, and the line of each path in it."""

    value: Any
    lines: Mapping[Path, int]
    above: Path = ()
    """Where this document stands in the one that `lines` is about."""

    def line_of(self, path: Path) -> int:
        """The line of the field at `path`, or of the nearest thing around it that was written."""
        path = (*self.above, *path)
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def part(self, path: Path) -> "YamlDocument":
        """The document inside this one at `path`."""
        value = self.value
        for key in path:
            value = value[key]
        return YamlDocument(value, self.lines, (*self.above, *path))


def read_documents(text: str) -> Iterator[YamlDocument | BrokenYaml]:
    """Every document of `text` in order; empty ones are passed over, broken ones returned as errors."""
    starts = [0, *(match.start() for match in _SEPARATOR.finditer(text))]
    line = 1
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        chunk = text[start:end]
        if not _is_blank(chunk.removeprefix("---")):
            try:
                yield _Reader(chunk, line).document()
            except BrokenYaml as broken:
                yield broken
        line += chunk.count("\n")


def _is_blank(text: str) -> bool:
    """Whether there is nothing but comments and directives."""
    return all(not line.strip() or line.lstrip().startswith(("#", "%")) for line in text.splitlines())


class _Reader:
    """Builds one document from the events of its text."""

    def __init__(self, text: str, first_line: int) -> None:
        self._first_line = first_line
        self._lines: dict[Path, int] = {}
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0
        self._last_line = first_line
        self._text = text
        strange = _UNREADABLE.search(text)
        if strange:
            line = first_line + text.count("\n", 0, strange.start())
            raise BrokenYaml(line, f"holds a character that YAML does not allow: U+{ord(strange[0]):04X}")
        self._loader = _Loader(text)

    def document(self) -> YamlDocument:
        try:
            self._next()  # the stream
            self._next()  # the document
            value = self._value(self._next(), ())
            self._next()
            trailing = self._next()
            if not isinstance(trailing, yaml.StreamEndEvent):
                raise BrokenYaml(self._line(trailing), "begins a second document without a line of ---")
            return YamlDocument(value, self._lines)
        except yaml.YAMLError as error:
            raise self._broken(error) from None
        finally:
            self._loader.dispose()

    def _next(self) -> Any:
        event = self._loader.get_event()
        self._last_line = self._line(event)
        return event

    def _line(self, event: Any) -> int:
        return self._first_line + int(event.start_mark.line)

    def _value(self, event: Any, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise BrokenYaml(self._line(event), f"is nested deeper than {MAX_DEPTH} levels")
        self._lines.setdefault(path, self._line(event))
        before = self._values
        self._count(1, event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise BrokenYaml(self._line(event), f"*{event.anchor} stands inside or before its own &{event.anchor}")
            value, size = self._anchors[event.anchor]
            self._count(size, event)
            return value
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := self._next(), yaml.SequenceEndEvent):
                value.append(self._value(item, (*path, len(value))))
        else:
            value = self._mapping(path)
        if event.anchor:
            self._anchors[event.anchor] = (value, self._values - before)
        return value

    def _mapping(self, path: Path) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            line = self._line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise BrokenYaml(line, "a field's name must be plain text")
            if event.value == "<<" and event.implicit[0]:
                merged = self._merged(self._value(self._next(), (*path, "<<")), line) | merged
                continue
            here = (*path, event.value)
            if event.value in own:
                first = self._lines[here]
                raise BrokenYaml(line, f'"{event.value[:60]}" is given twice, first in line {first}')
            self._lines[here] = line
            own[event.value] = self._value(self._next(), here)
        return merged | own

    @staticmethod
    def _merged(value: Any, line: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                raise BrokenYaml(line, "<< can only merge mappings")
            merged = one | merged
        return merged

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > _MAX_VALUES:
            raise BrokenYaml(self._line(event), f"the document grows beyond {_MAX_VALUES} values")

    def _scalar(self, event: Any) -> Any:
        tag = event.tag or self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        kind = tag.removeprefix(_TAG)
        text: str = event.value
        try:
            match kind:
                case "str" | "timestamp" | "value":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() in {"yes", "true", "on"}
                case "int":
                    return text if ":" in text else _integer(text)
                case "float":
                    return text if ":" in text else float(text.replace("_", "").lower().replace(".inf", "inf"))
        except ValueError:
            if text.lower() in {".nan", "+.nan", "-.nan"}:
                return float("nan")
        raise BrokenYaml(self._line(event), f"{text[:60]!r} cannot be read as {tag.replace(_TAG, '!!')}")

    def _broken(self, error: yaml.YAMLError) -> BrokenYaml:
        mark = getattr(error, "problem_mark", None)
        line = self._first_line + mark.line if mark else self._last_line
        line = min(line, self._first_line + self._text.rstrip().count("\n"))  # the end may be a line too far
        problem = str(getattr(error, "problem", None) or error)
        if "'\\t'" in problem or "tab character" in problem or self._has_tab(line):
            return BrokenYaml(line, "is indented with a tab; YAML allows only spaces")
        return BrokenYaml(line, f"is not YAML: {problem}")

    def _has_tab(self, line: int) -> bool:
        lines = self._text.splitlines()
        index = line - self._first_line
        return index < len(lines) and "\t" in lines[index][: len(lines[index]) - len(lines[index].lstrip())]


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if digits.startswith(("0b", "0x", "0o")):
        return sign * int(digits, 0)
    return sign * int(digits, 8 if digits.startswith("0") and len(digits) > 1 else 10)
