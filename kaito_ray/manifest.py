# SPDX-License-Identifier: Apache-2.0
"""A YAML file in, its Workspaces out, with the ConfigMaps and Secrets that stand beside them.

Called by every command that takes a manifest. `examine_manifest` keeps each problem with its file and line;
`read_manifest` is the same for callers that can only work with a manifest that has none.
"""

import base64
import binascii
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kaito_ray import names
from kaito_ray.document import nearest, shown
from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.workspace import Workspace, parse_workspace
from kaito_ray.yaml_document import BrokenYaml, YamlDocument, read_documents

Severity = Literal["error", "warning", "note"]
_Key = tuple[str, str]  # namespace, name

# Kinds of KAITO that somebody may try; each says what to write instead.
_FOREIGN_KINDS = {
    "InferenceSet": "write a Workspace with inference.autoscaling",
    "MultiRoleInference": "write a Workspace",
    "RAGEngine": "only Workspaces are known here",
    "ModelMirror": "only Workspaces are known here",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a place in a file. Only errors keep a manifest from being used."""

    file: str
    line: int
    field: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        field = f" {self.field}:" if self.field else ""
        severity = "" if self.severity == "error" else f" {self.severity}:"
        return f"{self.file}:{self.line}{field}{severity} {self.message}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One document of kind Workspace: what it is, or None and why not."""

    file: str
    document: YamlDocument
    name: str
    workspace: Workspace | None
    problems: tuple[Finding, ...]

    def finding(self, problem: Problem, severity: Severity = "error") -> Finding:
        """A problem of this Workspace with its place in the file."""
        return Finding(self.file, self.document.line_of(problem.path), problem.field, problem.message, severity)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands in one file. Values of Secrets never show in a repr."""

    file: str
    entries: tuple[Entry, ...]
    """Every Workspace, valid or not, in the order of the file."""
    findings: tuple[Finding, ...]
    """What is to say about anything but the Workspaces."""
    config_maps: Mapping[_Key, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[_Key, Mapping[str, str]] = field(default_factory=dict, repr=False)

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """The valid Workspaces."""
        return tuple(entry.workspace for entry in self.entries if entry.workspace is not None)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Everything that keeps the manifest from being used, in the order of the file."""
        problems = [finding for finding in self.findings if finding.severity == "error"]
        problems += [problem for entry in self.entries for problem in entry.problems]
        return tuple(sorted(problems, key=lambda problem: problem.line))

    def config_map(self, name: str, namespace: str | None = None) -> Mapping[str, str] | None:
        """The data of a ConfigMap of this file, of any namespace when none is given; None when it is not here."""
        return _find(self.config_maps, name, namespace)

    def secret(self, name: str, namespace: str | None = None) -> Mapping[str, str]:
        """The decoded data of a Secret of this file; empty when it is not here."""
        return _find(self.secrets, name, namespace) or {}


def read_manifest(source: Path | str, *, allow_private_urls: Collection[str] = ()) -> Manifest:
    """Read a file (`Path`; `-` is stdin) or a text; raise InvalidManifest with every problem and its line."""
    manifest = examine_manifest(source, allow_private_urls=allow_private_urls)
    if manifest.problems:
        raise InvalidManifest([Problem((), str(problem)) for problem in manifest.problems])
    return manifest


def examine_manifest(source: Path | str, *, allow_private_urls: Collection[str] = ()) -> Manifest:
    """Read a file or a text; problems are kept in the result, those of one document apart from the others'."""
    file = str(source) if isinstance(source, Path) else "text"
    try:
        text = _text(source) if isinstance(source, Path) else source
    except _Unreadable as unreadable:
        return Manifest(file, (), (Finding(file, unreadable.line, "", str(unreadable)),))
    reading = _Reading(file, allow_private_urls)
    for document in read_documents(text):
        reading.take(document)
    return reading.manifest()


def _find(objects: Mapping[_Key, Mapping[str, str]], name: str, namespace: str | None) -> Mapping[str, str] | None:
    if namespace is not None:
        return objects.get((namespace, name))
    return next((data for (_, one), data in objects.items() if one == name), None)


class _Unreadable(Exception):
    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


def _text(path: Path) -> str:
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except FileNotFoundError:
        raise _Unreadable("there is no such file") from None
    except IsADirectoryError:
        raise _Unreadable("is a folder; name the files in it") from None
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Unreadable(f"is not UTF-8: byte 0x{raw[error.start]:02x}", line) from None


class _Reading:
    """Sorts the documents of one file."""

    def __init__(self, file: str, allow_private_urls: Collection[str]) -> None:
        self._file = file
        self._allow_private_urls = allow_private_urls
        self._entries: list[Entry] = []
        self._findings: list[Finding] = []
        self._config_maps: dict[_Key, Mapping[str, str]] = {}
        self._secrets: dict[_Key, Mapping[str, str]] = {}
        self._places: dict[tuple[str, str, str], int] = {}
        self._documents = 0

    def manifest(self) -> Manifest:
        if not self._documents:
            self._say(1, "is empty")
        elif not self._entries and not self._findings:
            self._say(1, "holds no Workspace", "note")
        return Manifest(self._file, tuple(self._entries), tuple(self._findings), self._config_maps, self._secrets)

    def take(self, document: YamlDocument | BrokenYaml) -> None:
        self._documents += 1
        if isinstance(document, BrokenYaml):
            self._say(document.line, str(document))
            return
        line, value = document.line_of(()), document.value
        if not isinstance(value, dict):
            self._say(line, f"must be a mapping with apiVersion, kind and metadata, got {shown(value)}")
            return
        kind, version = value.get("kind"), value.get("apiVersion")
        if not isinstance(kind, str) or not kind:
            self._say(document.line_of(("kind",)), "is missing or no string; write kind: Workspace", field="kind")
        elif kind == names.KIND:
            self._take_workspace(document)
        elif kind.endswith("List") and "items" in value:
            self._take_list(document)
        elif version == "v1" and kind == "ConfigMap":
            self._take_data(document, self._config_maps)
        elif version == "v1" and kind == "Secret":
            self._take_data(document, self._secrets)
        else:
            self._take_other(document, kind, str(version))

    def _take_workspace(self, document: YamlDocument) -> None:
        name, namespace = _name(document.value)
        entry = Entry(self._file, document, name, None, ())
        problems: list[Problem] = []
        workspace = None
        try:
            workspace = parse_workspace(document.value, allow_private_urls=self._allow_private_urls)
        except InvalidManifest as invalid:
            problems = invalid.problems
        first = self._first(document, name, namespace)
        if first:
            problems = [
                *problems,
                Problem(("metadata", "name"), f"is already the name of the Workspace in line {first}"),
            ]
        findings = tuple(sorted(map(entry.finding, problems), key=lambda finding: finding.line))
        self._entries.append(Entry(self._file, document, name, None if findings else workspace, findings))

    def _take_list(self, document: YamlDocument) -> None:
        items = document.value["items"]
        if not isinstance(items, list):
            self._say(document.line_of(("items",)), f"must be a list, got {shown(items)}", field="items")
            return
        for index in range(len(items)):
            self.take(document.part(("items", index)))

    def _take_data(self, document: YamlDocument, objects: dict[_Key, Mapping[str, str]]) -> None:
        value = document.value
        name, namespace = _name(value)
        if not name:
            self._say(document.line_of(("metadata",)), "is missing or no string", field="metadata.name")
            return
        first = self._first(document, name, namespace)
        if first:
            line = document.line_of(("metadata", "name"))
            self._say(line, f"is already the name of the {value['kind']} in line {first}", field="metadata.name")
        data = {}
        for part in ("data", "stringData") if value["kind"] == "Secret" else ("data",):
            for key, text in self._strings(document, part):
                data[key] = self._decoded(document, key, text) if value["kind"] == "Secret" and part == "data" else text
        objects[namespace, name] = data

    def _strings(self, document: YamlDocument, part: str) -> list[tuple[str, str]]:
        entries = document.value.get(part) or {}
        if not isinstance(entries, dict):
            self._say(document.line_of((part,)), f"must be a mapping, got {shown(entries)}", field=part)
            return []
        for key, text in entries.items():
            if not isinstance(text, str):
                # The value itself may be a secret.
                self._say(document.line_of((part, key)), "must be a string; write it in quotes", field=f"{part}.{key}")
        return [(key, text) for key, text in entries.items() if isinstance(text, str)]

    def _decoded(self, document: YamlDocument, key: str, text: str) -> str:
        try:
            return base64.b64decode("".join(text.split()), validate=True).decode(errors="surrogateescape")
        except (binascii.Error, ValueError):
            line = document.line_of(("data", key))
            self._say(line, "is not base64; plain text belongs into stringData", field=f"data.{key}")
            return ""

    def _take_other(self, document: YamlDocument, kind: str, version: str) -> None:
        line = document.line_of(("kind",))
        if version.startswith(f"{names.GROUP}/") or nearest(kind, [names.KIND]):
            hint = _FOREIGN_KINDS.get(kind, f"did you mean {names.KIND}?")
            self._say(line, f"{shown(kind)} is not known; {hint}", field="kind")
        else:
            self._say(line, f"{kind} is passed over", "note")

    def _first(self, document: YamlDocument, name: str, namespace: str) -> int | None:
        """The line of an earlier object of this kind and name; remembers this one when it is the first."""
        key = (document.value["kind"], namespace, name)
        if not name or key in self._places:
            return self._places.get(key)
        self._places[key] = document.line_of(())
        return None

    def _say(self, line: int, message: str, severity: Severity = "error", field: str = "") -> None:
        self._findings.append(Finding(self._file, line, field, message, severity))


def _name(document: Mapping[str, Any]) -> tuple[str, str]:
    """Name and namespace of an object; the name is empty when there is none."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return "", "default"
    name, namespace = metadata.get("name"), metadata.get("namespace")
    return name if isinstance(name, str) else "", namespace if isinstance(namespace, str) else "default"
