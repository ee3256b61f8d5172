# SPDX-License-Identifier: Apache-2.0
"""KV cache: the bytes of every kind of layer, worked out by hand."""

import pytest

from kaito_ray.kv_cache import kv_layout
from kaito_ray.preset import CacheLayers, Preset
from kaito_ray.shape import Load, Shape

LOAD = Load(sequences=256, batched_tokens=2048)
ONE = Shape(1, 1)


def a_model(**facts: object) -> Preset:
    """Eight layers of 16 heads of 64, 4 of them key heads, unless `facts` say otherwise."""
    plain: dict[str, object] = {
        "name": "me/model",
        "license": "mit",
        "architecture": "LlamaForCausalLM",
        "weights_gib": 1.0,
        "context": 131072,
        "hidden_size": 1024,
        "vocab_size": 32000,
        "layers": 8,
        "heads": 16,
        "kv_heads": 4,
    }
    return Preset.model_validate(plain | facts)


def _bytes(preset: Preset, tokens: int, shape: Shape = ONE, load: Load = LOAD) -> int:
    return kv_layout(preset, shape, load).sequence_bytes(tokens)


@pytest.mark.parametrize(
    ("facts", "per_token"),
    [
        pytest.param({"kv_heads": 16}, 8 * 2 * 16 * 64 * 2, id="every head keeps a key and a value"),
        pytest.param({}, 8 * 2 * 4 * 64 * 2, id="heads share keys in groups"),
        pytest.param({"kv_heads": 1}, 8 * 2 * 1 * 64 * 2, id="all heads share one key"),
        pytest.param({"head_dim": 128}, 8 * 2 * 4 * 128 * 2, id="heads wider than hidden over heads"),
        pytest.param({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 8 * 576 * 2, id="one latent for all heads"),
    ],
)
def test_layers_that_keep_every_token(facts: dict[str, object], per_token: int) -> None:
    preset = a_model(**facts)
    assert preset.kv_bytes_per_token == per_token
    assert _bytes(preset, 1600) == 1600 * per_token
    # vLLM hands out whole blocks of 16 tokens.
    assert _bytes(preset, 1601) == 1616 * per_token


@pytest.mark.parametrize(
    ("facts", "tensor", "part"),
    [({}, 2, 2), ({}, 4, 4), ({}, 8, 4), ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 8, 1)],
    ids=["divided", "one head each", "heads are copied beyond their number", "a latent is whole everywhere"],
)
def test_tensor_parallelism_divides_heads_and_nothing_else(facts: dict[str, object], tensor: int, part: int) -> None:
    preset = a_model(**facts)
    assert _bytes(preset, 1600, Shape(tensor, 1)) * part == _bytes(preset, 1600)


def test_a_pipeline_divides_layers_and_the_fullest_stage_counts() -> None:
    assert _bytes(a_model(), 1600, Shape(1, 3)) == 3 * _bytes(a_model(), 1600) // 8


def test_a_cache_in_eight_bits_is_half_as_large() -> None:
    assert 2 * _bytes(a_model(), 1600, load=Load(256, 2048, kv_bytes=1)) == _bytes(a_model(), 1600)


def test_a_window_stops_growing_once_it_is_full() -> None:
    preset = a_model(cache=[{"layers": 8, "kind": "sliding", "window": 1024}])
    per_block = 16 * 8 * 2 * 4 * 64 * 2
    # 1,023 tokens of the window and 4,096 in flight, one block more because the window may start inside one.
    assert _bytes(preset, 100_000) == _bytes(preset, 50_000) == (5119 // 16 + 1 + 1) * per_block
    assert _bytes(preset, 160) == (10 + 1) * per_block


def test_full_and_sliding_layers_take_blocks_from_one_pool() -> None:
    preset = a_model(cache=[{"layers": 2, "kind": "full"}, {"layers": 6, "kind": "sliding", "window": 1024}])
    block_of_two_layers = 16 * 2 * 2 * 4 * 64 * 2
    full, window = 32_000 // 16, 5119 // 16 + 1 + 1
    assert _bytes(preset, 32_000) == (full + 3 * window) * block_of_two_layers
    assert _bytes(preset, 32_000) < _bytes(a_model(), 32_000) / 2


def test_a_block_of_attention_is_widened_until_it_holds_a_state() -> None:
    """VLLM logs "Setting attention block size to 1568" for Qwen3.6-27B with a cache in fp8."""
    state = 3 * (2 * 16 * 128 + 48 * 128) * 2 + 48 * 128 * 128 * 4
    preset = a_model(
        layers=64,
        heads=24,
        head_dim=256,
        cache=[{"layers": 16, "kind": "full"}, {"layers": 48, "kind": "recurrent", "state_bytes": state}],
    )
    layout = kv_layout(preset, ONE, Load(256, 2048, kv_bytes=1))
    assert [group.block for group in layout.groups if not group.recurrent] == [1568]
    # Three groups of states, each with the running state and the one that prefix caching keeps.
    assert layout.sequence_bytes(1568) == (1 + 3 * 2) * 16 * 1568 * 2 * 4 * 256
    assert layout.sequence_bytes(1569) - layout.sequence_bytes(1568) == 16 * 1568 * 2 * 4 * 256


def test_compressed_entries_count_once_for_their_tokens() -> None:
    preset = a_model(cache=[{"layers": 8, "kind": "compressed", "ratio": 4, "entry_bytes": 716, "window": 128}])
    grown = _bytes(preset, 65_536) - _bytes(preset, 32_768)
    assert grown == 8 * (32_768 // 4) * 716


def test_layers_without_attention_keep_nothing() -> None:
    half = a_model(cache=[{"layers": 4, "kind": "full"}, {"layers": 4, "kind": "none"}])
    assert 2 * _bytes(half, 1600) == _bytes(a_model(), 1600)
    none = kv_layout(a_model(cache=[{"layers": 8, "kind": "none"}]), ONE, LOAD)
    assert none.longest(0.0, 4096) == 4096


@pytest.mark.parametrize("room_gib", [0.0, 0.001, 0.1, 1.0, 7.77, 1000.0])
def test_the_longest_sequence_is_the_last_that_fits(room_gib: float) -> None:
    layout = kv_layout(a_model(), ONE, LOAD)
    longest = layout.longest(room_gib, 131_072)
    assert layout.sequence_gib(longest) <= room_gib
    assert longest == 131_072 or layout.sequence_gib(longest + 1) > room_gib


@pytest.mark.parametrize(
    "group",
    [
        {"layers": 8, "kind": "sliding"},
        {"layers": 8, "kind": "recurrent"},
        {"layers": 8, "kind": "full", "window": 8},
        {"layers": 8, "kind": "compressed", "window": 8},
    ],
)
def test_facts_that_do_not_belong_together_are_refused(group: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="belongs to"):
        CacheLayers.model_validate(group)
