# SPDX-License-Identifier: Apache-2.0
"""The files of a model on the hub in, the facts of a preset out.

Pure; called by hub.py. Names of numbers differ between families of models, so each is looked up under all it goes by.
What a configuration does not say is taken on the safe side: a layer of an unknown kind keeps every token.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kaito_ray.document import nearest
from kaito_ray.errors import HubRefused
from kaito_ray.preset import Catalogue, Preset
from kaito_ray.shape import GIB
from kaito_ray.vllm_facts import architectures

Config = Mapping[str, Any]

_DEFAULT_CONTEXT = 2048  # KAITO's, where a configuration names none
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
}
_CONTEXT = (
    "max_position_embeddings",
    "n_ctx",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
    "model_max_length",
)
_INNER = ("text_config", "llm_config", "language_config")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Numerically unstable in float16 (vLLM's config/model.py).
_NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
_STATE = 4  # bytes of one number of a recurrent state, which vLLM keeps in float32


def preset_of_files(
    name: str,
    *,
    config: Config,
    files: Mapping[str, int],
    revision: str,
    gated: bool,
    license_name: str,
    catalogue: Catalogue,
) -> Preset:
    """The facts of `name` from its config.json and the sizes of its files in bytes; raises HubRefused.

    Flags and parsers that all models of the same class in the catalogue share are taken over.
    """
    weights, mistral = _weights(name, files)
    whole = dict(config)
    for inner in _INNER:
        if isinstance(config.get(inner), Mapping):
            whole |= config[inner]
    architecture = _architecture(name, config)
    found = {fact: _first(whole, names) for fact, names in _NAMES.items()}
    missing = [names[0] for fact, names in _NAMES.items() if found[fact] is None]
    if missing:
        raise HubRefused(f"config.json of {name} has no {', '.join(missing)}", reason="IncompleteModel")
    kin = [preset for preset in catalogue if preset.architecture == architecture]
    quantization = whole.get("quantization_config") or {}
    experts = _first(whole, _EXPERTS) or 0
    multimodal = any(key in config for key in ("vision_config", "audio_config"))
    facts = {
        "name": name,
        "license": license_name or "unknown",
        "gated": gated,
        "revision": revision,
        "architecture": architecture,
        "weights_gib": round(weights / GIB, 2) or 0.01,
        "dtype": _dtype(whole),
        "quantization": quantization.get("format") or quantization.get("quant_method"),
        "quantization_bits": quantization.get("bits"),
        "context": _first(whole, _CONTEXT) or _DEFAULT_CONTEXT,
        "intermediate_size": _whole_number(whole.get("intermediate_size")),
        "vocab_size": _whole_number(whole.get("vocab_size")) or 131072,
        "kv_heads": _key_heads(whole, found["heads"]),
        "head_dim": _whole_number(whole.get("head_dim")),
        "kv_lora_rank": whole.get("kv_lora_rank"),
        "qk_rope_head_dim": whole.get("qk_rope_head_dim") if whole.get("kv_lora_rank") else None,
        "mixture_of_experts": experts > 1,
        "multimodal": multimodal,
        "cache": _cache(whole, found["layers"]),
        "float16": whole.get("model_type") not in _NOT_IN_FLOAT16,
        "min_compute_capability": max((preset.min_compute_capability for preset in kin), default=0.0),
        "pipeline": all(preset.pipeline for preset in kin),
        "lora": experts <= 1 and any(preset.lora for preset in kin),
        "tuning": experts <= 1 and not multimodal and not quantization,
        "tool_parser": _shared(preset.tool_parser for preset in kin),
        "reasoning_parser": _shared(preset.reasoning_parser for preset in kin),
        "engine": _engine(kin, mistral=mistral),
    }
    return Preset.model_validate(facts | found)


def _weights(name: str, files: Mapping[str, int]) -> tuple[int, bool]:
    """Bytes of the weights, and whether they are only in Mistral's own format."""
    top = {file: size for file, size in files.items() if "/" not in file}
    safetensors = {file: size for file, size in top.items() if file.endswith(".safetensors")}
    whole = {file: size for file, size in safetensors.items() if not file.startswith(("adapter_", "consolidated"))}
    if whole:
        return sum(whole.values()), False
    if consolidated := [size for file, size in safetensors.items() if file.startswith("consolidated")]:
        return sum(consolidated), True
    if pickled := [size for file, size in top.items() if re.fullmatch(r"pytorch_model.*\.bin", file)]:
        return sum(pickled), False
    what = "no weights (*.safetensors or pytorch_model*.bin)"
    if any(file.startswith("adapter_") for file in top):
        what += "; it is a LoRA adapter, so name its base model in the preset and this in inference.adapters"
    elif any(file.endswith(".gguf") for file in top):
        what += "; it only has GGUF files, so name the model they were made from"
    raise HubRefused(f"{name} has {what}", reason="NoWeights")


