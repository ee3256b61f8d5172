# SPDX-License-Identifier: Apache-2.0
"""Our bytes of KV cache against those that vLLM's own code asks for at start-up, for every preset it lays out alike."""

from types import SimpleNamespace
from typing import Any

import pytest

from kaito_ray.kv_cache import kv_layout
from kaito_ray.preset import CacheLayers, Preset, load_catalogue
from kaito_ray.shape import BLOCK, Load, Shape

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

LOAD = Load(sequences=256, batched_tokens=2048)
# vLLM packs layers of compressed entries by rules of their own, and ours are on the safe side there.
PRESETS = [preset for preset in load_catalogue() if not any(group.entry_bytes for group in preset.cache)]


def _layer(preset: Preset, group: CacheLayers, tensor: int, block: int, page: int) -> Any:
    """One layer as vLLM's model would announce it."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, MLAAttentionSpec, SlidingWindowSpec

    if group.state_bytes is not None:
        return MambaSpec(
            block_size=block,
            shapes=((group.state_bytes // tensor,),),
            dtypes=(torch.uint8,),
            page_size_padded=page,
            mamba_cache_mode="align",
        )
    if preset.mla:
        return MLAAttentionSpec(block_size=block, num_kv_heads=1, head_size=preset.kv_elements, dtype=torch.bfloat16)
    heads = {
        "num_kv_heads": max((group.kv_heads or preset.kv_heads) // tensor, 1),
        "head_size": group.head_dim or preset.head_dim,
    }
    if group.window is not None:
        return SlidingWindowSpec(block_size=block, dtype=torch.bfloat16, sliding_window=group.window, **heads)
    return FullAttentionSpec(block_size=block, dtype=torch.bfloat16, **heads)


def _layers(preset: Preset, tensor: int) -> dict[str, Any]:
    """All layers; with states among them vLLM first widens its block until a page of attention holds one."""
    groups = preset.cache or (CacheLayers(layers=preset.layers, kind="full"),)
    block, page = BLOCK, 0
    states = [group.state_bytes // tensor for group in groups if group.state_bytes is not None]
    if states:
        token = 4 * max(preset.kv_heads // tensor, 1) * preset.head_dim
        block *= -(-max(states) // (token * BLOCK))
        page = block * token
    layers = [
        _layer(preset, group, tensor, block, page)
        for group in groups
        if group.kind != "none"
        for _ in range(group.layers)
    ]
    return {f"layer.{index}": layer for index, layer in enumerate(layers)}


def _engine(tokens: int) -> Any:
    """As much of vLLM's configuration as its layout code reads."""
    from vllm.config import CacheConfig

    cache = CacheConfig()
    cache.mamba_cache_mode = "align"
    cache.kv_cache_layout = "LBNHC"
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        model_config=SimpleNamespace(max_model_len=tokens, hf_config=None),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, tensor_parallel_size=1),
        cache_config=cache,
        attention_config=SimpleNamespace(hisparse_config=None),
        max_in_flight_tokens=2 * LOAD.batched_tokens,
        speculative_config=None,
        kv_transfer_config=None,
    )


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_sequence_takes_exactly_what_vllm_asks_for(preset: Preset, tensor: int) -> None:
    from vllm.v1.core.kv_cache_utils import _max_memory_usage_bytes_from_groups, get_kv_cache_groups

    layout = kv_layout(preset, Shape(tensor, 1), LOAD)
    for tokens in (1, 100, 2048, 9001, preset.context):
        engine = _engine(tokens)
        groups = get_kv_cache_groups(engine, _layers(preset, tensor))
        assert layout.sequence_bytes(tokens) == _max_memory_usage_bytes_from_groups(engine, groups)
