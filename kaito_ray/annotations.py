# SPDX-License-Identifier: Apache-2.0
"""The annotations of a Workspace that change how it is served: honoured, or refused with the reason.

Called by plan_serve.py. Those about nodes (image family, node class, spot) are read where nodes are made; what a value
may be is checked in workspace_rules.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kaito_ray import names
from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.workspace import Workspace

_STREAMING = (
    "kaito-ray does not stream weights from blob storage; they come from the hub, from presetOptions.image, from a"
    f" claim with {names.ANNOTATION_MODEL_CLAIM}, or from the node with {names.ANNOTATION_LOCAL_WEIGHTS}"
)
_REFUSED = {
    "kaito.sh/model-mirror-storage-class": _STREAMING,
    "kaito.sh/streaming-service-account": _STREAMING,
    "inference.kaito.sh/static-model-mirror": _STREAMING,
    "inference.kaito.sh/stream-datarefs-url": _STREAMING,
    "inference.kaito.sh/stream-identity-client-id": _STREAMING,
    "inference.kaito.sh/stream-source-type": _STREAMING,
}


@dataclass(frozen=True, slots=True)
class Annotations:
    """What the annotations ask for."""

    load_balancer: bool
    api_keys_secret: str | None
    bypass_checks: bool
    follow_tags: bool
    flags: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_annotations(workspace: Workspace) -> Annotations:
    """Read them; raises InvalidManifest with every one that cannot be honoured."""
    given = workspace.metadata.annotations
    problems = [_problem(key, why) for key, why in _REFUSED.items() if key in given]
    if given.get("kaito.sh/model-streaming", "disabled") != "disabled":
        problems.append(
            _problem("kaito.sh/model-streaming", f"cannot be {given['kaito.sh/model-streaming']}: {_STREAMING}")
        )
    if given.get(names.ANNOTATION_RUNTIME) == "transformers":
        problems.append(
            _problem(names.ANNOTATION_RUNTIME, "cannot be transformers: kaito-ray serves with vLLM only; leave it out")
        )
    if problems:
        raise InvalidManifest(problems)
    flags: dict[str, Any] = {}
    mode = given.get(names.ANNOTATION_PERFORMANCE_MODE, "balanced")
    if mode != "balanced":
        flags["performance-mode"] = mode
    balancer = given.get(names.ANNOTATION_ENABLE_LB)
    warnings = []
    if balancer not in (None, "True", "False"):
        warnings.append(
            f'{names.ANNOTATION_ENABLE_LB} is "{balancer}", and only "True" makes a load balancer, as in KAITO'
        )
    return Annotations(
        load_balancer=balancer == "True",
        api_keys_secret=given.get(names.ANNOTATION_API_KEYS) or None,
        bypass_checks=names.ANNOTATION_BYPASS_CHECKS in given,
        follow_tags=given.get(names.ANNOTATION_FOLLOW_TAGS) == "true",
        flags=flags,
        warnings=tuple(warnings),
    )


def _problem(key: str, message: str) -> Problem:
    return Problem(("metadata", "annotations", key), message)
