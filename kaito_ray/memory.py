# SPDX-License-Identifier: Apache-2.0
"""How much of one GPU's memory each part of an engine takes: facts and a shape in, GiB out.

Pure arithmetic, called by sizing.py. Every function returns the figure for the GPU that holds most, because that one
decides whether the engine starts. Where vLLM computes the same thing at start-up, its own rule is followed.
"""

import math
from dataclasses import dataclass

from kaito_ray.preset import CacheLayers, Preset
from kaito_ray.sku import Sku

GIB = 2**30
# vLLM's default block of tokens; the smallest piece of KV cache it hands out.
BLOCK = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """How one copy of a model is cut: tensor parallel within a node, pipeline parallel across nodes."""

    tensor: int
    pipeline: int

    @property
    def gpus(self) -> int:
        """GPUs of one copy."""
        return self.tensor * self.pipeline


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine is asked to carry at once."""

    sequences: int
    """vLLM's max-num-seqs."""
    batched_tokens: int
    """vLLM's max-num-batched-tokens: tokens of one forward pass."""
    weight_bytes: float = 1.0
    """Factor on the stored weights: 2 when 16-bit weights are computed in float32."""
    kv_bytes: int = 2
    """Bytes of one number in the KV cache: 1 for fp8, 4 for float32."""
    lora_slots: int = 0
    lora_rank: int = 0
    block: int = BLOCK


def utilization(sku: Sku) -> float:
    """The gpu-memory-utilization of vLLM on that size, a multiple of 0.01.

    vLLM 0.32's default is 0.92 (config/cache.py), and it counts CUDA graphs within. On small GPUs 8 % is less than
    the driver and the CUDA context take before the engine looks at free memory, so at least 1.4 GiB are left alone.
    """
    return math.floor(min(0.92, 1 - 1.4 / sku.gpu_gib) * 100) / 100


def usable_gib(sku: Sku) -> float:
    """What the engine may take of one GPU."""
    return sku.gpu_gib * utilization(sku)


def weights_gib(preset: Preset, shape: Shape, load: Load) -> float:
    """Weights on the fullest GPU.

    Layers are dealt out to the stages, the first ones getting one more where they do not divide (vLLM's
    distributed/utils.py, get_pp_indices); the embedding and the output head, each vocabulary x hidden in 16 bits, are
    not layers and sit on the first and the last stage. Tensor parallelism divides all matrices. 2 % are added for
    what is replicated (norms, biases, routers) and for alignment: KAITO's own estimator uses the same 1.02.
    """
    total = preset.weights_gib * load.weight_bytes
    if shape.pipeline > 1:
        table = preset.vocab_size * preset.hidden_size * 2 * load.weight_bytes / GIB
        layers = max(total - 2 * table, 0.0)
        total = layers * math.ceil(preset.layers / shape.pipeline) / preset.layers + table
    return 1.02 * total / shape.tensor


