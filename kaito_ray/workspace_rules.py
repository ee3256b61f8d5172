# SPDX-License-Identifier: Apache-2.0
"""What a Workspace document must mean: KAITO's admission rules that need no cluster, catalogue or network, and our own.

`problems_of_meaning` reads the plain document rather than the parsed model, so that a document with a misspelled
field still has everything else checked in the same pass. A value of the wrong type counts as not there: its shape is
reported elsewhere (workspace_problems.py).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kaito_ray import names
from kaito_ray.document import Document, Path, items, mapping, number, shown, text
from kaito_ray.errors import Problem
from kaito_ray.nodes.moment import parse_duration
from kaito_ray.source_rules import (
    image_problems,
    is_dns_label,
    is_dns_subdomain,
    name_problems,
    not_exactly_one,
    source_problems,
    volume_problems,
)

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
STRENGTH_PATTERN = r"^(0(\.[0-9]*)?|\.[0-9]+|1(\.0*)?)$"
MIG_PROFILE_PATTERN = r"^[0-9]+g\.[0-9.]+gb$"

# Identity labels that KAITO and this operator put on nodes themselves.
_RESERVED_LABELS = frozenset(
    {
        names.LABEL_WORKSPACE,
        names.LABEL_WORKSPACE_NAMESPACE,
        names.LABEL_NODE_MANAGED_BY,
        "inferenceset.kaito.sh/created-by",
        "multiroleinference.kaito.sh/created-by",
    }
)
_RESERVED_PREFIX = "karpenter.kaito.sh/"

# Annotations with a closed set of values; KAITO compares the image family without case and spaces.
_ANNOTATION_VALUES: Mapping[str, tuple[str, ...]] = {
    names.ANNOTATION_NODE_IMAGE_FAMILY: ("azurelinux", "ubuntu"),
    names.ANNOTATION_PERFORMANCE_MODE: ("balanced", "interactivity", "throughput"),
    names.ANNOTATION_LOCAL_WEIGHTS: ("true", "false"),
    names.ANNOTATION_RUNTIME: ("vllm", "transformers"),
    names.ANNOTATION_AFTER_TUNING: ("serve", "release"),
    names.ANNOTATION_FOLLOW_TAGS: ("true", "false"),
    names.ANNOTATION_SPOT: ("prefer", "require", "never"),
}


def is_reserved_label(key: str) -> bool:
    """Whether a label identifies nodes of a Workspace and therefore cannot be a user's selector."""
    return key in _RESERVED_LABELS or key.startswith(_RESERVED_PREFIX)


def problems_of_meaning(document: Document, allow_private_urls: Collection[str] = ()) -> list[Problem]:
    """Everything wrong with what `document`, a plain mapping without nulls, asks for."""
    inference, tuning = mapping(document, "inference"), mapping(document, "tuning")
    problems = [
        *_metadata(mapping(document, "metadata")),
        *_one_kind_of_work(document),
        *_selector(mapping(document, "resource")),
        *_partition(document),
    ]
    if "inference" in document:
        problems += _inference(inference, document.get("apiVersion"), allow_private_urls)
    if "tuning" in document:
        problems += _tuning(tuning, document.get("apiVersion"), allow_private_urls)
    return problems


# The object


def _metadata(metadata: Document) -> Iterator[Problem]:
    for field in ("name", "namespace"):
        value = metadata.get(field)
        if isinstance(value, str) and not is_dns_label(value):
            yield Problem(
                ("metadata", field),
                "must be 1 to 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit,"
                f" got {shown(value)}",
            )
    annotations = mapping(metadata, "annotations")
    for key, allowed in _ANNOTATION_VALUES.items():
        value = annotations.get(key)
        if isinstance(value, str) and _annotation_value(key, value) not in allowed:
            yield Problem(("metadata", "annotations", key), f"must be one of {', '.join(allowed)}, got {shown(value)}")
    idle = annotations.get(names.ANNOTATION_IDLE_AFTER)
    if isinstance(idle, str) and parse_duration(idle) is None:
        yield Problem(
            ("metadata", "annotations", names.ANNOTATION_IDLE_AFTER),
            f"must be a duration such as 30m or 1h30m, got {shown(idle)}",
        )
    yield from name_problems(
        annotations.get(names.ANNOTATION_API_KEYS), ("metadata", "annotations", names.ANNOTATION_API_KEYS)
    )


