# SPDX-License-Identifier: Apache-2.0
"""Adapters and base models for tests, in the files peft and transformers write: a good default and overrides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kaito_ray.artifacts.tensors import read_header

BASE_NAME = "org/tiny-base"
# Values out and in of each layer of a two-layer model in the shape of Phi-3.
LAYERS = {
    "self_attn.qkv_proj": (96, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_up_proj": (128, 32),
    "mlp.down_proj": (32, 64),
}


def a_base(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """Weights of a base model, as zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray[Any, Any]] = {"model.embed_tokens.weight": np.zeros((100, hidden), np.float32)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.zeros(hidden, np.float32)
        for name, (outs, ins) in LAYERS.items():
            shape = tuple(hidden if side == 32 else side for side in (outs, ins))
            tensors[f"model.layers.{layer}.{name}.weight"] = np.zeros(shape, np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def adapter_tensors(
    *, rank: int = 8, modules: tuple[str, ...] = tuple(LAYERS), layers: int = 2, seed: int = 0, hidden: int = 32
) -> dict[str, "np.ndarray[Any, Any]"]:
    """A and B of every module of every layer, random."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module in modules:
            outs, ins = (hidden if side == 32 else side for side in LAYERS.get(module, (32, 32)))
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = random.standard_normal((rank, ins)).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = random.standard_normal((outs, rank)).astype(np.float32)
    return tensors


def an_adapter(
    folder: Path,
    *,
    tensors: "dict[str, np.ndarray[Any, Any]] | None" = None,
    rank: int = 8,
    **config: Any,
) -> Path:
    """An adapter for `a_base`; keywords replace fields of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_NAME,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.rpartition(".")[2] for name in LAYERS],
        "modules_to_save": None,
        "use_dora": False,
        "bias": "none",
        "some_field_of_a_later_peft": {"x": 1},
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    save_file(adapter_tensors(rank=rank) if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def adapter_for(base: Path, folder: Path, *, seed: int, rank: int = 8, size: float = 1.0, **config: Any) -> Path:
    """An adapter on every linear layer of the real model in `base`, with random weights that change what it says."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in read_header(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if ".layers." not in module or len(tensor.shape) != 2:
            continue
        outs, ins = tensor.shape
        a, b = random.standard_normal((rank, ins)), random.standard_normal((outs, rank)) * size
        tensors[f"base_model.model.{module}.lora_A.weight"] = (a / ins**0.5).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = (b / rank**0.5).astype(np.float32)
    modules = sorted({name.split(".")[-3] for name in tensors})
    defaults = {"lora_alpha": rank, "target_modules": modules, "base_model_name_or_path": "tiny-phi-3"}
    return an_adapter(folder, tensors=tensors, rank=rank, **(defaults | config))
