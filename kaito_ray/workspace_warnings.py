# SPDX-License-Identifier: Apache-2.0
"""A valid Workspace in, out what its author probably wants to know: placeholders left, fields without effect.

Called by the admission webhook and by `kaito-ray validate`. A warning never keeps a Workspace from being applied.
"""

from collections.abc import Iterator

from kaito_ray import names
from kaito_ray.document import Path, nearest
from kaito_ray.errors import Problem
from kaito_ray.source_rules import placeholders
from kaito_ray.workspace import V1ALPHA1, Json, PresetReference, Workspace

_OUR_PREFIX = "kaito-ray.io/"
_KAITO_PREFIX = "kaito.sh/"
_ANNOTATIONS = frozenset(value for key, value in vars(names).items() if key.startswith("ANNOTATION_"))


def warnings(workspace: Workspace) -> list[Problem]:
    """Placeholders to replace, deprecated fields, reserved labels, annotations that do nothing."""
    return [
        *_unfilled(workspace),
        *_annotations(workspace),
        *_resource(workspace),
        *_inference(workspace),
        *_version(workspace),
    ]


def _unfilled(workspace: Workspace) -> Iterator[Problem]:
    document = workspace.model_dump(by_alias=True, include={"resource", "inference", "tuning"}, exclude_none=True)
    document.get("inference", {}).pop("template", None)  # a template is the user's own, capitals and all
    for path, text in _texts(document, ()):
        words = list(dict.fromkeys(placeholders(text)))
        if words:
            yield Problem(path, f"replace {' and '.join(words)} with your own")


def _texts(value: Json, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))


def _annotations(workspace: Workspace) -> Iterator[Problem]:
    for key in workspace.metadata.annotations:
        if key in _ANNOTATIONS or not key.startswith((_OUR_PREFIX, _KAITO_PREFIX)):
            continue
        by_name = {annotation.rsplit("/", 1)[1]: annotation for annotation in _ANNOTATIONS}
        alike = nearest(key.rsplit("/", 1)[1], by_name)
        hint = f"; did you mean {by_name[alike]}?" if alike else ""
        yield Problem(("metadata", "annotations", key), f"has no effect in kaito-ray{hint}")


def _resource(workspace: Workspace) -> Iterator[Problem]:
    resource = workspace.resource
    for key in resource.label_selector.ignored_keys:
        yield Problem(
            ("resource", "labelSelector", "matchLabels", key), "selects nothing: the operator sets this label itself"
        )
    if resource.count > 1 and workspace.inference is not None and workspace.inference.preset is not None:
        yield Problem(
            ("resource", "count"),
            "has no effect when serving: the nodes follow from the model; inference.autoscaling asks for more copies",
        )
    if resource.preferred_nodes:
        yield Problem(("resource", "preferredNodes"), "is deprecated and ignored; use labelSelector")


def _inference(workspace: Workspace) -> Iterator[Problem]:
    if workspace.tuning is not None:
        yield from _preset(workspace.tuning.preset, ("tuning", "preset"))
    if workspace.inference is None:
        return
    if workspace.inference.preset is not None:
        yield from _preset(workspace.inference.preset, ("inference", "preset"))
    elif workspace.inference.adapters:
        yield Problem(("inference", "adapters"), "are not loaded into the pods of a template")


def _preset(preset: PresetReference, path: Path) -> Iterator[Problem]:
    options = preset.preset_options
    if preset.access_mode == "private" and not options.image:
        yield Problem((*path, "accessMode"), "is private without presetOptions.image, so the model comes from the hub")
    if options.image_pull_secrets and not options.image:
        yield Problem(
            (*path, "presetOptions", "imagePullSecrets"),
            "have no effect without presetOptions.image, unless presets come from a registry",
        )


def _version(workspace: Workspace) -> Iterator[Problem]:
    """What KAITO's v1alpha1 would drop without a word; here both versions have the same fields."""
    if workspace.api_version != V1ALPHA1:
        return
    preset = workspace.inference.preset if workspace.inference else workspace.tuning and workspace.tuning.preset
    if workspace.resource.partition is not None:
        yield Problem(("resource", "partition"), "is no field of KAITO's v1alpha1; write apiVersion: kaito.sh/v1beta1")
    if preset and preset.preset_options.model_access_secret:
        path = ("inference" if workspace.inference else "tuning", "preset", "presetOptions", "modelAccessSecret")
        yield Problem(path, "is no field of KAITO's v1alpha1; write apiVersion: kaito.sh/v1beta1")
