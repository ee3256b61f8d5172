# SPDX-License-Identifier: Apache-2.0
"""A model, a size and a context in; the smallest arrangement of GPUs that holds it out.

Called by the planners (plan_serve.py) and by `kaito-ray plan --advise`. The memory of each part is in memory.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kaito_ray import memory
from kaito_ray.errors import DoesNotFit
from kaito_ray.memory import Load, Shape
from kaito_ray.plan import MemoryBudget
from kaito_ray.preset import Preset
from kaito_ray.sku import Sku

# KAITO sizes nodes for this context when the user names none (its estimator.go).
DEFAULT_CONTEXT = 2048
# GPUs that are paid for anyway are joined until a copy reaches this context, rather than run copies too small to use.
COMFORTABLE_CONTEXT = 8192
# Slots and rank of adapters, tried in this order; vLLM accepts adapters up to the rank.
LORA_STEPS = ((4, 64), (1, 64), (1, 16))


@dataclass(frozen=True, slots=True)
class Sizing:
    """One arrangement: `nodes` nodes hold `replicas` copies of `shape`, each with room for `max_model_len` tokens."""

    shape: Shape
    nodes: int
    nodes_per_replica: int
    replicas: int
    max_model_len: int
    load: Load
    utilization: float
    budget: MemoryBudget


def serving_load(preset: Preset, sku: Sku) -> Load:
    """What an engine is asked to carry on that size.

    256 sequences and 2,048 tokens per step are vLLM's defaults for a server; with 70 GiB or more and no A100 it takes
    8,192 tokens (engine/arg_utils.py). Both are pinned, so that the arithmetic and the engine agree.
    """
    roomy = sku.gpu_gib >= 70 and "A100" not in sku.gpu
    kv_bytes = 1 if str(preset.engine.get("kv-cache-dtype", "")).startswith("fp8") else 2
    return Load(sequences=256, batched_tokens=8192 if roomy else 2048, kv_bytes=kv_bytes)


def tensor_sizes(preset: Preset, gpus: int) -> list[int]:
    """Ways to cut the model over at most `gpus` GPUs of a node, ascending.

    Heads must divide, and key heads must divide or be divided: vLLM gives each GPU whole heads, and copies a key head
    where there are more GPUs than key heads. A latent (MLA) has no key heads to deal out.
    """
    return [
        size
        for size in range(1, gpus + 1)
        if preset.heads % size == 0
        and (preset.mla or all(keys % size == 0 or size % keys == 0 for keys in _key_heads(preset)))
    ]


def _key_heads(preset: Preset) -> set[int]:
    return {preset.kv_heads} | {group.kv_heads for group in preset.cache if group.kv_heads}


def size_model(
    preset: Preset,
    sku: Sku,
    *,
    context: int | None,
    max_nodes: int,
    load: Load | None = None,
    lora: bool = True,
    gpus: int | None = None,
) -> Sizing:
    """The arrangement with the fewest nodes that holds the model with `context` tokens.

    Within a node the fewest GPUs win and the rest become copies. Without a `context` the nodes are sized as KAITO
    does, and the longest context that fits is taken. `gpus` bounds the GPUs used per node. Raises DoesNotFit.
    """
    load = load or serving_load(preset, sku)
    needed = min(context or DEFAULT_CONTEXT, preset.context)
    steps = [replace(load, lora_slots=slots, lora_rank=rank) for slots, rank in LORA_STEPS] if lora else [load]
    per_node = gpus or sku.gpus
    for smallest, nodes in _shapes(preset, per_node, max_nodes):
        shape = smallest
        fitted = _fit(preset, sku, shape, steps, needed)
        if fitted is None:
            continue
        if context is None and nodes == 1:
            shape, fitted = _comfortable(preset, sku, shape, fitted, steps, per_node)
        chosen, longest = fitted
        length = min(context or longest, longest)
        return Sizing(
            shape=shape,
            nodes=nodes,
            nodes_per_replica=nodes,
            replicas=per_node // shape.tensor if nodes == 1 else 1,
            max_model_len=length,
            load=chosen,
            utilization=memory.utilization(sku),
            budget=budget(preset, sku, shape, chosen),
        )
    raise DoesNotFit(f"{preset.name} with {needed} tokens of context does not fit {max_nodes} x {sku.name}")


def _shapes(preset: Preset, per_node: int, max_nodes: int) -> Iterator[tuple[Shape, int]]:
    """Arrangements by rising cost: more GPUs of one node, then whole nodes in a pipeline."""
    sizes = tensor_sizes(preset, per_node)
    for tensor in sizes:
        yield Shape(tensor, 1), 1
    for nodes in range(2, min(max_nodes, preset.layers) + 1):
        yield Shape(sizes[-1], nodes), nodes


def _fit(preset: Preset, sku: Sku, shape: Shape, steps: list[Load], needed: int) -> tuple[Load, int] | None:
    """The first load under which `needed` tokens fit, and the longest context it leaves room for."""
    for load in steps:
        longest = longest_context(preset, sku, shape, load)
        if longest >= needed:
            return load, longest
    return None


def _comfortable(
    preset: Preset, sku: Sku, shape: Shape, fitted: tuple[Load, int], steps: list[Load], per_node: int
) -> tuple[Shape, tuple[Load, int]]:
    """A wider cut of the same node if this one leaves little context; the same where nothing is better."""
    wanted = min(COMFORTABLE_CONTEXT, preset.context)
    if fitted[1] >= wanted:
        return shape, fitted
    for tensor in tensor_sizes(preset, per_node):
        wider = Shape(tensor, 1)
        better = _fit(preset, sku, wider, steps, wanted)
        if tensor > shape.tensor and better is not None:
            return wider, better
    return shape, fitted


def longest_context(preset: Preset, sku: Sku, shape: Shape, load: Load) -> int:
    """Tokens of the longest sequence that fits beside everything else, at most the model's own limit; 0 if none."""
    room = budget(preset, sku, shape, load).kv_cache_gib
    low, high = 0, preset.context
    while low < high:
        middle = math.ceil((low + high) / 2)
        if memory.kv_gib(preset, middle, shape, load) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def budget(preset: Preset, sku: Sku, shape: Shape, load: Load) -> MemoryBudget:
    """Where each GiB of the fullest GPU goes; the KV cache gets what the rest leaves, as in vLLM."""
    usable = memory.usable_gib(sku)
    weights = memory.weights_gib(preset, shape, load)
    activations = memory.activations_gib(preset, shape, load)
    lora = memory.lora_gib(preset, shape, load)
    overhead = memory.overhead_gib(shape)
    return MemoryBudget(
        gpu_gib=sku.gpu_gib,
        usable_gib=usable,
        weights_gib=weights,
        kv_cache_gib=max(usable - weights - activations - lora - overhead, 0.0),
        activations_gib=activations,
        lora_gib=lora,
        overhead_gib=overhead,
    )
