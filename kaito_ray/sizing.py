# SPDX-License-Identifier: Apache-2.0
"""A model, a size and what is wanted of them in; the smallest arrangement of GPUs that holds it out.

Called by the planners and by advise.py. What each part of memory takes is in memory.py and kv_cache.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kaito_ray import memory
from kaito_ray.errors import DoesNotFit
from kaito_ray.kv_cache import KvLayout, kv_layout
from kaito_ray.plan import MemoryBudget
from kaito_ray.preset import Preset
from kaito_ray.shape import GIB, Load, Shape
from kaito_ray.sku import Sku

# KAITO sizes nodes for this context when the user names none (its estimator.go).
DEFAULT_CONTEXT = 2048
# GPUs that are paid for anyway are joined until a copy reaches this context, rather than run copies too small to use.
COMFORTABLE_CONTEXT = 8192
# Slots and rank of adapters, tried in this order; vLLM accepts adapters up to the rank.
LORA_STEPS = ((4, 64), (1, 64), (1, 16))
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
# How far to look for the number of nodes that would do, when the cap is below it.
_LOOK_AHEAD_NODES = 64


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of an engine; None lets kaito-ray decide."""

    context: int | None = None
    """Tokens one sequence may have; None sizes for 2,048 and takes the longest that fits then."""
    tensor: int | None = None
    pipeline: int | None = None
    sequences: int | None = None
    batched_tokens: int | None = None
    kv_cache_dtype: str | None = None
    utilization: float | None = None
    lora: bool = True
    lora_slots: int | None = None
    lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Sizing:
    """One arrangement: `nodes` nodes hold `replicas` copies of `shape`, each with room for `max_model_len` tokens."""

    shape: Shape
    nodes: int
    replicas: int
    max_model_len: int
    load: Load
    utilization: float
    budget: MemoryBudget
    layout: KvLayout

    @property
    def concurrency(self) -> float:
        """Sequences of full length that fit at once into one copy's cache."""
        one = self.layout.sequence_gib(self.max_model_len)
        return self.budget.kv_cache_gib / one if one else float(self.load.sequences)


@dataclass(frozen=True, slots=True)
class _Fit:
    load: Load
    budget: MemoryBudget
    layout: KvLayout


def size_model(preset: Preset, sku: Sku, demand: Demand, *, max_nodes: int) -> Sizing:
    """The arrangement with the fewest nodes that holds the model with what is demanded; raises DoesNotFit.

    Within a node the fewest GPUs win and the rest become copies. Without a context the nodes are sized as KAITO does,
    for 2,048 tokens, and the longest context that fits is taken.
    """
    require_runnable(preset, sku)
    limit = preset.context
    if demand.context is not None and demand.context > limit:
        raise DoesNotFit(
            f"{preset.name} takes at most {limit} tokens of context, {demand.context} are asked for",
            reason="ContextTooLong",
        )
    needed = min(demand.context or DEFAULT_CONTEXT, limit)
    for shape in _shapes(preset, sku.gpus, demand, max_nodes):
        fit = _fit(preset, sku, shape, demand, needed)
        if fit is None:
            continue
        if demand.context is None and shape.pipeline == 1:
            shape, fit = _comfortable(preset, sku, shape, fit, demand)  # noqa: PLW2901 - the same node, cut wider
        longest = fit.layout.longest(fit.budget.kv_cache_gib, limit)
        return Sizing(
            shape=shape,
            nodes=shape.pipeline,
            replicas=sku.gpus // shape.tensor if shape.pipeline == 1 else 1,
            max_model_len=min(demand.context or longest, longest),
            load=_cap_sequences(fit),
            utilization=_utilization(sku, demand),
            budget=fit.budget,
            layout=fit.layout,
        )
    raise DoesNotFit(_why_not(preset, sku, demand, needed, max_nodes))


def size_unchecked(preset: Preset, sku: Sku, demand: Demand, *, nodes: int) -> Sizing:
    """Every GPU of `nodes` nodes for one copy, whether it fits or not: for users who bypass the check."""
    tensor = demand.tensor or tensor_sizes(preset, sku.gpus)[-1]
    shape = Shape(tensor, demand.pipeline or nodes)
    load = next(serving_loads(preset, sku, demand))
    return Sizing(
        shape=shape,
        nodes=shape.pipeline,
        replicas=1,
        max_model_len=min(demand.context or DEFAULT_CONTEXT, preset.context),
        load=load,
        utilization=_utilization(sku, demand),
        budget=budget(preset, sku, shape, load, utilization=_utilization(sku, demand)),
        layout=kv_layout(preset, shape, load),
    )


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


