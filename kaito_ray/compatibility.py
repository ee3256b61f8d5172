# SPDX-License-Identifier: Apache-2.0
"""What a GPU must be able to do for a model, and how a model can be cut, before any memory is counted.

Called by sizing.py.
"""

from kaito_ray.errors import DoesNotFit
from kaito_ray.preset import Preset
from kaito_ray.sku import Sku

# vLLM runs on Volta and later (its installation guide).
_VLLM_NEEDS = 7.0
# vLLM 0.32's get_min_capability (model_executor/layers/quantization/), by the method's name in the model's config.
_QUANTIZATION_NEEDS = {
    "MIXED_PRECISION": 8.0,
    "awq": 7.5,
    "float-quantized": 7.5,
    "fp8": 7.5,
    "gptq": 6.0,
    "mxfp4": 8.0,
    "nvfp4-pack-quantized": 7.5,
    "pack-quantized": 7.5,
}


def require_runnable(preset: Preset, sku: Sku) -> None:
    """Raise DoesNotFit where memory is not the question: the GPU lacks what the model needs."""
    capability = sku.compute_capability or 0.0
    needs = max(_VLLM_NEEDS, _QUANTIZATION_NEEDS.get(preset.quantization or "", 0.0), preset.min_compute_capability)
    if capability < needs:
        what = "vLLM needs"
        if preset.min_compute_capability == needs:
            what = "its attention kernels need"
        elif needs > _VLLM_NEEDS:
            what = f"its {preset.quantization} weights need"
        raise DoesNotFit(
            f"{preset.name} cannot run on {sku.name}: {what} compute capability {needs:.1f}, and {sku.gpu} has "
            f"{capability:.1f}",
            reason="UnsupportedInstanceType",
        )
    if not sku.bfloat16 and not preset.float16:
        raise DoesNotFit(
            f"{preset.name} cannot run on {sku.name}: its {sku.gpu} lacks bfloat16, and the model overflows in float16",
            reason="UnsupportedInstanceType",
        )


def tensor_sizes(preset: Preset, gpus: int) -> list[int]:
    """Ways to cut the model over at most `gpus` GPUs of a node, ascending.

    Heads must divide, and key heads must divide or be divided: vLLM gives each GPU whole heads, and copies a key head
    where there are more GPUs than key heads. A latent (MLA) has no key heads to deal out.
    """
    keys = {preset.kv_heads} | {group.kv_heads for group in preset.cache if group.kv_heads}
    return [
        size
        for size in range(1, gpus + 1)
        if preset.heads % size == 0 and (preset.mla or all(key % size == 0 or size % key == 0 for key in keys))
    ]
