# SPDX-License-Identifier: Apache-2.0
"""A Workspace in, out every other object it names, and whether that object is in the same file.

Called by validate.py. A reference to an object that is not in the file is fine, since it may be in the cluster; one
to an object that is there but lacks what is needed is not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kaito_ray import names
from kaito_ray.document import Path
from kaito_ray.errors import Problem
from kaito_ray.manifest import Entry, Finding, Manifest
from kaito_ray.source_rules import placeholders
from kaito_ray.workspace import PresetReference, Workspace

DOCKER_CONFIG_KEY = ".dockerconfigjson"


@dataclass(frozen=True, slots=True)
class Reference:
    """One object that a Workspace names; `key` is what must be in it, empty when any content will do."""

    path: Path
    kind: Literal["ConfigMap", "Secret", "Workspace"]
    name: str
    key: str = ""


def references(workspace: Workspace) -> Iterator[Reference]:
    """Every ConfigMap, Secret and Workspace that `workspace` names, in the order of its fields."""
    keys = workspace.metadata.annotations.get(names.ANNOTATION_API_KEYS, "")
    found = [Reference(("metadata", "annotations", names.ANNOTATION_API_KEYS), "Secret", keys)]
    if workspace.inference is not None:
        if workspace.inference.preset is not None:
            found += _preset(workspace.inference.preset, ("inference", "preset"))
        found.append(
            Reference(("inference", "config"), "ConfigMap", workspace.inference.config, "inference_config.yaml")
        )
        for index, adapter in enumerate(workspace.inference.adapters):
            path: Path = ("inference", "adapters", index, "source")
            found += _pull_secrets(adapter.source.image_pull_secrets, path)
            found.append(Reference((*path, "workspace"), "Workspace", adapter.source.workspace))
    if workspace.tuning is not None:
        found += _preset(workspace.tuning.preset, ("tuning", "preset"))
        found.append(Reference(("tuning", "config"), "ConfigMap", workspace.tuning.config, "training_config.yaml"))
        found += _pull_secrets(workspace.tuning.input.image_pull_secrets, ("tuning", "input"))
        path = ("tuning", "output", "imagePushSecret")
        found.append(Reference(path, "Secret", workspace.tuning.output.image_push_secret, DOCKER_CONFIG_KEY))
    return (reference for reference in found if reference.name and not placeholders(reference.name))


def judge_references(entry: Entry, manifest: Manifest) -> Iterator[Finding]:
    """What is to say about the objects that a valid Workspace of `manifest` names."""
    if entry.workspace is None:
        return
    for reference in references(entry.workspace):
        if reference.kind == "Workspace":
            yield from _workspace(entry, entry.workspace, reference, manifest)
        else:
            yield from _data(entry, entry.workspace, reference, manifest)


def _preset(preset: PresetReference, path: Path) -> list[Reference]:
    options, path = preset.preset_options, (*path, "presetOptions")
    token = Reference((*path, "modelAccessSecret"), "Secret", options.model_access_secret, "HF_TOKEN")
    return [token, *_pull_secrets(options.image_pull_secrets, path)]


def _pull_secrets(secrets: tuple[str, ...], path: Path) -> list[Reference]:
    return [
        Reference((*path, "imagePullSecrets", index), "Secret", secret, DOCKER_CONFIG_KEY)
        for index, secret in enumerate(secrets)
    ]


def _data(entry: Entry, workspace: Workspace, reference: Reference, manifest: Manifest) -> Iterator[Finding]:
    objects: Mapping[tuple[str, str], Mapping[str, str]]
    objects = manifest.secrets if reference.kind == "Secret" else manifest.config_maps
    namespace = workspace.metadata.namespace
    data = objects.get((namespace, reference.name))
    if data is None:
        elsewhere = [place for place, name in objects if name == reference.name]
        where = f"stands here in namespace {elsewhere[0]}" if elsewhere else "is not in this file"
        message = f"{reference.kind} {reference.name} {where}; it must exist in namespace {namespace}"
        yield entry.finding(Problem(reference.path, message), "warning" if elsewhere else "note")
    elif reference.key and reference.key not in data:
        message = f"{reference.kind} {reference.name} has no key {reference.key}, only {', '.join(data) or 'no data'}"
        yield entry.finding(Problem(reference.path, message))
    elif not any(data.values()):
        yield entry.finding(Problem(reference.path, f"{reference.kind} {reference.name} has no values"))


def _workspace(entry: Entry, workspace: Workspace, reference: Reference, manifest: Manifest) -> Iterator[Finding]:
    namespace = workspace.metadata.namespace
    same = [
        one for one in manifest.workspaces if (one.metadata.name, one.metadata.namespace) == (reference.name, namespace)
    ]
    if not same:
        message = f"Workspace {reference.name} is not in this file; it must exist in namespace {namespace}"
        yield entry.finding(Problem(reference.path, message), "note")
    elif same[0].tuning is None:
        message = f"must be a Workspace with tuning, and {reference.name} serves"
        yield entry.finding(Problem(reference.path, message))