def serving_loads(preset: Preset, sku: Sku, demand: Demand) -> Iterator[Load]:
    """What an engine may be asked to carry on that size, the most first.

    256 sequences and 2,048 tokens per step are vLLM's defaults for a server; with 70 GiB or more and no A100 it takes
    8,192 tokens (engine/arg_utils.py). Models with images take 8,192 everywhere, because an image must fit one step.
    Both are pinned in the engine's flags, so that the arithmetic and the engine agree. Where that leaves too little,
    the adapters' slots and then the step get smaller.
    """
    dtype = demand.kv_cache_dtype or str(preset.engine.get("kv-cache-dtype", ""))
    kv_bytes = 1 if dtype.startswith(("fp8", "int8")) else 2
    roomy = sku.gpu_gib >= 70 and "A100" not in sku.gpu
    steps = (8192,) if preset.multimodal else (8192, 2048) if roomy else (2048,)
    for tokens in (demand.batched_tokens,) if demand.batched_tokens else steps:
        load = Load(sequences=demand.sequences or 256, batched_tokens=tokens, kv_bytes=kv_bytes)
        if not demand.lora:
            yield load
            continue
        for slots, rank in LORA_STEPS:
            yield replace(load, lora_slots=demand.lora_slots or slots, lora_rank=demand.lora_rank or rank)


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


def _shapes(preset: Preset, gpus: int, demand: Demand, max_nodes: int) -> Iterator[Shape]:
    """Arrangements by rising cost: more GPUs of one node, then whole nodes in a pipeline."""
    sizes = [size for size in tensor_sizes(preset, gpus) if demand.tensor in (None, size)]
    if not sizes:
        allowed = ", ".join(map(str, tensor_sizes(preset, gpus)))
        raise DoesNotFit(
            f"{preset.name} cannot be cut over {demand.tensor} GPUs of one node: tensor-parallel-size must divide its "
            f"{preset.heads} heads and fit {gpus} GPUs, so it is one of {allowed}"
        )
    if demand.pipeline in (None, 1):
        yield from (Shape(size, 1) for size in sizes)
    most = min(max_nodes, preset.layers)
    for nodes in range(2, most + 1):
        if demand.pipeline in (None, nodes):
            yield Shape(sizes[-1], nodes)


def _fit(preset: Preset, sku: Sku, shape: Shape, demand: Demand, needed: int) -> _Fit | None:
    """The largest load beside which `needed` tokens fit."""
    for load in serving_loads(preset, sku, demand):
        layout = kv_layout(preset, shape, load)
        parts = budget(preset, sku, shape, load, utilization=_utilization(sku, demand))
        if layout.sequence_gib(needed) <= parts.kv_cache_gib and parts.kv_cache_gib > 0:
            return _Fit(load, parts, layout)
    return None


def _comfortable(preset: Preset, sku: Sku, shape: Shape, fit: _Fit, demand: Demand) -> tuple[Shape, _Fit]:
    """A wider cut of the same node if this one leaves little context; the same where nothing is better."""
    wanted = min(COMFORTABLE_CONTEXT, preset.context)
    if fit.layout.sequence_gib(wanted) <= fit.budget.kv_cache_gib:
        return shape, fit
    for wider in _shapes(preset, sku.gpus, demand, max_nodes=1):
        better = _fit(preset, sku, wider, demand, wanted)
        if wider.tensor >= shape.tensor and better is not None:
            return wider, better
    return shape, fit


def _cap_sequences(fit: _Fit) -> Load:
    """Fewer sequences where each holds a state: vLLM refuses to start with fewer blocks than max-num-seqs."""
    if not fit.layout.recurrent:
        return fit.load
    blocks = int(fit.budget.kv_cache_gib * GIB // fit.layout.pool_block_bytes)
    return replace(fit.load, sequences=min(fit.load.sequences, blocks))


def _utilization(sku: Sku, demand: Demand) -> float:
    return demand.utilization or memory.utilization(sku)


def budget(preset: Preset, sku: Sku, shape: Shape, load: Load, *, utilization: float) -> MemoryBudget:
    """Where each GiB of the fullest GPU goes; the KV cache gets what the rest leaves, as in vLLM."""
    usable = sku.gpu_gib * utilization
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


def _why_not(preset: Preset, sku: Sku, demand: Demand, needed: int, max_nodes: int) -> str:
    """One sentence: how many nodes it would take, or what one GPU cannot hold however many there are."""
    wish = f"{preset.name} with {needed} tokens of context"
    shapes = list(_shapes(preset, sku.gpus, demand, _LOOK_AHEAD_NODES))
    for shape in shapes:
        if _fit(preset, sku, shape, demand, needed) is not None:
            return f"{wish} needs {shape.pipeline} x {sku.name}, and at most {max_nodes} nodes are allowed"
    if not shapes:
        return f"{wish} cannot be spread over {demand.pipeline} nodes, at most {max_nodes} are allowed"
    shape = shapes[-1]
    least = list(serving_loads(preset, sku, demand))[-1]
    parts = budget(preset, sku, shape, least, utilization=_utilization(sku, demand))
    cache = kv_layout(preset, shape, least).sequence_gib(needed)
    return (
        f"{wish} does not fit {sku.name}, however many: even over {shape.gpus} GPUs, each needs "
        f"{parts.weights_gib:.1f} GiB for weights, {cache:.1f} for the cache of one sequence and "
        f"{parts.activations_gib + parts.lora_gib + parts.overhead_gib:.1f} beside, and has {parts.usable_gib:.1f}"
    )
