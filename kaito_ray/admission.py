# SPDX-License-Identifier: Apache-2.0
"""A Workspace that somebody wants to write in, everything against it and everything to warn of out. Pure.

Called by the admission webhook (operator/main.py). An edit is judged by what it changes: whatever an older release
accepted stays editable and deletable, so only problems that the edit brings count against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray.document import mapping, text
from kaito_ray.errors import InvalidManifest, KaitoRayError, NotReadyYet, Problem, UnknownPreset, UnknownSize
from kaito_ray.hub import is_hub_id
from kaito_ray.plan import Plan
from kaito_ray.settings import Provisioner
from kaito_ray.wish import Planner
from kaito_ray.workspace import Workspace, parse_workspace
from kaito_ray.workspace_update import validate_update
from kaito_ray.workspace_warnings import warnings

Document = Mapping[str, Any]
# What of a Workspace a person writes; the rest is the API server's and ours.
_SAID = ("resource", "inference", "tuning")


@dataclass(frozen=True, slots=True)
class Review:
    """What to answer: the write is refused when there are problems; warnings are shown either way."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """All problems, one per line when there are several."""
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "".join(f"\n- {problem}" for problem in self.problems)


def review(old: Document | None, new: Document, planner: Planner) -> Review:
    """Judge a Workspace that is made (`old` is None) or edited."""
    if old is not None and (new["metadata"].get("deletionTimestamp") or _said(old) == _said(new)):
        return Review()
    judged = _judge(new, planner)
    if old is None:
        return Review(judged.problems, judged.warnings)
    before = _judge(old, planner)
    problems = [problem for problem in judged.problems if problem not in before.problems]
    if before.workspace is not None and judged.workspace is not None:
        byo = planner.settings.provisioner is Provisioner.BYO
        problems = [*validate_update(before.workspace, judged.workspace, byo=byo), *problems]
    return Review(tuple(problems), judged.warnings)


@dataclass(frozen=True, slots=True)
class _Judged:
    workspace: Workspace | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...] = ()


def _judge(document: Document, planner: Planner) -> _Judged:
    try:
        workspace = parse_workspace(document, allow_private_urls=planner.settings.allow_private_urls)
    except InvalidManifest as invalid:
        return _Judged(None, (*invalid.problems, *_unknown(document, planner)))
    said = (*(str(warning) for warning in warnings(workspace)), *_to_be_asked(workspace, planner))
    if unknown := _unknown(document, planner):
        return _Judged(workspace, unknown, said)
    try:
        plan = _plan(workspace, planner)
    except InvalidManifest as invalid:
        return _Judged(workspace, tuple(invalid.problems), said)
    except (NotReadyYet, UnknownPreset):
        return _Judged(workspace, (), said)
    except KaitoRayError as error:
        return _Judged(workspace, (Problem(_path(error, workspace), str(error)),), said)
    return _Judged(workspace, (), said if plan is None else (*said, *plan.warnings))


def _unknown(document: Document, planner: Planner) -> tuple[Problem, ...]:
    """A model or a size that nobody has heard of; looked up as written, whatever else is wrong."""
    found = []
    for work in ("inference", "tuning"):
        name = text(mapping(mapping(document, work), "preset"), "name")
        try:
            # What looks like an id of the hub is looked up there later; a webhook must not wait for the hub.
            if name and not is_hub_id(name):
                planner.catalogue.get(name)
        except UnknownPreset as error:
            found.append(Problem((work, "preset", "name"), str(error)))
    size = text(mapping(document, "resource"), "instanceType")
    try:
        if size:
            planner.sizes.get(size)
    except UnknownSize as error:
        found.append(Problem(("resource", "instanceType"), str(error)))
    return tuple(found)


def _to_be_asked(workspace: Workspace, planner: Planner) -> tuple[str, ...]:
    work = workspace.inference or workspace.tuning
    name = work.preset.name if work is not None and work.preset is not None else ""
    try:
        if name and is_hub_id(name):
            planner.catalogue.get(name)
    except UnknownPreset:
        return (f"{name} is not in the catalogue; the hub is asked whether it can be served",)
    return ()


def _plan(workspace: Workspace, planner: Planner) -> Plan | None:
    """The plan, where nothing but the Workspace is needed for one: a ConfigMap may still be on its way."""
    work = workspace.inference or workspace.tuning
    return None if work is None or work.config else planner.plan(workspace, None)


def _path(error: KaitoRayError, workspace: Workspace) -> tuple[str, ...]:
    """The field that somebody must edit."""
    if error.reason == "TemplateNotSupported":
        return ("inference", "template")
    if error.reason == "NotTunable":
        return ("tuning" if workspace.tuning else "inference", "preset", "name")
    return ("resource", "instanceType")


def _said(document: Document) -> list[Any]:
    annotations = document["metadata"].get("annotations") or {}
    return [*(document.get(part) for part in _SAID), annotations]
