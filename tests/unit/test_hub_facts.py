# SPDX-License-Identifier: Apache-2.0
"""Configurations of well-known models, and the facts read from them against the catalogue's own."""

from typing import Any

import pytest

from kaito_ray.hub_facts import preset_of_files
from kaito_ray.preset import Preset, load_catalogue

CATALOGUE = load_catalogue()
GIB = 1024**3
SLIDE, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


def read(config: dict[str, Any], files: dict[str, int] | None = None) -> Preset:
    """The facts of a model with that config.json."""
    return preset_of_files(
        "me/model",
        config=config,
        files=files or {"model.safetensors": GIB},
        revision="abc",
        gated=False,
        license_name="mit",
        catalogue=CATALOGUE,
    )


CONFIGS: dict[str, dict[str, Any]] = {
    "phi-3-mini-4k-instruct": {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "vocab_size": 32064,
        "sliding_window": 2047,
    },
    "falcon-7b": {
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "vocab_size": 65024,
    },
    "falcon-40b": {
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "multi_query": True,
        "new_decoder_architecture": True,
        "vocab_size": 65024,
    },
    "deepseek-v3-0324": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "max_position_embeddings": 163840,
        "vocab_size": 129280,
        "n_routed_experts": 256,
        "quantization_config": {"quant_method": "fp8"},
    },
    "gemma-3-27b-instruct": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": {"hidden_size": 1152},
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "vocab_size": 262208,
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
        },
    },
    "google/gemma-4-31B-it": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "vision_config": {},
        "text_config": {
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 60,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_global_key_value_heads": 4,
            "attention_k_eq_v": True,
            "head_dim": 256,
            "global_head_dim": 512,
            "max_position_embeddings": 262144,
            "vocab_size": 262144,
            "sliding_window": 1024,
            "layer_types": ([SLIDE] * 5 + [FULL]) * 10,
        },
    },
    "google/gemma-4-E4B-it": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": {},
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 42,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "global_head_dim": 512,
            "num_kv_shared_layers": 18,
            "max_position_embeddings": 131072,
            "vocab_size": 262144,
            "sliding_window": 512,
            "layer_types": ([SLIDE] * 5 + [FULL]) * 7,
        },
    },
    "openai/gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"],
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "max_position_embeddings": 131072,
        "vocab_size": 201088,
        "sliding_window": 128,
        "layer_types": [SLIDE, FULL] * 12,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "Qwen/Qwen3.6-27B": {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "vision_config": {},
        "text_config": {
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_hidden_layers": 64,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 262144,
            "vocab_size": 248320,
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 48,
            "linear_value_head_dim": 128,
        },
    },
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": {
        "architectures": ["NemotronHForCausalLM"],
        "hidden_size": 4480,
        "intermediate_size": 15680,
        "num_hidden_layers": 56,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "vocab_size": 131072,
        "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        "mamba_num_heads": 128,
        "mamba_head_dim": 80,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
    },
}
SAME = (
    "architecture",
    "kv_bytes_per_token",
    "attention",
    "context",
    "vocab_size",
    "mixture_of_experts",
    "float16",
    "quantization",
    "lora",
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_reads_as_the_catalogue_has_it(name: str) -> None:
    ours, known = read(CONFIGS[name]), CATALOGUE.get(name)
    assert {fact: getattr(ours, fact) for fact in SAME} == {fact: getattr(known, fact) for fact in SAME}
    kinds = [(group.layers, group.kind, group.window, group.state_bytes) for group in ours.cache]
    assert kinds == [(group.layers, group.kind, group.window, group.state_bytes) for group in known.cache]
    widths = [(group.kv_heads, group.head_dim) for group in ours.cache]
    assert widths == [(group.kv_heads, group.head_dim) for group in known.cache]


def test_flags_that_all_models_of_a_class_share_are_taken_over() -> None:
    qwen = read(CONFIGS["Qwen/Qwen3.6-27B"])
    assert (qwen.tool_parser, qwen.reasoning_parser) == ("qwen3_coder", "qwen3")
    assert qwen.engine == {"gdn-prefill-backend": "triton"}
    llama = read(CONFIGS["phi-3-mini-4k-instruct"] | {"architectures": ["LlamaForCausalLM"]})
    assert (llama.tool_parser, dict(llama.engine)) == (None, {})


@pytest.mark.parametrize(
    ("files", "gib", "mistral"),
    [
        ({"model-1.safetensors": GIB, "model-2.safetensors": GIB, "original/consolidated.00.pth": 9 * GIB}, 2.0, False),
        ({"model.safetensors": GIB, "original/model.safetensors": GIB}, 1.0, False),
        ({"model.safetensors": GIB, "consolidated.safetensors": GIB, "pytorch_model.bin": GIB}, 1.0, False),
        ({"consolidated.safetensors": 3 * GIB, "params.json": 1}, 3.0, True),
        ({"pytorch_model-1.bin": GIB, "pytorch_model-2.bin": GIB, "training_args.bin": GIB}, 2.0, False),
    ],
)
def test_only_what_an_engine_loads_is_counted(files: dict[str, int], gib: float, mistral: bool) -> None:
    preset = read(CONFIGS["phi-3-mini-4k-instruct"], files)
    assert preset.weights_gib == gib
    assert (preset.engine.get("load-format") == "mistral") is mistral