def _annotation_value(key: str, value: str) -> str:
    return value.replace(" ", "").lower() if key == names.ANNOTATION_NODE_IMAGE_FAMILY else value


def _one_kind_of_work(document: Document) -> Iterator[Problem]:
    if "inference" in document and "tuning" in document:
        yield Problem((), "has both inference and tuning; a Workspace does one of them, so make two of it")
    elif "inference" not in document and "tuning" not in document:
        yield Problem((), "has neither inference nor tuning; write inference to serve a model, tuning to fine-tune one")


def _selector(resource: Document) -> Iterator[Problem]:
    path: Path = ("resource", "labelSelector")
    selector = mapping(resource, "labelSelector")
    labels = dict(mapping(selector, "matchLabels"))
    for key, value in labels.items():
        yield from _label(key, value, (*path, "matchLabels", key))
    for index, requirement in items(selector, "matchExpressions"):
        here = (*path, "matchExpressions", index)
        if not isinstance(requirement, Mapping):
            continue
        operator, values = requirement.get("operator"), requirement.get("values", [])
        key = text(requirement, "key")
        if isinstance(operator, str) and operator != "In":
            yield Problem((*here, "operator"), f"must be In, got {shown(operator)}; nodes get a label with one value")
        elif isinstance(values, list) and len(values) != 1:
            yield Problem(
                (*here, "values"), f"must have exactly one value, got {len(values)}; nodes get one value per label"
            )
        elif key and isinstance(values, list):
            yield from _label(key, values[0], (*here, "key"))
            if key in labels and labels[key] != values[0]:
                yield Problem((*here, "key"), f"asks for {key} with another value than an earlier requirement does")
            labels[key] = values[0]
    only_reserved = all(is_reserved_label(key) for key in labels)
    if "labelSelector" in resource and only_reserved and not selector.get("matchExpressions"):
        yield Problem(
            path,
            "must name at least one label of your own, such as matchLabels: {apps: my-model}"
            + ("; labels of kaito.sh do not count" if labels else ""),
        )


def _label(key: str, value: Any, path: Path) -> Iterator[Problem]:
    prefix, slash, name = key.rpartition("/")
    if not (_LABEL_NAME.fullmatch(name) and len(name) <= 63) or (slash and not is_dns_subdomain(prefix)):
        yield Problem(path, f"is not a label key: {shown(key)}")
    if isinstance(value, str) and value and not (_LABEL_NAME.fullmatch(value) and len(value) <= 63):
        yield Problem(
            path,
            "must have at most 63 letters, digits, hyphens, dots and underscores, beginning and ending with a letter or"
            f" digit, got {shown(value)}",
        )


def _partition(document: Document) -> Iterator[Problem]:
    resource = mapping(document, "resource")
    partition = mapping(resource, "partition")
    if "partition" not in resource:
        return
    path: Path = ("resource", "partition")
    if "tuning" in document:
        yield Problem(path, "cannot be used with tuning, which needs whole GPUs")
    profile, mode = text(partition, "profile"), partition.get("mode")
    if mode == "mig":
        if not re.fullmatch(MIG_PROFILE_PATTERN, profile):
            yield Problem((*path, "profile"), f"must be a MIG profile such as 1g.10gb, got {shown(profile)}")
        if "count" in partition:
            yield Problem((*path, "count"), "cannot be set with mode mig; it belongs to mode accelerator")
    elif mode == "accelerator":
        if "count" not in partition:
            yield Problem((*path, "count"), "is missing; mode accelerator needs the number of accelerators")
        if profile:
            yield Problem((*path, "profile"), "cannot be set with mode accelerator; it belongs to mode mig")


# Inference


def _inference(inference: Document, api_version: Any, allowed: Collection[str]) -> Iterator[Problem]:
    path: Path = ("inference",)
    if "preset" in inference and "template" in inference:
        yield Problem(path, "has both preset and template; give one of them")
    elif "preset" not in inference and "template" not in inference:
        yield Problem(path, "has neither preset nor template; name a model with preset: {name: ...}")
    yield from _preset(mapping(inference, "preset"), (*path, "preset"), api_version)
    yield from _template(inference)
    yield from name_problems(text(inference, "config"), (*path, "config"))
    seen: dict[str, int] = {}
    for index, adapter in items(inference, "adapters"):
        if isinstance(adapter, Mapping):
            yield from _adapter(adapter, (*path, "adapters", index), seen, index, allowed)
    yield from _autoscaling(inference)


