# SPDX-License-Identifier: Apache-2.0
"""How much of one GPU's memory each part of an engine takes: facts and a shape in, GiB out.

Pure arithmetic, called by sizing.py. Every function returns the figure for the GPU that holds most, because that one
decides whether the engine starts. Where vLLM computes the same thing at start-up, its own rule is followed.
"""

import math

from kaito_ray.preset import Preset
from kaito_ray.shape import GIB, Load, Shape
from kaito_ray.sku import Sku


def utilization(sku: Sku) -> float:
    """The gpu-memory-utilization of vLLM on that size, a multiple of 0.01.

    vLLM 0.32's default is 0.92 (config/cache.py), and it counts CUDA graphs within. On small GPUs 8 % is less than
    the driver and the CUDA context take before the engine looks at free memory, so at least 1.4 GiB are left alone.
    """
    return math.floor(min(0.92, 1 - 1.4 / sku.gpu_gib) * 100) / 100


def weights_gib(preset: Preset, shape: Shape, load: Load) -> float:
    """Weights on the fullest GPU.

    Layers are dealt out to the stages, the first ones getting one more where they do not divide (vLLM's
    distributed/utils.py, get_pp_indices); the embedding and the output head, each vocabulary x hidden in 16 bits, are
    not layers and sit on the first and the last stage. Tensor parallelism divides all matrices. 2 % are added for
    what is replicated (norms, biases, routers) and for alignment: KAITO's own estimator uses the same 1.02.
    """
    total = preset.engine_gib * load.weight_bytes
    if shape.pipeline > 1:
        table = preset.vocab_size * preset.hidden_size * 2 * load.weight_bytes / GIB
        layers = max(total - 2 * table, 0.0)
        total = layers * math.ceil(preset.layers / shape.pipeline) / preset.layers + table
    return 1.02 * total / shape.tensor


def activations_gib(preset: Preset, shape: Shape, load: Load) -> float:
    """The peak of a forward pass and of sampling, which vLLM finds by running one of `batched_tokens` tokens.

    Per token, in 16 bits: the residual and its normed copy, queries with keys and values, and the gate, up and
    product of the feed-forward part; a mixture of experts also keeps a copy of the token for each of about 8 experts.
    Per sequence: the logits in float32, their sorted copy, probabilities and indices, over the whole vocabulary. For
    Llama-3-8B with 8,192 tokens and 256 sequences this gives 1.6 GiB where vLLM measured 1.26 (its PR 10511).
    Models with images profile one of the largest size as well, and those with a latent unfold it for up to 65,536
    tokens of chunked prefill (vLLM's MLA workspace): 1 GiB each.
    """
    width = 4 if load.kv_bytes == 4 else 2
    feed_forward = 3 * (preset.intermediate_size or 4 * preset.hidden_size)
    copies = 12 if preset.mixture_of_experts else 4
    per_token = width * (copies * preset.hidden_size + (3 * preset.hidden_size + feed_forward) / shape.tensor)
    per_sequence = 4 * 4 * preset.vocab_size
    extra = float(preset.multimodal) + float(preset.mla)
    return (load.batched_tokens * per_token + load.sequences * per_sequence) / GIB + extra


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

    vLLM's logs show 0.16 to 0.33 GiB that torch does not know of on one GPU (its PR 12126, issue 14452), and 0.36 to
    0.73 GiB for the graphs of up to 512 tokens (its PR 39559): 1.1 GiB for both. GPUs that work together exchange
    through buffers of NCCL and of custom all-reduce: 1 GiB more. With the 2 % on weights this stays below the 2.3 GiB
    and 5 % of KAITO's estimator, which also leaves 16 % of the GPU alone.
    """
    return 1.1 + (1.0 if shape.gpus > 1 else 0.0)
