# SPDX-License-Identifier: Apache-2.0
"""Every model on every size at every context: what is planned can run, by arithmetic that shares nothing with ours.

The check is a floor that no engine gets below: the weights as they lie in the files, the KV cache of one sequence
without any padding, and a gigabyte for CUDA. A plan that breaks it could not start.
"""

import math
from collections import Counter

import pytest

from kaito_ray.errors import DoesNotFit
from kaito_ray.preset import Preset, load_catalogue
from kaito_ray.sizing import Demand, Sizing, size_model
from kaito_ray.sku import Sku, load_sizes

CATALOGUE = load_catalogue()
CURRENT = [sku for sku in load_sizes() if sku.status == "current"]
MAX_NODES = 8
GIB = 1024**3


def _contexts(preset: Preset) -> list[int]:
    return sorted({min(context, preset.context) for context in (2048, 8192, 32768, preset.context)})


def _cache_gib(preset: Preset, tokens: int, tensor: int, stage: int) -> float:
    """One sequence in the layers of one stage, each layer by itself, never less than its share of the heads."""
    total = 0.0
    eight_bits = preset.engine.get("kv-cache-dtype") == "fp8"
    for group in preset.cache or [None]:
        layers = (group.layers if group else preset.layers) * stage / preset.layers
        keys = max((group.kv_heads if group and group.kv_heads else preset.kv_heads) / tensor, 1)
        width = (group.head_dim if group and group.head_dim else 0) or preset.head_dim
        entry = 2 * keys * width * (1 if eight_bits else 2)
        if preset.kv_lora_rank:
            entry = (preset.kv_lora_rank + (preset.qk_rope_head_dim or 0)) * (1 if eight_bits else 2)
        if group and group.entry_bytes:
            entry = min(entry, group.entry_bytes) if not group.ratio else group.entry_bytes
        kind = group.kind if group else "full"
        kept = {
            "full": tokens,
            "sliding": min(tokens, group.window or 0) if group else 0,
            "compressed": tokens / ((group.ratio if group else None) or 1),
            "recurrent": 0,
            "none": 0,
        }[kind]
        total += layers * (kept * entry + (group.state_bytes or 0 if group else 0) / tensor)
    return total / GIB


def _broken_rules(preset: Preset, sku: Sku, context: int, sizing: Sizing) -> list[str]:
    tensor, pipeline = sizing.shape.tensor, sizing.shape.pipeline
    stage = math.ceil(preset.layers / pipeline)
    loaded = preset.loaded_gib or preset.weights_gib
    tables = 2 * preset.vocab_size * preset.hidden_size * 2 / GIB
    weights = (loaded - tables) * stage / preset.layers / tensor if pipeline > 1 else loaded / tensor
    needs = weights + _cache_gib(preset, context, tensor, stage) + 1.0
    rules = {
        f"{needs:.1f} GiB on a GPU of {sku.gpu_gib}": needs <= sku.gpu_gib,
        "the parts add up": sizing.budget.usable_gib < sku.gpu_gib,
        "heads divide": preset.heads % tensor == 0,
        "key heads divide or are divided": bool(preset.kv_lora_rank)
        or preset.kv_heads % tensor == 0
        or tensor % preset.kv_heads == 0,
        "a cut stays within a node": tensor <= sku.gpus,
        "a pipeline goes across nodes": pipeline == sizing.nodes,
        "no GPU is used twice": sizing.replicas * sizing.shape.gpus <= sizing.nodes * sku.gpus,
        "no more nodes than allowed": 1 <= sizing.nodes <= MAX_NODES,
        "the context asked for": sizing.max_model_len == context <= preset.context,
        "whole GPUs of NVIDIA": sku.vendor == "nvidia" and not sku.refusal,
    }
    return [rule for rule, holds in rules.items() if not holds]


@pytest.mark.parametrize("preset", list(CATALOGUE), ids=lambda preset: preset.name)
def test_every_plan_can_run(preset: Preset) -> None:
    outcomes: Counter[str] = Counter()
    for sku in CURRENT:
        if sku.refusal:
            continue
        for context in _contexts(preset):
            try:
                sizing = size_model(preset, sku, Demand(context=context, lora=preset.lora), max_nodes=MAX_NODES)
            except DoesNotFit:
                outcomes["refused"] += 1
                continue
            assert _broken_rules(preset, sku, context, sizing) == [], (sku.name, context)
            outcomes["planned"] += 1
    assert outcomes["planned"] > 0


@pytest.mark.parametrize("preset", list(CATALOGUE), ids=lambda preset: preset.name)
def test_the_longest_context_is_the_longest(preset: Preset) -> None:
    """One token more than what is planned would not fit the same arrangement."""
    sku = next(sku for sku in CURRENT if sku.name == "Standard_ND96isr_H200_v5")
    sizing = size_model(preset, sku, Demand(lora=preset.lora), max_nodes=MAX_NODES)
    room = sizing.budget.kv_cache_gib
    assert sizing.layout.sequence_gib(sizing.max_model_len) <= room
    if sizing.max_model_len < preset.context:
        assert sizing.layout.sequence_gib(sizing.max_model_len + 1) > room
