# SPDX-License-Identifier: Apache-2.0
"""The Workspace as it was and as it is to be in, what cannot be changed out: KAITO's rules of immutability.

Called by the admission webhook and by the local run when a file is saved again. The CRD carries the same rules as
CEL for clusters without the webhook (crd.py); here each says what to do instead.
"""

from collections.abc import Iterator

from kaito_ray.document import Path, shown
from kaito_ray.errors import Problem
from kaito_ray.workspace import PresetReference, Workspace


def validate_update(old: Workspace, new: Workspace, *, byo: bool = False) -> list[Problem]:
    """Everything that `new` changes and must not; empty when the update may happen.

    With `byo`, nodes are brought along, and `instanceType` may be cleared.
    """
    if (old.inference is None) != (new.inference is None):
        # Whatever else differs no longer matters: this is another Workspace.
        return [_turned(old, new)]
    remedy = f"delete the Workspace first (kubectl delete workspace {old.metadata.name} -n {old.metadata.namespace})"
    remedy += ", or give the new one another metadata.name"
    return [
        Problem(path, f"cannot be changed{change}; {remedy}")
        for path, change in (*_resource(old, new, byo=byo), *_inference(old, new), *_tuning(old, new))
    ]


def _turned(old: Workspace, new: Workspace) -> Problem:
    was, field = ("inference", "tuning") if old.inference else ("tuning", "inference")
    name, namespace = old.metadata.name, old.metadata.namespace
    return Problem(
        (field,),
        f"cannot be given to {name}, which exists already and does {was}; to {'tune' if new.tuning else 'serve'} under"
        f" another name, change metadata.name, or delete the old one first (kubectl delete workspace {name} -n"
        f" {namespace})",
    )


def _resource(old: Workspace, new: Workspace, *, byo: bool) -> Iterator[tuple[Path, str]]:
    before, after = old.resource, new.resource
    cleared = byo and not after.instance_type
    if before.instance_type and before.instance_type != after.instance_type and not cleared:
        yield ("resource", "instanceType"), _from_to(before.instance_type, after.instance_type)
    if before.count != after.count:
        yield ("resource", "count"), _from_to(before.count, after.count)
    if before.label_selector.match_labels != after.label_selector.match_labels:
        yield (
            ("resource", "labelSelector"),
            _from_to(_labels(before.label_selector.match_labels), _labels(after.label_selector.match_labels)),
        )
    if before.partition != after.partition:
        yield ("resource", "partition"), ""


def _inference(old: Workspace, new: Workspace) -> Iterator[tuple[Path, str]]:
    if old.inference is None or new.inference is None:
        return
    before, after = old.inference.preset, new.inference.preset
    if before is not None and after is not None:
        yield from _preset(before, after, ("inference", "preset"))
    elif before is not None or after is not None:
        was = "a preset to a template" if before else "a template to a preset"
        yield ("inference",), f" from {was}"


def _tuning(old: Workspace, new: Workspace) -> Iterator[tuple[Path, str]]:
    if old.tuning is None or new.tuning is None:
        return
    yield from _preset(old.tuning.preset, new.tuning.preset, ("tuning", "preset"))
    if old.tuning.method != new.tuning.method:
        yield ("tuning", "method"), _from_to(old.tuning.method, new.tuning.method)
    if old.tuning.input.name != new.tuning.input.name:
        yield ("tuning", "input", "name"), _from_to(old.tuning.input.name, new.tuning.input.name)


def _preset(before: PresetReference, after: PresetReference, path: Path) -> Iterator[tuple[Path, str]]:
    if before.name != after.name:
        yield (*path, "name"), _from_to(before.name, after.name)
    if before.access_mode != after.access_mode:
        yield (*path, "accessMode"), _from_to(before.access_mode, after.access_mode)
    if before.preset_options != after.preset_options:
        yield (*path, "presetOptions"), ""


def _from_to(before: object, after: object) -> str:
    return f" from {shown(before)} to {shown(after)}"


def _labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