def _architecture(name: str, config: Config) -> str:
    """The model class; vLLM must have it."""
    named = config.get("architectures") or []
    for architecture in named:
        if architecture in architectures():
            return str(architecture)
    if not named:
        raise HubRefused(f"config.json of {name} names no architecture", reason="IncompleteModel")
    alike = nearest(str(named[0]), sorted(architectures()))
    hint = f"; the nearest it has is {alike}" if alike else ""
    raise HubRefused(f"vLLM cannot serve {name}: it has no {named[0]}{hint}", reason="UnsupportedArchitecture")


def _first(config: Config, names: Iterable[str]) -> int | None:
    return next((number for name in names if (number := _whole_number(config.get(name))) is not None), None)


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _dtype(config: Config) -> str:
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16", "float32") else "bfloat16"


def _key_heads(config: Config, heads: int | None) -> int | None:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return _first(config, ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")) or heads


def _shared(values: Iterable[str | None]) -> str | None:
    """What all agree on."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _engine(kin: list[Preset], *, mistral: bool) -> dict[str, Any]:
    formats = ("load-format", "config-format", "tokenizer-mode")
    common = dict(kin[0].engine) if kin else {}
    for preset in kin[1:]:
        common = {flag: value for flag, value in common.items() if preset.engine.get(flag) == value}
    flags = {flag: value for flag, value in common.items() if flag not in formats}
    return flags | (dict.fromkeys(formats, "mistral") if mistral else {})


def _cache(config: Config, layers: int | None) -> tuple[dict[str, Any], ...]:
    """What each layer keeps; empty when all keep every token."""
    kinds = _layer_kinds(config, layers or 0)
    shared = _whole_number(config.get("num_kv_shared_layers")) or 0
    if shared:
        kinds[len(kinds) - shared :] = ["none"] * shared
    if set(kinds) <= {"full"}:
        return ()
    shapes: dict[str, dict[str, Any]] = {
        "full": _global_heads(config),
        "sliding": {"window": config.get("sliding_window")},
        "linear": {"state_bytes": _linear_state(config)},
        "mamba": {"state_bytes": _mamba_state(config)},
        "none": {},
    }
    written = {"linear": "recurrent", "mamba": "recurrent"}
    return tuple(
        {"layers": kinds.count(kind), "kind": written.get(kind, kind), **shapes[kind]}
        for kind in shapes
        if kind in kinds
    )


def _layer_kinds(config: Config, layers: int) -> list[str]:
    """The kind of each layer, from whichever of the ways to say it the configuration uses."""
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and config.get("mamba_num_heads"):
        letters = {"M": "mamba", "*": "full"}
        return [letters.get(letter, "none") for letter in pattern]
    window = _whole_number(config.get("sliding_window"))
    names = {
        "sliding_attention": "sliding" if window else "full",
        "linear_attention": "linear" if config.get("linear_num_value_heads") else "full",
    }
    if isinstance(config.get("layer_types"), list):
        return [names.get(kind, "full") for kind in config["layer_types"]]
    every = _first(config, ("full_attention_interval", "sliding_window_pattern"))
    if every:
        other = "linear" if config.get("linear_num_value_heads") else names["sliding_attention"]
        return ["full" if (layer + 1) % every == 0 else other for layer in range(layers)]
    return ["full"] * layers


def _global_heads(config: Config) -> dict[str, Any]:
    """Gemma 4's layers over the whole text have heads of their own."""
    heads = _whole_number(config.get("num_global_key_value_heads")) if config.get("attention_k_eq_v") else None
    width = _whole_number(config.get("global_head_dim"))
    return {key: value for key, value in (("kv_heads", heads), ("head_dim", width)) if value}


def _linear_state(config: Config) -> int:
    """A gated delta net: the last inputs of its convolution in 16 bits, and a matrix per value head."""
    keys, values = config.get("linear_num_key_heads", 0), config.get("linear_num_value_heads", 0)
    key_dim, value_dim = config.get("linear_key_head_dim", 128), config.get("linear_value_head_dim", 128)
    kept = config.get("linear_conv_kernel_dim", 4) - 1
    return int(kept * (2 * keys * key_dim + values * value_dim) * 2 + values * value_dim * key_dim * _STATE)


def _mamba_state(config: Config) -> int:
    """Mamba 2: the same with groups for keys."""
    heads, width = config.get("mamba_num_heads", 0), config.get("mamba_head_dim", 64)
    state, groups = config.get("ssm_state_size", 128), config.get("n_groups", 8)
    kept = config.get("conv_kernel", 4) - 1
    return int(kept * (heads * width + 2 * groups * state) * 2 + heads * width * state * _STATE)
