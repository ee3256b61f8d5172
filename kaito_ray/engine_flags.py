# SPDX-License-Identifier: Apache-2.0
"""The flags vLLM is started with: a preset and its sizing in, a finished mapping out.

Called by plan_serve.py. Flags are spelled as on vLLM's command line without dashes in front; True is a bare flag.
Everything that the arithmetic of sizing.py assumed is pinned here, so that the engine cannot assume otherwise.
"""

import math
from typing import Any

from kaito_ray.preset import Preset
from kaito_ray.shape import GIB
from kaito_ray.sizing import Sizing
from kaito_ray.sku import Sku

CHECKPOINT_FLAGS = ("load-format", "config-format", "tokenizer-mode")
"""Flags with which a preset says how its files are read."""

# Adapters kept in main memory, ready to be copied into a slot: as many as a Workspace may name, and some in reserve.
_CPU_LORAS = 16


def compute_dtype(preset: Preset, sku: Sku) -> str:
    """bfloat16 as KAITO, float16 before Ampere, `auto` for quantised weights, float32 without a GPU."""
    if sku.gpus == 0:
        return "float32"
    if not sku.bfloat16:
        return "float16"
    return "auto" if preset.quantization else "bfloat16"


def engine_flags(preset: Preset, sku: Sku, sizing: Sizing, *, executor: str) -> dict[str, Any]:
    """Every flag of the engine but the model itself and its served name."""
    flags: dict[str, Any] = {
        "dtype": compute_dtype(preset, sku),
        "max-model-len": sizing.max_model_len,
        "max-num-seqs": sizing.load.sequences,
        "max-num-batched-tokens": sizing.load.batched_tokens,
        "tensor-parallel-size": sizing.shape.tensor,
        "pipeline-parallel-size": sizing.shape.pipeline,
        "distributed-executor-backend": executor,
    }
    if sku.gpus:
        flags["gpu-memory-utilization"] = sizing.utilization
    else:
        flags["kv-cache-memory-bytes"] = math.ceil(sizing.budget.kv_cache_gib * GIB)
    if sizing.load.lora_slots:
        flags |= {
            "enable-lora": True,
            "max-lora-rank": sizing.load.lora_rank,
            "max-loras": sizing.load.lora_slots,
            "max-cpu-loras": _CPU_LORAS,
        }
    if preset.trust_remote_code:
        flags["trust-remote-code"] = True
    if preset.tool_parser:
        flags |= {"enable-auto-tool-choice": True, "tool-call-parser": preset.tool_parser}
    if preset.reasoning_parser:
        flags["reasoning-parser"] = preset.reasoning_parser
    if preset.chat_template:
        flags["chat-template"] = preset.chat_template
    return flags | preset.engine
