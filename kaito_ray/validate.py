# SPDX-License-Identifier: Apache-2.0
"""YAML files in, everything there is to say about their Workspaces out. Called by `kaito-ray validate`.

Beyond what a document says by itself (workspace.py) this looks at what stands beside it in the file
(references.py), at what its author forgot (workspace_warnings.py), and at whether a plan can be made of it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from kaito_ray.document import Path as FieldPath
from kaito_ray.errors import DoesNotFit, InvalidManifest, Problem, UnknownPreset, UnknownSize
from kaito_ray.manifest import Entry, Finding, Manifest, examine_manifest
from kaito_ray.plan import plan
from kaito_ray.preset import Catalogue, load_catalogue
from kaito_ray.references import judge_references
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes, load_sizes
from kaito_ray.workspace_warnings import warnings


def validate_files(sources: Iterable[Path], settings: Settings) -> Iterator[Finding]:
    """Every finding about each file (`-` is stdin), errors and remarks, in the order of its lines."""
    catalogue, sizes = load_catalogue(settings.presets_dir), load_sizes(settings.presets_dir)
    for source in sources:
        manifest = examine_manifest(source, allow_private_urls=settings.allow_private_urls)
        findings = [*manifest.findings]
        for entry in manifest.entries:
            findings += entry.problems
            findings += _remarks(entry, manifest)
            findings += _unplannable(entry, manifest, catalogue, sizes, settings)
        yield from sorted(dict.fromkeys(findings), key=lambda finding: finding.line)


def _remarks(entry: Entry, manifest: Manifest) -> Iterator[Finding]:
    if entry.workspace is None:
        return
    for warning in warnings(entry.workspace):
        yield entry.finding(warning, "warning")
    yield from judge_references(entry, manifest)


def _unplannable(
    entry: Entry, manifest: Manifest, catalogue: Catalogue, sizes: Sizes, settings: Settings
) -> Iterator[Finding]:
    """Why no plan can be made of a valid Workspace, and what the planner warns about."""
    workspace = entry.workspace
    if workspace is None:
        return
    kind, work = ("tuning", workspace.tuning) if workspace.tuning else ("inference", workspace.inference)
    if work is None or work.preset is None:
        return
    size_path: FieldPath = ("resource", "instanceType")
    preset_path: FieldPath = (kind, "preset", "name")
    preset, sku = None, None
    try:
        preset = catalogue.get(work.preset.name)
    except UnknownPreset as unknown:
        yield entry.finding(Problem(preset_path, str(unknown)))
    try:
        sku = sizes.get(workspace.resource.instance_type) if workspace.resource.instance_type else None
    except UnknownSize as unknown:
        yield entry.finding(Problem(size_path, str(unknown)))
    if preset is None or sku is None:
        return
    try:
        config = manifest.config_map(work.config, workspace.metadata.namespace) if work.config else None
        made = plan(workspace, preset, sku, settings, config=config)
    except DoesNotFit as misfit:
        yield entry.finding(Problem(size_path, str(misfit)))
    except InvalidManifest as invalid:
        yield from map(entry.finding, invalid.problems)
    else:
        for warning in made.warnings:
            yield entry.finding(Problem(size_path, warning), "warning")
