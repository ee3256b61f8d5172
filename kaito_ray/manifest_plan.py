# SPDX-License-Identifier: Apache-2.0
"""A manifest in, a plan for each of its Workspaces out, or what keeps it from having one, with file and line.

Called by the commands that plan without a cluster. ConfigMaps are taken from the manifest; one that a Workspace names
and that does not stand there counts as empty, because it may stand in the cluster.
"""

from dataclasses import dataclass

from kaito_ray.errors import (
    HubRefused,
    InvalidManifest,
    KaitoRayError,
    NotReadyYet,
    Problem,
    UnknownPreset,
    UnknownSize,
)
from kaito_ray.hub import TOKEN_KEY, find_preset
from kaito_ray.manifest import Entry, Finding, Manifest
from kaito_ray.plan import Plan, plan
from kaito_ray.preset import Catalogue, load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes, load_sizes
from kaito_ray.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Planned:
    """One Workspace of a file: exactly one of `plan` and `problems`."""

    entry: Entry
    plan: Plan | None
    problems: tuple[Finding, ...]


def plan_manifest(manifest: Manifest, settings: Settings, *, context: int | None = None) -> list[Planned]:
    """Plan every Workspace, in the order of the file; one that cannot be planned does not keep others from it.

    `context` asks for so many tokens in every Workspace that serves.
    """
    facts = _Facts(load_catalogue(settings.presets_dir), load_sizes(settings.presets_dir), settings, context)
    return [_planned(entry, manifest, facts) for entry in manifest.entries]


@dataclass(frozen=True, slots=True)
class _Facts:
    catalogue: Catalogue
    sizes: Sizes
    settings: Settings
    context: int | None


def _planned(entry: Entry, manifest: Manifest, facts: _Facts) -> Planned:
    workspace = entry.workspace
    if workspace is None:
        return Planned(entry, None, entry.problems)
    try:
        return Planned(entry, _plan(workspace, manifest, facts), ())
    except InvalidManifest as error:
        problems = error.problems
    except KaitoRayError as error:
        problems = [Problem(_path(error, workspace), str(error))]
    return Planned(entry, None, tuple(entry.finding(problem) for problem in problems))


def _plan(workspace: Workspace, manifest: Manifest, facts: _Facts) -> Plan:
    work = workspace.inference or workspace.tuning
    if work is None or work.preset is None:
        message = "describes pods of one's own, and kaito-ray makes its own from a preset; name one in inference.preset"
        raise InvalidManifest([Problem(("inference", "template"), message)])
    unknown: list[Problem] = []
    preset, sku = None, None
    secret = work.preset.preset_options.model_access_secret
    token = manifest.secret(secret, workspace.metadata.namespace).get(TOKEN_KEY) if secret else None
    try:
        preset = find_preset(work.preset.name, facts.catalogue, token=token)
    except (UnknownPreset, HubRefused, NotReadyYet) as error:
        unknown.append(Problem(_path(error, workspace), str(error)))
    try:
        sku = facts.sizes.get(workspace.resource.instance_type) if workspace.resource.instance_type else None
    except UnknownSize as error:
        unknown.append(Problem(_path(error, workspace), str(error)))
    if preset is None or unknown:
        raise InvalidManifest(unknown)
    config = manifest.config_map(work.config, workspace.metadata.namespace) if work.config else None
    return plan(workspace, preset, sku, facts.settings, config=config, sizes=facts.sizes, context=facts.context)


def _path(error: KaitoRayError, workspace: Workspace) -> tuple[str, ...]:
    """The field that somebody must edit: the model when it is unknown or not made for it, else the size."""
    if isinstance(error, UnknownPreset | HubRefused | NotReadyYet) or error.reason == "NotTunable":
        return ("tuning" if workspace.tuning else "inference", "preset", "name")
    return ("resource", "instanceType")
