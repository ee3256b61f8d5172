# SPDX-License-Identifier: Apache-2.0
"""The same question as sizing.py for a machine without a GPU: one copy in float32, or a sentence why not.

Called by plan_serve.py for the pseudo-size `cpu`.
"""

from kaito_ray import memory
from kaito_ray.errors import DoesNotFit
from kaito_ray.kv_cache import kv_layout
from kaito_ray.plan import MemoryBudget
from kaito_ray.preset import Preset
from kaito_ray.shape import CPU_BLOCK, Load, Shape
from kaito_ray.sizing import Demand, Sizing
from kaito_ray.sku import Sku

# Python, torch, vLLM and Ray's own processes before any weights; 2.7 GiB were measured for tiny-phi-3 (the sum of PSS).
_PROCESSES_GIB = 3.0
# Nobody waits for a CPU to fill more than a few sequences of full length.
_SEQUENCES_OF_FULL_LENGTH = 4
_KV_FLOOR_GIB = 0.5
_KV_CAP_GIB = 4.0
# Below this a chat is of no use.
_LEAST_CONTEXT = 512
_SHAPE = Shape(1, 1)


def size_on_cpu(preset: Preset, sku: Sku, demand: Demand) -> Sizing:
    """One copy in float32 beside what the machine needs itself; raises DoesNotFit.

    float32 because bfloat16 dies on processors that list AMX but may not use it. Only weights stored without
    quantisation: vLLM's CPU kernels for the others are few and differ by processor.
    """
    if preset.quantization:
        raise DoesNotFit(
            f"{preset.served_name} is stored in {preset.quantization}, which is served on GPUs only; "
            "on this machine take a model that is not quantised, such as tiny-phi-3"
        )
    load = Load(
        sequences=demand.sequences or 64,
        batched_tokens=demand.batched_tokens or 2048,
        weight_bytes=1.0 if preset.dtype == "float32" else 2.0,
        kv_bytes=4,
        lora_slots=(demand.lora_slots or 2) if demand.lora else 0,
        lora_rank=(demand.lora_rank or 64) if demand.lora else 0,
        block=CPU_BLOCK,
    )
    weights = memory.weights_gib(preset, _SHAPE, load)
    activations = memory.activations_gib(preset, _SHAPE, load)
    # Adapters are float32 here as well, twice the 16 bits that the GPU formula counts.
    slots = 2 * memory.lora_gib(preset, _SHAPE, load)
    room = sku.ram_gib - _PROCESSES_GIB - weights - activations - slots
    wanted = min(demand.context or preset.context, preset.context)
    layout = kv_layout(preset, _SHAPE, load)
    one = layout.sequence_gib(min(wanted, _LEAST_CONTEXT))
    if room < one:
        need = weights + activations + slots + _PROCESSES_GIB + one
        raise DoesNotFit(
            f"{preset.served_name} needs {need:.1f} GiB of memory in float32 ({weights:.1f} of it weights), this "
            f"machine has {sku.ram_gib:.1f}: try the preset tiny-phi-3 or another small model"
        )
    length = layout.longest(min(room, _KV_CAP_GIB), wanted)
    if demand.context and length < wanted:
        length = layout.longest(room, wanted)
        if length < wanted:
            raise DoesNotFit(
                f"{preset.served_name} with {wanted} tokens of context does not fit this machine's "
                f"{sku.ram_gib:.1f} GiB; at most {length} tokens do"
            )
    full = layout.sequence_gib(length)
    cache = min(max(full, min(max(_SEQUENCES_OF_FULL_LENGTH * full, _KV_FLOOR_GIB), _KV_CAP_GIB)), room)
    return Sizing(
        shape=_SHAPE,
        nodes=1,
        replicas=1,
        max_model_len=length,
        load=load,
        utilization=0.0,
        budget=MemoryBudget(
            gpu_gib=sku.ram_gib,
            usable_gib=weights + activations + slots + cache + _PROCESSES_GIB,
            weights_gib=weights,
            kv_cache_gib=cache,
            activations_gib=activations,
            lora_gib=slots,
            overhead_gib=_PROCESSES_GIB,
        ),
        layout=layout,
    )
