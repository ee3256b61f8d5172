# SPDX-License-Identifier: Apache-2.0
"""KAITO's inference ConfigMap: the text of `inference_config.yaml` in, flags for vLLM out.

Called by plan_serve.py. The `vllm` map wins over what kaito-ray decides, as it does in KAITO.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from kaito_ray.errors import InvalidManifest, Problem

KEY = "inference_config.yaml"


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """What a user's ConfigMap asks of the engine."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's flags in kebab-case."""

    @property
    def context(self) -> int | None:
        """`max-model-len` when it is a number."""
        value = self.flags.get("max-model-len")
        return value if isinstance(value, int) else None


def parse_inference_config(data: Mapping[str, str] | None) -> InferenceConfig:
    """Read the ConfigMap's data; raises InvalidManifest with every problem."""
    if data is None:
        return InferenceConfig()
    path = ("inference", "config", KEY)
    if KEY not in data:
        raise InvalidManifest([Problem(("inference", "config"), f"the ConfigMap has no key {KEY}")])
    try:
        document = yaml.safe_load(data[KEY]) or {}
    except yaml.YAMLError as error:
        raise InvalidManifest([Problem(path, f"is not YAML: {' '.join(str(error).split())}")]) from None
    flags = document.get("vllm") if isinstance(document, dict) else None
    if not isinstance(flags or {}, dict):
        raise InvalidManifest([Problem((*path, "vllm"), "must be a map of vLLM flags")])
    return InferenceConfig(
        {str(key).replace("_", "-"): yaml.safe_load(str(value)) for key, value in (flags or {}).items()}
    )
