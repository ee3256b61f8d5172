# SPDX-License-Identifier: Apache-2.0
"""A model, a size and what is wanted of them in; the smallest arrangement of GPUs that holds it out.

Called by the planners and by advise.py. What each part of memory takes is in memory.py and kv_cache.py.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kaito_ray import memory
from kaito_ray.compatibility import require_runnable, tensor_sizes
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


def size_model(preset: Preset, sku: Sku, demand: Demand, *, max_nodes: int) -> Sizing:
    """The arrangement with the fewest nodes that holds the model with what is demanded; raises DoesNotFit.

    Within a node the fewest GPUs win and the rest become copies. Without a context the nodes are sized as KAITO does,
    for 2,048 tokens, and the longest context that fits is taken.
    """
    require_runnable(preset, sku)
    if demand.context is not None and demand.context > preset.context:
        raise DoesNotFit(
            f"{preset.name} takes at most {preset.context} tokens of context, {demand.context} are asked for",
            reason="ContextTooLong",
        )
    search = _Search(preset, sku, demand)
    needed = min(demand.context or DEFAULT_CONTEXT, preset.context)
    for shape in search.shapes(max_nodes):
        fit = search.fit(shape, needed)
        if fit is not None:
            return search.sizing(fit if demand.context is not None else search.comfortable(fit))
    raise DoesNotFit(search.why_not(needed, max_nodes))


def size_unchecked(preset: Preset, sku: Sku, demand: Demand, *, nodes: int) -> Sizing:
    """Every GPU of `nodes` nodes for one copy, whether it fits or not: for users who bypass the check."""
    search = _Search(preset, sku, demand)
    tensor = demand.tensor or tensor_sizes(preset, sku.gpus)[-1]
    fit = search.load_of(Shape(tensor, demand.pipeline or nodes), search.loads[0])
    length = min(demand.context or DEFAULT_CONTEXT, preset.context)
    return replace(search.sizing(fit), replicas=1, max_model_len=length, load=fit.load)


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


@dataclass(frozen=True, slots=True)
class _Fit:
    """One shape under one load: where its memory goes."""

    shape: Shape
    load: Load
    budget: MemoryBudget
    layout: KvLayout

    def holds(self, tokens: int) -> bool:
        """Whether the cache left has room for one sequence of `tokens` tokens."""
        return 0 < self.budget.kv_cache_gib >= self.layout.sequence_gib(tokens)


class _Search:
    """Looks for the first arrangement of one model on one size that holds what is demanded."""

    def __init__(self, preset: Preset, sku: Sku, demand: Demand) -> None:
        self._preset = preset
        self._sku = sku
        self._demand = demand
        self._utilization = demand.utilization or memory.utilization(sku)
        self.loads = tuple(serving_loads(preset, sku, demand))

    def shapes(self, max_nodes: int) -> list[Shape]:
        """Arrangements by rising cost: more GPUs of one node, then whole nodes in a pipeline."""
        demand, preset, gpus = self._demand, self._preset, self._sku.gpus
        sizes = [size for size in tensor_sizes(preset, gpus) if demand.tensor in (None, size)]
        if not sizes:
            allowed = ", ".join(map(str, tensor_sizes(preset, gpus)))
            raise DoesNotFit(
                f"{preset.name} cannot be cut over {demand.tensor} GPUs of one node: tensor-parallel-size must divide "
                f"its {preset.heads} heads and fit {gpus} GPUs, so it is one of {allowed}"
            )
        shapes = [Shape(size, 1) for size in sizes]
        if preset.pipeline:
            shapes += [Shape(sizes[-1], nodes) for nodes in range(2, min(max_nodes, preset.layers) + 1)]
        return [shape for shape in shapes if demand.pipeline in (None, shape.pipeline)]

    def fit(self, shape: Shape, tokens: int) -> _Fit | None:
        """The shape under the largest load beside which `tokens` tokens fit."""
        fits = (self.load_of(shape, load) for load in self.loads)
        return next((fit for fit in fits if fit.holds(tokens)), None)

    def load_of(self, shape: Shape, load: Load) -> _Fit:
        """The shape under a load, whether it fits or not."""
        parts = budget(self._preset, self._sku, shape, load, utilization=self._utilization)
        return _Fit(shape, load, parts, kv_layout(self._preset, shape, load))

    def comfortable(self, fit: _Fit) -> _Fit:
        """A wider cut of the same node if this one leaves little context; the same where nothing is better."""
        wanted = min(COMFORTABLE_CONTEXT, self._preset.context)
        if fit.shape.pipeline > 1 or fit.holds(wanted):
            return fit
        wider = (self.fit(shape, wanted) for shape in self.shapes(1) if shape.tensor >= fit.shape.tensor)
        return next((better for better in wider if better is not None), fit)

    def sizing(self, fit: _Fit) -> Sizing:
        """A fit as the answer, with the longest context it holds."""
        longest = fit.layout.longest(fit.budget.kv_cache_gib, self._preset.context)
        return Sizing(
            shape=fit.shape,
            nodes=fit.shape.pipeline,
            replicas=self._sku.gpus // fit.shape.tensor if fit.shape.pipeline == 1 else 1,
            max_model_len=min(self._demand.context or longest, longest),
            load=_cap_sequences(fit),
            utilization=self._utilization,
            budget=fit.budget,
            layout=fit.layout,
        )

    def why_not(self, tokens: int, max_nodes: int) -> str:
        """One sentence: how many nodes it would take, or what one GPU cannot hold however many there are."""
        wish = f"{self._preset.name} with {tokens} tokens of context"
        shapes = self.shapes(_LOOK_AHEAD_NODES)
        if not shapes:
            return f"{wish} cannot be spread over {self._demand.pipeline} nodes, at most {max_nodes} are allowed"
        enough = bisect_left(shapes, True, key=lambda shape: self.fit(shape, tokens) is not None)
        if enough < len(shapes):
            nodes = shapes[enough].pipeline
            return f"{wish} needs {nodes} x {self._sku.name}, and at most {max_nodes} nodes are allowed"
        least = self.load_of(shapes[-1], self.loads[-1])
        parts = least.budget
        return (
            f"{wish} does not fit {self._sku.name}, however many: even over {least.shape.gpus} GPUs, each needs "
            f"{parts.weights_gib:.1f} GiB for weights, {least.layout.sequence_gib(tokens):.1f} for the cache of one "
            f"sequence and {parts.activations_gib + parts.lora_gib + parts.overhead_gib:.1f} beside, and has "
            f"{parts.usable_gib:.1f}"
        )


def _cap_sequences(fit: _Fit) -> Load:
    """Fewer sequences where each holds a state: vLLM refuses to start with fewer blocks than max-num-seqs."""
    if not fit.layout.recurrent:
        return fit.load
    blocks = int(fit.budget.kv_cache_gib * GIB // fit.layout.pool_block_bytes)
    return replace(fit.load, sequences=min(fit.load.sequences, blocks))
