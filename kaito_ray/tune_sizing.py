# SPDX-License-Identifier: Apache-2.0
"""How much memory one worker of a tuning takes, and the batch and length that fit: facts in, figures out. Pure.

Called by plan_tune.py. Every worker holds a whole copy of the base model, on one GPU.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kaito_ray.preset import Preset
from kaito_ray.shape import GIB
from kaito_ray.sku import Sku

# Samples that one step learns from, over all workers: what the QLoRA paper (arXiv 2305.14314, table 9) used.
_STEP_SAMPLES = 16
_BATCHES = (8, 4, 2, 1)
_LENGTHS = (2048, 1024, 512)
# Tokens whose logits TRL's fused head holds at a time.
_TILE = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What one worker is asked to hold; `bits` of a weight of a layer: 16, 32 on a CPU, 8 or 4 quantised."""

    bits: int
    rank: int
    batch: int
    length: int
    checkpointing: bool


def training_gib(preset: Preset, load: Load) -> float:
    """Memory of one worker.

    Weights: as many bits as they have; nf4 with double quantisation takes 4.127 per weight of the layers (QLoRA paper),
    embedding and output head stay in 16. Adapter: rank x (inputs + outputs) of every linear layer, about 20 x hidden
    per layer, in float32 with its gradient and Adam's two moments, 16 bytes each. Activations: with gradient
    checkpointing one hidden state per layer and one layer's own in full, without it all layers' own. Logits of a tile
    with their gradient in float32. 1 GiB for CUDA and the allocator.
    """
    scale = 2.0 if load.bits == 32 else 1.0
    tables = 2 * preset.vocab_size * preset.hidden_size * 2 / GIB
    layers = max(preset.engine_gib - tables, 0.0)
    per_weight = {4: 4.127 / 16, 8: 0.51}.get(load.bits, 1.0)
    weights = scale * (layers * per_weight + min(tables, preset.engine_gib))
    adapter = 16 * load.rank * 20 * preset.hidden_size * preset.layers / GIB
    inner = preset.intermediate_size or 4 * preset.hidden_size
    tokens = load.batch * load.length
    own = 8 * preset.hidden_size + 6 * inner
    kept = preset.layers * preset.hidden_size + own if load.checkpointing else preset.layers * own
    activations = scale * tokens * 2 * kept / GIB
    logits = 2 * 4 * min(tokens, _TILE) * preset.vocab_size / GIB
    return weights + adapter + activations + logits + 1.0


def available_gib(sku: Sku) -> float:
    """What one worker may fill: a GPU less its context, or this machine less its other processes."""
    return sku.gpu_gib - 1.0 if sku.gpus else sku.ram_gib - 3.0


def candidates(preset: Preset, asked: Load, *, batch: int | None, length: int | None) -> Iterator[Load]:
    """What to try, the most wanted first: a long context matters more than a large batch.

    `batch` and `length` are the user's own, where there are any.
    """
    lengths: Iterable[int] = (length,) if length else dict.fromkeys(min(preset.context, one) for one in _LENGTHS)
    for one_length in lengths:
        for one_batch in (batch,) if batch else _BATCHES:
            yield Load(asked.bits, asked.rank, one_batch, one_length, asked.checkpointing)


def accumulation(batch: int, workers: int) -> int:
    """Batches per worker and step, so that a step learns from about as many samples whatever fits at once."""
    return max(1, round(_STEP_SAMPLES / (batch * workers)))


def learning_rate(preset: Preset) -> float:
    """A rate for LoRA that smaller models take higher, to two digits.

    "LoRA Without Regret" (Thinking Machines, 2025) found ten times the rate of full fine-tuning, 5e-4 at a hidden size
    of 2000, falling with the 0.78th power of it: 2.9e-4 at 4096.
    """
    return float(f"{5e-4 * (2000 / preset.hidden_size) ** 0.775:.1e}")
