# SPDX-License-Identifier: Apache-2.0
"""YAML files in, everything there is to say about their Workspaces out. Called by `kaito-ray validate`.

Beyond what a document says by itself (workspace.py) this looks at what stands beside it in the file
(references.py), at what its author forgot (workspace_warnings.py), and at whether a plan can be made of it
(manifest_plan.py).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from kaito_ray.errors import Problem
from kaito_ray.manifest import Entry, Finding, Manifest, examine_manifest
from kaito_ray.manifest_plan import plan_manifest
from kaito_ray.references import judge_references
from kaito_ray.settings import Settings
from kaito_ray.workspace_warnings import warnings


def validate_files(sources: Iterable[Path], settings: Settings) -> Iterator[Finding]:
    """Every finding about each file (`-` is stdin), errors and remarks, in the order of its lines."""
    for source in sources:
        manifest = examine_manifest(source, allow_private_urls=settings.allow_private_urls)
        findings = [*manifest.findings]
        for planned in plan_manifest(manifest, settings):
            findings += planned.problems
            findings += _remarks(planned.entry, manifest)
            for warning in planned.plan.warnings if planned.plan else ():
                findings.append(planned.entry.finding(Problem(("resource", "instanceType"), warning), "warning"))
        yield from sorted(dict.fromkeys(findings), key=lambda finding: finding.line)


def _remarks(entry: Entry, manifest: Manifest) -> Iterator[Finding]:
    if entry.workspace is None:
        return
    for warning in warnings(entry.workspace):
        yield entry.finding(warning, "warning")
    yield from judge_references(entry, manifest)