def _preset(preset: Document, path: Path, api_version: Any) -> Iterator[Problem]:
    name = text(preset, "name")
    if name and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        yield Problem(
            (*path, "name"), f"must be a hub id such as org/model or an alias of the catalogue, got {shown(name)}"
        )
    options = mapping(preset, "presetOptions")
    if api_version == f"{names.GROUP}/v1alpha1" and preset.get("accessMode") == "private" and not options.get("image"):
        yield Problem((*path, "presetOptions", "image"), "is missing; accessMode private needs it in v1alpha1")
    yield from image_problems(text(options, "image"), (*path, "presetOptions", "image"))
    yield from name_problems(text(options, "modelAccessSecret"), (*path, "presetOptions", "modelAccessSecret"))
    for index, secret in items(options, "imagePullSecrets"):
        yield from name_problems(secret, (*path, "presetOptions", "imagePullSecrets", index))


def _template(inference: Document) -> Iterator[Problem]:
    template = mapping(inference, "template")
    containers = mapping(template, "spec").get("containers")
    if isinstance(inference.get("template"), Mapping) and not (isinstance(containers, list) and containers):
        yield Problem(("inference", "template"), "must have at least one container in spec.containers")


def _adapter(
    adapter: Document, path: Path, seen: dict[str, int], index: int, allowed: Collection[str]
) -> Iterator[Problem]:
    strength = adapter.get("strength")
    if isinstance(strength, str) and not re.fullmatch(STRENGTH_PATTERN, strength):
        yield Problem((*path, "strength"), f'must be a number between "0" and "1", got {shown(strength)}')
    if not isinstance(adapter.get("source"), Mapping):
        return
    source = mapping(adapter, "source")
    name = text(source, "name")
    if name in seen:
        yield Problem(
            (*path, "source", "name"), f"must be unique, {shown(name)} is also the name of adapters[{seen[name]}]"
        )
    elif name:
        yield from name_problems(name, (*path, "source", "name"))
        seen[name] = index
    yield from source_problems(source, (*path, "source"), ("image", "urls", "volumeSource", "workspace"), allowed)
    workspace = text(source, "workspace")
    if workspace and not is_dns_label(workspace):
        yield Problem((*path, "source", "workspace"), f"must be the name of a tuning Workspace, got {shown(workspace)}")


def _autoscaling(inference: Document) -> Iterator[Problem]:
    autoscaling = mapping(inference, "autoscaling")
    most = number(autoscaling, "maxReplicas", 0)
    fewest = number(autoscaling, "minReplicas", 1)
    if most and fewest > most:
        yield Problem(
            ("inference", "autoscaling", "minReplicas"), f"must be at most maxReplicas, which is {most}, got {fewest}"
        )
    if autoscaling and "template" in inference:
        yield Problem(("inference", "autoscaling"), "needs a preset; a template's pods are not scaled")


# Tuning


def _tuning(tuning: Document, api_version: Any, allowed: Collection[str]) -> Iterator[Problem]:
    yield from _preset(mapping(tuning, "preset"), ("tuning", "preset"), api_version)
    yield from name_problems(text(tuning, "config"), ("tuning", "config"))
    if isinstance(tuning.get("input"), Mapping):
        source = mapping(tuning, "input")
        yield from name_problems(text(source, "name"), ("tuning", "input", "name"))
        yield from source_problems(source, ("tuning", "input"), ("urls", "image", "volumeSource"), allowed)
    if isinstance(tuning.get("output"), Mapping):
        output = mapping(tuning, "output")
        yield from not_exactly_one(output, ("tuning", "output"), ("image", "volumeSource"))
        yield from image_problems(text(output, "image"), ("tuning", "output", "image"))
        yield from volume_problems(output, ("tuning", "output"))
        secret = text(output, "imagePushSecret")
        yield from name_problems(secret, ("tuning", "output", "imagePushSecret"))
        if output.get("image") and not output.get("imagePushSecret"):
            yield Problem(
                ("tuning", "output", "imagePushSecret"),
                "is missing; name the Secret that may push to the image's registry",
            )
