# SPDX-License-Identifier: Apache-2.0
"""KAITO's inference ConfigMap: the text of `inference_config.yaml` in, flags for vLLM out.

Called by plan_serve.py. The `vllm` map wins over what kaito-ray decides, as in KAITO; flags that would take the server
out of kaito-ray's hands are refused with the reason.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from kaito_ray.document import nearest, shown
from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.preset import Preset
from kaito_ray.sizing import Demand
from kaito_ray.vllm_facts import options

KEY = "inference_config.yaml"
_PATH = ("inference", "config", KEY)
# KAITO's other settings, and why they change nothing here.
_WITHOUT_EFFECT = {
    "kv_cache_cpu_memory_utilization": "kaito-ray keeps the KV cache on the GPU",
    "max_probe_steps": "KAITO itself no longer reads it",
}
_PLACED = "kaito-ray decides it from the GPUs of the plan"
_LISTENS = "Ray Serve listens for the server"
_CODE = "it loads code of one's own into the server; use inference.template for that"
_CLIENTS = "it would let clients hand code or tensors to the server"
# Flags that are refused, by name or by the beginning of it, and why.
_REFUSED = {
    "allow-credentials": _LISTENS,
    "allowed-headers": _LISTENS,
    "allowed-local-media-path": "it would let clients read files of the server",
    "allowed-methods": _LISTENS,
    "allowed-origins": _LISTENS,
    "api-key": "name a Secret in the annotation kaito-ray.io/api-keys instead",
    "api-server-count": _LISTENS,
    "config": "write the flags themselves",
    "data-parallel-": "copies of the model are replicas; use inference.autoscaling",
    "device-ids": _PLACED,
    "distributed-executor-backend": _PLACED,
    "dp-supervisor-": _LISTENS,
    "enable-mm-embeds": _CLIENTS,
    "enable-prompt-embeds": _CLIENTS,
    "grpc": _LISTENS,
    "headless": _LISTENS,
    "hf-token": "name a Secret in inference.preset.presetOptions.modelAccessSecret instead",
    "host": _LISTENS,
    "io-processor-plugin": _CODE,
    "logits-processors": _CODE,
    "lora-modules": "name adapters in inference.adapters instead",
    "master-": _PLACED,
    "middleware": _CODE,
    "model": "name it in inference.preset instead",
    "nnodes": _PLACED,
    "node-rank": _PLACED,
    "port": _LISTENS,
    "reasoning-parser-plugin": _CODE,
    "root-path": _LISTENS,
    "scheduler-cls": _CODE,
    "ssl-": _LISTENS,
    "tool-parser-plugin": _CODE,
    "tool-server": "it would let the server call addresses of one's own",
    "trust-request-": _CLIENTS,
    "uds": _LISTENS,
    "worker-": _CODE,
}
# Flags that the arithmetic divides by.
_POSITIVE = (
    "gpu-memory-utilization",
    "max-loras",
    "max-model-len",
    "max-num-batched-tokens",
    "max-num-seqs",
    "pipeline-parallel-size",
    "tensor-parallel-size",
)


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """What a user's ConfigMap asks of the engine."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's flags in kebab-case, without dashes in front."""
    warnings: tuple[str, ...] = ()

    def demand(self, preset: Preset) -> Demand:
        """The flags that the arithmetic must know of."""
        flags = self.flags
        context = flags.get("max-model-len")
        return Demand(
            context=context if isinstance(context, int) else None,
            tensor=flags.get("tensor-parallel-size"),
            pipeline=flags.get("pipeline-parallel-size"),
            sequences=flags.get("max-num-seqs"),
            batched_tokens=flags.get("max-num-batched-tokens"),
            kv_cache_dtype=flags.get("kv-cache-dtype"),
            utilization=flags.get("gpu-memory-utilization"),
            lora=preset.lora and flags.get("enable-lora", True),
            lora_slots=flags.get("max-loras"),
            lora_rank=int(flags["max-lora-rank"]) if "max-lora-rank" in flags else None,
        )


def parse_inference_config(data: Mapping[str, str] | None) -> InferenceConfig:
    """Read the ConfigMap's data, None when there is none; raises InvalidManifest with every problem."""
    if data is None:
        return InferenceConfig()
    if KEY not in data:
        raise InvalidManifest([Problem(("inference", "config"), f"the ConfigMap has no key {KEY}")])
    try:
        document = yaml.safe_load(data[KEY])
    except yaml.YAMLError as error:
        raise InvalidManifest([Problem(_PATH, f"is not YAML: {' '.join(str(error).split())}")]) from None
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise InvalidManifest([Problem(_PATH, f"must be a mapping with the key vllm, got {shown(document)}")])
    problems = list(_strange_settings(document))
    warnings = tuple(f"{KEY}: {key} is ignored: {why}" for key, why in _WITHOUT_EFFECT.items() if key in document)
    flags: dict[str, Any] = {}
    wanted = document.get("vllm") or {}
    if not isinstance(wanted, dict):
        problems.append(Problem((*_PATH, "vllm"), f"must be a map of vLLM's flags, got {shown(wanted)}"))
        wanted = {}
    for written, value in wanted.items():
        try:
            flags |= _flag(str(written), value)
        except ValueError as error:
            problems.append(Problem((*_PATH, "vllm", str(written)), str(error)))
    if problems:
        raise InvalidManifest(problems)
    return InferenceConfig(flags, warnings)


def _strange_settings(document: Mapping[Any, Any]) -> Iterator[Problem]:
    legal = ("vllm", *_WITHOUT_EFFECT)
    for key in document:
        if key not in legal:
            alike = nearest(str(key), legal)
            hint = f"; did you mean {alike}?" if alike else f"; known are {', '.join(sorted(legal))}"
            yield Problem((*_PATH, str(key)), f"is no setting{hint}")


def _flag(written: str, value: Any) -> dict[str, Any]:
    """One flag as the engine takes it; raises ValueError with a sentence."""
    name, dot, inner = written.lstrip("-").partition(".")
    name = name.replace("_", "-")
    negated = name.removeprefix("no-") if name not in options() else name
    option = options().get(negated)
    if option is None:
        alike = nearest(name, options())
        raise ValueError(f"is no flag of vLLM{f'; did you mean {alike}?' if alike else ''}")
    for refused, why in _REFUSED.items():
        if negated == refused or (refused.endswith("-") and negated.startswith(refused)):
            raise ValueError(f"cannot be set: {why}")
    if dot:
        if option.kind != "json":
            raise ValueError(f"has no parts, {name} is {option.kind}")
        return {f"{name}.{inner}": value}
    try:
        read = option.read(value)
    except ValueError as error:
        raise ValueError(f"{error}, got {shown(value)}") from None
    if negated in _POSITIVE and not isinstance(read, str) and read <= 0:
        raise ValueError(f"must be more than 0, got {shown(value)}")
    if negated == "gpu-memory-utilization" and read > 1:
        raise ValueError(f"must be at most 1, got {shown(value)}")
    return {negated: not read if negated != name and isinstance(read, bool) else read}