def kv_gib(preset: Preset, tokens: int, shape: Shape, load: Load) -> float:
    """KV cache of one sequence of `tokens` tokens on the fullest GPU, as vLLM asks for it at start-up.

    vLLM 0.32 (v1/core/kv_cache_utils.py): layers of one kind are split into groups of equal size, the smallest kind
    giving the size; every group takes blocks from one pool whose block is as wide as the largest layer's, and
    a sliding layer holds its window and the tokens in flight, one block more because a window may start inside one.
    A recurrent layer holds two states (prefix caching keeps one more), each padded to whole blocks.
    """
    kinds = [group for group in _cache_layers(preset) if group.kind != "shared"]
    widths = [_layer_bytes(preset, group, shape, load) for group in kinds]
    attention = [width * load.block for group, width in zip(kinds, widths, strict=True) if group.kind != "recurrent"]
    states = [width for group, width in zip(kinds, widths, strict=True) if group.kind == "recurrent"]
    page = max([*attention, *states])
    if states and attention:
        # A block of attention is widened until it holds a state, and then rounded to the kernel's own block.
        page = math.ceil(max(states) / max(attention)) * max(attention)
    size = min(group.layers for group in kinds)
    if max(group.layers for group in kinds) < 1.5 * size:
        size = max(group.layers for group in kinds)
    blocks = 0
    for group, width in zip(kinds, widths, strict=True):
        groups = math.ceil(group.layers / size)
        if group.kind == "recurrent":
            blocks += groups * 2
            continue
        block = max(page // width, load.block)
        if group.window is not None:
            held = min(group.window - 1 + _in_flight(shape, load), tokens)
            blocks += groups * (math.ceil(held / block) + 1)
        else:
            blocks += groups * math.ceil(tokens / block)
    return math.ceil(size / shape.pipeline) * page * blocks / GIB


def _in_flight(shape: Shape, load: Load) -> int:
    """Tokens scheduled and not yet settled: one batch per stage, two where scheduling overlaps with computing."""
    return load.batched_tokens * max(shape.pipeline, 2)


def _cache_layers(preset: Preset) -> tuple[CacheLayers, ...]:
    return preset.cache or (CacheLayers(layers=preset.layers, kind="full"),)


def _layer_bytes(preset: Preset, group: CacheLayers, shape: Shape, load: Load) -> int:
    """Bytes on one GPU of one token in one layer, or of one state.

    Tensor parallelism divides key heads down to one per GPU; a latent (MLA) is whole on every GPU.
    """
    if group.state_bytes is not None:
        return math.ceil(group.state_bytes / shape.tensor)
    if preset.mla:
        return preset.kv_elements * load.kv_bytes
    heads = max((group.kv_heads or preset.kv_heads) // shape.tensor, 1)
    return 2 * heads * (group.head_dim or preset.head_dim) * load.kv_bytes


def activations_gib(preset: Preset, shape: Shape, load: Load) -> float:
    """The peak of a forward pass and of sampling, which vLLM finds by running one of `batched_tokens` tokens.

    Per token, in 16 bits: the residual and its normed copy, queries with keys and values, and the gate, up and
    product of the feed-forward part. Per sequence: the logits in float32, their sorted copy, probabilities and
    indices, over the whole vocabulary. Models with an image encoder profile an image of the largest size as well; 1 GiB
    is kept for that.
    """
    width = 4 if load.kv_bytes == 4 else 2
    feed_forward = 3 * (preset.intermediate_size or 4 * preset.hidden_size)
    per_token = width * (4 * preset.hidden_size + (3 * preset.hidden_size + feed_forward) / shape.tensor)
    per_sequence = 4 * 4 * preset.vocab_size
    return (load.batched_tokens * per_token + load.sequences * per_sequence) / GIB + (1.0 if preset.multimodal else 0.0)


def lora_gib(preset: Preset, shape: Shape, load: Load) -> float:
    """Slots for adapters: for each linear layer two matrices of the largest rank, in 16 bits.

    vLLM allocates them for every slot at start-up (lora/layers/): rank x inputs, whole on every GPU, and outputs x
    rank, divided by tensor parallelism. Inputs and outputs are summed over q, k, v, o, gate, up and down.
    """
    if not load.lora_slots:
        return 0.0
    hidden, inner = preset.hidden_size, preset.intermediate_size or 4 * preset.hidden_size
    heads, keys = preset.heads * preset.head_dim, preset.kv_heads * preset.head_dim
    inputs = 3 * hidden + heads + 2 * hidden + inner
    outputs = heads + 2 * keys + hidden + 2 * inner + hidden
    layers = math.ceil(preset.layers / shape.pipeline)
    per_slot = 2 * load.lora_rank * layers * (inputs + outputs / shape.tensor)
    return load.lora_slots * per_slot / GIB


def overhead_gib(shape: Shape) -> float:
    """What torch does not allocate, and CUDA graphs.

    KAITO measured 0.6 GiB that torch does not know of (its docs/proposals: 1.7 GiB for activations and graphs plus
    0.6); 0.5 GiB are kept for captured graphs. Several GPUs exchange through NCCL and custom all-reduce buffers:
    0.5 GiB more.
    """
    return 1.1 + (0.5 if shape.gpus > 1 else 0.0)
